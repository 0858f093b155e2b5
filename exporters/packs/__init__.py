"""A task <-> one .ptpack file.

pack_file.py  the file format
pack.py       run -> pack
install.py    pack + bundle of the same backbone -> bundle
"""
