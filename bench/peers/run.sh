#!/usr/bin/env bash
# Installs llama-cpp-python (it compiles llama.cpp for this processor, and its Vulkan backend where
# this system has what that takes) and runs compare.py with the arguments given.
set -euo pipefail
cd "$(dirname "$0")/../.."
LLAMA_CPP_PYTHON=0.3.36
venv=.test-tools/peers
python=$venv/bin/python

install_peer() {
  # A wheel that was built before may be one with other backends.
  "$venv/bin/pip" install --no-cache-dir --force-reinstall --no-binary llama-cpp-python \
    "llama-cpp-python==$LLAMA_CPP_PYTHON"
}
has_peer() { "$python" -c 'import llama_cpp' 2>/dev/null; }
has_vulkan() { compgen -G "$venv/lib/python*/site-packages/llama_cpp/lib/libggml-vulkan*" >/dev/null; }
# Its shaders need glslc, its host code Vulkan's and SPIR-V's headers: Debian has them from 13 on.
can_build_vulkan() {
  command -v glslc >/dev/null && echo '#include <vulkan/vulkan.hpp>
#include <spirv/unified1/spirv.hpp>' | c++ -x c++ -fsyntax-only - 2>/dev/null
}

[ -x "$python" ] || python3 -m venv "$venv"
if can_build_vulkan; then
  has_vulkan || CMAKE_ARGS=-DGGML_VULKAN=ON install_peer
else
  echo "llama.cpp's Vulkan backend can't be built here: it needs glslc, libvulkan-dev and" \
    "spirv-headers (Debian 13 has them)" >&2
  has_peer || install_peer
fi
cargo build --workspace --bins --tests
exec "$python" bench/peers/compare.py compare "$@"
