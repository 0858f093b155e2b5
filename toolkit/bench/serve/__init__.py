"""A server under load -> throughput and latency.

serve.py    the measurement
load.py     the process that sends requests
figures.py  measurement -> figures
report.py   figures -> report
"""
