#!/bin/sh
# Check for slowdowns relative to PEFT and a plain ONNX export, in under 5 minutes on 2 cores. Exit code 1: something is
# slower.
#
#   sh examples/bench_quick.sh FOLDER
#
# docs/benchmarks-quick.json has the ratios for the machine that it names. On another machine, store your own first:
# cp FOLDER/quick/report.json docs/benchmarks-quick.json
set -eu
folder=$1
python examples/bench_cases.py "$folder" minilm
ptexport bench speed "$folder/minilm/fp32" --run "$folder/minilm/run" --against peft,plain-onnx --quick \
    --out "$folder/quick" --force
ptexport bench compare docs/benchmarks-quick.json "$folder/quick" --band 20
