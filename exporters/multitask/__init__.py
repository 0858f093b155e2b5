"""Runs on one backbone -> the arrays and tokenizers of one bundle.

join.py  checks that the runs fit together, and joins their arrays, tokenizers and configuration
"""
