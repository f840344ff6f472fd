#!/bin/sh
# Build and run the C++ tests: native.sh plain | asan | tsan | fuzz SECONDS
# Each kind has its own folder under build/; cmake and ninja come from .venv.
set -eu
kind=$1
root=$PWD
folder=$root/build/native-$kind
sanitize= type=Release
case $kind in
  plain) ;;
  asan) sanitize=address,undefined type=RelWithDebInfo ;;
  tsan) sanitize=thread type=RelWithDebInfo ;;
  fuzz) sanitize=address,undefined folder=$root/build/native-asan type=RelWithDebInfo ;;
  *) echo "usage: native.sh plain | asan | tsan | fuzz SECONDS" >&2; exit 2 ;;
esac
PATH=$root/.venv/bin:$PATH
mkdir -p "$folder"
cmake -S fabric/native -B "$folder" -G Ninja -DCMAKE_BUILD_TYPE=$type -DFABRIC_SANITIZE=$sanitize \
  -DPython_EXECUTABLE="$root/.venv/bin/python" \
  >"$folder/configure.log" || { cat "$folder/configure.log"; exit 1; }
cmake --build "$folder" | grep -v '^\[.*Building\|^-- ' || true
cmake --build "$folder" >/dev/null # the status that the filter above hid
export ASAN_OPTIONS=detect_stack_use_after_return=1:strict_string_checks=1:abort_on_error=1
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1

if [ "$kind" = fuzz ]; then
  seconds=$2 ran=0
  cd "$folder"
  for program in ./fuzz_*; do
    [ -x "$program" ] && [ -f "$program" ] || continue
    corpus=$root/tests/fuzz/corpus/${program#./fuzz_}
    [ -d "$corpus" ] || { echo "no kept corpus $corpus" >&2; exit 1; }
    "$program" -max_total_time="$seconds" -seed="${FUZZ_SEED:-$(date +%s)}" "$corpus"
    ran=$((ran + 1))
  done
  [ "$ran" -ge 2 ] || { echo "found $ran fuzz programs, expected fuzz_record and fuzz_frame" >&2; exit 1; }
  exit 0
fi
[ -n "$(ls "$folder"/*_test 2>/dev/null)" ] || { echo "no native test was built" >&2; exit 1; }
ctest --test-dir "$folder" --output-on-failure --no-tests=error
