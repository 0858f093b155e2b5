"""A model name -> a frozen backbone.

facts.py       what the rest needs to know about a backbone
checkpoint.py  alias, hub name or folder -> Hugging Face folder
supported.py   which models are refused, and why
backbone.py    folder -> loaded model
classifier.py  the module that is trained, scored and traced
"""
