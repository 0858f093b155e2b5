"""A PEFT adapter -> a run.

adapter.py     adapter folder -> configuration and weights
plan.py        import options -> loaded parts that fit together
import_run.py  parts -> run, compared with PEFT's forward pass
"""
