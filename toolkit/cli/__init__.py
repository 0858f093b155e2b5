"""Command-line arguments -> calls of the other rooms, one file per command.

main.py            `ptexport` and its list of commands
train.py           train
import_.py         import
export.py          export
pack.py            pack, install
sign.py            sign
push.py            push
predict.py         predict
serve.py           serve
evaluate.py        evaluate
inspect.py         inspect
cache.py           cache
device.py          doctor, warmup
bench.py           bench
options.py         options that several commands share
sweep_axes.py      values of --sweep
tables.py          tables about what was made or measured
tables_inspect.py  tables of inspect, doctor and cache
progress_bars.py   progress as bars or JSON lines
"""
