"""A model name -> a frozen backbone.

facts.py       facts about a backbone, without its weights
checkpoint.py  alias, hub name or folder -> Hugging Face folder
supported.py   which models are supported
backbone.py    folder -> loaded model
classifier.py  the torch module that is trained, scored and traced
"""
