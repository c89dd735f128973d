#!/usr/bin/env bash
# One command from a clone to a cluster that answers: `make demo`, or `make demo KEEP=1` to keep
# it running. AUTOGLM_BIN=DIR uses the binaries in DIR instead of building them. THEN=SCRIPT runs
# that instead of the question, told $url, $name, $endpoint and $bin: `make bench-load`.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=demo/setup.sh
source demo/setup.sh

# Without anything new: files compared, bytes loaded, kernels compiled, nodes joined.
STUCK_SECONDS=300
END_SECONDS=30
log=.demo/serve.log
server=''
trap 'exit 130' INT TERM
trap 'end' EXIT

main() {
  phase Install
  need_build_tools
  need_vulkan
  need_runtime_dir
  note "everything is there"

  phase Build
  bin=${AUTOGLM_BIN:-${CARGO_TARGET_DIR:-target}/debug}
  if [ -z "${AUTOGLM_BIN:-}" ]; then
    note "the first time takes minutes"
    quietly .demo/build.log cargo build --bin autoglm --bin autoglm-node --bin autoglm-bench
  fi
  note "autoglm, autoglm-node and autoglm-bench are in $bin"

  phase Model
  choose_model
  note "$model"

  phase Start
  http=$(free_port tcp 8000)
  cluster=$(free_port udp 7000)
  [ "$http" = 8000 ] || note "port 8000 is taken: the API listens on $http"
  [ "$cluster" = 7000 ] || note "port 7000 is taken: nodes join on $cluster"
  url=http://127.0.0.1:$http
  note "autoglm serve --local-nodes 2 --stages 2: a coordinator, and two node processes with"
  note "half of the layers each (log: $log)"
  start_server
  wait_until_ready

  if [ -n "${THEN:-}" ]; then
    url=$url name=$name endpoint=$endpoint bin=$bin bash "$THEN"
  else
    ask_questions
  fi
  if [ "${KEEP:-0}" = 1 ]; then
    heading "Running on $url"
    note "ctrl-c ends it"
    trap 'stopped=1' INT TERM
    wait "$server" || true
    if [ -z "${stopped:-}" ]; then
      server=''
      fail_with_log "The cluster has ended by itself."
    fi
  fi
  phase "Shut down"
  end_server
  note "clean"
  phases
}

ask_questions() {
  phase "One question"
  # A completion shows its prompt itself.
  [ $endpoint = completions ] || say "${bold}> $question${plain}"
  ask=("$bin/autoglm-bench" ask --url "$url" --model "$name" --endpoint "$endpoint")
  "${ask[@]}" --temperature 0 --max-tokens "$max_tokens" "$question"

  phase "32 prompts at once"
  "$bin/autoglm-bench" load --url "$url" --model "$name" --endpoint "$endpoint" \
    --requests 32 --concurrency 32 --max-tokens 32 --seed 1

  explain
}

choose_model() {
  if fetch_smollm2; then
    model=$smollm2 name=smollm2-135m endpoint=chat max_tokens=64
    question='What is the capital of France?'
  else
    note "SmolLM2 can't be fetched (no network?): glass-en of this repository takes its place,"
    note "a tiny model that goes on with stories of Alice; it can't chat"
    model=$PWD/tests/models/glass-en name=glass-en endpoint=completions max_tokens=60
    question='Alice was beginning to'
  fi
}

# free_port tcp|udp FIRST: the first port from FIRST on that nobody listens on.
free_port() {
  local port=$2 hex
  for ((; port < $2 + 1000; port++)); do
    hex=$(printf ':%04X' "$port")
    # Column 2 is the local address, column 4 the state.
    # 0A is a TCP listener, 07 an open UDP port. Without /proc (macOS) every port counts as free,
    # and the server says itself that it is not.
    { cat "/proc/net/$1" "/proc/net/${1}6" 2>/dev/null || true; } |
      awk -v port="$hex\$" '$2 ~ port && $4 ~ /0A|07/ { taken = 1 } END { exit taken }' && break
  done
  say "$port"
}

