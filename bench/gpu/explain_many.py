# SPDX-License-Identifier: Apache-2.0
"""Step: 64 images explained at once on the device, with and without what may be left out of rounds.

Paths along one line that flip at another place each, so that searches end in different rounds.
`explain_many.py wgmma` convolves by warpgroups. With GPU_CHECK_EMULATE=1 a small configuration runs
in the emulator, where nothing is timed.
"""

from __future__ import annotations

import statistics
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
from agree import EMULATE
from explain import classifier_network, flipping, wall_ms
from paths import asked_for_wgmma, setting
from race import Clock
from record import Recorder, first_line

import cae_fast as cf
from cae_fast.model import CAE, CAEConfig
from cae_fast.testing import random_images, toy_model

SEARCHES = ("bisection", "margin")
CHOICES: dict[str, dict[str, str]] = {
    "": {"CAE_GPU_EARLY_EXIT": "0", "CAE_GPU_COMPACT": "0"},
    ", early exit": {"CAE_GPU_EARLY_EXIT": "1", "CAE_GPU_COMPACT": "0"},
    ", compact": {"CAE_GPU_EARLY_EXIT": "0", "CAE_GPU_COMPACT": "1"},
}
_IMAGES = 12 if EMULATE else 64
_ROUNDS = 7
_TOLERANCE = 1 / 16 if EMULATE else 1 / 256


def ends_of(
    start: npt.NDArray[np.float32], end: npt.NDArray[np.float32], count: int
) -> npt.NDArray[np.float32]:
    """Class codes [count, D] on the line through start and end [D], up to four times as far.

    Where the path from start to end flips half way, that to row i flips at another part of its way.
    """
    flips = np.linspace(1 / 8, 1 / 2, count)[:, None]
    return (start + (end - start) * (0.5 / flips)).astype(np.float32)


def explainers(model: CAE, classifier: Any) -> dict[str, cf.Explainer]:
    """One for each choice."""
    made = {}
    device = "emu" if EMULATE else "cuda:0"
    for name, variables in CHOICES.items():
        with setting(**variables):
            made[name] = cf.Explainer(
                model, classifier, backend="cuda", device=device, max_batch=_IMAGES
            )
    return made


def wrong_in(results: dict[str, cf.Explanation]) -> list[str]:
    """What is not as it should be: hardly an image flips, or elsewhere by another choice."""
    wrong = []
    for name, found in results.items():
        first = results[name.partition(",")[0]]
        if (flipped := int((found.status == "flipped").sum())) < _IMAGES / 2:
            wrong.append(f"{name}: {flipped} flip")
        # A classifier's product of another size may round another way.
        if not np.allclose(found.t_flip, first.t_flip, atol=2 * _TOLERANCE, equal_nan=True):
            wrong.append(f"{name}: other flips")
    return wrong


def line_of(times: dict[str, dict[str, Any]]) -> str:
    """Milliseconds and explanations a second."""
    said = []
    for name, row in times.items():
        if "ms" in row:
            said.append(f"{name} {row['ms']:.0f} ms ({_IMAGES * 1e3 / row['ms']:.0f}/s)")
        else:
            said.append(f"{name}: {row['not_run']}")
    return ", ".join(said)


def main() -> None:
    """Explains by each choice, compares, then times in alternation."""
    found = Recorder()
    if EMULATE:
        import torch

        model = toy_model(num_classes=2)
        flat = torch.nn.Flatten()
        torch.manual_seed(0)
        size = int(np.prod(model.config.image_shape))
        network: Any = torch.nn.Sequential(flat, torch.nn.Linear(size, 2)).requires_grad_(False)
        device = "cpu"
    else:
        torch = found.need_torch()
        asked_for_wgmma(torch, found)
        model = CAE.random(CAEConfig(), seed=0)
        try:
            network, what = classifier_network(torch)
        except ImportError as error:
            found.skip(f"no ResNet-50: {first_line(error)}")
        found.put("classifier", what)
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = False
        device = "cuda"
    networks = model.module().eval().requires_grad_(False).to(device)
    image, other = np.split(random_images(model.config, 2), 2)
    with torch.no_grad():
        given = torch.from_numpy(image).to(device)
        individual, start = networks.encode(given)
        end = networks.encode_class(torch.from_numpy(other).to(device)) + 1
        first, last = networks.decode(individual, start), networks.decode(individual, end)
        classifier = flipping(torch, network, first, last)
    ends = ends_of(start[0].cpu().numpy(), end[0].cpu().numpy(), _IMAGES)
    images = np.repeat(image, _IMAGES, axis=0)
    asked = {"exemplars": ends, "target": 1, "tolerance": _TOLERANCE, "second_try": False}
    results: dict[str, cf.Explanation] = {}
    times: dict[str, dict[str, Any]] = {}
    made = explainers(model, cf.Classifier(classifier))
    runs = {
        f"{search}{name}": (explainer, search)
        for search in SEARCHES
        for name, explainer in made.items()
    }
    for name, (explainer, search) in runs.items():
        try:
            explainer.explain(images, search=search, **asked)
            results[name] = explainer.explain(images, search=search, **asked)
            found.put(f"{name}, stepping", results[name].meta["stepping"])
        except Exception as error:  # one choice's trouble must not end the others'
            times[name] = {"not_run": first_line(error)}
    bad = wrong_in({name: results[name] for name in results if name.partition(",")[0] in results})
    if EMULATE:
        bad += [f"{name}: {row['not_run']}" for name, row in times.items()]
        found.say("; ".join(bad) or f"{len(results)} searches of {_IMAGES} images agree")
        sys.exit(bool(bad))
    Clock(torch)
    taken: dict[str, list[float]] = {name: [] for name in results}
    for _ in range(_ROUNDS):
        for name, values in taken.items():
            explainer, search = runs[name]
            values += wall_ms(
                torch, lambda e=explainer, s=search: e.explain(images, search=s, **asked), 1
            )
            row = {"ms": statistics.median(values), "low": min(values), "high": max(values)}
            times[name] = {**row, "per_second": _IMAGES * 1e3 / row["ms"]}
        found.put("cases", times)
    found.say("; ".join([*bad, line_of(times)]))
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
