#!/usr/bin/env bash
# Measures this machine's adapter and writes bench/results/NAME.md, with JSON in bench/results/NAME/:
# what its driver tells, every kernel against its reference, what the adapter can do and what the
# kernels reach of it, and whole models of random weights.
#
#   make bench-gpu NAME=h200 [ADAPTER=0]
#
# SHAPES: models, as `autoglm-bench model` names them; STORAGES: how their weights are stored.
# PEER: a command that times another engine on the same files and is set beside ours, as in
# PEER="python3 llamacpp.py"; it takes --model FILE --prompt N --tokens N --batches N,N --rounds N
# --limit SECONDS --json OUT, and writes what bench/peers/ratios.py reads. AUTOGLM_BIN,
# KERNEL_TESTS: a folder of built binaries and the built tests of `shaders`, for a machine without a
# Rust toolchain. ROUNDS, TOKENS, PROMPT, BATCHES, CONTEXTS, MATRICES: smaller ones for a slow
# adapter; STAGED, STREAMS, WINDOW, ANSWER: what is served in one stage and in two. LIMIT: seconds
# after which what still runs is ended and the rest left out, for a machine that is lent; the page
# says so. Models come first then, and of the tests of kernels those that prove every class.
set -euo pipefail
cd "$(dirname "$0")/.."
name=${1:?give the results a name, as in: make bench-gpu NAME=h200} adapter=${2:-}
rounds=${ROUNDS:-5} tokens=${TOKENS:-128} prompt=${PROMPT:-512,2048} batches=${BATCHES:-1,8,32}
contexts=${CONTEXTS:-0,4096} matrices=${MATRICES:-4096x4096,4096x27392}
if ! [[ ${LIMIT:-1} =~ ^[0-9]+$ ]]; then
  printf 'LIMIT is a number of seconds, as in LIMIT=600, not %s\n' "$LIMIT" >&2
  exit 2
fi
results=bench/results/$name page=bench/results/$name.md
if [ -z "${AUTOGLM_BIN:-}" ]; then
  cargo build --release --bin autoglm-bench --bin autoglm --bin autoglm-node
  AUTOGLM_BIN=target/release
fi
bench=$AUTOGLM_BIN/autoglm-bench
choice=()
[ -z "$adapter" ] || choice=(--adapter "$adapter")
export AUTOGLM_TEST_ADAPTER=$adapter
# Seconds that LIMIT leaves; nothing without one.
left() { [ -z "${LIMIT:-}" ] || echo $((SECONDS < LIMIT ? LIMIT - SECONDS : 0)); }
# within COMMAND...: ended, and whatever it has started, when LIMIT is reached.
within() { ${LIMIT:+timeout --kill-after=10 "$(left)"} "$@"; }
# An adapter that isn't there is refused before gigabytes are written for it.
if ! said=$(within "$bench" kernels ${choice[@]+"${choice[@]}"} --kernels norm --rows 1 --rounds 1 \
  2>&1 >/dev/null); then
  printf '%s\n' "$said" >&2
  exit 1
fi
mkdir -p "$results"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# section TITLE COMMAND...: the command and what it prints, onto the page; a failure is written
# down, and the rest goes on.
section() {
  local title=$1 code=0 began=$SECONDS
  shift
  if [ "$(left)" = 0 ]; then
    printf '\n## %s\n\nleft out: LIMIT of %s s\n' "$title" "$LIMIT" >>"$page"
    return
  fi
  printf '%s\n' "$title" >&2
  printf '\n## %s\n\n```\n$ %s\n' "$title" "${*//$scratch\//}" >>"$page"
  within "$@" >>"$page" 2>"$scratch/errors" || code=$?
  [ "$(left)" != 0 ] || printf 'ended: LIMIT of %s s\n' "$LIMIT" >>"$page"
  [ $code = 0 ] || { tail -n 5 "$scratch/errors" && printf 'exit status %s\n' $code; } >>"$page"
  printf '```\n\n%s s\n' $((SECONDS - began)) >>"$page"
}

