"""A bundle -> what it costs on this machine, beside its alternatives.

Every bench makes one `Report`. Its rooms: systems (who is measured), speed, serve, profile, quality.

    report.py   the one result type
    pages.py    report -> JSON, Markdown and HTML files
    show.py     report -> terminal
    compare.py  two reports -> what changed
    turns.py    systems in their own processes, measured in turn
    workers.py  those processes
    held.py     entry point of such a process
    texts.py    generated texts
    ceiling.py  what arithmetic and memory of this machine can do at most
"""