# In a process group of its own: ctrl-c is then ours to pass on, once.
start_server() {
  set -m
  "$bin/autoglm" serve --model "$model" --model-name "$name" --local-nodes 2 --stages 2 \
    --http "127.0.0.1:$http" --cluster "127.0.0.1:$cluster" --data-dir .demo/data \
    >"$log" 2>&1 </dev/null &
  server=$!
  set +m
}

wait_until_ready() {
  local start=$SECONDS moved=$SECONDS answer reason shown='' told=0
  while true; do
    answer=$(get /health/ready 2>/dev/null || true)
    case $answer in
    'HTTP/1.'?' 200'*) break ;;
    '') reason='waiting for the server to listen' ;;
    *)
      reason=$(sed -n 's/.*"\(waiting_for\|message\)" *: *"\([^"]*\)".*/\2/p' <<<"$answer" | head -n 1)
      reason=${reason:-waiting for a pipeline that serves}
      ;;
    esac
    if [ "$reason" != "$shown" ]; then
      shown=$reason moved=$SECONDS
      # What changes many times a second is shown now and then.
      if [ "$SECONDS" -ge "$told" ]; then
        note "$reason"
        told=$((SECONDS + 2))
      fi
    fi
    if ! kill -0 "$server" 2>/dev/null; then
      server=''
      fail_with_log "The server has ended."
    fi
    [ $((SECONDS - moved)) -lt $STUCK_SECONDS ] ||
      fail_with_log "Nothing new for $STUCK_SECONDS s; $shown."
    sleep 0.2
  done
  note "ready after $((SECONDS - start)) s"
}

# get PATH: an HTTP answer, without asking for curl to be installed.
get() {
  exec 3<>"/dev/tcp/127.0.0.1/$http" || return
  printf 'GET %s HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n' "$1" >&3
  timeout 5 cat <&3
  exec 3>&-
}

fail_with_log() {
  say ''
  note "the end of $log:"
  tail -n 25 "$log" | sed 's/^/  | /'
  fail "$1"
}

# However the demo ends, it leaves nothing running.
end() {
  local status=$?
  trap - EXIT
  end_quietly
  end_server
  exit $status
}

# SIGTERM, and exit code 0: anything else is a failure of the demo.
end_server() {
  [ -n "$server" ] || return 0
  local pid=$server start=$SECONDS code=0
  server=''
  kill -TERM "$pid" 2>/dev/null || true
  while kill -0 "$pid" 2>/dev/null; do
    if [ $((SECONDS - start)) -ge $END_SECONDS ]; then
      kill -KILL -- "-$pid" 2>/dev/null || true
      fail_with_log "The cluster did not end within $END_SECONDS s of SIGTERM."
    fi
    sleep 0.1
  done
  wait "$pid" 2>/dev/null || code=$?
  [ $code = 0 ] || fail_with_log "The cluster ended with exit code $code."
}

explain() {
  local path body call piece
  if [ $endpoint = chat ]; then
    path=/v1/chat/completions
    body='"messages": [{"role": "user", "content": "Why is the sky blue?"}]'
    call='chat.completions.create(
        model="'$name'", stream=True,
        messages=[{"role": "user", "content": "Why is the sky blue?"}])'
    piece='delta.content or ""'
  else
    path=/v1/completions
    body='"prompt": "The Queen looked at her and said", "max_tokens": 60'
    call='completions.create(
        model="'$name'", stream=True, max_tokens=60,
        prompt="The Queen looked at her and said")'
    piece='text'
  fi
  end_phase
  heading "Talk to it"
  [ "${KEEP:-0}" = 1 ] || note "Start it with: make demo KEEP=1"
  cat <<END

  From a shell:

    curl $url$path -H 'content-type: application/json' -d \\
      '{"model": "$name", $body}'

  From Python (pip install openai):

    from openai import OpenAI
    client = OpenAI(base_url="$url/v1", api_key="unused")
    stream = client.$call
    for event in stream:
        print(event.choices[0].$piece, end="", flush=True)
END
}

main
