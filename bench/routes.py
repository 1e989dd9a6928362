# SPDX-License-Identifier: Apache-2.0
"""One decode of the reference network by every route that runs on a CPU: time and error.

The table of docs/deployment.md: alternating rounds, medians, and the error beside PyTorch in
float64. Codes come from the float64 encoders, so each route answers for its decoder alone.

    python bench/routes.py [--size 256] [--rounds 9] [--threads 2]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import torch

import cae_fast as cf
from cae_fast.export import build_onnx, serialized
from cae_fast.testing import random_images


def session(data: bytes, threads: int) -> onnxruntime.InferenceSession:
    """ONNX Runtime with as many threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    cf.set_num_threads(given.threads)
    torch.manual_seed(0)
    model = cf.CAE.random(cf.CAEConfig(image_size=given.size), seed=0)
    module = model.module().eval()
    images = random_images(model.config, 1, seed=1)
    with torch.inference_mode():
        double = model.module().eval().double()
        individual, code = double.encode(torch.from_numpy(images).double())
        truth = double.decode(individual, code).numpy()
        kept, codes = individual.float(), code.float()
    arrays = kept.numpy(), codes.numpy()
    feeds = {
        "individual": arrays[0],
        "class_code": arrays[1],
        "exemplar_code": arrays[1],
        "t": np.zeros(1, np.float32),
    }
    explainer = cf.Explainer(model, lambda x: np.zeros((len(x), 2), np.float32), backend="cpu")

    def eager() -> Any:
        with torch.inference_mode():
            return module.decode(kept, codes).numpy()

    routes: dict[str, Callable[[], Any]] = {
        "native CPU engine": lambda: explainer.decode(*arrays),
        "PyTorch eager": eager,
    }
    exports = {
        "": {},
        ", `--phases`": {"phases": True},
        ", `--precision fp16`": {"precision": "fp16"},
    }
    for name, how in exports.items():
        built = session(serialized(build_onnx(model, "decoder", **how)), given.threads)
        routes[f"ONNX Runtime{name}"] = lambda built=built: built.run(["images"], feeds)[0]
    times: dict[str, list[float]] = {name: [] for name in routes}
    errors = {}
    for name, run in routes.items():
        errors[name] = float(np.linalg.norm(run() - truth) / np.linalg.norm(truth))
    for _ in range(given.rounds):
        for name, run in routes.items():
            start = time.perf_counter()
            run()
            times[name].append(1000 * (time.perf_counter() - start))
    print("| route | median | fastest | relative error |\n|---|---|---|---|")
    for name in sorted(routes, key=lambda name: statistics.median(times[name])):
        median = statistics.median(times[name])
        print(f"| {name} | {median:.0f} ms | {min(times[name]):.0f} ms | {errors[name]:.1e} |")


if __name__ == "__main__":
    main()
