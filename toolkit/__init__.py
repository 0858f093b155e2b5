"""Trains soft prompts on a frozen language model, and holds the command line. Needs the extra `train`.

    template, labels, rows -> train -> Run

Rooms, each above what it imports; `docs/architecture.md` has the picture:

    cli          command-line arguments -> calls
    bench        bundle -> what it costs here, beside its alternatives
    imports      checkpoint trained elsewhere -> run
    training     training configuration -> run
    evaluation   bundle or machine -> figures
    prompt       backbone + template + labels -> trainable model
    run          run folder <-> what training hands to export
    template     template + labels + tokenizer -> ids
    models       model name -> frozen backbone
    data         sources -> train, dev and test rows
    store        content -> files and folders, written atomically
    methods.py   what each training method trains
    progress.py  what long work reports
    html.py      the look of HTML pages
    tables.py    the look of tables on standard output
"""
