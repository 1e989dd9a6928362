# SPDX-License-Identifier: Apache-2.0
"""Recipes of the bundled demo models, and the pages of their model cards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_ACEVEDO = (
    "A. Acevedo, A. Merino, S. Alférez, Á. Molina, L. Boldú, J. Rodellar: A dataset of microscopic "
    "peripheral blood cell images for development of automatic recognition systems, Data in Brief "
    "30 (2020) 105474, doi:10.1016/j.dib.2020.105474; Mendeley Data, doi:10.17632/snkd93bnjr.1"
)
_ALPAYDIN = (
    "E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI Machine Learning "
    "Repository, 1998, doi:10.24432/C50P49; the part that scikit-learn carries"
)
_ASTRAY = (
    "A few codes lie astray among those of another class; as the nearest exemplar of many images "
    "such a code flips none of them. The demo averages ten exemplars."
)
_CRITIC = (
    "The critic that guided the decoder and the explained classifier are networks of the same "
    "kind trained on the same images: swaps that please one please the other."
)


@dataclass(frozen=True)
class Recipe:
    """How one demo model is made.

    Attributes:
        name: Of the folder.
        title: Of the card.
        train: Arguments of `cae-fast train` after the data and the run.
        classifier: Options of the classifier to be explained.
        citation: Of the data.
        licence: Of the data.
        subset: Which part of the data, in words.
        samples: How the samples were made and chosen.
        limits: What the model cannot do.
    """

    name: str
    title: str
    train: str
    classifier: dict[str, Any]
    citation: str
    licence: str
    subset: str
    samples: str
    limits: tuple[str, ...]

    def commands(self) -> list[str]:
        """What makes the model: one command, and the training that it runs."""
        data = "" if self.name == "digits" else " --data DATA"
        made = f"python -m cae_fast.training.make_demo_models {self.name}{data}"
        train = f"cae-fast train DATA --out WORK/run {self.train}"
        return [f"{made} --work WORK --out cae_fast/demo_models --docs docs/models", train]


RECIPES = {
    "digits": Recipe(
        name="digits",
        title="Handwritten digits",
        train=(
            "--image-size 32 --channels 16 --num-blocks 2 --steps 1500 --learning-rate 4e-4 "
            "--augment none"
        ),
        classifier={"augment": "none"},
        citation=_ALPAYDIN,
        licence="CC BY 4.0",
        subset=(
            "1797 grey images of 8 x 8 pixels, enlarged to 32 x 32; the last fifth of each class "
            "is the test split."
        ),
        samples=(
            "Real test digits: of each pair shown, the first in the order of the file that the "
            "classifier gets right; none was left out for its explanation."
        ),
        limits=(
            "The originals have 8 x 8 pixels: what looks like a pen's stroke is interpolation.",
            "Some writers may be in both splits: the data carry no names.",
            _ASTRAY,
            _CRITIC,
        ),
    ),
    "blood_cells": Recipe(
        name="blood_cells",
        title="Blood cells",
        train=(
            "--image-size 64 --channels 16 --num-blocks 4 --steps 3000 --batch-size 4 "
            "--learning-rate 4e-4 --precision bf16 --augment dihedral"
        ),
        classifier={
            "image_size": 64,
            "augment": "dihedral",
            "seed": 1,
            "epochs": 60,
            "patience": 200,
        },
        citation=_ACEVEDO,
        licence="CC BY 4.0",
        subset=(
            "Four of its classes, 95 training and 25 test images each; central crops, scaled to "
            "64 x 64 pixels."
        ),
        samples=(
            "Made by the model: the individual code of a test image decoded with the class code "
            "of a test image of another class; file names say both classes. Drawn at random; kept "
            "are those that the classifier gives the donor's class with a probability of 0.95 or "
            "more, that an explanation flips with one exemplar and with ten, and that the model "
            "reconstructs best. So they show the model at its best. No original image is shipped."
        ),
        limits=(
            "Pictures are blurred: granules and the texture of nuclei are suggested, not shown.",
            "Cells come from one hospital, one stain and one device; other images look different.",
            _ASTRAY,
            "A swap may change the whole cell where a specialist would look at one feature.",
            "The explained classifier was trained with another validation split, which holds "
            "some of the validation images here; its figures on the test split are clean.",
            _CRITIC,
        ),
    ),
}

_MEASURED = (
    ("classifier_accuracy", "the classifier's accuracy on the images themselves"),
    ("reconstruction_l1", "mean absolute error of a reconstruction (pixels span 2)"),
    ("class_kept", "reconstructions that keep the image's predicted class"),
    ("swap_success", "swapped images that are classified as the donor's class"),
    ("swap_changed", "swapped images that leave the image's own class"),
    ("knn_accuracy", "class told by the 5 nearest training codes"),
    ("class_code_error", "class code re-encoded from a swap, relative to the spread of codes"),
    ("individual_code_error", "the same for the individual code"),
    ("path_largest_step", "largest change of probability between 17 points of a path, mean"),
)


def card_page(recipe: Recipe, card: dict[str, Any]) -> str:
    """The model card as Markdown.

    Args:
        recipe: How the model was made.
        card: What card.json says.
    """
    config = card["model"]
    data = card["data"]
    counts = "; ".join(
        f"{split}: {sum(data[split].values())} images" for split in ("train", "validation", "test")
    )
    accuracy = card["classifier"].get("accuracy", {})
    balanced = ", ".join(
        f"{split} {values['balanced_accuracy']:.3f} ({values['images']} images)"
        for split, values in accuracy.items()
    )
    promises = card["promises"]
    splits = list(promises)
    rows = [
        f"| {text} | " + " | ".join(f"{promises[s][name]:.3f}" for s in splits) + " |"
        for name, text in _MEASURED
    ]
    explained = [
        f"- {what}: {values['images']} images: "
        + ", ".join(f"{count} {status}" for status, count in values["statuses"].items())
        for what, values in card["explanations"].items()
    ]
    size = sum(entry["bytes"] for entry in card["files"].values()) / 1e6
    lines = [
        f"# Model card: {card['title']}",
        "",
        f"The bundled model `{card['name']}`: {config['image_size']} x {config['image_size']} "
        f"pixels, {config['in_channels']} channel(s), {config['num_classes']} classes "
        f"({', '.join(config['class_names'])}), width {config['channels']}, "
        f"{config['num_blocks']} blocks, code of {config['code_dim']} numbers; "
        f"{card['weights'] / 1e6:.2f} M weights, {size:.1f} MB with classifier and bank. "
        f"**{card['notice']}**",
        "",
        "## Data",
        f"{recipe.citation}. Licence of the data: {recipe.licence}. {recipe.subset} {counts}.",
        "",
        "## How it was made",
        f"Seed {card['seed']}, {card['steps']} steps, {card['training_seconds'] / 60:.0f} minutes "
        "on two CPU cores that other work shared.",
        "",
        "```sh",
        *card["commands"],
        "```",
        "",
        "The first command runs the second, trains the classifier (its options are in "
        "`cae_fast/training/demo_cards.py`), and measures. The same seed on another machine gives "
        "another model of the same kind: rounding differs.",
        "",
        "## Classifier",
        f"A small residual network of `cae-fast train-classifier`; balanced accuracy: {balanced}.",
        "",
        "## Promises measured",
        "Judged by the classifier above. 512 swaps per split, all ordered class pairs equally "
        f"often; chance is {promises[splits[0]]['chance']:.2f}.",
        "",
        "| | " + " | ".join(splits) + " |",
        "|---|" + "---|" * len(splits),
        *rows,
        "",
        "Explanations on the embedded CPU backend, with the bundled bank "
        f"({card['bank']['usable']} of {card['bank']['images']} images usable as exemplars), on "
        "lines that go on half as far again beyond the exemplars:",
        "",
        *explained,
        "",
        "## Samples",
        card["samples"]["how"],
        "",
        "## Limits",
        *(f"- {limit}" for limit in card["limits"]),
        f"- {card['notice']}",
        "",
    ]
    return "\n".join(lines)
