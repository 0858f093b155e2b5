"""An fp32 graph -> the same graph in lower precision, with its measured cost.

lower.py          chooses and applies a precision, and checks accuracy
half_pass.py      fp16 and bf16
fewer_kernels.py  edits that make up for the casts of fp16 and bf16 on a GPU
row_pass.py       int8 products with one scale per token
quantize.py       int8 and int4 products
recipes.py        which products are lowered, by what each costs
observe.py        inner values of a graph on real rows
"""
