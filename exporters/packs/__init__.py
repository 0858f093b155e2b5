"""The tasks of a bundle <-> one .ptpack file.

pack.py       runs -> pack
install.py    pack + bundle of the same backbone -> bundle
"""
