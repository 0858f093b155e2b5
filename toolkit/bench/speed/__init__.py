"""A bundle and its alternatives -> latency ratios.

speed.py      the bench
prepare.py    installs and exports what a system needs, once
report.py     measurements -> report
latency.py    latencies -> tables, bars and sentences
footprint.py  start times, memory and files -> tables, bars and sentences
"""
