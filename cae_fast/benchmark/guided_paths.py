# SPDX-License-Identifier: Apache-2.0
"""Guided paths and choices of exemplars, measured: what flips, what it costs, how real it looks.

    python -m cae_fast.benchmark.guided_paths digits
    python -m cae_fast.benchmark.guided_paths blood_cells --data DATA

Every image of the validation split goes to every class but its own. The bank holds the rest of the
training split, so that no image meets its own code. Defaults are chosen by these figures; with
`--split test` the bank is the whole training split.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cae_fast.arrays import Float32
from cae_fast.bank import CodeBank
from cae_fast.classifier import Classifier
from cae_fast.classifier_outputs import softmax
from cae_fast.data import ImageDataset
from cae_fast.demo import model_folder
from cae_fast.explainer import Explainer
from cae_fast.explanation import Explanation
from cae_fast.model import CAE

BoolArray = npt.NDArray[np.bool_]
FRAMES = 9
_NEAR = 5  # neighbours of a code's distance to others
_INSIDE = 0.95  # share of the bank's own codes that count as inside its density

#: What is compared: kind of path, choice, k, reach.
_SMALL = (
    *(("nearest", 1), ("nearest", 5), ("nearest", 10), ("medoid", 10)),
    *(("reliable", 1), ("reliable", 5), ("reliable", 10), ("reliable-medoid", 10)),
)
_DEFAULT = ("reliable", 20)
_LARGE = (("nearest", 20), ("reliable", 20), ("nearest", 40), ("reliable", 40), ("medoid", 40))
SETTINGS = (
    *(("line", choice, k, 1.0) for choice, k in (*_SMALL, *_LARGE)),
    *(("line", *_DEFAULT, reach) for reach in (1.25, 1.5, 2.0, 3.0)),
    *(("graph", choice, k, 1.0) for choice, k in (*_SMALL, _DEFAULT)),
)


@dataclass(frozen=True)
class Measured:
    """One kind of path with one choice of exemplars.

    Attributes:
        path: "line" or "graph".
        exemplars: Name of the choice.
        k: Of the choice.
        reach: Length of lines over the distance to the exemplars.
        paths: Paths measured.
        flipped: Share of them that flip to the class asked for, reconstructions that are of it
            already counted as not.
        decodes: Decodes per path, mean.
        inside: Share of the path's decoded points whose own code lies inside the bank's density:
            its mean distance to the 5 nearest codes is at most what 95 % of the bank's rows have.
        to_target: Mean distance of the counterfactual's own code to the 5 nearest codes of the
            target class, over the median of that class's own rows; of those that flipped. 1 is as
            near as the class's images are to each other.
        changed: Mean absolute difference of counterfactual and reconstruction; pixels span 2.
        jump: Largest change of the target's probability between neighbouring frames, mean.
        seconds: Per path, all threads.
    """

    path: str
    exemplars: str
    k: int
    reach: float
    paths: int
    flipped: float
    decodes: float
    inside: float
    to_target: float
    changed: float
    jump: float
    seconds: float


def rows_of(bank: CodeBank, chosen: BoolArray) -> CodeBank:
    """A bank of some rows [B] of another."""
    rows = np.flatnonzero(chosen).tolist()
    thumbnails = bank.thumbnails
    return replace(
        bank,
        codes=bank.codes[rows],
        names=[bank.names[i] for i in rows],
        groups=[bank.groups[i] for i in rows],
        labels=bank.labels[rows],
        predicted=bank.predicted[rows],
        thumbnails=None if thumbnails is None else [thumbnails[i] for i in rows],
        _sha256=None,
    )


class Density:
    """How far codes are from those of a bank."""

    def __init__(self, bank: CodeBank) -> None:
        """Measures the bank's own rows, each without itself."""
        self._bank = bank
        own = self.distances(bank.codes, skip_nearest=True)
        self._limit = float(np.quantile(own, _INSIDE))
        classes = range(len(bank.class_names))
        self._typical = np.array(
            [
                np.median(self.distances(bank.codes[rows], within=rows, skip_nearest=True))
                for rows in (bank.labels == c for c in classes)
            ]
        )

    def distances(
        self, codes: Float32, *, within: BoolArray | None = None, skip_nearest: bool = False
    ) -> npt.NDArray[np.float64]:
        """Mean distance [M] of codes [M, D] to their nearest in the bank, or in some of its rows.

        Args:
            codes: [M, D].
            within: Rows of the bank [B] that count; None is all.
            skip_nearest: Of rows of the bank: the nearest is the row itself.
        """
        bank = self._bank.codes if within is None else self._bank.codes[within]
        first, count = int(skip_nearest), min(_NEAR + int(skip_nearest), len(bank))
        found = np.empty(len(codes))
        for i, code in enumerate(codes.astype(np.float64)):
            gaps = np.sqrt(((bank - code) ** 2).sum(axis=1))
            found[i] = np.sort(np.partition(gaps, count - 1)[:count])[first:].mean()
        return found

    def inside(self, codes: Float32) -> BoolArray:
        """Whether codes [M, D] lie where the bank's do."""
        return np.asarray(self.distances(codes) <= self._limit)

    def to_class(self, codes: Float32, classes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Distances to the codes of classes [M], over what is usual among those."""
        found = np.empty(len(codes))
        for label in np.unique(classes):
            rows = classes == label
            within = self._bank.labels == label
            found[rows] = self.distances(codes[rows], within=within) / self._typical[label]
        return found


def measure(
    explainer: Explainer,
    images: Float32,
    density: Density,
    *,
    path: str,
    exemplars: str,
    k: int,
    reach: float,
) -> Measured:
    """Explains images towards every class but their own, by first paths only.

    Args:
        explainer: With the bank.
        images: [N, C, S, S].
        density: Of that bank.
        path: Kind of path.
        exemplars: Name of the choice.
        k: Of the choice.
        reach: Of lines.
    """
    predicted = explainer.classifier(images).argmax(axis=1)
    start = time.perf_counter()
    results: list[Explanation] = []
    asked: dict[str, Any] = {
        "path": path,
        "exemplars": exemplars,
        "k": k,
        "reach": reach,
        "second_try": False,
    }
    for target in range(len(explainer.class_names)):
        rows = np.flatnonzero(predicted != target)
        results.append(explainer.explain(images[rows], target=target, **asked))
    seconds = time.perf_counter() - start
    inside, near, jumps = [], [], []
    for target, plain in enumerate(results):
        shown = explainer.explain(plain.images, target=target, frames=FRAMES, **asked)
        assert shown.path_images is not None
        frames = shown.path_images.reshape(-1, *images.shape[1:])
        inside.append(density.inside(explainer.encode(frames).class_code))
        probability = softmax(explainer.classifier(frames))[:, target].reshape(-1, FRAMES)
        jumps.append(np.abs(np.diff(probability, axis=1)).max(axis=1))
        codes = explainer.encode(plain.counterfactual[plain.flipped]).class_code
        near.append(density.to_class(codes, np.full(len(codes), target)))
    flipped = np.concatenate([result.flipped for result in results])
    changes = [np.abs(r.difference[r.flipped]).mean(axis=(1, 2, 3)) for r in results]
    return Measured(
        path=path,
        exemplars=exemplars,
        k=k,
        reach=reach,
        paths=len(flipped),
        flipped=float(flipped.mean()),
        decodes=float(np.concatenate([result.evaluations for result in results]).mean()),
        inside=float(np.concatenate(inside).mean()),
        to_target=_mean(near),
        changed=_mean(changes),
        jump=_mean(jumps),
        seconds=seconds / len(flipped),
    )


def _mean(parts: Sequence[npt.NDArray[Any]]) -> float:
    values = np.concatenate(list(parts))
    return float(values.mean()) if len(values) else float("nan")


def prepare(
    name: str, data: Path | None, split: str, seed: int = 0
) -> tuple[Explainer, Float32, Density]:
    """A bundled model, the images of a split and a bank without them.

    Args:
        name: "digits" or "blood_cells".
        data: The images; None writes the digits.
        split: "val" or "test".
        seed: Of the validation split.
    """
    folder = model_folder(name)
    model = CAE.load(folder / "model.safetensors")
    with tempfile.TemporaryDirectory() as scratch:
        if data is None:
            from cae_fast.digits import write_digits

            data = write_digits(Path(scratch) / "digits")
        dataset = ImageDataset.from_folder(data, split="test" if split == "test" else "train")
        if split == "val":
            _, dataset = dataset.split_validation(seed=seed)
        images = dataset.load(size=model.config.image_size, channels=model.config.in_channels)
    bank = CodeBank.load(folder / "bank.csv")
    held = {*dataset.groups, *dataset.files}
    kept = np.array(
        [
            name not in held and group not in held
            for name, group in zip(bank.names, bank.groups, strict=True)
        ]
    )
    if split == "val" and len(bank) - int(kept.sum()) != len(dataset):
        raise ValueError(f"the bank of {name} does not hold the images of {data}")
    bank = rows_of(bank, kept)
    explainer = Explainer(
        model, Classifier.load(folder / "classifier.onnx"), bank=bank, backend="cpu"
    )
    return explainer, images, Density(bank)


def table(rows: Sequence[Measured]) -> str:
    """The figures as a Markdown table."""
    head = (
        "| path | exemplars | k | reach | flipped | decodes | inside | to target | changed | jump "
        "| ms |\n|---|---|---|---|---|---|---|---|---|---|---|\n"
    )
    return head + "".join(
        f"| {r.path} | {r.exemplars} | {r.k} | {r.reach:g} | {r.flipped:.1%} | {r.decodes:.1f} "
        f"| {r.inside:.1%} | {r.to_target:.2f} | {r.changed:.3f} | {r.jump:.2f} "
        f"| {1000 * r.seconds:.1f} |\n"
        for r in rows
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures every setting, or those asked for, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", choices=("digits", "blood_cells"))
    parser.add_argument("--data", type=Path, help="image folder; needed for blood_cells")
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument("--seed", type=int, default=0, help="of the validation split")
    parser.add_argument("--only", help="one setting, as path:exemplars:k:reach")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    if options.model != "digits" and options.data is None:
        parser.error("--data is needed for blood_cells")
    explainer, images, density = prepare(options.model, options.data, options.split, options.seed)
    rows = []
    for path, exemplars, k, reach in SETTINGS:
        if options.only in (None, f"{path}:{exemplars}:{k}:{reach:g}"):
            asked = {"path": path, "exemplars": exemplars}
            rows.append(measure(explainer, images, density, k=k, reach=reach, **asked))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    print(f"\n{len(images)} images, bank of {len(explainer.bank or ())}\n\n{table(rows)}")
    if options.out is not None:
        from cae_fast.files import atomic_write

        with atomic_write(options.out) as file:
            file.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
