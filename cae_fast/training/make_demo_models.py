# SPDX-License-Identifier: Apache-2.0
"""Make the bundled demo models: ``python -m cae_fast.training.make_demo_models NAME --work DIR``.

Trains what is not in the work folder yet, measures it on validation and test images, makes the
samples, and writes model, classifier, bank, samples, card.json and the page of the model card.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..bank import CodeBank
from ..classifier import Classifier
from ..digits import write_digits
from ..explainer import Explainer
from ..files import atomic_directory, atomic_write
from ..model import CAE
from .classifier import train_classifier
from .demo_cards import RECIPES, Recipe, card_page
from .demo_samples import Sample, digit_samples, donor_samples, write_samples
from .judges import as_torch
from .options import ClassifierOptions
from .pipeline import Splits, read_splits
from .promises import measure_promises

_SWAPS = 512
_SAMPLES_PER_CLASS = 2
_EXEMPLARS = 10  # that the demo averages: single codes may lie astray among another class's


def main() -> None:
    """Makes one demo model."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--data", type=Path, help="folder of images (digits: made if absent)")
    parser.add_argument("--work", type=Path, required=True, help="folder for training")
    parser.add_argument("--out", type=Path, required=True, help="folder of the demo models")
    parser.add_argument("--docs", type=Path, required=True, help="folder of the model cards")
    chosen = parser.parse_args()
    make(RECIPES[chosen.name], chosen.data, chosen.work, chosen.out, chosen.docs)


