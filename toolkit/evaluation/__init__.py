"""A bundle or this machine -> figures.

figures.py          labels and predictions -> the figures of an evaluation
evaluate.py         labelled rows -> accuracy, calibration and latency
html_page.py        the same as an HTML page
describe.py         bundle or run -> its contents
doctor.py           what this machine can run
provider_report.py  a bundle on every execution provider
"""
