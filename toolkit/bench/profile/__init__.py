"""A bundle under the profiler -> time per operator and layer.

profile.py  the measurement
report.py   measurement -> report
"""
