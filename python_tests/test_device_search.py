# SPDX-License-Identifier: Apache-2.0
"""The search on the device, beside the same search stepped from the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from explain_cases import FIELDS, World, assert_same
from flip_module import Flip

import cae_fast as cf
from cae_fast.backends.cuda import CudaBackend

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def world() -> World:
    return World(count=5)


def on_host(
    explainer: cf.Explainer, monkeypatch: pytest.MonkeyPatch, *args: Any, **asked: Any
) -> Any:
    """The same explanation with the search stepped from the host, point after point."""
    with monkeypatch.context() as patch:
        patch.setattr(explainer, "_on_device", lambda *_: None)
        patch.setattr(explainer.backend, "coarse_batch", 1)
        return explainer.explain(*args, **asked)


@pytest.mark.parametrize("search", ["bisection", "margin"])
def test_a_batch_is_searched_as_from_the_host(
    world: World, gpu: str, search: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    explainer = world.explainer(bank=world.bank(), backend="cuda", device=gpu, max_batch=5)
    images = world.images.copy()
    images[3, 0, 0, 0] = np.inf
    asked = {"search": search, "tolerance": 1 / 16, "k": 2}
    found = explainer.explain(images, **asked)
    assert found.meta["stepping"] == "host"
    assert_same(found, on_host(explainer, monkeypatch, images, **asked))
    assert found.status[3] == "rejected"


@pytest.mark.parametrize("conv", ["portable", "wgmma"])
def test_launches_of_a_search_may_overlap(
    world: World, conv: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encoders, bank, rounds and maps: the same bits, and all kernels wait for those before."""
    monkeypatch.setenv("CAE_GPU_CONV", conv)
    asked: dict[str, Any] = {"tolerance": 1 / 16, "k": 2}
    found = []
    for overlap in ("0", "1"):
        monkeypatch.setenv("CAE_GPU_OVERLAP", overlap)
        explainer = world.explainer(bank=world.bank(), backend="cuda", device="emu", max_batch=5)
        assert isinstance(explainer.backend, CudaBackend)
        module: Any = explainer.backend.module
        module.reset_launch_counts()
        found.append(explainer.explain(world.images[:3], **asked))
        for name, count in module.launch_counts().items():
            assert count["overlapped"] == (count["launches"] if overlap == "1" else 0), name
    assert {"NearestJob", "FlipCommitParams", "SaliencyParams"} <= set(module.launch_counts())
    assert_same(*found)


