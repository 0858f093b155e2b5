"""What each deployment target accepts.

targets.py       opset, operators, size and precision per target
tensorrt.py      operators that TensorRT's parser accepts
tensorrt_rtx.py  TensorRT RTX: its parser, and engines
"""
