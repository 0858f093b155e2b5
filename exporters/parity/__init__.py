"""A graph and its model -> proof that both compute the same logits.

texts.py      the texts that are compared
reference.py  logits of untouched Transformers, one unpadded row at a time
compare.py    the graph against those logits
report.py     parity.json
html_page.py  the same as an HTML page
"""
