"""A bundle under ONNX Runtime's profiler -> time per operator and layer.

profile.py  the measurement
report.py   measurement -> report
"""
