"""A run folder <-> what training hands to export.

config.py      config.json: what was asked for and what was trained
metrics.py     metrics.json: what training measured
run.py         the folder
backbone.py    run -> its backbone
check_rows.py  rows -> the rows kept for parity
"""
