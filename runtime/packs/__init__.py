"""A .ptpack file <-> the tasks in it; without toolkit, torch, Transformers or onnx.

pack_file.py       the file format
tokenizer_part.py  tokenizer.json <-> the tasks' parts of it
assemble.py        pack + bundle of the same backbone -> the files of the pack's own bundle, in memory
"""
