"""A server under load -> throughput and latency.

serve.py    the measurement
load.py     the process that sends requests
figures.py  measurement -> figures
plots.py    figures -> plots
report.py   figures -> report
"""
