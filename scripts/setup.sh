# What scripts/run, scripts/test and .ci/run share: the packages, the configuring and the building.
# Sourced by bash with `set -euo pipefail`. Everything it prints goes to stderr: stdout is the program's.

source_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Debian 12's names.
build_packages=(g++ cmake ninja-build pkg-config libabsl-dev nlohmann-json3-dev libcli11-dev zlib1g-dev libzstd-dev libxxhash-dev libnbd-dev)
seed_packages=(python3)
test_packages=(python3 python3-jsonschema libgtest-dev libgmock-dev libbenchmark-dev qemu-utils nbdkit gnutls-bin)
format_packages=(clang-format)
fuzz_packages=(clang libclang-rt-14-dev llvm)
lint_packages=(clang clang-tidy iwyu)

say() { echo "$@" >&2; }

# quietly LOG COMMAND...: runs COMMAND with its output in LOG, and shows LOG only if it fails.
quietly() {
  local log=$1 status=0
  shift
  "$@" >"$log" 2>&1 </dev/null || status=$?
  [ "$status" = 0 ] || { cat "$log" >&2; say "failed ($status): $*"; }
  return "$status"
}

# install_packages PACKAGE...: installs those that are missing; silent and quick when none is.
install_packages() {
  local installed missing=() package as_root=() log
  if ! command -v dpkg-query >/dev/null; then
    say "not a Debian system: these packages' equivalents must be there: $*"
    return 0
  fi
  installed=$(dpkg-query --show --showformat='${Package} ${db:Status-Status}\n' "$@" 2>/dev/null || true)
  for package in "$@"; do
    grep -qxF "$package installed" <<<"$installed" || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  say "installing ${missing[*]}"
  [ "$(id -u)" = 0 ] || as_root=(sudo)
  log=$(mktemp)
  quietly "$log" "${as_root[@]}" apt-get update &&
    quietly "$log" "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
      apt-get install --yes --no-install-recommends "${missing[@]}" || return
  rm -f "$log"
}

is_configured() { [ -e "$1/build.ninja" ] || [ -e "$1/Makefile" ]; }

# configure PRESET BUILD_DIR [CMAKE_ARGUMENT...]: if that was not done before, or arguments are given.
configure() {
  local preset=$1 build_dir=$2 generator=Ninja
  shift 2
  mkdir -p "$build_dir" || return
  if ! is_configured "$build_dir"; then
    command -v ninja >/dev/null || generator='Unix Makefiles'
    say "configuring ${build_dir##*/}"
    (cd "$source_dir" && quietly "$build_dir/configure.log" cmake --preset "$preset" -G "$generator" "$@")
  elif [ $# -gt 0 ]; then
    quietly "$build_dir/configure.log" cmake -B "$build_dir" -S "$source_dir" "$@"
  fi
}

# build PRESET BUILD_DIR TARGET [CMAKE_ARGUMENT...]: configures BUILD_DIR and builds TARGET. One at a time for
# each folder.
build() {
  local preset=$1 build_dir=$2 target=$3
  shift 3
  mkdir -p "$build_dir" || return
  (
    if command -v flock >/dev/null; then flock 9; fi
    configure "$preset" "$build_dir" "$@" || exit
    quietly "$build_dir/build.log" cmake --build "$build_dir" --target "$target" --parallel "$(nproc)"
  ) 9>"$build_dir/.lock"
}
