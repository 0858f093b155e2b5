"""A PEFT adapter -> a run.

adapter.py     adapter folder -> configuration and weights
plan.py        import request -> matching parts
import_run.py  parts -> run, compared with PEFT
"""
