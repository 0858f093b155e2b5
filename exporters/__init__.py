"""Turns runs into bundles. Needs the extra `train`.

    run -> trace (cached) -> bake -> precision -> parity -> bundle

Rooms, each above what it imports; `docs/architecture.md` has the picture:

    packs        tasks <-> one .ptpack file
    export.py    runs -> bundle: every step in order
    config.py    options of an export, its runs and rows, and checks before PyTorch is loaded
    bake.py      runs + traced graph -> files of a bundle
    engine.py    baked graph -> TensorRT RTX engine, once per backbone
    card.py      manifest -> model card
    manifest_entries.py  run -> what the manifest records about its task
    autotune.py  candidate graphs -> the one with the lowest latency here
    precision    fp32 graph -> lower precision
    parity       graph + model -> proof
    multitask    runs on one backbone -> the arrays and tokenizers of one bundle
    passes       traced graph -> graph of a bundle, one edit per pass
    trace        backbone -> graph that takes all task tensors as inputs
    targets      what each deployment target accepts
    inspect      graph -> its parts, their cost, and a picture
"""
