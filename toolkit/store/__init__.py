"""Content -> files and folders, written atomically.

folders.py  folders
files.py    single files
cache.py    the cache of converted models and traces
"""
