#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Every fuzz target under libFuzzer with the address and undefined-behaviour sanitizers, for so many
# seconds each (default 60): csrc/fuzz/run_fuzz.sh [seconds] [target]... Found inputs are kept in
# build/fuzz-corpus, an input that fails in build/fuzz-failures; `fuzz_<target> <file>` repeats it.
# Needs clang++ with its sanitizer runtimes, cmake and ninja on PATH.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

seconds="${1:-60}"
shift || true
compiler="${CLANGXX:-clang++}"
if ! command -v "$compiler" >/dev/null; then
    echo "run_fuzz.sh: libFuzzer needs $compiler (Debian: clang); without it, make sanitize" \
        "replays the same targets" >&2
    exit 1
fi

folder=build/fuzz
mkdir -p build
CXX="$compiler" cmake -S . -B "$folder" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCAE_CUDA=OFF \
    -DCAE_FUZZ=ON -DCAE_SANITIZE=address,undefined >"$folder.configure.log" 2>&1 || {
    cat "$folder.configure.log" >&2
    exit 1
}
cmake --build "$folder" --target cae_fuzz

export ASAN_OPTIONS=detect_leaks=1:detect_stack_use_after_return=1:strict_string_checks=1
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export OMP_NUM_THREADS=1
targets=("$@")
if ((${#targets[@]} == 0)); then
    for source in csrc/fuzz/fuzz_*.cpp; do
        name="$(basename "$source" .cpp)"
        targets+=("${name#fuzz_}")
    done
fi
for name in "${targets[@]}"; do
    found="build/fuzz-corpus/$name"
    failures="build/fuzz-failures/$name"
    mkdir -p "$found" "$failures"
    stored=()
    if [ -d "csrc/fuzz/corpus/$name" ]; then stored=("csrc/fuzz/corpus/$name"); fi
    "$folder/csrc/fuzz/fuzz_$name" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=4096 \
        -max_len=2048 -print_final_stats=1 -artifact_prefix="$failures/" \
        "$found" "${stored[@]}" >"$failures.log" 2>&1 || {
        tail -n 60 "$failures.log" >&2
        echo "fuzz_$name: failed; the input is in $failures, all of the above in $failures.log" >&2
        exit 1
    }
    echo "fuzz_$name: $(sed -n 's/^stat::number_of_executed_units: *//p' "$failures.log") inputs"
done
echo "fuzzing: no report"
