# SPDX-License-Identifier: Apache-2.0
"""A run's critics: trained once, kept, and asked in turns."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

# These need torch.
from training_cases import tiny_folder, tiny_options  # noqa: E402

from cae_fast.errors import CAEError  # noqa: E402
from cae_fast.training import critic as critic_module  # noqa: E402
from cae_fast.training import train, trainer  # noqa: E402
from cae_fast.training.classifier_network import ResidualClassifier  # noqa: E402
from cae_fast.training.critic import Critic  # noqa: E402
from cae_fast.training.critics import Critics  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def quick_lessons(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float]]:
    """Critics learn for one epoch; gives seed and noise of each lesson."""
    taught: list[tuple[int, float]] = []
    fit = critic_module.fit_classifier

    def noted(network: Any, how: Any, *args: Any) -> None:
        taught.append((how.seed, how.noise))
        fit(network, how, *args)

    monkeypatch.setattr(critic_module, "fit_classifier", noted)
    monkeypatch.setattr(critic_module, "_LESSONS", ((1, 1, 0.3),))
    monkeypatch.setattr(critic_module, "_FEWEST_EPOCHS", 1)
    return taught


def quiet_train(*args: Any, **options: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return train(tiny_options(*args, **options))


def test_each_is_asked_equally_often_and_the_first_is_the_first() -> None:
    members = [Critic(ResidualClassifier(1, 2, 2), 16) for _ in range(3)]
    critics = Critics(members)
    assert len(critics) == 3
    assert critics.first is members[0]
    torch.manual_seed(0)
    drawn = [critics.draw() for _ in range(600)]
    counts = Counter(map(id, drawn))
    assert set(counts) == set(map(id, members))
    assert min(counts.values()) > 160
    torch.manual_seed(0)
    assert [critics.draw() for _ in range(600)] == drawn


def test_a_single_one_leaves_the_random_numbers_alone() -> None:
    alone = Critics([Critic(ResidualClassifier(1, 2, 2), 16)])
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert alone.draw() is alone.first
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_trains_three_keeps_them_and_asks_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_lessons: list[tuple[int, float]]
) -> None:
    asked: list[Any] = []
    losses = trainer.generator_losses

    def noted(*args: Any) -> Any:
        asked.append(args[-1])
        return losses(*args)

    monkeypatch.setattr(trainer, "generator_losses", noted)
    data, out = tiny_folder(tmp_path / "data"), tmp_path / "run"
    quiet_train(data, out, critic=None, steps=8)
    assert quick_lessons == [(1, 0.3), (2, 0.0), (3, 0.0)]
    assert len({id(critic) for critic in asked}) == 3
    files = [out / name for name in ("critic.pt2", "critic_2.pt2", "critic_3.pt2")]
    content = [file.read_bytes() for file in files]
    assert len(set(content)) == 3

    quiet_train(data, out, critic=None, steps=9, resume=True)
    assert len(quick_lessons) == 3  # none is trained again
    assert [file.read_bytes() for file in files] == content
    quiet_train(data, out, critic=None, num_critics=1, steps=1, overwrite=True)
    assert quick_lessons[3:] == [(1, 0.3)]
    assert [file.exists() for file in files] == [True, False, False]


@pytest.mark.parametrize(("enough", "lessons"), [(0.0, 1), (1.1, 2)])
def test_one_that_is_not_good_enough_has_a_second_lesson(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    quick_lessons: list[tuple[int, float]],
    enough: float,
    lessons: int,
) -> None:
    monkeypatch.setattr(critic_module, "_ENOUGH", enough)
    monkeypatch.setattr(critic_module, "_LESSONS", ((1, 1, 0.3), (1, 3, 0.15)))
    data = tiny_folder(tmp_path / "data")
    quiet_train(data, tmp_path / "run", critic=None, num_critics=2, steps=1)
    assert quick_lessons == [(1, 0.3), (1, 0.15)][:lessons] + [(2, 0.0)] * lessons
    assert (tmp_path / "run" / "critic_2.pt2").is_file()


def test_a_given_critic_is_the_only_one(
    tmp_path: Path, quick_lessons: list[tuple[int, float]]
) -> None:
    data = tiny_folder(tmp_path / "data")
    quiet_train(data, tmp_path / "one", critic=None, num_critics=1, steps=1)
    quiet_train(data, tmp_path / "two", critic=tmp_path / "one" / "critic.pt2", steps=1)
    assert len(quick_lessons) == 1
    assert not list((tmp_path / "two").glob("critic*"))


@pytest.mark.parametrize("number", [0, 9, 1.5, True])
def test_numbers_of_critics_that_are_none_are_refused(tmp_path: Path, number: Any) -> None:
    with pytest.raises(CAEError, match=r"num_critics must be (an integer|in \[1, 8\])"):
        tiny_options(tmp_path, tmp_path / "run", num_critics=number)
