#!/bin/sh
# Say what this machine lacks to build fabricd, and the one command that installs it. Changes nothing.
# Exit status 0 when nothing needed is missing. PYTHON names the interpreter to build with.
set -u
python=${PYTHON:-python3}
missing= packages= optional=
lack() { missing="$missing\n  - $1"; packages="$packages $2"; }

if ! command -v "$python" >/dev/null 2>&1; then
  lack "python ≥ 3.11 ($python is not on PATH)" "python3 python3-venv python3-dev"
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  found=$("$python" -c 'import platform; print(platform.python_version())')
  lack "python ≥ 3.11 (found $found; another one: make setup PYTHON=python3.12)" "python3 python3-venv python3-dev"
else
  "$python" -c 'import venv, ensurepip' 2>/dev/null || lack "python's venv module" python3-venv
  include=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
  [ -f "$include/Python.h" ] || lack "python's headers ($include/Python.h)" python3-dev
fi
compiler=${CXX:-c++}
if ! command -v "$compiler" >/dev/null 2>&1; then
  lack "a C++ compiler ($compiler is not on PATH)" build-essential
elif ! printf '#include <concepts>\n#include <span>\nint main() {}\n' |
  "$compiler" -std=c++20 -x c++ -fsyntax-only - 2>/dev/null; then
  lack "a C++20 compiler ($compiler does not accept -std=c++20 with <concepts>)" build-essential
fi
command -v make >/dev/null 2>&1 || lack "make" make
command -v flock >/dev/null 2>&1 || lack "flock" util-linux
command -v ip >/dev/null 2>&1 || optional="iproute2"

sudo=
[ "$(id -u)" = 0 ] || sudo="sudo "
if [ -n "$optional" ]; then
  echo "optional: ip (iproute2) is not here; NETNS=1 and the netns tests need it: ${sudo}apt-get install -y $optional"
fi
[ -z "$missing" ] && exit 0
printf 'fabricd cannot be built yet. Missing:%b\n' "$missing" >&2
unique=$(printf '%s\n' $packages | sort -u | tr '\n' ' ')
echo "Install it with (Debian, Ubuntu):  ${sudo}apt-get update && ${sudo}apt-get install -y ${unique% }" >&2
exit 1
