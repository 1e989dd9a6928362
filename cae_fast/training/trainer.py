# SPDX-License-Identifier: Apache-2.0
"""The training loop: one discriminator step and one generator step per batch of pairs."""

from __future__ import annotations

import copy
import os
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import CAEError
from ..files import check_output_directory
from ..model import CAE, CAEConfig
from . import judges
from .augmentation import augmented
from .checkpoint import BEST, LAST, load_checkpoint, save_checkpoint
from .critic import load_critic
from .critics import Critics, own_critics
from .devices import choose_device
from .distributed import Processes
from .grids import write_swaps
from .journal import Journal
from .losses import generator_losses, swap_classes, weighted_sum
from .options import NO_CRITIC, TrainOptions
from .pipeline import (
    ImageStore,
    LabelledImages,
    PairSampler,
    probe_channels,
    read_splits,
)
from .promises import measure_promises, score_of, warn_of
from .run_folder import (
    CLASS_ENCODER,
    check_same_run,
    data_fingerprint,
    prepare_run,
    provenance,
)
from .state import TrainingState
from .warmup import restore_class_encoder, train_class_encoder

#: Called after each logged step with its number, the number of steps, losses and rates.
TrainProgress = Callable[[int, int, dict[str, float]], None]

_INTERIM_PATHS = 8
_HELD_OUT_LIMIT = 512
_PLAINLY = 0.1  # of a score of at most 3: more than few images make by chance


def train(options: TrainOptions, progress: TrainProgress | None = None) -> Path:
    """Trains a class association embedding on a folder of images.

    Args:
        options: What to do.
        progress: Called after each logged step.

    Returns:
        The model file, `out`/model.safetensors: the running mean of the weights, with data, seed,
        steps and the promises measured on the validation images in its provenance.

    Raises:
        ValueError: Data or options do not fit, or the loss became NaN or infinite (the last good
            checkpoint stays).
        OSError: The file system refused.

    Warns:
        UserWarning: A promise of the method is plainly broken on the validation images.
    """
    with torch.random.fork_rng(devices=[]), Processes() as processes:
        run = _Run(options, processes)
        return run.train(progress)


