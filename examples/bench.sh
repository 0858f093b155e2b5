#!/bin/sh
# The reports that docs/benchmarks.md quotes, in FOLDER: about an hour on 2 cores the first time.
#
#   sh examples/bench.sh FOLDER
set -eu
folder=$1
mkdir -p "$folder"
python examples/bench_cases.py "$folder"
rivals=peft,transformers,plain-onnx
for case in smollm2 smollm2-linear minilm; do
    ptexport bench speed "$folder/$case/fp32" --run "$folder/$case/run" --against "$folder/$case/int8,$rivals" \
        --out "$folder/$case-speed" --force
done
