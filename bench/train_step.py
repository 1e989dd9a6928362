# SPDX-License-Identifier: Apache-2.0
"""One training step by the authors' recipe and by ours, in alternating rounds.

Their step runs the generator twice: the discriminator's update builds a graph of the whole
generator that it never uses, the generator's update runs it anew; upsampling layers are direct.
Ours runs it once, and upsamples in 36 % of the products. "same losses" is ours with the papers'
losses and discriminator and nothing else; "recipe" is what `cae-fast train` does by default, with a
critic, a discriminator by class and their losses.

    python bench/train_step.py [--size 64 --channels 32 --blocks 4 --pairs 4 --threads 1]

On a GPU with --device cuda.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch

from cae_fast import reference
from cae_fast.benchmark.machine import describe
from cae_fast.benchmark.race import Race
from cae_fast.model import CAEConfig
from cae_fast.training.classifier_network import ResidualClassifier
from cae_fast.training.critic import Critic
from cae_fast.training.losses import generator_losses, swap_classes, weighted_sum
from cae_fast.training.options import LossWeights, TrainOptions
from cae_fast.training.state import TrainingState

# Without a critic the losses that need one are left out.
_PAPERS = LossWeights(code_class=0, gradient_penalty=0)


def step(
    config: CAEConfig,
    pairs: int,
    *,
    precision: str = "fp32",
    theirs: bool = False,
    critic: bool,
    device: str = "cpu",
) -> Callable[[], Any]:
    """A training step on a fixed batch of random images, as a program to be timed."""
    torch.manual_seed(0)
    weights = LossWeights() if critic else _PAPERS
    options = TrainOptions(data="-", out="-", image_size=config.image_size, weights=weights)
    place = torch.device(device)
    network = ResidualClassifier(config.in_channels, config.num_classes, 16).to(place)
    judge = Critic(network, config.image_size)
    state = TrainingState(config, options, place, judge if critic else None)
    if theirs:
        state.generator.decoder.upsample = reference.upsample_conv
    images = torch.rand(2 * pairs, *config.image_shape) * 2 - 1
    images = images.to(place).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(2, device=place).repeat_interleave(pairs)
    half = precision == "bf16"

    def program() -> None:
        with torch.autocast(place.type, torch.bfloat16, enabled=half):
            swap = swap_classes(state.generator, images, labels)
            judged = state.adversary.losses(swap)
        state.update_discriminator(weighted_sum(judged, weights))
        state.discriminator.requires_grad_(False)
        with torch.autocast(place.type, torch.bfloat16, enabled=half):
            if theirs:
                swap = swap_classes(state.generator, images, labels)
            losses = generator_losses(
                state.generator, state.adversary, swap, weights, judge if critic else None
            )
        state.update_generator(weighted_sum(losses, weights))
        state.discriminator.requires_grad_(True)
        if place.type == "cuda":
            torch.cuda.synchronize(place)

    return program


def seconds_a_step(
    config: CAEConfig, pairs: int, *, rounds: int, device: str = "cpu"
) -> dict[str, float]:
    """Median seconds of a step of each kind, the authors' first."""
    race = Race(
        {
            name: step(
                config, pairs, precision=precision, theirs=theirs, critic=critic, device=device
            )
            for name, precision, theirs, critic in (
                ("authors' recipe, fp32", "fp32", True, False),
                ("same losses, fp32", "fp32", False, False),
                ("same losses, bf16", "bf16", False, False),
                ("recipe, fp32", "fp32", False, True),
                ("recipe, bf16", "bf16", False, True),
            )
        }
    )
    race.warm_up()
    for _ in range(rounds):
        race.lap()
    return {name: statistics.median(times) for name, times in race.seconds.items()}


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    config = CAEConfig(
        image_size=given.size,
        channels=given.channels,
        num_blocks=given.blocks,
        num_classes=2,
    )
    medians = seconds_a_step(config, given.pairs, rounds=given.rounds, device=given.device)
    first = next(iter(medians.values()))
    print(describe(given.threads))
    where = f", {given.device}" if given.device != "cpu" else ""
    print(f"{config.image_size} pixels, width {config.channels}, {given.pairs} pairs{where}\n")
    print("| step | seconds | beside the authors' |\n|---|---|---|")
    for name, seconds in medians.items():
        print(f"| {name} | {seconds:.3g} | {first / seconds:.2f} |")


if __name__ == "__main__":
    main()
