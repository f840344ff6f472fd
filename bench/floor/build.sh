#!/bin/sh
# Build bench/floor into build/bench/floor/floor. cmake and ninja come from .venv where it has them.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=$root/build/bench/floor
PATH=$root/.venv/bin:$PATH
mkdir -p "$folder"
exec 9>"$folder/.lock"
flock 9
generator=
command -v ninja >/dev/null 2>&1 && generator=-GNinja
cmake -S "$root/bench/floor" -B "$folder" ${generator:+"$generator"} >"$folder/configure.log" 2>&1 ||
  { cat "$folder/configure.log" >&2; exit 1; }
cmake --build "$folder" >"$folder/build.log" 2>&1 || { cat "$folder/build.log" >&2; exit 1; }
