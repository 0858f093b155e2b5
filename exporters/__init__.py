"""Turns a Run into a bundle. Needs the extra `train`.

Data flow: backbone -> trace (cached) -> bake(run) -> bundle -> parity

    trace.py      backbone -> an ONNX graph that takes everything a task brings as inputs
    traced.py     that graph on disk
    passes.py     the edits made to that graph
    read_pass.py  the edit that computes the last layer for one position
    operators.py  which operators TensorRT's parser takes
    targets.py    what each target takes: opset, operators, size
    tune.py       which of several graphs is the fastest on this machine
    bake.py       run + traced graph -> bundle files; without torch
    precision.py  a baked graph -> the same in lower precision, if it stays right
    half_pass.py  the edit that computes in fp16 or bf16
    quantize.py   the edits that compute products in integers
    recipes.py    which products in which integers, by what that costs
    observe.py    inner values of a graph on real rows
    oracle.py     untouched Transformers, as every graph is measured by
    parity.py     bundle against the oracle, and rows among others against the same rows alone
    report.py     what came out, and parity.json
    page.py       the same for people, parity.html
    parts.py      a graph -> which part of the model each node and constant is
    summary.py    those parts' bytes and FLOPs
    plot.py       the same as a picture
    card.py       the bundle's model card
    export.py     the steps above, whole or not at all
    ptpack.py     what is new for a task <-> one file
    pack.py       the steps above, and such a file of what they made; needs torch too
    install.py    such a file + a bundle of the same backbone -> a bundle; needs the extra `install` alone
    join.py       runs on one backbone -> what one graph of all their tasks is made of
    tasks.py      the steps above for several runs and one bundle
"""
