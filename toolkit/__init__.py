"""Trains soft prompts against a frozen language model, and holds the command line. Needs the extra `train`.

Data flow: template, labels, rows -> train -> Run

    template.py    "[P*3] {text} [P*3]" -> pieces
    words.py       a backbone's own tokenizer, for words by themselves
    tokenizer.py   pieces + a backbone's tokenizer -> ids, and one tokenizer.json that makes them
    verbalizer.py  labels and their words -> token ids
    cities.py      the built-in data
    data.py        files, hub data sets and cities -> rows for train, dev and test
    facts.py       what others need to know of a backbone
    checkpoint.py  alias, hub name or folder -> a Hugging Face folder on disk
    backbone.py    that folder -> a frozen language model and the facts about it
    supported.py   what a language model is refused for
    methods.py     what each method trains
    tuning.py      a frozen backbone -> one that is trained -> an ordinary checkpoint
    encoder.py     the prompt encoders: virtual tokens -> rows, or keys and values
    classifier.py  ids + rows + label rows -> logits: what is trained, and what is traced
    many.py        the same for rows of many tasks
    task.py        a verbalizer on a loaded backbone
    scoring.py     rows -> logits and accuracy
    states.py      rows -> what a frozen model makes of their texts, computed once
    steps.py       rows -> batches -> losses and gradients
    training.py    the loop
    processes.py   several processes that train one thing together
    search.py      virtual tokens -> words
    audit.py       what is odd about rows, and which prove parity
    calibration.py logits of dev rows -> a temperature and a threshold
    resume.py      a training under way <-> a file to go on from
    asked.py       one training, as asked for
    plan.py        that -> parts that fit together
    train.py       a plan -> a Run
    peft_adapter.py a folder that PEFT wrote -> its weights, and the model they adapt
    peft_plan.py   an import as asked for -> parts that fit together
    import_peft.py a PEFT adapter -> a Run
    sweep.py       one training, or many with different options, into folders
    run.py         the run folder
    folders.py     writes folders whole or not at all
    cache.py       the cache of converted models and traced backbones
    progress.py    bars on a terminal, JSON lines for machines
    tables.py      what is printed when something was made or measured
    tables_look.py what is printed by those that look
    evaluate.py    a bundle + labelled rows -> figures
    page.py        figures -> an HTML page with plots
    html.py        the look of such pages
    describe.py    a bundle or run -> what is in it
    doctor.py      what this machine can run
    checkup.py     a bundle -> what each execution provider here makes of it
    cli.py         the command line; its commands are in cli_make.py, cli_pack.py, cli_use.py, cli_look.py and
                   cli_device.py, what they share in cli_options.py
"""
