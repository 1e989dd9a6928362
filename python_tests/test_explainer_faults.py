# SPDX-License-Identifier: Apache-2.0
"""What the explainer refuses, and that it says what it saw and what it wanted."""

from __future__ import annotations

import multiprocessing
import re
from typing import Any

import numpy as np
import pytest
import torch
from explain_cases import FIELDS, TARGET, World, assert_same, constant

import cae_fast as cf
from cae_fast.backends import select_backend
from cae_fast.testing import toy_model

GOOD = np.zeros((2, 1, 16, 16), dtype=np.float32)


@pytest.fixture(scope="module")
def world() -> World:
    return World(3)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (GOOD[0], r"shape \[1, 16, 16\]"),
        (GOOD[None], r"shape \[1, 2, 1, 16, 16\]"),
        (GOOD.transpose(0, 2, 3, 1), r"shape \[2, 16, 16, 1\]"),
        (np.zeros((2, 3, 16, 16), np.float32), r"shape \[2, 3, 16, 16\]"),
        (np.zeros((2, 1, 32, 32), np.float32), r"shape \[2, 1, 32, 32\]"),
        (GOOD[:0, :, :8], r"shape \[0, 1, 8, 16\]"),
        (GOOD.astype(np.uint8), "got dtype uint8"),
        (GOOD.astype(np.float64), "got dtype float64"),
        (GOOD.astype(np.float16), "got dtype float16"),
        (GOOD > 0, "got dtype bool"),
        (GOOD.astype(np.complex64), "got dtype complex64"),
        (torch.zeros(2, 1, 16, 16, dtype=torch.bfloat16), "got dtype bfloat16"),
        (np.array([None, GOOD], dtype=object), "got dtype object"),
        (GOOD.tolist(), "got list"),
        ("image.png", "got str"),
        (None, "got NoneType"),
        (np.lib.stride_tricks.as_strided(GOOD, (2**40, 1, 16, 16)[1:], GOOD.strides[1:]), "shape"),
    ],
)
def test_wrong_images(world: World, images: Any, message: str) -> None:
    explainer = world.explainer()
    for call in (explainer.explain, explainer.encode):
        with pytest.raises(ValueError, match=f"images.*{message}"):
            call(images)


@pytest.mark.parametrize(
    "target",
    [
        True,
        np.True_,
        1.0,
        np.float32(1),
        3,
        -1,
        -2,
        "absent",
        "ANY",
        b"0",
        [0, 1],
        [0, 1, 3],
        [0, 1, True],
        [0, 1, 1.0],
        (),
        {0, 1, 2},
        np.array([0, 1]),
        np.array([0, 1, 3]),
        np.array([0.0, 1, 2]),
        np.array([True, False, True]),
        np.array([[0, 1, 2]]),
        np.array(["0", "1", "2"]),
        torch.tensor([0.0, 1, 2]),
    ],
    ids=repr,
)
def test_wrong_targets(world: World, target: Any) -> None:
    with pytest.raises(ValueError, match="target must"):
        world.explainer().explain(world.images, target, world.ends)


@pytest.mark.parametrize(
    ("exemplars", "message"),
    [
        (np.zeros((2, 4), np.float32), "one for each of the 3 images, got 2"),
        (np.zeros((3, 5), np.float32), r"class codes \[N, 4\], got \[3, 5\]"),
        (np.zeros((0, 4), np.float32), "one for each of the 3 images, got 0"),
        (np.zeros(0, int), "one for each of the 3 images, got 0"),
        (np.full((1, 4), np.nan, np.float32), "NaN or Inf"),
        (np.zeros((2, 1, 16, 16), np.float32), "one for each of the 3 images, got 2"),
        (np.zeros((3, 1, 8, 8), np.float32), r"exemplars must be float32 \[N, 1, 16, 16\]"),
        (np.full((1, 1, 16, 16), 2, np.float32), r"image 0: pixels lie in \[2, 2\]"),
        (np.zeros((1, 1, 16, 16), np.float64), "got dtype float64"),
        (np.zeros((3, 4), bool), "exemplars must be images"),
        (np.zeros(3, np.float32), "exemplars must be images"),
        ("bank.csv", "exemplars must be images"),
        (np.array([0, 30, 1]), r"bank rows in 0\.\.29, got 30"),
        (-1, r"bank rows in 0\.\.29, got -1"),
        (np.array([0, 1]), "one for each of the 3 images, got 2"),
        (np.zeros((3, 0), int), "is empty"),
    ],
)
def test_wrong_exemplars(world: World, exemplars: Any, message: str) -> None:
    explainer = world.explainer(bank=world.bank())
    with pytest.raises(ValueError, match=message):
        explainer.explain(world.images, TARGET, exemplars)


