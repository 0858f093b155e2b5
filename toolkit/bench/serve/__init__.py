"""A server under load -> throughput and latency.

serve.py          the measurement
limits.py         its part at and above the capacity
processes.py      the processes of server and load generator
load.py           the process that sends requests
sending.py        its connections
plan.py           what is measured, and the results
figures.py        measurement -> figures
limits_report.py  the same of limits.py, with its tables and sentences
plots.py          figures -> plots
report.py         figures -> report
wording.py        figures -> words
"""
