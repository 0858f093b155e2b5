"""A checkpoint trained elsewhere -> a run.

source.py             folder -> what it holds, without torch
import_classifier.py  classifier of Transformers -> run, compared with its own logits
adapter.py            PEFT's adapter folder -> configuration and weights
peft_plan.py          import options -> loaded parts that fit together
import_peft.py        parts -> run, compared with PEFT's forward pass
conversion.py         task tensors -> run; rows and tolerance of the comparison
"""
