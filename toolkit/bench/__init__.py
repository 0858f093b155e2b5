"""`ptexport bench`: what a bundle costs on this machine, beside what people would use instead.

Each kind of bench measures and makes one `report.Report`; pages.py writes any of them as JSON, Markdown and HTML, and
compare.py tells two of them apart.

    speed.py      a bundle and its rivals in turn: case.py is what they are asked, systems/ who answers
    quality.py    accuracy against size and speed
    serve.py      a server under load
    profile.py    where the time goes, by operator and layer
    texts.py      what bundles are asked, where nobody brings rows
    ceiling.py    what this machine's arithmetic and memory could do
"""
