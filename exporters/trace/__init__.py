"""A backbone -> an ONNX graph that takes all task tensors as inputs.

trace.py                 the export with torch.onnx, cached
cached.py                a traced graph on disk
multitask_classifier.py  the module that is traced for several tasks
"""
