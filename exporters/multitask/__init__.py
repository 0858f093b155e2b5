"""Runs on one backbone -> one bundle.

join.py    runs -> joint task tensors and tokenizers
export.py  trace, bake and prove the joint graph
"""
