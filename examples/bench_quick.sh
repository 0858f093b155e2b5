#!/bin/sh
# Has anything become slower, beside PEFT and a plain export? Under 5 minutes on 2 cores; exit code 1 if so.
#
#   sh examples/bench_quick.sh FOLDER
#
# docs/benchmarks-quick.json has the ratios of the machine that it names. On another one store your own first:
# cp FOLDER/quick/report.json docs/benchmarks-quick.json
set -eu
folder=$1
python examples/bench_cases.py "$folder" minilm
ptexport bench speed "$folder/minilm/fp32" --run "$folder/minilm/run" --against peft,plain-onnx --quick \
    --out "$folder/quick" --force
ptexport bench compare docs/benchmarks-quick.json "$folder/quick" --band 20
