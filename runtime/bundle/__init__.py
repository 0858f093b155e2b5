"""A bundle folder -> verified files and a manifest.

manifest.py       what a bundle records about itself
manifest_json.py  manifest.json -> Manifest, of this format or the one before
format_1.py       manifests of format 1
measured.py       what the manifest records about parity, precision and latency
folder.py         folder -> Bundle, with every hash checked
signature.py      OpenSSF model signatures: check and sign
model_check.py    model.onnx -> BundleError for anything an export never writes
model_file.py     model.onnx <-> the part that all tasks share and the arrays of one task
protobuf.py       protobuf wire format <-> fields
"""
