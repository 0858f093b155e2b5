"""Content -> files and folders, written atomically.

folders.py  whole folders, also ones that can be resumed
files.py    single files
cache.py    the cache of converted models and traces
"""
