"""A template, labels and a tokenizer -> ids.

template.py    the template notation
compile.py     template + tokenizer -> ids and tokenizer.json
words.py       words -> ids, apart from the rest of the template
verbalizer.py  labels -> label words -> ids
"""
