#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Native tests under the sanitizers: address + undefined behaviour for all of them and for the fuzz
# targets' replayed inputs, thread for those that use the thread pool. Any report fails. Needs cmake
# and ninja on PATH.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# run <folder> <sanitizers> <targets> <ctest arguments>...
run() {
    local folder="$1" sanitizers="$2" targets
    read -ra targets <<<"$3"
    shift 3
    cmake -S . -B "$folder" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCAE_CUDA=OFF \
        -DCAE_TESTS=ON -DCAE_SANITIZE="$sanitizers" >"$folder.configure.log" 2>&1 || {
        cat "$folder.configure.log" >&2
        return 1
    }
    cmake --build "$folder" --target "${targets[@]}"
    "${launcher[@]}" ctest --test-dir "$folder" --output-on-failure --no-tests=error "$@"
}

mkdir -p build
export ASAN_OPTIONS=detect_leaks=1:detect_stack_use_after_return=1:strict_string_checks=1
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1

launcher=()
run build/sanitize-asan address,undefined "cae_native_tests cae_fuzz"
# The thread sanitizer of older compilers gives up where the kernel randomises addresses widely.
if setarch -R true 2>/dev/null; then launcher=(setarch -R); fi
run build/sanitize-tsan thread cae_native_tests --label-regex threads
echo "sanitizers: no report"
