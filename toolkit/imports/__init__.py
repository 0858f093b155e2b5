"""A checkpoint trained elsewhere -> a run.

source.py             folder -> what it holds
config.py             options of an import, its rows
adapter_files.py      PEFT's adapter folder -> what its files say
classifier_files.py   files of a classifier -> its labels
inputs.py             import options -> checked inputs
import_classifier.py  classifier of Transformers -> run, compared with its own logits
adapter.py            files of an adapter -> PEFT's model
peft_plan.py          inputs of an adapter -> loaded parts that fit together
import_peft.py        parts -> run, compared with PEFT's forward pass
conversion.py         task tensors -> run; tolerance of the comparison

The first five need no torch.
"""
