# SPDX-License-Identifier: Apache-2.0
"""Measuring this machine: ours beside PyTorch, ONNX Runtime and OpenVINO, in alternation.

`cae-fast bench` and `make bench` both run :class:`cae_fast.benchmark.suite.Suite` over the cases of
:mod:`cae_fast.benchmark.cases`. Loads nothing heavy.
"""
