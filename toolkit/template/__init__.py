"""A template, labels and a tokenizer -> ids.

template.py    the template notation
compile.py     template + tokenizer -> ids and tokenizer.json
words.py       ids of single words
verbalizer.py  labels -> label words -> ids
"""
