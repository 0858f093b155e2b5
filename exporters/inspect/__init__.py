"""A graph -> its parts, their cost, and a picture.

parts.py    node -> part of the model
summary.py  bytes and FLOPs per part
plot.py     the picture
"""
