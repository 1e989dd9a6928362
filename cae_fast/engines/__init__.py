# SPDX-License-Identifier: Apache-2.0
"""TensorRT engines: built by `tensorrt` or `tensorrt_rtx`, checked before they are run.

`targets` knows GPUs by name, `flavours` what differs between the packages, `build` builds, `cache`
finds the engine that fits, `runtime` runs it. `cae_fast.engine_files` reads and writes files.
"""
