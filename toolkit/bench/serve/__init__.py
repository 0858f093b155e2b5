"""A server under load -> throughput and latency.

serve.py    the bench
load.py     the process that sends requests
figures.py  measurements -> figures
report.py   figures -> report
"""
