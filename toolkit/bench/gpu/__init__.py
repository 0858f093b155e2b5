"""A machine with a GPU -> proof of what runs on it: placement, logits, CUDA graphs, memory and speed, step by step.

proof.py    the bench: steps -> results -> report and verdict
steps.py    the table of steps
runner.py   a step -> its result: a process with a time limit
results.py  the result of a step, kept as JSON
reasons.py  why a step cannot run here
report.py   results -> report

Each step runs one of these modules in a process of its own, through child.py:

child.py     the entry point, and what the others share
doctor.py    what the machine has
peak.py      the card's rates
inputs.py    a model -> a run and its bundles
reference.py a run -> logits of untouched Transformers
place.py     where nodes run, and the golden rows
parity.py    logits beside the reference, alone and among others
graph.py     CUDA graphs off and on
buffers.py   pageable, pinned and device memory
start.py     time to the first prediction, and memory
speed.py     `ptexport bench speed` with rivals
engine.py    a TensorRT engine
"""
