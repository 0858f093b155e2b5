"""A bundle, a run or this machine -> figures and facts.

evaluate.py         labelled rows -> predictions and figures, for one bundle or two
metrics.py          labels and predictions -> accuracy, F1, calibration
wording.py          figures -> sentences and rows of tables
html_page.py        figures -> an HTML page
describe.py         a bundle or run -> its contents
doctor.py           this machine -> what it can run, and what is missing
provider_report.py  a bundle -> how it runs on every execution provider
"""