printf '# %s\n\nBy `make bench-gpu`, %s, %s.\n' "$name" "$(date -u +%F)" \
  "$(git describe --always --dirty 2>/dev/null || echo 'no commit')" >"$page"
section 'Adapters' "$bench" adapters --json "$results/adapters.json"
# All tests take a driver minutes of compiling.
proof=(${LIMIT:+proof})
if [ -n "${KERNEL_TESTS:-}" ]; then
  section 'Kernels against their references' "$KERNEL_TESTS" --show-output ${proof[@]+"${proof[@]}"}
else
  section 'Kernels against their references' cargo test --quiet -p shaders -- --show-output \
    ${proof[@]+"${proof[@]}"}
fi
ways=plain,packed-dot
if [ "$(left)" != 0 ] && within "$bench" kernels ${choice[@]+"${choice[@]}"} --kernels norm \
  --rows 1 --rounds 1 --products cooperative-matrix >/dev/null 2>&1; then
  ways+=,cooperative-matrix
fi
kernels() {
  section 'What kernels reach' "$bench" kernels ${choice[@]+"${choice[@]}"} --shapes "$matrices" \
    --rows 1,16,512 --formats bf16,f16,int8,int4,fp8 --products plain,packed-dot \
    --rounds "$rounds" --json "$results/kernels.json"
  # Apart: there halves are stored as matrices are read.
  [[ $ways == *cooperative-matrix ]] || return 0
  section 'What kernels reach by cooperative matrices' "$bench" kernels \
    ${choice[@]+"${choice[@]}"} --kernels matmul,attention --shapes "$matrices" --rows 1,16,512 \
    --formats bf16,int8,int4 --products cooperative-matrix --rounds "$rounds" \
    --json "$results/kernels-cooperative.json"
  for products in plain cooperative-matrix; do
    section "Attention to a cache of halves, products: $products" "$bench" kernels \
      ${choice[@]+"${choice[@]}"} --kernels attention --products "$products" \
      --kv-cache-dtype f16 --rounds "$rounds" --json "$results/attention-$products.json"
  done
}
[ -n "${LIMIT:-}" ] || kernels
for shape in ${SHAPES:-glm-edge-1.5b glm-4-9b glm-moe-0.5b}; do
  for storage in ${STORAGES:-bf16 q4_0}; do
    model=$scratch/$shape-$storage.gguf ours=()
    section "$shape, $storage" "$bench" random-model "$shape" "$model" --storage "$storage"
    [ -s "$model" ] || continue
    for products in ${ways//,/ }; do
      # They are of integer weights.
      case $products-$storage in packed-dot-*16 | packed-dot-f32) continue ;; esac
      json=$results/$shape-$storage-$products.json
      section "$shape, $storage, products: $products" "$bench" model "$model" \
        ${choice[@]+"${choice[@]}"} --products "$products" --prompt "$prompt" --tokens "$tokens" \
        --batches "$batches" --contexts "$contexts" --rounds "$rounds" --json "$json"
      [ ! -s "$json" ] || ours+=("$products=$json")
    done
    if [ -n "${PEER:-}" ]; then
      json=$results/$shape-$storage-peer.json
      # shellcheck disable=SC2086 # PEER is a command and its words.
      section "$shape, $storage, the peer" $PEER --model "$model" --prompt "${prompt%%,*}" \
        --tokens 0 --batches "$batches" --rounds "$rounds" --limit "${LIMIT:-0}" --json "$json"
      [ ! -s "$json" ] || [ ${#ours[@]} = 0 ] ||
        section "$shape, $storage, beside the peer" \
          python3 bench/peers/ratios.py "$json" "${ours[@]}"
    fi
    rm -f "$model"
  done
done
# Steps of several processes on one card: what a second stage there costs.
section 'Two stages on one adapter beside one' "$bench" scaling --model "${STAGED:-glm-0.3b}" \
  --storage bf16 --concurrency "${STREAMS:-32}" --rounds 1 --window "${WINDOW:-8s}" \
  --answer "${ANSWER:-24}" --driver-threads "$(nproc)"
[ -z "${LIMIT:-}" ] || kernels
printf 'written: %s\n' "$page" >&2
