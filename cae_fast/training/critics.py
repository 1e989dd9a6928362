# SPDX-License-Identifier: Apache-2.0
"""The critics of a run: several, of which each step asks one.

What a decoder learns to draw for a single critic, other classifiers follow less well than that one.
Patterns that please one network hardly please another that saw other images in another order
(ensembles against adversarial examples: Tramer et al., ICLR 2018). A critic drawn anew for each
step costs what a single one does, but for its own training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .critic import Critic, load_critic, train_critic
from .options import TrainOptions
from .pipeline import LabelledImages
from .run_folder import critic_name


class Critics:
    """Frozen classifiers; the first judges where there is no other, and begins the adversary."""

    def __init__(self, members: Sequence[Critic]) -> None:
        """Takes one or more."""
        self._members = tuple(members)

    @property
    def first(self) -> Critic:
        """The one that was trained in noise, where they are a run's own."""
        return self._members[0]

    def __len__(self) -> int:
        """Number of critics."""
        return len(self._members)

    def draw(self) -> Critic:
        """One of them, by the global generator of torch."""
        if len(self) == 1:
            return self.first
        return self._members[int(torch.randint(len(self), ()))]

    def choose_noise(self, images: Tensor, labels: Tensor) -> None:
        """Lets each judge in as much noise as it stands; see `Critic.choose_noise`."""
        for member in self._members:
            member.choose_noise(images, labels)


def own_critics(
    folder: Path,
    options: TrainOptions,
    train: LabelledImages,
    held: LabelledImages,
    class_names: Sequence[str],
    device: torch.device,
    say: Callable[[str], None],
    *,
    write: bool,
) -> Critics:
    """A run's own critics, `options.num_critics` of them; trains those that are not there yet.

    Args:
        folder: Of the run; they are kept there.
        options: Of the run.
        train: Training images with the labels that the run uses.
        held: Held-out images.
        class_names: K names.
        device: Where to train, and where they shall be.
        say: Told how well each does.
        write: Whether this process trains; the others come when it is done.
    """
    paths = [folder / critic_name(number) for number in range(options.num_critics)]
    for number, path in enumerate(paths):
        if write and not path.exists():
            train_critic(path, options, train, held, class_names, device, say, number=number)
    channels = train.store.images([0]).shape[1]
    return Critics([load_critic(path, class_names, channels, device) for path in paths])
