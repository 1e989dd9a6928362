# SPDX-License-Identifier: Apache-2.0
"""The parts of training: losses, pairs, mirrored images, measured promises, schedules."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cae_fast.data import ImageDataset
from cae_fast.model import CAEConfig
from cae_fast.training import LossWeights

torch = pytest.importorskip("torch")

# These need torch.
from cae_fast.networks import CAEModule  # noqa: E402
from cae_fast.training.adversaries import ByClassAdversary, ClassHeadAdversary  # noqa: E402
from cae_fast.training.augmentation import (  # noqa: E402
    augmented,
    strongly_augmented,
    varied,
)
from cae_fast.training.classifier_network import ResidualClassifier  # noqa: E402
from cae_fast.training.critic import Critic  # noqa: E402
from cae_fast.training.losses import (  # noqa: E402
    code_logits,
    generator_losses,
    swap_classes,
    weighted_sum,
)
from cae_fast.training.pipeline import ImageStore, PairSampler  # noqa: E402
from cae_fast.training.promises import measure_promises, nearest_classes, warn_of  # noqa: E402
from cae_fast.training.state import schedule_factor  # noqa: E402


@pytest.fixture
def networks() -> tuple[CAEModule, ClassHeadAdversary]:
    torch.manual_seed(0)
    config = CAEConfig(
        image_size=16, in_channels=1, channels=4, num_blocks=1, code_dim=4, num_classes=3,
        modulation_width=8,
    )  # fmt: skip
    adversary = ClassHeadAdversary(config, torch.device("cpu"))
    adversary.network.eval()
    return CAEModule(config), adversary


def test_swap_exchanges_codes_between_partners(
    networks: tuple[CAEModule, ClassHeadAdversary],
) -> None:
    generator, _ = networks
    images = torch.rand(6, 1, 16, 16) * 2 - 1
    with torch.no_grad():
        swap = swap_classes(generator, images, torch.arange(6) % 3)
        individual, codes = generator.encode(images)
        expected = generator.decode(individual[4:5], codes[1:2])
        own = generator.decode(individual[4:5], codes[4:5])
    torch.testing.assert_close(swap.swapped[4:5], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(swap.reconstruction[4:5], own, atol=1e-5, rtol=1e-5)


def test_losses_are_those_of_the_method(networks: tuple[CAEModule, ClassHeadAdversary]) -> None:
    generator, adversary = networks
    images = torch.rand(2, 1, 16, 16) * 2 - 1
    labels = torch.tensor([2, 0])
    with torch.no_grad():
        swap = swap_classes(generator, images, labels)
        losses = generator_losses(generator, adversary, swap, LossWeights())
        individual, codes = generator.encode(images)
        crossed = generator.decode(individual, codes.flip(0))
        again = generator.encode(crossed)
        cycled = generator.decode(again[0], codes)
        real, classes = adversary.network(crossed)
    expected = {
        "reconstruction": (generator.decode(individual, codes) - images).abs().mean(),
        "class_code": (again[1] - codes.flip(0)).abs().mean(),
        "individual_code": (again[0] - individual).abs().mean(),
        "cycle": (cycled - images).abs().mean(),
        "code_class": torch.nn.functional.cross_entropy(code_logits(codes, 3), labels),
        "adversarial": -real.log_softmax(dim=1)[:, 1].mean(),
        "swap_class": -(classes.log_softmax(dim=1)[0, 0] + classes.log_softmax(dim=1)[1, 2]) / 2,
    }
    assert set(losses) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, atol=1e-5, rtol=1e-4, msg=name)
    weights = LossWeights(
        class_code=0, individual_code=0, cycle=0, swap_class=0, adversarial=3,
        code_class=0,
    )  # fmt: skip
    some = generator_losses(generator, adversary, swap, weights)
    assert set(some) == {"reconstruction", "adversarial"}
    total = 10 * float(losses["reconstruction"]) + 3 * float(losses["adversarial"])
    assert weighted_sum(some, weights).item() == pytest.approx(total, rel=1e-5)


def test_discriminator_step_builds_no_graph_of_the_generator(
    networks: tuple[CAEModule, ClassHeadAdversary],
) -> None:
    generator, adversary = networks
    discriminator = adversary.network
    swap = swap_classes(generator, torch.rand(2, 1, 16, 16), torch.tensor([0, 1]))
    losses = adversary.losses(swap)
    weighted_sum(losses, LossWeights()).backward()
    assert all(p.grad is None for p in generator.parameters())
    assert any(p.grad is not None for p in discriminator.parameters())
    real, classes = discriminator(torch.cat([swap.images, swap.swapped]))
    truth = real.log_softmax(dim=1)
    wanted = -(truth[0, 1] + truth[1, 1] + truth[2, 0] + truth[3, 0]) / 4
    torch.testing.assert_close(losses["discriminator_real"], wanted)
    own = classes.log_softmax(dim=1)
    torch.testing.assert_close(losses["discriminator_class"], -(own[0, 0] + own[1, 1]) / 2)


@pytest.fixture
def critic() -> Critic:
    torch.manual_seed(1)
    network = ResidualClassifier(1, 3, 4)
    network(torch.rand(32, 1, 16, 16))  # norms with statistics of their own
    return Critic(network, 16)


def test_critic_losses_are_what_their_names_say(
    networks: tuple[CAEModule, ClassHeadAdversary], critic: Critic
) -> None:
    generator, adversary = networks
    images, labels = torch.rand(2, 1, 16, 16) * 2 - 1, torch.tensor([2, 0])
    with torch.no_grad():
        swap = swap_classes(generator, images, labels)
        torch.manual_seed(5)
        losses = generator_losses(generator, adversary, swap, LossWeights(), critic)
        torch.manual_seed(5)
        logits = critic.judge(torch.cat([swap.swapped, swap.reconstruction]))
    wanted = torch.tensor([0, 2, 2, 0])
    expected = torch.nn.functional.cross_entropy(logits, wanted)
    torch.testing.assert_close(losses["critic"], expected)
    error = (swap.reconstruction - images).numpy().astype(np.float64)
    fourth = (error**4).mean(axis=(1, 2, 3)) ** 0.25
    assert losses["peak"].item() == pytest.approx(fourth.mean(), rel=1e-4)
    change = (swap.swapped - swap.reconstruction).abs().mean()
    torch.testing.assert_close(losses["proximity"], change)
    assert critic.feature_distance(images, images).item() == 0
    assert losses["critic_features"].item() > 0.01


def test_critic_judges_with_noise_and_hands_gradients_on(critic: Critic) -> None:
    images = (torch.rand(2, 1, 16, 16) * 2 - 1).requires_grad_(True)
    torch.manual_seed(0)
    first, second = critic.judge(images), critic.judge(images)
    assert not torch.equal(first, second)
    first.sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert all(p.grad is None for p in critic.network.parameters())


def test_critic_judges_in_no_more_noise_than_it_stands(critic: Critic) -> None:
    class Brightness(torch.nn.Module):  # sees class 1 from `level` on
        def __init__(self, level: float) -> None:
            super().__init__()
            self.level = level

        def forward(self, images: Any) -> Any:
            lit = images.mean(dim=(1, 2, 3)) - self.level
            return torch.stack([-lit, lit], dim=1)

    dark, light = torch.full((64, 1, 16, 16), -0.5), torch.full((64, 1, 16, 16), 0.5)
    images, labels = torch.cat([dark, light]), torch.arange(2).repeat_interleave(64)
    far = Critic(Brightness(0.0), 16)
    far.choose_noise(images, labels)
    assert far.noise == 0.1
    # A mean of 256 pixels strays by 1/16 of their noise: classes 0.004 apart are lost in 0.1.
    near = Critic(Brightness(-0.5 + 0.002), 16)
    close = torch.cat([dark, dark + 0.004])
    near.choose_noise(close, labels)
    assert near.noise < 0.05
    stands = near.noise
    blind = Critic(Brightness(-0.5 + 1e-5), 16)
    blind.choose_noise(torch.cat([dark, dark + 2e-5]), labels)
    assert blind.noise == 0 or blind.noise < stands


def test_adversary_by_class_begins_as_the_critic_and_leaves_it_alone(
    networks: tuple[CAEModule, ClassHeadAdversary], critic: Critic
) -> None:
    generator, _ = networks
    swap = swap_classes(generator, torch.rand(4, 1, 16, 16), torch.tensor([0, 1, 2, 0]))
    adversary = ByClassAdversary(critic, torch.device("cpu"))
    before = [p.clone() for p in critic.network.parameters()]
    losses = adversary.losses(swap)
    assert set(losses) == {"discriminator_real", "gradient_penalty"}
    free = ByClassAdversary(critic, torch.device("cpu"), penalized=False)
    assert set(free.losses(swap)) == {"discriminator_real"}
    real = adversary.network(swap.images).gather(1, swap.labels[:, None])
    donor = torch.tensor([2, 0, 0, 1])
    fake = adversary.network(swap.swapped).gather(1, donor[:, None])
    expected = torch.log1p(torch.exp(-real)).mean() + torch.log1p(torch.exp(fake)).mean()
    torch.testing.assert_close(losses["discriminator_real"], expected)
    step = 1e-3  # the penalty against differences along the gradient of the first image
    images = swap.images.clone().requires_grad_(True)
    logits = adversary.network(images).gather(1, swap.labels[:, None]).sum()
    (slope,) = torch.autograd.grad(logits, images)
    torch.testing.assert_close(losses["gradient_penalty"], slope.square().sum(dim=(1, 2, 3)).mean())
    unit = slope / slope.flatten(1).norm(dim=1)[:, None, None, None]
    there = adversary.network(swap.images + step * unit).gather(1, swap.labels[:, None])
    length = slope.flatten(1).norm(dim=1)
    torch.testing.assert_close((there - real)[:, 0] / step, length, rtol=0.2, atol=0.02)
    weighted_sum(losses, LossWeights()).backward()
    assert all(p.grad is None for p in generator.parameters())
    assert any(p.grad is not None for p in adversary.network.parameters())
    for p, old in zip(critic.network.parameters(), before, strict=True):
        assert p.grad is None
        assert torch.equal(p, old)


def test_all_ordered_class_pairs_come_equally_often() -> None:
    labels = np.repeat([0, 1, 3], [20, 2, 10])
    sampler = PairSampler(labels, 4, 5, seed=0)
    counts: dict[tuple[int, int], int] = {}
    seen = set()
    for step in range(60):
        drawn = sampler.draw(step, sampler.rng(step))
        seen |= set(drawn.tolist())
        for a, b in zip(labels[drawn[:5]], labels[drawn[5:]], strict=True):
            counts[int(a), int(b)] = counts.get((int(a), int(b)), 0) + 1
    assert counts == dict.fromkeys([(0, 1), (0, 3), (1, 0), (1, 3), (3, 0), (3, 1)], 50)
    assert len(seen) == len(labels)


def test_processes_draw_different_pairs_and_steps_are_reproducible() -> None:
    labels = np.arange(40) % 4
    first, second = (PairSampler(labels, 4, 3, 0, rank=r, world=2) for r in (0, 1))
    draws = [s.draw(7, s.rng(7)).tolist() for s in (first, second, first)]
    assert draws[0] == draws[2] != draws[1]


def test_mirroring_keeps_pixels_and_turns_only_where_asked() -> None:
    images = torch.arange(32 * 9.0).reshape(32, 1, 3, 3)
    rng = np.random.default_rng(0)
    assert augmented(images, "none", rng) is images
    flipped = augmented(images, "flip", rng)
    mirrored = (flipped == images.flip(3)).all(dim=(1, 2, 3))
    assert bool((mirrored | (flipped == images).all(dim=(1, 2, 3))).all())
    assert 0 < int(mirrored.sum()) < 32
    turned = augmented(images, "dihedral", rng)
    assert torch.equal(turned.flatten(1).sort().values, images.flatten(1).sort().values)
    assert bool((turned == images.transpose(2, 3)).all(dim=(1, 2, 3)).any())


def test_strong_augmentation_varies_place_and_grey_levels_within_its_limits() -> None:
    """A bright disc: where it lies, how large and how bright it is after 200 draws."""
    rows, columns = np.mgrid[0:48, 0:48]
    disc = np.where(np.hypot(rows - 23.5, columns - 23.5) < 8, 0.6, -0.6).astype(np.float32)
    images = torch.from_numpy(disc).expand(200, 3, 48, 48).contiguous()
    before = images.clone()
    moved = strongly_augmented(images, np.random.default_rng(0))
    assert moved.shape == images.shape
    assert moved.dtype == torch.float32
    assert torch.equal(images, before)
    assert torch.equal(moved, strongly_augmented(images, np.random.default_rng(0)))
    assert float(moved.abs().max()) <= 1
    assert torch.equal(moved[:, 0], moved[:, 2])  # a grey image stays grey
    levels = moved[:, 0].numpy()
    low, high = levels.min(axis=(1, 2)), levels.max(axis=(1, 2))
    assert (high - low > 0.3).all(), "the disc must stay visible"
    assert (high - low).std() > 0.1
    inside = levels > ((low + high) / 2)[:, None, None]
    area = inside.sum(axis=(1, 2))
    assert area.min() > 0.55 * 201
    assert area.max() < 1.9 * 201  # zoom of 1.22 and stretch of 1.13, squared
    assert area.std() > 20
    centre = np.array([[*np.argwhere(one).mean(axis=0)] for one in inside]) - 23.5
    assert np.abs(centre).max() < 8
    assert (centre.std(axis=0) > 1).all()
    halves = torch.full((200, 1, 48, 48), -0.6)
    halves[..., 24:] = 0.6  # bright on the right
    strong = augmented(halves, "strong", np.random.default_rng(1))
    assert torch.equal(strong, strongly_augmented(halves, np.random.default_rng(1)))
    assert torch.equal(strong, varied(halves, "strong", np.random.default_rng(1)))  # shifted once
    sides = strong.mean(dim=(1, 2))
    right = float((sides[:, 47] > sides[:, 0]).float().mean())
    assert 0.3 < right < 0.7


def test_store_keeps_the_levels_of_16_bit_images(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        ramp = np.arange(256, dtype=np.uint16).reshape(16, 16) + 30_000
        Image.fromarray(ramp).save(tmp_path / name / "ramp.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = ImageDataset.from_folder(tmp_path)
    image = ImageStore(dataset, 16, 1).images([0])
    assert len(image.unique()) == 256
    assert float((image - torch.from_numpy(dataset.load([0]))).abs().max()) <= 1 / 32767


def test_promises_of_a_perfect_and_of_a_useless_model() -> None:
    class Perfect(torch.nn.Module):
        """The mean is the class code, the rest the individual code."""

        def encode(self, images: Any) -> Any:
            mean = images.mean(dim=(1, 2, 3))
            return images - mean[:, None, None, None], mean[:, None]

        def decode(self, individual: Any, codes: Any) -> Any:
            return individual + codes[:, :, None, None]

    class Useless(Perfect):
        """The class code changes nothing."""

        def decode(self, individual: Any, codes: Any) -> Any:
            return individual

    torch.manual_seed(0)
    labels = np.arange(40) % 2
    images = (
        torch.randn(40, 1, 8, 8) * 0.01
        + torch.from_numpy(labels * 0.8 - 0.4)[:, None, None, None].float()
    )

    def classify(batch: Any) -> Any:
        mean = batch.mean(dim=(1, 2, 3))
        return torch.stack([-20 * mean, 20 * mean], dim=1)

    good = measure_promises(Perfect(), images, labels, classify, judge="rule")
    assert good["swap_success"] == good["class_kept"] == good["knn_accuracy"] == 1.0
    assert good["reconstruction_l1"] < 1e-4
    assert good["class_code_error"] < 1e-3
    assert 1 / 16 < good["path_largest_step"] < 0.5
    assert warn_of(good) == []
    bad = measure_promises(Useless(), images, labels, classify, judge="rule")
    assert bad["swap_success"] < 0.75
    assert any("swapped images" in sentence for sentence in warn_of(bad))


def test_nearest_classes_leaves_out_the_image_itself() -> None:
    codes = torch.tensor([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2], [5.3], [0.05]])
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    assert nearest_classes(codes, codes, labels, leave_out=True)[7] == 0
    assert nearest_classes(codes[:1], codes[3:], labels[3:])[0] == 1


def test_schedules() -> None:
    assert [schedule_factor("halving", s, 100) for s in (0, 9, 10, 95)] == [1, 1, 0.5, 0.5**9]
    cosine = [schedule_factor("cosine", s, 100) for s in (0, 50, 75, 100)]
    assert cosine == pytest.approx([1, 1, 0.51, 0.02])
    assert schedule_factor("constant", 99, 100) == 1
