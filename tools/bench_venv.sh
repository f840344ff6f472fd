#!/bin/sh
# Make or complete build/bench-venv, where the peers of the bench live, from bench/requirements-peers.txt and, without
# what they depend on, bench/requirements-peers-bare.txt.
#
# torch is installed first, by itself: packages that ask for it unpinned would choose a CUDA build of several gigabytes.
# Then each line on its own, so that a peer which cannot be installed here is a missing peer and no more. What is there
# already costs nothing. `PYTHON=…` names the interpreter.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
list=$root/bench/requirements-peers.txt
bare=$root/bench/requirements-peers-bare.txt
folder=$root/build/bench-venv
mkdir -p "$root/build"
exec 9>"$folder.lock"
flock 9

[ -x "$folder/bin/python" ] || "${PYTHON:-python3}" -m venv "$folder"

is_there() {
  "$folder/bin/python" - "$1" <<'PY'
import importlib.metadata as metadata
import sys
name, _, version = sys.argv[1].partition("==")
try:
    found = metadata.version(name).split("+")[0]
except metadata.PackageNotFoundError:
    sys.exit(1)
sys.exit(bool(version) and found != version)
PY
}

install() {
  "$folder/bin/pip" install --quiet --disable-pip-version-check "$@" >"$folder/install.log" 2>&1
}

missing=
for package in $(grep -E '^torch==' "$list") $(grep -Ev '^(torch==|#|$)' "$list" "$bare" -h); do
  is_there "$package" && continue
  echo "bench peers: installing $package"
  if grep -qx "$package" "$bare"; then alone=--no-deps; else alone=; fi
  if ! install $alone -c "$list" "$package"; then
    echo "bench peers: $package cannot be installed here:" >&2
    tail -n 3 "$folder/install.log" >&2
    missing="$missing $package"
    case $package in torch==*) echo "bench peers: nothing else is tried without it" >&2; exit 1 ;; esac
  fi
done
[ -z "$missing" ] || echo "bench peers missing:$missing" >&2

# Mooncake is linked with libibverbs even where it uses tcp alone.
if [ "$(uname -s)" = Linux ] && ! ldconfig -p | grep -q libibverbs.so.1; then
  echo "bench peers: Mooncake needs the system's libibverbs1 (Debian: apt-get install libibverbs1)" >&2
fi
