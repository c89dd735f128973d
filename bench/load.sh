#!/usr/bin/env bash
# `make bench-load`: requests at rates that double until the objective breaks, every answer
# compared with one that was taken before. demo/run.sh starts the cluster and tells $url, $name,
# $endpoint and $bin. Leaves .demo/load.json, and .demo/report.html to look at.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=demo/setup.sh
source demo/setup.sh

phase "A sweep"
# A sweep ends where the objective breaks; only failed requests are a failure.
"${bin:?}/autoglm-bench" load --url "${url:?}" --model "${name:?}" --endpoint "${endpoint:?}" \
  --sweep-rate 0.5..64x2 --warmup 2s --duration 12s --slo ttft=1s,tpot=150ms \
  --max-tokens 16 --temperature 0 --seed 1 --verify --references 16 \
  --json .demo/load.json --html .demo/report.html
phases
heading "Look at"
note "file://$PWD/.demo/report.html"
