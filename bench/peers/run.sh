#!/usr/bin/env bash
# Installs llama-cpp-python, which compiles llama.cpp for this processor, and runs compare.py with
# the arguments given. Where they name its Vulkan backend, that is compiled, too (15 minutes).
# With PREBUILT=1 it installs cyllama instead, where nothing need be compiled.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=demo/setup.sh
source demo/setup.sh
LLAMA_CPP_PYTHON=0.3.36
CYLLAMA=0.2.18
venv=.test-tools/peers
[ -z "${PREBUILT:-}" ] || venv=.test-tools/peers-prebuilt
python=$venv/bin/python

install_peer() {
  # A wheel that was built before may have other backends.
  "$venv/bin/pip" install --no-cache-dir --force-reinstall --no-binary llama-cpp-python \
    "llama-cpp-python==$LLAMA_CPP_PYTHON"
}
has_peer() { "$python" -c "import ${1:-llama_cpp}" 2>/dev/null; }
has_vulkan() {
  compgen -G "$venv/lib/python*/site-packages/llama_cpp/lib/libggml-vulkan*" >/dev/null
}

need_build_tools
[ -n "${PREBUILT:-}" ] || need_program c++ g++ || fail "llama.cpp needs a C++ compiler."
need_vulkan
[ -x "$venv/bin/pip" ] || need_venv "$venv" || fail "There is no Python with pip (.demo/venv.log)."
case " $* " in
*" vulkan "*)
  if ! has_vulkan && ! CMAKE_ARGS=-DGGML_VULKAN=ON install_peer; then
    echo "llama.cpp's Vulkan backend can't be built here. It needs glslc, libvulkan-dev and" \
      "spirv-headers, about as new as Debian 13's." >&2
    exit 1
  fi
  ;;
*)
  if [ -n "${PREBUILT:-}" ]; then
    has_peer cyllama || "$venv/bin/pip" install "cyllama==$CYLLAMA"
  else
    has_peer || install_peer
  fi
  ;;
esac
cargo build --workspace --bins --tests
exec "$python" bench/peers/compare.py compare "$@"
