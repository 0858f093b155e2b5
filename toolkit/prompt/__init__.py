"""A backbone, a template and labels -> a model that can be trained and scored.

encoders.py      prompt encoders
soft_prompt.py   the task tensors as a module: prompt embeddings, keys and values, label weights
prompt_model.py  a template and labels on a backbone
trainable.py     fine-tuning and LoRA of the backbone
scoring.py       rows -> logits and accuracy
device.py        device name -> torch device
distributed.py   several training processes
"""
