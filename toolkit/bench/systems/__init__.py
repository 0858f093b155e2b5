"""A speed-bench case -> logits, from a bundle or a baseline.

Other files are one system each, or code that several share: bundle, peft_eager, peft_seqcls, transformers_torch,
plain_onnx, encoder_onnx, transformers_onnx, optimum_onnx, llama_cpp, openvino, openvino_bf16; graph, hf, inputs,
timing.

    baselines.py  the baselines by name
    case.py       run -> the task that every system gets
    worker.py     the process that runs one system
"""
