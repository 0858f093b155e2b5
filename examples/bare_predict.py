"""Predict labels with a bundle, without ptexport. Usage: python bare_predict.py BUNDLE TEXT …."""

import json
import sys

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

folder, *texts = sys.argv[1:]
tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
tokenizer.enable_padding()
session = onnxruntime.InferenceSession(f"{folder}/model.onnx", providers=["CPUExecutionProvider"])
encodings = tokenizer.encode_batch(texts)
columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
names = [value.name for value in session.get_inputs()]
feed = {name: np.array([getattr(row, columns[name]) for row in encodings], dtype=np.int64) for name in names}
labels = json.loads(open(f"{folder}/config.json").read())["id2label"]
for row in session.run(["logits"], feed)[0]:
    print(labels[str(row.argmax())])
