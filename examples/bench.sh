#!/bin/sh
# Write the reports behind docs/benchmarks.md to FOLDER. The first run takes some hours on 2 cores.
#
#   sh examples/bench.sh FOLDER [--quick]
set -eu
folder=$1
shift
mkdir -p "$folder"
python examples/bench_cases.py "$folder"
for case in minilm smollm2 smollm2-linear; do
    ptexport bench speed "$folder/$case/fp32" --run "$folder/$case/run" --out "$folder/$case-speed" --force "$@" \
        --against "$folder/$case/int8,peft,peft-seqcls,transformers,plain-onnx,transformers-onnx,optimum-onnx,llama-cpp"
done
ptexport bench profile "$folder/minilm/fp32" --out "$folder/minilm-profile" --force
ptexport bench serve "$folder/minilm/fp32" --out "$folder/minilm-serve" --force "$@"
