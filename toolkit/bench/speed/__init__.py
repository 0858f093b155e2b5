"""A bundle and its rivals -> latency ratios.

speed.py    the bench
prepare.py  installs and exports what a rival needs, once
report.py   measurements -> report
"""
