"""Turns runs into bundles. Needs the extra `train`.

    run -> trace (cached) -> bake -> precision -> parity -> bundle

Rooms, each above what it imports; `docs/architecture.md` has the picture:

    multitask    runs on one backbone -> one bundle
    packs        task <-> one .ptpack file
    export.py    run -> bundle: every step in order
    bake.py      run + traced graph -> files of a bundle
    card.py      manifest -> model card
    autotune.py  candidate graphs -> the one with the lowest latency here
    precision    fp32 graph -> lower precision
    parity       graph + model -> proof
    passes       traced graph -> graph of a bundle, one edit per pass
    trace        backbone -> graph that takes all task tensors as inputs
    targets      what each deployment target accepts
    inspect      graph -> its parts, their cost, and a picture
"""