def make(recipe: Recipe, data: Path | None, work: Path, out: Path, docs: Path) -> None:
    """Trains, measures and writes one demo model.

    Args:
        recipe: How.
        data: Folder of images; None: the digits.
        work: Folder of the training runs; finished parts of an earlier call are taken over.
        out: The model becomes `out`/name.
        docs: The model card becomes `docs`/name.md.
    """
    work.mkdir(parents=True, exist_ok=True)
    if data is None:
        data = work / "digits-data"
        if not data.exists():
            write_digits(data)
    run = _train(recipe, data, work)
    trained = CAE.load(run / "model.safetensors")
    classifier = Classifier.load(work / "classifier.onnx")
    splits = read_splits(data, 0.1, 0)
    promises = _promises(trained, classifier, splits)
    model = CAE(trained.config, trained.weights, trained.provenance | {"promises": promises})
    bank_data = _all_training_images(splits)
    bank = CodeBank.build(
        model, bank_data, classifier=classifier, thumbnails=recipe.name == "digits"
    )
    explainer = Explainer(model, classifier, bank=bank)
    if splits.test is None:
        raise ValueError(f"{data} has no test images, which the card is measured on")
    if recipe.name == "digits":
        samples = digit_samples(splits.test, classifier, model.config.image_size)
    else:
        samples = donor_samples(
            model,
            explainer,
            classifier,
            splits.test,
            per_class=_SAMPLES_PER_CLASS,
            exemplars=_EXEMPLARS,
            seed=0,
        )
    card = _card(recipe, model, classifier, bank, splits, samples)
    card["explanations"] = _explained(recipe, explainer, splits)
    with atomic_directory(out / recipe.name, overwrite=True) as folder:
        model.save(folder / "model.safetensors")
        shutil.copyfile(work / "classifier.onnx", folder / "classifier.onnx")
        bank.save(folder / "bank.csv")
        write_samples(folder / "samples", samples)
        card["files"] = {
            file.name: {
                "bytes": file.stat().st_size,
                "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            }
            for file in sorted(folder.iterdir())
            if file.is_file()
        }
        text = json.dumps(card, indent=2, ensure_ascii=False)
        (folder / "card.json").write_text(text + "\n", encoding="utf-8")
    docs.mkdir(parents=True, exist_ok=True)
    with atomic_write(docs / f"{recipe.name}.md") as temporary:
        temporary.write_text(card_page(recipe, card), encoding="utf-8")


def _train(recipe: Recipe, data: Path, work: Path) -> Path:
    """Trains classifier and model where they are not there yet; gives the folder of the run."""
    if not (work / "classifier.onnx").exists():
        how = ClassifierOptions(data=data, out=work / "classifier.pt2", **recipe.classifier)
        train_classifier(how)
    run = work / "run"
    if (run / "model.safetensors").exists():
        return run
    command = [sys.executable, "-m", "cae_fast", "train", str(data), "--out", str(run)]
    subprocess.run([*command, *recipe.train.split(), "--resume"], check=True)
    return run


def _promises(model: CAE, classifier: Classifier, splits: Splits) -> dict[str, Any]:
    """The promises on validation and test images, judged by the classifier to be explained."""
    module = model.module().eval()
    config = model.config
    judge = as_torch(classifier, config.num_classes)
    size, channels = config.image_size, config.in_channels
    known_images = torch.from_numpy(splits.train.load(size=size, channels=channels))
    measured = {}
    for name, part in (("validation", splits.validation), ("test", splits.test)):
        if part is not None:
            measured[name] = measure_promises(
                module,
                torch.from_numpy(part.load(size=size, channels=channels)),
                part.labels,
                judge,
                judge="classifier.onnx",
                reference=(known_images, splits.train.labels),
                swaps=_SWAPS,
            )
    return measured


def _all_training_images(splits: Splits) -> Any:
    """Training and validation images as one data set."""
    train, held = splits.train, splits.validation
    return type(train)(
        train.root,
        [*train.files, *held.files],
        np.concatenate([train.labels, held.labels]),
        train.class_names,
        [*train.groups, *held.groups],
    )


def _explained(recipe: Recipe, explainer: Explainer, splits: Splits) -> dict[str, Any]:
    """Status counts of explaining the whole test split, and of the digits' 3 as an 8."""
    if splits.test is None:
        return {}
    config = explainer.model.config
    images = splits.test.load(size=config.image_size, channels=config.in_channels)
    counted = {}
    for k, exemplars in ((1, "nearest exemplar"), (_EXEMPLARS, f"mean of {_EXEMPLARS} exemplars")):
        said = f"test images, towards the runner-up, {exemplars}"
        counted[said] = _statuses(explainer, images, None, k)
        if recipe.name == "digits":
            threes = images[splits.test.labels == splits.test.class_names.index("3")]
            counted[f"test 3s, towards 8, {exemplars}"] = _statuses(explainer, threes, "8", k)
    return counted


def _statuses(explainer: Explainer, images: Any, target: str | None, k: int) -> dict[str, Any]:
    result = explainer.explain(images, target=target, exemplars="nearest", k=k, second_try=False)
    kinds, counts = np.unique(result.status, return_counts=True)
    statuses = {str(kind): int(n) for kind, n in zip(kinds, counts, strict=True)}
    return {"images": len(images), "statuses": statuses}


def _card(
    recipe: Recipe,
    model: CAE,
    classifier: Classifier,
    bank: CodeBank,
    splits: Splits,
    samples: list[Sample],
) -> dict[str, Any]:
    said = model.provenance
    return {
        "name": recipe.name,
        "title": recipe.title,
        "model": model.config.to_dict(),
        "model_sha256": model.sha256,
        "weights": sum(int(w.size) for w in model.weights.values()),
        "data": {
            "citation": recipe.citation,
            "licence": recipe.licence,
            "train": splits.train.class_counts(),
            "validation": splits.validation.class_counts(),
            "test": splits.test.class_counts() if splits.test is not None else {},
        },
        "commands": recipe.commands(),
        "seed": said.get("seed"),
        "steps": said.get("steps"),
        "training_seconds": said.get("seconds"),
        "versions": said.get("versions"),
        "classifier": classifier.metadata,
        "promises": said["promises"],
        "bank": {"images": len(bank), "usable": int(bank.usable.sum())},
        "samples": {
            "how": recipe.samples,
            "origins": {sample.name: sample.origin for sample in samples},
        },
        "targets": {s.name: s.target for s in samples if s.target is not None},
        "limits": list(recipe.limits),
        "k": _EXEMPLARS,
        "notice": "For research, not for diagnosis.",
    }


if __name__ == "__main__":
    main()
