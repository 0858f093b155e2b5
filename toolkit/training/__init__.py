"""A training configuration -> a run.

config.py        checks that options fit together
defaults.py      the head, the template and the epochs that were not given
inputs.py        configuration -> rows, labels and a complete configuration, without PyTorch
plan.py          inputs -> loaded parts that fit together
train.py         plan -> run
loop.py          the training loop
loss.py          batch -> loss and gradients
prefix_cache.py  keys and values before the first virtual token, computed once
search.py        virtual tokens -> words, by gradient-guided search
calibration.py   temperature, abstention threshold, contextual calibration
resume.py        training state <-> resume.safetensors
data_checks.py   warnings about rows
sweep_table.py   values of options -> combinations, and the table of their outcomes
sweep.py         one training per combination
"""
