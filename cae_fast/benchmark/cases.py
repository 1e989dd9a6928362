# SPDX-License-Identifier: Apache-2.0
"""The cases: what is measured at which size and batch, and the targets they are held to."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ..model import CAE, CAEConfig

KINDS = ("decode", "encode", "explain")
PEERS = ("eager", "torch.compile", "ONNX Runtime", "OpenVINO")
#: The authors' procedure stands in the column of eager PyTorch.
EAGER = "eager"
LIBRARIES = PEERS[1:]

REFERENCE = CAEConfig()
DEMO = CAEConfig(image_size=64, channels=16, num_blocks=4, num_classes=4)
SIZES = (256, 128, 64)
BATCHES = (1, 8, 32)


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        kind: "decode", "encode", "explain", or "start" (then nothing else matters).
        model: "reference" (cf.CAEConfig(), at `size`), "demo", or "given".
        size: Side of the images.
        batch: Images in a call.
    """

    kind: str
    model: str = ""
    size: int = 0
    batch: int = 0

    @property
    def name(self) -> str:
        """Such as "decode reference 256 x8"; what tables and comparisons go by."""
        if self.kind == "start":
            return "import and first explanation"
        return f"{self.kind} {self.model} {self.size} x{self.batch}"


START = Case("start")


def quick_cases() -> list[Case]:
    """What shows most in under a minute: batch 1 of a small and of the reference network."""
    small = [Case(kind, "demo", DEMO.image_size, 1) for kind in KINDS]
    decode, encode, explain = (Case(kind, "reference", REFERENCE.image_size, 1) for kind in KINDS)
    return [decode, encode, explain, START, *small]


def all_cases() -> list[Case]:
    """Every case, those with a target first and the longest last."""
    cases = quick_cases()
    every = [
        Case(kind, "reference", size, batch)
        for size in SIZES
        for batch in BATCHES
        for kind in KINDS
    ]
    every.sort(key=lambda case: case.size**2 * case.batch)
    return cases + [case for case in every if case not in cases]


def given_cases(config: CAEConfig, *, quick: bool) -> list[Case]:
    """The cases of a user's own model."""
    batches = BATCHES[:1] if quick else BATCHES
    return [Case(kind, "given", config.image_size, batch) for batch in batches for kind in KINDS]


def random_model(case: Case) -> CAE:
    """The network of a case with random weights: time does not depend on their values."""
    config = DEMO if case.model == "demo" else REFERENCE
    return CAE.random(dataclasses.replace(config, image_size=case.size), seed=0)


@dataclass(frozen=True)
class Target:
    """A promise of the project for the reference network at batch 1.

    Attributes:
        what: In words.
        row: Name of the row it is read from.
        beside: A peer's name, "library" (the best of LIBRARIES), or "" for seconds of our own.
        wanted: At least this ratio; with `beside` "" at most this many seconds.
    """

    what: str
    row: str
    beside: str
    wanted: float


TARGETS = (
    Target("decode against eager", "decode reference 256 x1", EAGER, 7),
    Target("decode against the best library", "decode reference 256 x1", "library", 5),
    Target("encode (both encoders) against eager", "encode reference 256 x1", EAGER, 4),
    Target(
        "explanation to 1/256 by bisection against the authors' procedure",
        "explain reference 256 x1, bisection",
        EAGER,
        3,
    ),
    Target(
        "explanation to 1/256 by the margin against the authors' procedure",
        "explain reference 256 x1, margin",
        EAGER,
        5,
    ),
    Target(
        "explanation to 0.2 by bisection against the authors' procedure",
        "explain reference 256 x1, bisection 0.2",
        EAGER,
        6,
    ),
    Target("import and first explanation, seconds", START.name, "", 1.0),
)