def test_one_image_is_searched_several_points_at_a_time(
    world: World, gpu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two levels of bisection a round: the same flip, for some more decodes."""
    explainer = world.explainer(backend="cuda", device=gpu)
    asked = {"exemplars": world.ends[:1], "target": 1, "tolerance": 1 / 64, "frames": 2}
    found = explainer.explain(world.images[:1], **asked)
    stepped = on_host(explainer, monkeypatch, world.images[:1], **asked)
    for name in set(FIELDS) - {"evaluations"}:
        np.testing.assert_array_equal(getattr(found, name), getattr(stepped, name), err_msg=name)
    assert found.status[0] == "flipped"
    # The whole scan of five points, then two rounds of the three inner points of two levels.
    assert found.evaluations[0] == 5 + 2 * 3
    assert stepped.evaluations[0] <= 5 + 4
    np.testing.assert_array_equal(found.path_images, stepped.path_images)


def test_against_the_image_and_with_bank_rows(
    world: World, gpu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    explainer = world.explainer(bank=world.bank(), backend="cuda", device=gpu, max_batch=4)
    asked = {
        "exemplars": np.array([[1, 4], [2, 5], [1, 7], [0, 3]]),
        "target": "any",
        "tolerance": 1 / 8,
        "saliency_against": "image",
    }
    found = explainer.explain(world.images[:4], **asked)
    assert_same(found, on_host(explainer, monkeypatch, world.images[:4], **asked))


def test_what_the_bank_lacks_is_said_as_on_the_host(world: World, gpu: str) -> None:
    explainer = world.explainer(bank=world.bank(count=12), backend="cuda", device=gpu)
    said = []
    for backend in (explainer, world.explainer(bank=world.bank(count=12), backend="cpu")):
        with pytest.raises(cf.BankError) as error:
            backend.explain(world.images[:1], target=1, k=9)
        said.append(str(error.value))
    assert said[0] == said[1]


@pytest.mark.parametrize(("grid", "count", "tables"), [(16, 3, 1), (32, 2, None), (32, 1, 1)])
def test_modulation_is_made_at_once(
    world: World, grid: int, count: int, tables: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One table for a grid of up to 64 points, else one a round; never one for each batch."""
    explainer = world.explainer(backend="cuda", device="emu", max_batch=count)
    assert isinstance(explainer.backend, CudaBackend)
    module: Any = explainer.backend.module
    asked = {"exemplars": world.ends[:count], "target": 1, "tolerance": 1 / grid}
    module.reset_launch_counts()
    found = explainer.explain(world.images[:count], **asked)
    counts = module.launch_counts()
    rounds = counts["FlipCommitParams"]["launches"]
    assert rounds >= 2
    assert counts["PathCodesParams"]["launches"] == (tables or rounds)
    assert counts["LinearParams"]["launches"] == 3 * (tables or rounds)
    assert counts["OutputConvParams"]["launches"] > rounds  # batches of `count`
    stepped = on_host(explainer, monkeypatch, world.images[:count], **asked)
    for name in set(FIELDS) - {"evaluations"}:
        np.testing.assert_array_equal(getattr(found, name), getattr(stepped, name), err_msg=name)


@pytest.mark.parametrize(
    ("rules", "wanted"),
    [
        ({"depth": 2}, [15, 9, 9]),
        ({"depth": 2, "grid": 32}, [15, 9, 3]),
        ({"method": "margin"}, [15, 3, 3, 3, 3, 3]),
        ({"depth": 2, "coarse_batch": 1, "grid": 4}, [3] * 5),
    ],
)
def test_a_round_has_the_points_that_it_can_need(
    world: World, rules: dict[str, Any], wanted: list[int]
) -> None:
    explainer = world.explainer(backend="cuda", device="emu")
    assert isinstance(explainer.backend, CudaBackend)
    module: Any = explainer.backend.module
    asked = {"images": 3, "num_classes": 2, "grid": 64, **rules}
    search = module.GpuSearch(explainer.backend.engine, None, **asked)
    nobody = np.zeros(3, np.int32)
    paths = np.stack([world.ends[:3], world.ends[:3]], axis=1)
    search.set_inputs(world.images[:3], nobody + 1, np.ones(2, np.int32), nobody, paths)
    search.begin(np.array([[1, 0]] * 3, np.float32), True)
    counts = []
    for i in range(search.rounds):
        points = search.decode(i)
        counts.append(len(points))
        # The last point of each image, and of the scan, is of the target class.
        logits = np.array([[1, 0]] * len(points), np.float32).reshape(3, -1, 2)
        logits[:, -1] = [0, 1]
        search.step(i, logits.reshape(-1, 2))
    assert counts == wanted
    for beyond in (-1, search.rounds):
        with pytest.raises(ValueError, match="round must be in"):
            search.step(beyond, logits.reshape(-1, 2))
    found = search.result()
    assert len(set(found["hi"])) == 1
    if "coarse_batch" not in rules:  # where step 0 hits already
        np.testing.assert_array_equal(found["lo"], found["hi"] - 1)


def test_memory_and_plans_are_kept(world: World, gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    explainer = world.explainer(backend="cuda", device=gpu, max_batch=2)
    assert isinstance(explainer.backend, CudaBackend)
    made = []
    real = explainer.backend.module.GpuSearch

    class Module:
        """The module, counting searches."""

        @staticmethod
        def GpuSearch(*args: Any, **options: Any) -> Any:
            made.append(options["images"])
            return real(*args, **options)

    monkeypatch.setattr(explainer.backend, "module", Module)
    asked = {"exemplars": world.ends, "target": 1, "tolerance": 1 / 4}
    first = explainer.explain(world.images, **asked)
    second = explainer.explain(world.images, **asked)
    assert made == [2, 1]  # groups of two, two and one, twice
    assert_same(first, second)


def test_groups_are_halved_where_memory_runs_out(
    world: World, gpu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    explainer = world.explainer(backend="cuda", device=gpu, max_batch=4)
    assert isinstance(explainer.backend, CudaBackend)
    real = explainer.backend.module.GpuSearch

    class Module:
        """The module of a GPU whose memory holds two images."""

        @staticmethod
        def GpuSearch(*args: Any, **options: Any) -> Any:
            if options["images"] > 2:
                raise MemoryError("out of device memory")
            return real(*args, **options)

    asked = {"exemplars": world.ends[:4], "target": 1, "tolerance": 1 / 4}
    whole = explainer.explain(world.images[:4], **asked)
    explainer._searcher = None
    monkeypatch.setattr(explainer.backend, "module", Module)
    halved = explainer.explain(world.images[:4], **asked)
    # Groups of two look at several points at once, groups of four do not.
    for name in set(FIELDS) - {"evaluations"}:
        np.testing.assert_array_equal(getattr(whole, name), getattr(halved, name), err_msg=name)


def test_a_module_gets_tensors(world: World, gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = Flip().to("cpu" if gpu == "emu" else gpu)
    explainer = world.explainer(module, backend="cuda", device=gpu, max_batch=4)
    asked = {"exemplars": world.ends[:4], "target": "any", "tolerance": 1 / 8}
    found = explainer.explain(world.images[:4], **asked)
    stepped = on_host(explainer, monkeypatch, world.images[:4], **asked)
    np.testing.assert_array_equal(found.status, stepped.status)
    np.testing.assert_array_equal(found.t_flip, stepped.t_flip)


def test_pictures_of_tensors_stay_on_the_device(world: World, gpu: str) -> None:
    """Tensors in, tensors out, the same as NumPy in; one is rejected, so the rest is uploaded."""
    device = "cpu" if gpu == "emu" else gpu
    explainer = world.explainer(backend="cuda", device=gpu, max_batch=2)
    images = world.images[:3].copy()
    images[2, 0, 0, 0] = np.nan
    asked = {"exemplars": world.ends[:3], "target": 1, "tolerance": 1 / 4}
    plain = explainer.explain(images, **asked)
    there = explainer.explain(torch.from_numpy(images).to(device), **asked)
    for name in ("images", "counterfactual", "difference", "saliency", "t_flip"):
        value = getattr(there, name)
        assert isinstance(value, torch.Tensor), name
        assert str(value.device) == device, name
    assert_same(plain, there.numpy())


def test_tensors_of_the_device_are_checked_there(
    world: World, gpu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a copy on the host; the words are those of NumPy arrays, in any layout."""

    def refuse(images: Any, *_: Any) -> Any:
        raise AssertionError("a tensor of the device went through the host")

    device = "cpu" if gpu == "emu" else gpu
    images = np.concatenate([world.images, world.images[:1]])
    images[1, 0, 3, 4], images[1, 0, 0, 0] = np.nan, np.inf
    images[2, 0, 5, 5] = 1.5
    images[4, 0, 1, 1] = -np.inf
    explainer = world.explainer(Flip().to(device), backend="cuda", device=gpu, max_batch=3)
    asked = {"exemplars": world.ends[:1], "target": "any", "tolerance": 1 / 4}
    plain = explainer.explain(images, **asked)
    assert [i for i in range(6) if plain.status[i] == "rejected"] == [1, 2, 4]
    monkeypatch.setattr("cae_fast.explainer.checked_images", refuse)
    tensor = torch.from_numpy(images).to(device)
    for given in (tensor, tensor.to(memory_format=torch.channels_last), tensor.requires_grad_()):
        there = explainer.explain(given, **asked)
        assert there.meta["rejected"] == plain.meta["rejected"]
        assert_same(plain, there.numpy())
    for bad, said in (
        (tensor.double(), "got dtype float64"),
        (tensor[:, :, 1:], r"got shape \[6, 1, 15, 16\]"),
        (tensor[0], r"got shape \[1, 16, 16\]"),
    ):
        with pytest.raises(ValueError, match=said):
            explainer.explain(bad, **asked)
    nothing = explainer.explain(tensor[:0], target="any", exemplars=world.ends[:1])
    assert nothing.counterfactual.shape == (0, 1, 16, 16)


def test_a_function_gets_tensors_where_the_user_s_are(world: World, gpu: str) -> None:
    """CPU tensors in: a function that calls a model on the CPU works, wherever it is explained."""
    module, seen = Flip(), set()

    def call(images: Any) -> Any:
        seen.add(str(images.device))
        return module(images)

    explainer = world.explainer(call, backend="cuda", device=gpu, max_batch=4)
    asked = {"exemplars": world.ends[:2], "target": "any", "tolerance": 1 / 4}
    explainer.explain(torch.from_numpy(world.images[:2]), **asked)
    assert seen == {"cpu"}


def test_a_classifier_may_encode_but_not_explain(world: World, gpu: str) -> None:
    asked = {"exemplars": world.ends[:1], "target": 1, "tolerance": 1 / 2}
    explainer: cf.Explainer

    def recurse(images: Any) -> Any:
        explainer.explain(world.images[:1], **asked)
        return world.classifier(images)

    explainer = world.explainer(recurse, backend="cuda", device=gpu)
    with pytest.raises(cf.ClassifierError, match="cannot call explain"):
        explainer.explain(world.images[:1], **asked)

    def encode(images: Any) -> Any:
        explainer.encode(images)
        return world.classifier(images)

    explainer = world.explainer(encode, backend="cuda", device=gpu)
    assert explainer.explain(world.images[:1], **asked).status[0] == "flipped"


@pytest.mark.parametrize("code_dim", [128, 129])
def test_long_codes_are_looked_up_on_the_host(gpu: str, code_dim: int) -> None:
    """Those in a bank, and it is said; given ones are searched on the device whatever their length.

    Up to 128 numbers the device finds the same rows, equally near ones included.
    """
    world = World(count=2, code_dim=code_dim)
    bank = world.bank()
    bank.codes[5:] = bank.codes[5] + np.float32(1e-3) * (np.arange(25) % 3)[:, None]
    explainer = world.explainer(bank=bank, backend="cuda", device=gpu)
    exact = world.explainer(bank=bank, backend="cpu")
    asked = {"target": 1, "tolerance": 1 / 2, "k": 3}
    found = explainer.explain(world.images, **asked)
    np.testing.assert_array_equal(found.exemplar, exact.explain(world.images, **asked).exemplar)
    assert found.meta["stepping"] == (
        "host"
        if code_dim == 128
        else "host: a GPU looks up class codes of at most 128 numbers in a bank"
    )
    given = explainer.explain(world.images, exemplars=world.ends, target=1, tolerance=1 / 2)
    assert given.meta["stepping"] == "host"
    assert (given.status == "flipped").all()


def test_what_overflows_halves_is_searched_in_float32(world: World, gpu: str) -> None:
    """Modulation that drives the residual stream beyond 65504."""
    weights = dict(world.model.weights)
    weights["modulation.linear2.bias"] = weights["modulation.linear2.bias"] + np.float32(1e6)
    model = cf.CAE(world.model.config, weights)
    asked = {"exemplars": world.ends[:2], "target": 1, "tolerance": 1 / 4, "frames": 3}
    explainer = cf.Explainer(model, world.classifier, backend="cuda", device=gpu)
    found = explainer.explain(world.images[:2], **asked)
    exact = cf.Explainer(model, world.classifier, backend="cpu").explain(world.images[:2], **asked)
    assert found.meta["computed_in_float32"] == [0, 1]
    assert np.isfinite(found.path_images).all()
    np.testing.assert_array_equal(found.path_images, exact.path_images)
    assert exact.meta["computed_in_float32"] == []
    assert "non_finite" not in found.status
    assert_same(found, exact)


@pytest.mark.parametrize("outputs", ["logits", "probs", "sigmoid"])
def test_logits_on_a_device_are_those_on_the_host(world: World, outputs: Any) -> None:
    module = Flip(1 if outputs == "sigmoid" else 3)
    if outputs == "probs":
        module = torch.nn.Sequential(module, torch.nn.Softmax(dim=1))
    classifier = cf.Classifier(
        module, outputs=outputs, size=16, mean=[0.4], std=[0.3], batch=2, channels=1
    )
    images = torch.from_numpy(world.images)
    there = classifier.on_device(images)
    assert isinstance(there, torch.Tensor)
    np.testing.assert_allclose(there.numpy(), classifier(images), rtol=1e-6, atol=1e-6)


def test_outputs_on_a_device_are_checked(world: World) -> None:
    images = torch.from_numpy(world.images)
    classifier = cf.Classifier(lambda x: x.flatten(1)[:, :1], arrays="torch")
    with pytest.raises(cf.ClassifierError, match="one output per image"):
        classifier.on_device(images)
    classifier = cf.Classifier(lambda x: x, arrays="torch")
    with pytest.raises(cf.ClassifierError, match="expected numbers"):
        classifier.on_device(images)
