"""Files -> rows, one at a time.

row.py      Row, and checks of one row
columns.py  the columns of a record -> a Row
text.py     lines of CSV or JSON -> records
tables.py   Parquet or Arrow -> records
read.py     a file -> rows
"""
