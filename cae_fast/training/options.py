# SPDX-License-Identifier: Apache-2.0
"""Options of training, checked when they are made; importing this needs no torch."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ..errors import CAEError

#: Images [N, C, S, S], float32 in [-1, 1], to logits [N, K].
Classify = Callable[[Any], Any]

MOST_CRITICS = 8
#: The critic of a run that shall have none.
NO_CRITIC = "none"

Augment = Literal["none", "flip", "dihedral", "strong"]
Schedule = Literal["cosine", "halving", "constant"]
Precision = Literal["fp32", "bf16"]
Labels = Literal["folder", "classifier"]
_AUGMENTS = get_args(Augment)

# What is not given follows the side of the images: up to it, the widths of docs/results.md, and
# steps between those that its runs had; above 96 pixels the authors' width, and time.
_BY_SIZE: tuple[tuple[float, dict[str, float]], ...] = (
    (32, {"channels": 16, "num_blocks": 2, "steps": 2000, "learning_rate": 4e-4}),
    (96, {"channels": 32, "num_blocks": 4, "steps": 2000, "learning_rate": 4e-4}),
    (math.inf, {"channels": 64, "num_blocks": 6, "steps": 20_000, "learning_rate": 2e-4}),
)
_FROM_SIZE: Any = None


def _begun_with(out: str | os.PathLike[str]) -> dict[str, Any]:
    """The options that a run was begun with; empty where `out` has none that can be read."""
    try:
        found = json.loads(Path(out, "config.json").read_text(encoding="utf-8"))["options"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def default_by_size(name: str) -> str:
    """What an option is where it is not given, in words: "16 up to 32 pixels, 32 up to 96, ..."."""
    values = [(largest, default[name]) for largest, default in _BY_SIZE]
    ranges = [
        (largest, value)
        for (largest, value), (_, after) in zip(values, [*values[1:], (0, None)], strict=True)
        if value != after
    ]
    parts = [f"{value:g} up to {largest}" for largest, value in ranges[:-1]]
    return f"{parts[0]} pixels, {', '.join([*parts[1:], f'then {ranges[-1][1]:g}'])}"


@dataclass(frozen=True)
class LossWeights:
    """Weights of the losses; 0 leaves a loss out.

    Attributes:
        reconstruction: L1 of the image decoded from its own codes.
        class_code: L1 of the donor's class code and the one re-encoded from the swapped image.
        individual_code: L1 of the individual code and the one re-encoded from the swapped image.
        cycle: L1 of the image and of the one decoded from its class code and the individual code
            of the swapped image.
        adversarial: The discriminator takes the swapped image for real.
        swap_class: The discriminator's class head sees the donor's class in the swapped image; only
            where there is no critic: with one, the discriminator has a logit for each class.
        discriminator_real: Discriminator: real against swapped images.
        discriminator_class: Discriminator: class of real images.
        code_class: A fixed linear head sees the image's class in its class code. Without it a
            class that is a small local thing may never enter the code.
        critic: The frozen critic sees the donor's class in the swapped image and the image's own
            class in the reconstruction, both with noise. This loss and the three below are
            computed only where the run has a critic.
        critic_features: What the critic's inner layers make of the reconstruction is what they
            make of the image (relative L1).
        peak: Root mean fourth power of the reconstruction's error: small things count.
        proximity: L1 of the swapped image and the reconstruction: nothing changes that need not.
        gradient_penalty: Discriminator: mean squared gradient at real images.
    """

    reconstruction: float = 10.0
    class_code: float = 1.0
    individual_code: float = 1.0
    cycle: float = 10.0
    adversarial: float = 1.0
    swap_class: float = 1.0
    discriminator_real: float = 1.0
    discriminator_class: float = 2.0
    code_class: float = 1.0
    critic: float = 4.0
    critic_features: float = 4.0
    peak: float = 3.0
    proximity: float = 16.0
    gradient_penalty: float = 0.05

    def __post_init__(self) -> None:
        """Checks that every weight is a finite number >= 0, and that images are reconstructed.

        Raises:
            CAEError: One is not.
        """
        for item in dataclasses.fields(self):
            _number(f"weights.{item.name}", getattr(self, item.name), 0.0, math.inf)
        if not self.reconstruction + self.cycle > 0:
            raise CAEError("weights: reconstruction or cycle must be above 0, got 0 for both")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LossWeights:
        """Builds weights from JSON values.

        Raises:
            CAEError: A key is unknown (the message suggests the nearest) or a value is wrong.
        """
        return cls(**_known(cls, values, "loss weight"))


@dataclass(frozen=True)
class TrainOptions:
    """What `train` does.

    Attributes:
        data: Folder of images, in a layout of `cae_fast.data`.
        out: Folder of the run.
        image_size: Side of the square images; a multiple of 4, at least 16.
        in_channels: Image channels, 1 to 4; None: 1 where all images are grey, else 3.
        channels: Width of the networks; it, `num_blocks`, `steps` and `learning_rate` follow
            `image_size` where they are not given (or None): see :func:`default_by_size`;
            with `resume` they are then as the run was begun.
        num_blocks: Residual blocks of individual encoder and decoder.
        code_dim: Length of the class code.
        modulation_width: Hidden width of the modulation perceptron.
        steps: Steps of one discriminator and one generator update each.
        batch_size: Image pairs per step (and per process).
        learning_rate: Adam's rate at the start.
        weight_decay: Adam's L2 weight.
        schedule: "cosine": constant for the first half, then a cosine down to 2 %; "halving":
            halved every tenth of the run; "constant".
        precision: "bf16" runs the networks under autocast, with weights and losses in float32.
        labels: "folder" or "classifier": train on the classes that `classifier` predicts.
        classifier: The classifier to be explained: a file, or a callable from images
            [N, C, S, S] (NumPy, float32, [-1, 1]) to logits [N, K]. It measures the promises.
        critic: A frozen classifier that adds a class loss for decoded images. None: small ones
            are trained first and kept in the run. A .pt2 file written by `train_classifier`: best
            another one than `classifier`, so that the measured swap success is not trained for
            directly. "none": no critic, as in the method's papers; many more steps are needed.
        num_critics: Critics that a run trains where none is given, 1 to 8; each step asks one. What
            is drawn for a single one, other classifiers follow less well.
        warmup_steps: Steps in which the class encoder is first trained alone, with batch norms that
            are then folded into its convolutions; in the run it then learns at a tenth of the
            rate. 0: none.
        weights: Weights of the losses.
        augment: "flip": random left-right mirroring; "dihedral": all eight symmetries of the
            square; "strong": turned, scaled, shifted, mirrored and blurred, with other grey levels,
            for images whose test split was taken otherwise than the training split; "none".
        ema_decay: Decay of the running mean of the weights that is measured and saved; 0: none.
        validation_fraction: Share of the training images, by group, held out for measuring.
        seed: Of the weights, the pairs, the mirroring and the validation split.
        device: "auto" (the first GPU, else the CPU), "cpu", "cuda", "cuda:1", ...
        compile_networks: Run the networks through torch.compile.
        cache_bytes: Largest size of the decoded training images kept in memory; larger sets are
            read again as needed. None: a quarter of the memory that is free.
        log_every: Steps between lines of log.csv.
        sample_every: Steps between sample grids and measurements; None: a tenth of the run.
        checkpoint_every: Steps between checkpoints; None: a twentieth of the run.
        resume: Continue the run in `out` from its last checkpoint, exactly. `steps` may be raised:
            learning rates then follow the new length from there on.
        overwrite: Start anew in an `out` that is not empty: an earlier run's own files are removed,
            other files stay.
        quiet: Print nothing but warnings.
    """

    data: str | os.PathLike[str]
    out: str | os.PathLike[str]
    image_size: int = 128
    in_channels: int | None = None
    channels: int = _FROM_SIZE
    num_blocks: int = _FROM_SIZE
    code_dim: int = 8
    modulation_width: int = 256
    steps: int = _FROM_SIZE
    batch_size: int = 4
    learning_rate: float = _FROM_SIZE
    weight_decay: float = 1e-4
    schedule: Schedule = "cosine"
    precision: Precision = "fp32"
    labels: Labels = "folder"
    classifier: str | os.PathLike[str] | Classify | None = None
    critic: str | os.PathLike[str] | None = None
    num_critics: int = 3
    warmup_steps: int = 1000
    weights: LossWeights = field(default_factory=LossWeights)
    augment: Augment = "flip"
    ema_decay: float = 0.999
    validation_fraction: float = 0.1
    seed: int = 0
    device: str = "auto"
    compile_networks: bool = False
    cache_bytes: int | None = None
    log_every: int = 10
    sample_every: int | None = None
    checkpoint_every: int | None = None
    resume: bool = False
    overwrite: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        """Checks every option that can be checked without the data.

        Raises:
            CAEError: An option has a wrong type or lies outside its range.
        """
        _integer("image_size", self.image_size, 16, 4096)
        if self.image_size % 4:
            raise CAEError(f"image_size must be a multiple of 4, got {self.image_size}")
        fitting = next(values for largest, values in _BY_SIZE if self.image_size <= largest)
        begun = _begun_with(self.out) if self.resume else {}
        for name, value in fitting.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, begun.get(name, value))
        if self.in_channels is not None:
            _integer("in_channels", self.in_channels, 1, 4)
        _integer("channels", self.channels, 1, 1024)
        _integer("num_blocks", self.num_blocks, 1, 64)
        _integer("code_dim", self.code_dim, 1, 1024)
        _integer("modulation_width", self.modulation_width, 1, 8192)
        _integer("steps", self.steps, 1, 10**9)
        _integer("batch_size", self.batch_size, 1, 65_536)
        _integer("warmup_steps", self.warmup_steps, 0, 10**9)
        _integer("num_critics", self.num_critics, 1, MOST_CRITICS)
        _number("learning_rate", self.learning_rate, 0.0, 1.0, above=True)
        _number("weight_decay", self.weight_decay, 0.0, 1.0)
        _choice("schedule", self.schedule, ("cosine", "halving", "constant"))
        _choice("precision", self.precision, ("fp32", "bf16"))
        _choice("labels", self.labels, ("folder", "classifier"))
        _choice("augment", self.augment, _AUGMENTS)
        _number("ema_decay", self.ema_decay, 0.0, 0.999999)
        _number("validation_fraction", self.validation_fraction, 0.0, 0.9, above=True)
        _integer("seed", self.seed, 0, 2**63 - 1)
        _integer("log_every", self.log_every, 1, 10**9)
        for name in ("sample_every", "checkpoint_every", "cache_bytes"):
            if getattr(self, name) is not None:
                _integer(name, getattr(self, name), 0 if name == "cache_bytes" else 1, 2**62)
        if not isinstance(self.weights, LossWeights):
            raise CAEError(f"weights must be LossWeights, got {type(self.weights).__name__}")
        if self.labels == "classifier" and self.classifier is None:
            raise CAEError("labels='classifier' needs classifier: a file or a callable")
        if self.resume and self.overwrite:
            raise CAEError("resume and overwrite exclude each other: give one of them")

    def to_dict(self) -> dict[str, Any]:
        """All options as JSON values; a callable classifier becomes its name."""
        values: dict[str, Any] = {
            item.name: getattr(self, item.name) for item in dataclasses.fields(self)
        }
        values["weights"] = dataclasses.asdict(self.weights)
        for name in ("data", "out", "classifier", "critic"):
            value = values[name]
            if callable(value):
                values[name] = getattr(value, "__name__", type(value).__name__)
            elif value is not None:
                values[name] = os.fspath(value)
        return values


@dataclass(frozen=True)
class ClassifierOptions:
    """What `train_classifier` does.

    Attributes:
        data: Folder of images, in a layout of `cae_fast.data`.
        out: File to write, .pt2 or .onnx; the other kind is written beside it.
        image_size: Side of the images; None: that of the images themselves, at most 128.
        in_channels: Image channels, 1 to 4; None: 1 where all images are grey, else 3.
        width: Channels of the first layers.
        epochs: Passes over the training images, at most.
        batch_size: Images per step.
        learning_rate: AdamW's rate at the start; a cosine takes it to zero.
        weight_decay: AdamW's weight decay.
        augment: As in `TrainOptions`; images are also shifted by up to a sixteenth of their side,
            which "strong" does by itself.
        noise: Largest standard deviation of noise added to the images, drawn for each anew; the
            range of pixels is 2.
        patience: Epochs without a better validation result before training ends.
        validation_fraction: Share of the training images, by group, held out.
        seed: Of weights, order, augmentation and the validation split.
        device: As in `TrainOptions`.
        overwrite: Replace existing files.
        quiet: Print nothing but warnings.
    """

    data: str | os.PathLike[str]
    out: str | os.PathLike[str]
    image_size: int | None = None
    in_channels: int | None = None
    width: int = 16
    epochs: int = 60
    batch_size: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    augment: Augment = "flip"
    noise: float = 0.0
    patience: int = 20
    validation_fraction: float = 0.1
    seed: int = 0
    device: str = "auto"
    overwrite: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        """Checks every option that can be checked without the data.

        Raises:
            CAEError: An option has a wrong type or lies outside its range.
        """
        if Path(self.out).suffix.lower() not in (".pt2", ".onnx"):
            raise CAEError(f"out must be the name of a .pt2 or .onnx file, got {self.out}")
        if self.image_size is not None:
            _integer("image_size", self.image_size, 8, 4096)
        if self.in_channels is not None:
            _integer("in_channels", self.in_channels, 1, 4)
        _integer("width", self.width, 1, 1024)
        _integer("epochs", self.epochs, 1, 10**6)
        _integer("batch_size", self.batch_size, 1, 65_536)
        _integer("patience", self.patience, 1, 10**6)
        _number("learning_rate", self.learning_rate, 0.0, 1.0, above=True)
        _number("weight_decay", self.weight_decay, 0.0, 1.0)
        _number("validation_fraction", self.validation_fraction, 0.0, 0.9, above=True)
        _choice("augment", self.augment, _AUGMENTS)
        _number("noise", self.noise, 0.0, 2.0)
        _integer("seed", self.seed, 0, 2**63 - 1)


def _integer(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise CAEError(f"{name} must be an integer, got {value!r}")
    if not low <= value <= high:
        raise CAEError(f"{name} must be in [{low}, {high}], got {value}")


def _number(name: str, value: object, low: float, high: float, *, above: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise CAEError(f"{name} must be a number, got {value!r}")
    number = float(value)
    if not math.isfinite(number) or not low <= number <= high or (above and number == low):
        raise CAEError(f"{name} must be in {'(' if above else '['}{low:g}, {high:g}], got {value}")


def _choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise CAEError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _known(cls: type[Any], values: Mapping[str, Any], what: str) -> dict[str, Any]:
    names = [item.name for item in dataclasses.fields(cls)]
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            hint = f", did you mean {near[0]!r}?" if near else f"; known: {', '.join(names)}"
            raise CAEError(f"unknown {what} {key!r}{hint}")
    return dict(values)
