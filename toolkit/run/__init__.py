"""A run folder <-> what training hands to export.

config.py      options of a training, and config.json: what was trained
metrics.py     metrics.json: what the training measured
run.py         the folder
backbone.py    run -> its backbone
check_rows.py  rows -> the rows kept for the parity check
"""
