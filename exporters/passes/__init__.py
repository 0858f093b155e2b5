"""A traced graph -> the graph of a bundle, one edit per pass.

edit.py           what a pass is, and how passes are applied
bind.py           task tensors become initializers
read_position.py  the last layer is computed for one position
ort_rewrites.py   patterns in the form that ONNX Runtime fuses
device_sizes.py   sizes that meet tensors are made on their device
cleanup.py        unused nodes and intermediate shapes are removed
"""