@pytest.mark.parametrize(
    "options",
    [
        {"path": "spiral"},
        {"path": None},
        {"tolerance": 0},
        {"tolerance": 2},
        {"tolerance": -0.1},
        {"tolerance": float("nan")},
        {"tolerance": True},
        {"tolerance": "small"},
        {"tolerance": 1e-9},
        {"k": 0},
        {"k": 2},
        {"k": True},
        {"k": 1.0},
        {"min_probability": -0.1},
        {"min_probability": 1.1},
        {"min_probability": None},
        {"coarse": 3},
        {"coarse": 0},
        {"coarse": 4.0},
        {"search": "golden"},
        {"search": None},
        {"saliency_against": "noise"},
        {"frames": 1},
        {"frames": -1},
        {"frames": 2.0},
        {"names": ["one"]},
        {"names": "abc"},
        {"rejected": [None]},
    ],
    ids=repr,
)
def test_wrong_options_are_named(world: World, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}.*(must be|is for)"):
        world.explainer().explain(world.images, TARGET, world.ends, **options)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("max_batch", [0, -1, 2**31, 2**70, True, 1.5, "8", np.nan], ids=repr)
def test_wrong_max_batch(world: World, backend: str, max_batch: Any) -> None:
    expected = (
        rf"^max_batch must be an integer in 1\.\.2147483647, got {re.escape(repr(max_batch))}$"
    )
    with pytest.raises(ValueError, match=expected):
        world.explainer(backend=backend, max_batch=max_batch)
    with pytest.raises(ValueError, match=expected):
        select_backend(backend, world.model, max_batch=max_batch)


def test_the_largest_max_batch_takes_no_more_memory_than_a_wave(world: World) -> None:
    found = world.explainer(max_batch=2**31 - 1).explain(world.images, TARGET, world.ends)
    assert_same(found, world.explainer(max_batch=1).explain(world.images, TARGET, world.ends))


def test_memory_that_is_shared_or_repeated(world: World) -> None:
    """Images as their own exemplars; one image as many by strides of zero; neither is written."""
    explainer = world.explainer(max_batch=2)
    before = world.images.copy()
    apart = explainer.explain(world.images, "any", world.images.copy())
    assert_same(explainer.explain(world.images, "any", world.images), apart)
    repeated = np.broadcast_to(world.images[:1], (5, *world.images.shape[1:]))
    found = explainer.explain(repeated, "any", world.ends[:1])
    once = explainer.explain(world.images[:1], "any", world.ends[:1])
    for i in range(5):
        assert_same(found[i], once)
    np.testing.assert_array_equal(world.images, before)
    with pytest.raises(ValueError, match="got dtype >f4"):
        explainer.explain(world.images.astype(">f4"), "any", world.ends)
    swapped = world.ends.astype(">f4")
    expected = explainer.explain(world.images, TARGET, world.ends)
    assert_same(explainer.explain(world.images, TARGET, swapped), expected)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_awkward_layouts_on_every_backend(world: World, backend: str) -> None:
    explainer = world.explainer(backend=backend)
    codes = explainer.encode(world.images)
    frozen = world.images.copy()
    frozen.flags.writeable = False
    for images in (
        world.images[::-1][::-1],
        world.images[..., ::-1].copy()[..., ::-1],
        np.asfortranarray(world.images),
        frozen,
    ):
        np.testing.assert_array_equal(explainer.encode(images).class_code, codes.class_code)
        swapped = explainer.decode(codes.individual[::-1][::-1], np.asfortranarray(world.ends))
        np.testing.assert_array_equal(swapped, explainer.decode(codes.individual, world.ends))
        found = explainer.explain(images, TARGET, images)
        assert_same(found, explainer.explain(world.images, TARGET, world.images))
        np.testing.assert_array_equal(
            explainer.path(images, images[::-1], [0.5]),
            explainer.path(world.images, world.images[::-1].copy(), [0.5]),
        )


def test_a_bank_is_needed(world: World) -> None:
    with pytest.raises(cf.BankError, match="bank="):
        world.explainer().explain(world.images)
    with pytest.raises(cf.BankError, match="there is no bank"):
        world.explainer().explain(world.images, exemplars=[0, 1, 2])


def test_class_missing_from_the_bank(world: World) -> None:
    bank = world.bank()
    only_0 = cf.CodeBank(
        bank.codes[:2],
        bank.names[:2],
        bank.groups[:2],
        np.zeros(2, int),
        np.zeros(2, int),
        bank.class_names,
        bank.model_sha256,
    )
    with pytest.raises(cf.BankError, match="0 correctly classified images of class '1'"):
        world.explainer(bank=only_0).explain(world.images, TARGET)


