"""A bundle -> what it costs on this machine, beside its alternatives.

Every bench makes one `BenchReport`. Its rooms: systems (what is measured), speed, serve, profile, quality, gpu.

    report.py           the result type
    ratio.py            ratios of latencies -> slower, faster, or no measurable difference
    pages.py            report -> JSON, Markdown and HTML files
    terminal.py         report -> tables on the terminal
    compare.py          two reports -> the figures that changed
    interleaved.py      systems in their own processes, timed alternately
    workers.py          the worker processes
    pinned.py           entry point of a worker process
    synthetic_texts.py  generated texts of a given number of tokens
    machine_peak.py     the machine's peak arithmetic and memory rates
"""
