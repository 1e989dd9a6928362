# SPDX-License-Identifier: Apache-2.0
"""From `import cae_fast` to the first explanation, in a process that has just begun."""

from __future__ import annotations

import json
import subprocess
import sys

from ..errors import CAEError

_CODE = """
import time
start = time.perf_counter()
import cae_fast as cf
from cae_fast.demo import model_folder
cf.set_num_threads({threads})
folder = model_folder("digits")
model = cf.CAE.load(folder / "model.safetensors")
classifier = cf.Classifier.load(folder / "classifier.onnx")
bank = cf.CodeBank.load(folder / "bank.csv")
explainer = cf.Explainer(model, classifier, bank=bank)
sample = sorted((folder / "samples").glob("*.png"))[0]
result = explainer.explain(cf.load_images(sample, size=model.config.image_size))
took = time.perf_counter() - start
import json, sys
print(json.dumps({{"seconds": took, "torch": "torch" in sys.modules, "explained": len(result)}}))
"""


def first_explanation(threads: int) -> float:
    """Explains one sample of the digits demo in a fresh process.

    Returns:
        Seconds from before `import cae_fast` to the explanation.

    Raises:
        CAEError: The process failed; onnxruntime may be missing.
        RuntimeError: It imported torch, or explained nothing.
    """
    done = subprocess.run(
        [sys.executable, "-c", _CODE.format(threads=threads)], capture_output=True, text=True
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CAEError(f"the first explanation failed: {last}")
    said = json.loads(done.stdout.splitlines()[-1])
    if said["torch"] or said["explained"] != 1:
        raise RuntimeError(f"expected one explanation without torch, got {said}")
    return float(said["seconds"])
