"""A training configuration -> a run.

config.py        defaults, and checks that options fit together
plan.py          configuration -> loaded parts that fit together
train.py         plan -> run
loop.py          the training loop
loss.py          batch -> loss and gradients
prefix_cache.py  keys and values before the first virtual token, computed once
search.py        virtual tokens -> words, by gradient-guided search
calibration.py   temperature, abstention threshold, contextual calibration
resume.py        training state <-> resume.safetensors
data_checks.py   warnings about rows
sweep.py         one training per combination of options
"""
