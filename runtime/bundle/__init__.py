"""A bundle folder -> verified files and a manifest.

manifest.py       Manifest and its parts
manifest_json.py  manifest.json -> Manifest
format_1.py       manifest.json of format 1 -> Manifest
measured.py       measurements in a manifest: parity, golden rows, precision, latency
folder.py         folder -> Bundle, with every hash checked
signature.py      OpenSSF model signatures: check and sign
model_check.py    model.onnx -> BundleError, if it holds anything that an export never writes
model_file.py     model.onnx <-> the frame that all tasks of a backbone share, and the arrays of one task
engine_model.py   model.onnx -> the EP-context model of its TensorRT RTX engine
protobuf.py       protobuf wire format <-> fields
"""
