"""The tasks of a bundle <-> one .ptpack file.

pack_file.py  the file format
pack.py       runs -> pack
install.py    pack + bundle of the same backbone -> bundle
"""
