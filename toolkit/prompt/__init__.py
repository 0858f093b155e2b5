"""A backbone, a template and labels -> a model that can be trained and scored.

encoders.py      prompt encoders
soft_prompt.py   everything a task adds to the backbone
prompt_model.py  template and verbalizer on a backbone
trainable.py     fine-tuning and LoRA of the backbone
scoring.py       rows -> logits and accuracy
device.py        device name -> torch device
distributed.py   several training processes
"""
