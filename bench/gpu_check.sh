#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Everything that a machine with an NVIDIA GPU is asked, in one run: builds, checks, measures, and
# prints a short table last. Safe to cut off at any moment: each step is written down when it ends.
#
#   bench/gpu_check.sh [folder, by default bench/gpu-out]
#
# GPU_CHECK_SECONDS (540)  all steps together
# GPU_CHECK_STEPS          only these, as in "build speed risks"; by default all
# PYTHON (python3)         an interpreter with numpy, safetensors, pybind11, torch, pytest
#
# Exit status: 0 all went well, 1 a step failed, 3 no GPU, 64 wrong usage.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
if (($# > 1)); then
    echo "usage: bench/gpu_check.sh [folder]" >&2
    exit 64
fi
export PYTHONUNBUFFERED=1 PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"
for folder in /usr/local/cuda/bin /opt/cuda/bin; do
    if [ -d "$folder" ] && ! command -v nvcc >/dev/null; then PATH="$PATH:$folder"; fi
done
exec "${PYTHON:-python3}" "$here/gpu/run_steps.py" "${1:-$here/gpu-out}"
