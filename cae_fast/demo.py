# SPDX-License-Identifier: Apache-2.0
"""The bundled demonstration: two small models, their samples, one page. Needs no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cae_fast.colors import to_rgb
from cae_fast.errors import CAEError
from cae_fast.files import atomic_directory, check_output_directory

if TYPE_CHECKING:
    from cae_fast.explanation import Explanation

#: Names of the bundled models.
MODELS = ("digits", "blood_cells")
#: Written into every demo folder; a folder with it may be replaced.
MARKER = "demo.json"

_TITLES: Mapping[str, str] = {"digits": "Handwritten digits", "blood_cells": "Blood cells"}
_SAMPLE_NOTES: Mapping[str, tuple[str, ...]] = {
    "digits": (
        "Real test images, never seen in training, of the handwritten digits that scikit-learn "
        "carries (E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI "
        "Machine Learning Repository, 1998, CC BY 4.0), enlarged from 8 x 8 to 32 x 32 pixels.",
    ),
    "blood_cells": (
        "These samples were made by the model itself: each is a decoded individual code with the "
        "class code of another image. No original image is shipped.",
        "The model was trained on: A. Acevedo, A. Merino, S. Alférez, Á. Molina, L. Boldú, "
        "J. Rodellar, A dataset of microscopic peripheral blood cell images for development of "
        "automatic recognition systems, Data in Brief 30 (2020) 105474, "
        "doi:10.1016/j.dib.2020.105474, CC BY 4.0.",
    ),
}
_TEASERS = 4


@dataclass(frozen=True)
class DemoResult:
    """What the demo wrote.

    Attributes:
        index: The page to open.
        reports: Report of each model, by the model's name.
        totals: Images of each status, by the model's name.
        seconds_per_image: Mean time of an explanation, by the model's name.
        model_choice: Why this model, where the caller's own images were explained; else empty.
    """

    index: Path
    reports: dict[str, Path]
    totals: dict[str, dict[str, int]]
    seconds_per_image: dict[str, float]
    model_choice: str = ""


def model_folder(name: str) -> Path:
    """Folder of a bundled model: model.safetensors, classifier.onnx, bank.csv, card.json, samples/.

    Args:
        name: "digits" or "blood_cells".

    Raises:
        ValueError: The name is unknown, or the files are not there.
    """
    if name not in MODELS:
        raise CAEError(f"model must be one of {', '.join(MODELS)}, got {name!r}")
    folder = Path(__file__).resolve().parent / "demo_models" / name
    if not (folder / "model.safetensors").is_file():
        raise CAEError(f"{folder}: the bundled model is missing; install cae_fast again")
    return folder


def run(
    out: str | os.PathLike[str] = "demo",
    data: str | os.PathLike[str] | None = None,
    model: str = "all",
    *,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> DemoResult:
    """Explain the bundled samples, or the images of a folder, with the bundled models.

    Args:
        out: Folder to write; a folder that the demo wrote before is replaced.
        data: A folder of images, or one image; None takes the bundled samples.
        model: "digits", "blood_cells", or "all": both on their samples; for `data` the one that
            suits the images, digits for grey ones and blood cells for colour.
        overwrite: Replace a folder that is not the demo's own.
        on_progress: Called with (images done, images in all) of the model at work.

    Returns:
        Where the page is, and how long an explanation took.

    Raises:
        ValueError: `out` is a file or somebody else's folder, or there is no image in `data`.
        OSError: The file system refused.
    """
    target = Path(out)
    own = (target / MARKER).is_file()
    check_output_directory(target, overwrite=overwrite or own)
    choice = ""
    if model != "all":
        names: tuple[str, ...] = (model,)
    elif data is None:
        names = MODELS
    else:
        name, choice = _suited_model(Path(data))
        names = (name,)
    folders = {name: model_folder(name) for name in names}
    explained: dict[str, Explanation] = {}
    notes = {
        name: _SAMPLE_NOTES[name] if data is None else _own_images_notes(name, choice)
        for name in names
    }
    with atomic_directory(target, overwrite=overwrite or own) as temporary:
        for name, folder in folders.items():
            explained[name] = _explain(
                folder, data, temporary / name, name, notes[name], on_progress
            )
        totals = {name: _totals(explanation) for name, explanation in explained.items()}
        seconds = {name: _seconds_per_image(e) for name, e in explained.items()}
        page = _landing_page(explained, seconds, notes)
        (temporary / "index.html").write_text(page, encoding="utf-8")
        marker = {"totals": totals, "seconds_per_image": seconds}
        (temporary / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
    reports = {name: target / name / "index.html" for name in explained}
    return DemoResult(target / "index.html", reports, totals, seconds, choice)


def _explain(
    folder: Path,
    data: str | os.PathLike[str] | None,
    out: Path,
    name: str,
    notes: Sequence[str],
    on_progress: Callable[[int, int], None] | None,
) -> Explanation:
    from cae_fast.bank import CodeBank
    from cae_fast.classifier import Classifier
    from cae_fast.explainer import Explainer
    from cae_fast.model import CAE
    from cae_fast.report.from_files import explain_files, image_files

    explainer = Explainer(
        CAE.load(folder / "model.safetensors"),
        Classifier.load(folder / "classifier.onnx"),
        bank=CodeBank.load(folder / "bank.csv"),
        backend="auto",
    )
    sources = image_files([folder / "samples" if data is None else data])
    card = _card(folder)
    targets = card.get("targets", {}) if data is None else {}
    return explain_files(
        explainer,
        sources,
        out,
        target=[targets.get(source.name) for source in sources] if targets else None,
        k=card.get("k"),
        title=_TITLES[name],
        notes=notes,
        on_progress=on_progress,
    )


def _card(folder: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    return card


def _suited_model(data: Path) -> tuple[str, str]:
    """The bundled model for somebody's images, and the reason in words."""
    from cae_fast.errors import ImageDecodeError
    from cae_fast.images import load_images
    from cae_fast.report.from_files import image_files

    for file in image_files([data]):
        try:
            channels = load_images(file).shape[1]
        except ImageDecodeError:
            continue
        kind, name = ("grey", "digits") if channels == 1 else ("in colour", "blood_cells")
        return name, f"{file.name} is {kind}, so the bundled {name} model was used"
    raise ImageDecodeError(f"{data}: none of the images can be read")