def test_bank_of_another_model(world: World) -> None:
    other = toy_model(seed=1)
    with pytest.raises(cf.BankError, match=world.model.sha256[:12]) as caught:
        cf.Explainer(other, world.classifier, bank=world.bank())
    assert other.sha256[:12] in str(caught.value)


def test_class_names_must_agree(world: World) -> None:
    named = toy_model(class_names=("cat", "dog", "owl"))
    with pytest.raises(
        cf.ClassifierError, match=r"\['cat', 'dog', 'owl'\].*\['cat', 'owl', 'dog'\]"
    ):
        cf.Explainer(named, cf.Classifier(world.classifier, labels=["cat", "owl", "dog"]))
    bank = world.bank()
    bank.class_names = ("a", "b", "c")
    bank.model_sha256 = named.sha256
    with pytest.raises(cf.BankError, match=r"\['cat', 'dog', 'owl'\].*\['a', 'b', 'c'\]"):
        cf.Explainer(named, world.classifier, bank=bank)
    explainer = cf.Explainer(
        named, cf.Classifier(constant([1, 0, 0]), labels=["cat", "dog", "owl"])
    )
    found = explainer.explain(world.images, "owl", world.ends)
    assert (found.target_class == 2).all()
    with pytest.raises(ValueError, match="got '1'"):
        explainer.explain(world.images, "1", world.ends)


def test_numbers_are_names_too(world: World) -> None:
    assert world.model.config.class_names == ("0", "1", "2")
    for labels in (["airplane", "cat", "truck"], ["1", "0", "2"]):
        with pytest.raises(cf.ClassifierError, match=r"\['0', '1', '2'\]") as caught:
            world.explainer(cf.Classifier(world.classifier, labels=labels))
        assert str(labels) in str(caught.value)
        assert ("from_authors(..., class_names=...)" in str(caught.value)) == ("cat" in labels)
    bank = world.bank()
    bank.class_names = ("airplane", "cat", "truck")
    with pytest.raises(cf.BankError, match="airplane"):
        world.explainer(bank=bank)
    same = cf.Classifier(world.classifier, labels=["0", "1", "2"])
    assert world.explainer(same).class_names == ("0", "1", "2")


def test_classifier_with_another_number_of_outputs(world: World) -> None:
    for row in ([1, 0], [1, 0, 0, 0]):
        with pytest.raises(cf.ClassifierError, match=f"returns {len(row)} logits.*3 classes"):
            world.explainer(constant(row)).explain(world.images, exemplars=world.ends)


def test_classifier_that_raises(world: World) -> None:
    def broken(images: Any) -> Any:
        raise RuntimeError("out of tea")

    with pytest.raises(cf.ClassifierError, match="out of tea") as caught:
        world.explainer(broken).explain(world.images, exemplars=world.ends)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_wrong_parts(world: World) -> None:
    with pytest.raises(ValueError, match="model must be"):
        cf.Explainer("model.safetensors", world.classifier)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bank must be"):
        cf.Explainer(world.model, world.classifier, bank=3)  # type: ignore[arg-type]
    with pytest.raises(cf.ClassifierError, match="classifier must be"):
        cf.Explainer(world.model, 3)


def test_wrong_codes(world: World) -> None:
    explainer = world.explainer()
    codes = explainer.encode(world.images)
    for individual, code, message in [
        (codes.individual[0], codes.class_code, "individual must be"),
        (codes.individual, codes.class_code[:, :3], "class_code must be"),
        (codes.individual, codes.class_code[:2], "individual has 3 rows, class_code 2"),
        (codes.individual, codes.class_code * np.nan, "class_code holds NaN"),
        (codes.individual, codes.class_code.astype(int), "class_code must be"),
        (codes.individual, None, "class_code must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            explainer.decode(individual, code)
    for t in ([], [-0.1], [1.1], [np.nan], [[0.5]]):
        with pytest.raises(ValueError, match="t must be positions"):
            explainer.path(world.images, world.ends, t)
    with pytest.raises(ValueError, match="exemplars must be"):
        explainer.path(world.images, None, [0.5])
    bad = world.images.copy()
    bad[1, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"image 1: .* NaN or Inf"):
        explainer.encode(bad)


def _explain_in_child(count: int, queue: Any) -> None:
    world = World(count)
    found = world.explainer().explain(world.images, TARGET, world.ends)
    queue.put({name: getattr(found, name) for name in FIELDS})


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_process_finds_the_same_bits(world: World, method: str) -> None:
    here = world.explainer().explain(world.images, TARGET, world.ends)
    context: Any = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_explain_in_child, args=(len(world.images), queue))
    child.start()
    there = queue.get(timeout=60)
    for name in FIELDS:
        np.testing.assert_array_equal(there[name], getattr(here, name), err_msg=name)
    child.join(60)
    assert child.exitcode == 0
    assert_same(world.explainer().explain(world.images, TARGET, world.ends), here)
