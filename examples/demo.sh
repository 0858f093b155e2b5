#!/bin/sh
# Train, export, serve and query a classifier of real texts. Needs `ptexport` on the PATH.
#
# usage: sh examples/demo.sh [FOLDER]
set -eu
out=${1:-build/demo}

echo "== P-Tuning of SmolLM2-135M: which continent is a city on? =="
ptexport train --model smollm2 --data cities --out "$out/run" --force \
    --template "The city of {text} is in [P*3]" --encoder lstm --epochs 4 --patience 4 \
    --manual "The city of {text} is in" \
    --manual "{text} is a city on the continent of" \
    --manual "{text} is located in the continent of" \
    --manual "Question: On which continent is {text}? Answer:" \
    --manual "{text} :"

echo "== the same classifier as one ONNX graph =="
ptexport export "$out/run" --out "$out/bundle" --force

echo "== served over HTTP =="
rm -f "$out/server.json"  # left by an earlier run, it would be taken for this server's
ptexport serve "$out/bundle" --port 0 --json >"$out/server.json" &
server=$!
trap 'kill $server 2>/dev/null || true' EXIT
while [ ! -s "$out/server.json" ]; do
    kill -0 $server
    sleep 0.1
done
python - "$out/server.json" <<'PYTHON'
import json, sys, urllib.request

url = json.load(open(sys.argv[1]))["url"] + "/predict"
body = json.dumps({"texts": ["Nairobi", "Montevideo", "Tromsø"]}, ensure_ascii=False).encode()
print(f"POST {url} {body.decode()}")
request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
for prediction in json.load(urllib.request.urlopen(request))["predictions"]:
    print(f"  {prediction['label']}  {prediction['probabilities'][prediction['label']]:.3f}")
PYTHON
kill $server
wait $server
trap - EXIT

cat <<NEXT
== next ==
  . .venv/bin/activate
  ptexport predict $out/bundle "Dar es Salaam" "Quito"
  ptexport serve $out/bundle
  ptexport train --model minilm --data YOUR.csv --columns text=NAME,label=NAME --out build/mine
NEXT
