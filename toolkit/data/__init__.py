"""Files, hub data sets and built-in data -> train, dev and test rows.

sources.py  a file, a hub data set or the built-in data -> rows
splits.py   rows -> their labels, and train, dev and test rows
cities.py   the built-in data set
"""
