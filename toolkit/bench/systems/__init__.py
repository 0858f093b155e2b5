"""A speed-bench case -> logits, by a bundle or a rival.

Every other file is one system, or code that several share: bundle, peft_eager, peft_seqcls, transformers_torch,
plain_onnx, encoder_onnx, transformers_onnx, optimum_onnx, llama_cpp; graph, hf, inputs, trial.

    rivals.py  the rivals by name
    case.py    run -> what every system is asked
    worker.py  the process that runs one system
"""