def _own_images_notes(name: str, choice: str) -> tuple[str, ...]:
    subject = _TITLES[name].lower()
    reason = f"{choice}. " if choice else ""
    return (
        f"{reason[:1].upper()}{reason[1:]}The bundled model and classifier know {subject} and "
        "nothing else: of other images these explanations say nothing.",
    )


def _totals(explanation: Explanation) -> dict[str, int]:
    kinds, counts = np.unique(explanation.status, return_counts=True)
    return {str(kind): int(count) for kind, count in zip(kinds, counts, strict=True)}


def _seconds_per_image(explanation: Explanation) -> float:
    from cae_fast.report.page import total_seconds

    return (total_seconds(explanation.meta) or 0.0) / len(explanation)


def _landing_page(
    explained: Mapping[str, Explanation],
    seconds: Mapping[str, float],
    notes: Mapping[str, Sequence[str]],
) -> str:
    from cae_fast.report.page import NOTICE, asset, page

    sections = "".join(
        _section(name, explanation, seconds[name], notes[name])
        for name, explanation in explained.items()
    )
    body = (
        f'<style>{asset("report.css")}</style><main class="cae"><header>'
        f'<p class="notice">{NOTICE}</p><h1>What would change the classifier’s mind?</h1>'
        '<p class="lead">Left, what the classifier saw; right, the same individual just past the '
        "point where it says something else.</p></header>"
        f"{sections}</main>"
    )
    return page("cae_fast demo", body)


def _section(name: str, explanation: Explanation, seconds: float, notes: Sequence[str]) -> str:
    from cae_fast.report import STATUS_LABELS
    from cae_fast.report.page import duration

    totals = _totals(explanation)
    summary = ", ".join(f"{n} {STATUS_LABELS[s].lower()}" for s, n in totals.items())
    origin = "".join(f'<p class="note"><small>{escape(note)}</small></p>' for note in notes)
    return (
        f'<section class="case"><header><h2><a href="{name}/index.html">{_TITLES[name]}</a></h2>'
        f'<span class="badge">{duration(seconds)} per explanation</span></header>'
        f'<p class="says">{len(explanation)} images: {escape(summary)}.</p>'
        f'<div class="pairs">{_teasers(explanation)}</div>{origin}'
        f'<p class="more"><a href="{name}/index.html">Open the report on {_TITLES[name].lower()}'
        "</a></p></section>"
    )


def _teasers(explanation: Explanation) -> str:
    """A few flipped images beside their counterfactuals."""
    from cae_fast.pictures import png_bytes
    from cae_fast.report.pictures import data_uri

    parts = []
    for i in np.flatnonzero(explanation.status == "flipped")[:_TEASERS]:
        names = explanation.class_names
        source = escape(names[int(explanation.source_class[i])])
        reached = escape(names[int(explanation.reached_class[i])])
        before, after = (
            data_uri(png_bytes(to_rgb(pixels)))
            for pixels in (explanation.images[i], explanation.counterfactual[i])
        )
        parts.append(
            f'<figure class="pair"><img src="{before}" alt="image"><img src="{after}" '
            f'alt="counterfactual"><figcaption>{source} → {reached}</figcaption></figure>'
        )
    return "".join(parts)
