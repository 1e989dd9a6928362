# SPDX-License-Identifier: Apache-2.0
"""Step: a whole explanation on the device against the authors' procedure in eager fp32.

Runs where the backend "cuda" takes a model; until then it says why not. `explain.py wgmma`
convolves by warpgroups, in a process of its own: a barrier that never comes would end its context.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from paths import asked_for_wgmma, setting
from race import Clock
from record import Recorder, first_line

import cae_fast as cf
from cae_fast.backends import select_backend
from cae_fast.model import CAE, CAEConfig
from cae_fast.testing import random_images

CONFIG = CAEConfig()
_POINTS = np.linspace(0, 1, 6)  # of the authors' script


def classifier_network(torch: Any) -> tuple[Any, str]:
    """A ResNet-50 with two classes and random weights, in eval mode; what it is."""
    import torchvision  # type: ignore[import-not-found,import-untyped,unused-ignore]

    torch.manual_seed(0)
    network = torchvision.models.resnet50(weights=None, num_classes=CONFIG.num_classes)
    return network.eval().requires_grad_(False).cuda(), "ResNet-50, random weights"


def flipping(torch: Any, network: Any, start: Any, end: Any) -> Any:
    """The network with its logits shifted so that the path from `start` to `end` flips half way.

    Its arithmetic is the network's; the decision is along the difference of its two outputs.
    """

    class Flipping(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            with torch.no_grad():
                low, high = network(start), network(end)
            change = high - low
            self.register_buffer("middle", (low + high) / 2)
            self.register_buffer("direction", change / (change * change).sum().clamp_min(1e-30))

        def forward(self, images: Any) -> Any:
            margin = ((self.network(images) - self.middle) * self.direction).sum(1, keepdim=True)
            return torch.cat([-margin, margin], dim=1) * 8

    return Flipping().to(start.device).eval()


def wall_ms(torch: Any, program: Callable[[], Any], rounds: int) -> list[float]:
    """Milliseconds of calls, results waited for."""
    times = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        program()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def main() -> None:
    """Checks what there is, then times in alternation."""
    found = Recorder()
    torch = found.need_torch()
    asked_for_wgmma(torch, found)
    model = CAE.random(CONFIG, seed=0)
    try:
        backend = select_backend("cuda", model)
    except (cf.BackendUnavailable, ValueError) as error:
        found.skip(f"no explanation on the device yet: {first_line(error)}")
    try:
        network, what = classifier_network(torch)
    except ImportError as error:
        found.skip(f"no ResNet-50: {first_line(error)}")
    found.put("classifier", what)
    image, reference = np.split(random_images(CONFIG, 2), 2)
    networks = model.module().eval().requires_grad_(False).cuda()
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False
    given, other = (torch.from_numpy(array).cuda() for array in (image, reference))
    with torch.no_grad():
        individual, start = networks.encode(given)
        end = networks.encode_class(other) + 1
        first, last = networks.decode(individual, start), networks.decode(individual, end)
        classifier = flipping(torch, network, first, last)

    def authors() -> Any:
        with torch.no_grad():
            code, a = networks.encode(given)
            _, b = networks.encode(other)
            scores = [
                classifier(networks.decode(code, (1 - float(t)) * a + float(t) * b))
                for t in _POINTS
            ]
            return torch.cat(scores).cpu()

    del backend
    exemplar = end.cpu().numpy()
    programs: dict[str, Callable[[], Any]] = {"authors, eager fp32": authors}
    called = {"": cf.Classifier(classifier)}
    try:
        checked = torch.cat([given, first, last]).clamp(-1, 1)
        called[", prepared classifier"] = called[""].prepared(checked)
    except cf.ClassifierError as error:
        found.put("prepared classifier", first_line(error))
    for how, one in called.items():
        for leaving, value in (("", "0"), (", early exit", "1")):
            with setting(CAE_GPU_EARLY_EXIT=value):
                explainer = cf.Explainer(model, one, backend="cuda")
            for search in ("bisection", "margin"):
                programs[f"ours, {search}{how}{leaving}"] = functools.partial(
                    explainer.explain,
                    image,
                    target=1,
                    exemplars=exemplar,
                    tolerance=1 / 256,
                    search=search,
                )
    Clock(torch)
    times: dict[str, Any] = {}
    alive = dict(programs)
    for name, program in programs.items():
        try:
            program()
            result = program()
            if name.startswith("ours"):
                facts = {"status": list(result.status), "stepping": result.meta["stepping"]}
                found.put(f"{name}, result", facts)
        except Exception as error:  # a search that is not there yet is a finding
            times[name] = {"not_run": first_line(error)}
            del alive[name]
    taken: dict[str, list[float]] = {name: [] for name in alive}
    for _ in range(9):
        for name, program in alive.items():
            taken[name] += wall_ms(torch, program, 1)
    for name, values in taken.items():
        times[name] = {"ms": statistics.median(values), "low": min(values), "high": max(values)}
    found.put("cases", times)
    theirs = times["authors, eager fp32"].get("ms")
    parts = []
    for name, row in times.items():
        if "ms" in row:
            ratio = (
                f" ({theirs / row['ms']:.1f}x)" if theirs and name != "authors, eager fp32" else ""
            )
            parts.append(f"{name} {row['ms']:.2f} ms{ratio}")
        else:
            parts.append(f"{name}: {row['not_run']}")
    found.say(", ".join(parts))


if __name__ == "__main__":
    main()
