#!/usr/bin/env bash
# Installs llama-cpp-python (it compiles llama.cpp for this processor) and runs compare.py.
set -euo pipefail
cd "$(dirname "$0")/../.."
LLAMA_CPP_PYTHON=0.3.36
venv=.test-tools/peers
if ! "$venv/bin/python" -c 'import llama_cpp' 2>/dev/null; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install "llama-cpp-python==$LLAMA_CPP_PYTHON"
fi
cargo build --workspace --bins --tests
exec "$venv/bin/python" bench/peers/compare.py compare "$@"
