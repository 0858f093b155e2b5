"""Texts -> predictions.

engine.py         Engine: the public class
task.py           one task of an open bundle
lifetime.py       what an open engine holds, and closing it
batching.py       encoded rows -> logits and items, batch by batch
text_encoder.py   texts -> encodings and padded ids
pack_tasks.py     a pack + an open bundle -> the pack's tasks in its session
task_encoders.py  a bundle -> the text encoders of its tasks
answer.py         what a batcher gives its callers, and says of its batches
caller.py         the texts of one caller while they are computed
admission.py      how long texts wait: who is refused, how large a batch is
batcher.py        texts of concurrent callers -> batches on one engine thread
forks.py          which process made an object
predictions.py    logits -> Prediction
golden.py         golden rows: does this machine compute what the model did?
info.py           EngineInfo: provider, placement, versions
"""