class _Run:
    """One call of `train`."""

    def __init__(self, options: TrainOptions, processes: Processes) -> None:
        self.options = options
        self.processes = processes
        self.device = choose_device(options.device, local_rank=processes.local_rank)
        splits = read_splits(options.data, options.validation_fraction, options.seed)
        channels = options.in_channels or probe_channels(splits.train)
        names = splits.train.class_names
        self.config = CAEConfig(
            image_size=options.image_size,
            in_channels=channels,
            channels=options.channels,
            num_blocks=options.num_blocks,
            code_dim=options.code_dim,
            num_classes=len(names),
            class_names=names,
            modulation_width=options.modulation_width,
        )
        self.splits = splits
        self.fingerprint = data_fingerprint(splits)
        classifier, self.judge = None, "discriminator"
        if options.classifier is not None:
            classifier, self.judge = judges.load_classifier(options.classifier, names)
        self.critics: Critics | None = None
        if options.critic is not None and os.fspath(options.critic) != NO_CRITIC:
            self.critics = Critics([load_critic(options.critic, names, channels, self.device)])
        self.out = Path(options.out)
        if processes.first:  # the others may come when the first has begun to write
            check_output_directory(self.out, overwrite=options.overwrite, resume=options.resume)
        self.store = ImageStore(
            splits.train, options.image_size, channels, cache_bytes=options.cache_bytes
        )
        held = ImageStore(splits.validation, options.image_size, channels)
        self.labels = splits.train.labels
        self.held_labels = splits.validation.labels
        if options.labels == "classifier" and classifier is not None:
            self.labels = judges.classify_store(classifier, self.store, len(names))
            self.held_labels = judges.classify_store(classifier, held, len(names))
        self.sampler = PairSampler(
            self.labels,
            len(names),
            options.batch_size,
            options.seed,
            rank=processes.rank,
            world=processes.world,
        )
        with processes.in_turn():  # nothing is written or removed before the data proved good
            prepare_run(self.out, options, self.config, write=processes.first)
            if options.critic is None and options.weights.critic:
                self.critics = own_critics(
                    self.out,
                    options,
                    LabelledImages(self.store, self.labels),
                    LabelledImages(held, self.held_labels),
                    names,
                    self.device,
                    self._say,
                    write=processes.first,
                )
        critic = None if self.critics is None else self.critics.first
        if classifier is None and critic is not None:
            self.judge = "critic"
        chosen = _some(len(held), _HELD_OUT_LIMIT)
        self.held = held.images(chosen).to(self.device)
        self.all_held_labels, self.held_labels = self.held_labels, self.held_labels[chosen]
        chosen = _some(len(self.store), _HELD_OUT_LIMIT)
        self.known = (self.store.images(chosen).to(self.device), self.labels[chosen])
        if self.critics is not None:
            images, labels = self.known
            self.critics.choose_noise(images, torch.from_numpy(labels).to(self.device))
        torch.manual_seed(options.seed)
        self.state = TrainingState(self.config, options, self.device, critic)
        if options.warmup_steps:
            with processes.in_turn():
                self._warm_up(held)
        if classifier is not None:
            self.classify = judges.as_torch(classifier, len(names))
        else:
            head = judges.discriminator_head(self.state.discriminator)
            self.classify = head if critic is None else critic
        if options.compile_networks:
            self.state.generator.compile()
            if critic is None:  # torch.compile knows no second derivatives
                self.state.discriminator.compile()

    def _warm_up(self, held: ImageStore) -> None:
        """Loads the class encoder; the first process trains it where it is not there yet."""
        path, encoder = self.out / CLASS_ENCODER, self.state.generator.class_encoder
        if self.processes.first and not path.exists():
            train_class_encoder(
                path,
                copy.deepcopy(encoder),
                self.options,
                LabelledImages(self.store, self.labels),
                LabelledImages(held, self.all_held_labels),
                self.config.num_classes,
                self._say,
            )
        for network in (encoder, self.state.mean.class_encoder):
            restore_class_encoder(path, network)

    def _say(self, text: str) -> None:
        if not self.options.quiet:
            print(text, flush=True)

    def train(self, progress: TrainProgress | None) -> Path:
        options, state = self.options, self.state
        checkpoints = self.out / "checkpoints"
        if options.resume and (checkpoints / LAST).exists():
            saved = load_checkpoint(checkpoints / LAST)
            check_same_run(saved, options, self.fingerprint, checkpoints / LAST)
            state.restore(saved, str(checkpoints / LAST))
        sample_every = options.sample_every or max(1, options.steps // 10)
        checkpoint_every = options.checkpoint_every or max(1, options.steps // 20)
        began = time.monotonic() - state.seconds
        first = state.step
        with (
            self._journal(first) as journal,
            ThreadPoolExecutor(1) as reader,
        ):
            self._announce(journal)
            upcoming = reader.submit(self._batch, state.step)
            started = time.monotonic()
            while state.step < options.steps:
                images, labels, seed = upcoming.result()
                if state.step + 1 < options.steps:
                    upcoming = reader.submit(self._batch, state.step + 1)
                torch.manual_seed(seed)
                values = self._step(images, labels)
                state.step += 1
                last = state.step == options.steps
                state.seconds = time.monotonic() - began
                rate = (state.step - first) / max(time.monotonic() - started, 1e-9)
                if state.step % options.log_every == 0 or last:
                    numbers = self._checked(values)
                    journal.log(state.step, numbers)
                    if progress is not None and self.processes.first:
                        progress(state.step, options.steps, numbers | {"steps_per_s": rate})
                    journal.show(state.step, numbers, rate)
                if self.processes.first and (state.step % sample_every == 0 and not last):
                    measured = self._measure(paths=_INTERIM_PATHS)
                    journal.measured(state.step, measured)
                    self._write_samples()
                    self._keep_best(measured, values)
                if self.processes.first and (state.step % checkpoint_every == 0 or last):
                    self._save(LAST, values)
            self.processes.wait()
            if self.processes.first:
                self._finish(journal)
        self.processes.wait()
        return self.out / "model.safetensors"

    def _journal(self, start: int) -> Journal:
        first = self.processes.first
        quiet = self.options.quiet or not first
        return Journal(self.out, self.options.steps, start=start, quiet=quiet, write=first)

    def _batch(self, step: int) -> tuple[Tensor, Tensor, int]:
        """Images [2B, C, S, S], labels [2B] and the seed of a step."""
        rng = self.sampler.rng(step)
        indices = self.sampler.draw(step, rng)
        images = augmented(self.store.images(indices), self.options.augment, rng)
        labels = torch.from_numpy(self.labels[indices])
        return images, labels, int(rng.integers(2**62))

    def _step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """One update of both networks; gives the losses and the learning rate."""
        state, weights = self.state, self.options.weights
        rate = state.set_rate()
        images = images.to(self.device).contiguous(memory_format=torch.channels_last)
        labels = labels.to(self.device)
        discriminator = state.discriminator
        with self._autocast():
            swap = swap_classes(state.generator, images, labels)
            judged = state.adversary.losses(swap)
        state.update_discriminator(weighted_sum(judged, weights))
        discriminator.requires_grad_(False)
        with self._autocast():
            critic = None if self.critics is None else self.critics.draw()
            losses = generator_losses(state.generator, state.adversary, swap, weights, critic)
        total = weighted_sum(losses, weights)
        state.update_generator(total)
        discriminator.requires_grad_(True)
        values = {name: value.detach() for name, value in (losses | judged).items()}
        return {
            "generator": total.detach(),
            "discriminator": weighted_sum(judged, weights).detach(),
            **values,
            "learning_rate": torch.tensor(rate, dtype=torch.float64),
        }

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.options.precision == "bf16"
        )

    def _checked(self, values: dict[str, Tensor]) -> dict[str, float]:
        """The losses as numbers.

        Raises:
            CAEError: One is NaN or infinite.
        """
        numbers = {name: float(value) for name, value in values.items()}
        bad = [name for name, value in numbers.items() if not np.isfinite(value)]
        if bad:
            raise self._broken(f"the loss {bad[0]} is {numbers[bad[0]]}")
        return numbers

    def _broken(self, what: str) -> CAEError:
        options = self.options
        other = " or use precision='fp32'" if options.precision == "bf16" else ""
        return CAEError(
            f"step {self.state.step}: {what}; the last good checkpoint is kept in "
            f"{self.out / 'checkpoints'}; lower learning_rate ({options.learning_rate:g}){other}"
        )

    def _save(self, name: str, values: dict[str, Tensor]) -> None:
        """Writes a checkpoint, but never one of broken weights."""
        self._checked(values)
        if not self.state.finite():
            raise self._broken("the weights became NaN or infinite")
        extra = {"options": self.options.to_dict(), "data_sha256": self.fingerprint}
        save_checkpoint(self.out / "checkpoints" / name, self.state.to_dict() | extra)

    def _keep_best(self, measured: dict[str, Any], values: dict[str, Tensor]) -> None:
        if not measured:
            return
        score = score_of(measured)
        if score > self.state.best:
            self.state.best = score
            self._save(BEST, values)

    def _measure(self, **amount: int) -> dict[str, Any]:
        if len(np.unique(self.held_labels)) < 2:
            return {}
        return measure_promises(
            self.state.mean,
            self.held,
            self.held_labels,
            self.classify,
            judge=self.judge,
            reference=self.known,
            **amount,
        )

    def _write_samples(self) -> None:
        path = self.out / "samples" / f"step_{self.state.step:07d}.png"
        write_swaps(path, self.state.mean, self.held, self.held_labels)

    def _announce(self, journal: Journal) -> None:
        counts = ", ".join(f"{k} {v}" for k, v in self.splits.train.class_counts().items())
        weights = sum(p.numel() for p in self.state.generator.parameters())
        journal.say(
            f"{len(self.store)} training images ({counts}), {len(self.held)} held out; "
            f"{weights / 1e6:.2f} M weights, {self.device}, {self.options.precision}"
        )
        if not self.store.cached:
            journal.say("the images do not fit in memory: they are read again as needed")
        if self.critics is not None and not self.critics.first.noise:
            journal.say(
                "the critic does not stand noise, and may be pleased by patterns that nobody sees: "
                "leave --critic out, and one that does is trained"
            )
        if self.judge in ("discriminator", "critic"):
            journal.say(f"no classifier given: the {self.judge} judges the promises")

    def _return_to_best(self, measured: dict[str, Any], journal: Journal) -> dict[str, Any]:
        """Takes the best weights of the run where the last are plainly worse; what they promise."""
        path, last = self.out / "checkpoints" / BEST, self.state.step
        if not path.exists():
            return measured
        saved = load_checkpoint(path)
        ended = {name: value.clone() for name, value in self.state.mean.state_dict().items()}
        self.state.mean.load_state_dict(saved["mean"])
        found = self._measure()
        if score_of(found) < score_of(measured) + _PLAINLY:
            self.state.mean.load_state_dict(ended)
            return measured
        self.state.step = int(saved["step"])
        journal.say(
            f"the run was at its best after {self.state.step} of {last} steps: these weights are "
            "taken"
        )
        return found

    def _finish(self, journal: Journal) -> None:
        """Measures, writes the model, and warns of broken promises."""
        measured = self._measure()
        if measured:
            measured = self._return_to_best(measured, journal)
            journal.measured(self.state.step, measured)
            for sentence in warn_of(measured):
                warnings.warn(sentence, stacklevel=4)
        else:
            warnings.warn("held-out images of one class only: nothing was measured", stacklevel=4)
        self._write_samples()
        record = provenance(self.options, self.splits, self.fingerprint, self.state, measured)
        path = self.out / "model.safetensors"
        CAE.from_module(self.state.mean, record).save(path)
        journal.say(f"wrote {path}")


def _some(count: int, limit: int) -> NDArray[np.int64]:
    """At most `limit` of `count` indices, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, limit)).round().astype(np.int64))
