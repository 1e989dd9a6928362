#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# clang-format and clang-tidy over csrc (CUDA sources: format only). Needs clang-format, clang-tidy,
# cmake and ninja on PATH, in the versions that pyproject.toml pins. `csrc/lint.sh --fix` formats.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mapfile -t sources < <(find csrc -type f \
    \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \) | sort)
if [ "${1-}" = --fix ]; then
    clang-format -i "${sources[@]}"
else
    clang-format --dry-run -Werror "${sources[@]}"
fi

# A build folder of its own: CUDA off, so that the database holds what clang-tidy can read, and a
# file that needs no generated header is checked without building anything.
mkdir -p build
cmake -S . -B build/lint -G Ninja -DCMAKE_EXPORT_COMPILE_COMMANDS=ON -DCAE_CUDA=OFF \
    -DCAE_TESTS=ON >build/lint.configure.log 2>&1 || {
    cat build/lint.configure.log >&2
    exit 1
}
mapfile -t units < <(find csrc -type f -name '*.cpp' | sort)
printf '%s\0' "${units[@]}" | xargs -0 -n 1 -P "$(nproc)" \
    clang-tidy --quiet -p build/lint --extra-arg=-Wno-unknown-warning-option
