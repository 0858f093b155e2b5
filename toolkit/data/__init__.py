"""Files, hub data sets and built-in data -> train, dev and test rows.

splits.py  sources -> splits
cities.py  the built-in data set
"""
