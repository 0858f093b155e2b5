"""Bundles of one task -> accuracy against size and latency.

quality.py  the bench
report.py   measurements -> report
"""
