# SPDX-License-Identifier: Apache-2.0
"""The classifier: what it does around a function, what it refuses."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import cae_fast as cf
from cae_fast.arrays import resize_weights
from cae_fast.class_names import agree
from cae_fast.classifier import classifier_from

IMAGES = np.random.default_rng(0).uniform(-1, 1, (5, 1, 8, 8)).astype(np.float32)


def means(images: Any) -> Any:
    """Two logits per image, from its mean; any kind of array."""
    mean = images.reshape(len(images), -1).mean(1)
    return (
        np.stack([-mean, mean], axis=1)
        if isinstance(mean, np.ndarray)
        else torch.stack([-mean, mean], 1)
    )


class Seen:
    """Remembers what it was given."""

    def __init__(self, result: Any = None) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.images: list[Any] = []
        self.result = result

    def __call__(self, images: Any) -> Any:
        self.shapes.append(tuple(images.shape))
        self.images.append(images)
        return means(images) if self.result is None else self.result(images)


def test_logits_pass_through() -> None:
    logits = cf.Classifier(means)(IMAGES)
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits, means(IMAGES))


@pytest.mark.parametrize(
    "wrap", [lambda x: SimpleNamespace(logits=x), lambda x: {"logits": x}, lambda x: (x,), list]
)
def test_objects_with_logits(wrap: Any) -> None:
    logits = cf.Classifier(lambda images: wrap(means(images)))(IMAGES)
    np.testing.assert_array_equal(logits, means(IMAGES))


def test_probabilities_become_logits() -> None:
    p = np.array([[0.25, 0.75], [1.0, 0.0]], dtype=np.float32)
    logits = cf.Classifier(lambda images: p, outputs="probs")(IMAGES[:2])
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(np.exp(logits), p, atol=1e-7)


def test_one_probability_is_that_of_class_1() -> None:
    logits = cf.Classifier(lambda images: np.full(len(images), 0.75), outputs="probs")(IMAGES)
    np.testing.assert_allclose(np.exp(logits), [[0.25, 0.75]] * 5, rtol=1e-6)


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_one_logit_becomes_two(shape: tuple[int, ...]) -> None:
    logits = cf.Classifier(
        lambda images: np.full(len(images), 1.5).reshape(shape), outputs="sigmoid"
    )(IMAGES)
    np.testing.assert_array_equal(logits, [[0, 1.5]] * 5)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_normalisation_is_on_zero_to_one(kind: Any) -> None:
    seen = Seen()
    images = np.repeat(IMAGES, 3, axis=1)
    cf.Classifier(seen, mean=[0.5, 0.25, 0.0], std=[0.5, 1, 2], arrays=kind)(images)
    expected = ((images + 1) / 2 - np.array([0.5, 0.25, 0])[:, None, None]) / np.array([0.5, 1, 2])[
        :, None, None
    ]
    np.testing.assert_allclose(seen.images[0], expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_channels_convert(kind: Any) -> None:
    grey_to_rgb, rgb_to_grey = Seen(), Seen()
    cf.Classifier(grey_to_rgb, channels=3, arrays=kind)(IMAGES)
    np.testing.assert_array_equal(grey_to_rgb.images[0], np.repeat(IMAGES, 3, axis=1))
    colour = np.concatenate([IMAGES, -IMAGES, IMAGES * 0], axis=1)
    cf.Classifier(rgb_to_grey, channels=1, arrays=kind)(colour)
    np.testing.assert_allclose(rgb_to_grey.images[0], IMAGES * (0.299 - 0.587), atol=1e-6)


@pytest.mark.parametrize("size", [5, (4, 16)])
def test_numpy_and_torch_resize_alike(size: Any) -> None:
    a, b = Seen(), Seen()
    cf.Classifier(a, size=size)(IMAGES)
    cf.Classifier(b, size=size, arrays="torch")(IMAGES)
    expected = (size, size) if isinstance(size, int) else size
    assert a.shapes == [(5, 1, *expected)]
    np.testing.assert_allclose(a.images[0], b.images[0].numpy(), atol=1e-6)


@pytest.mark.parametrize(("source", "target"), [(8, 5), (8, 13), (7, 7), (4, 1), (1, 4)])
def test_resampling_agrees_with_torch(source: int, target: int) -> None:
    line = torch.linspace(-1, 1, source)[None, None, None].repeat(1, 1, 4, 1) ** 3
    expected = torch.nn.functional.interpolate(line, (4, target), mode="bilinear", antialias=True)
    np.testing.assert_allclose(
        line[0, 0].numpy() @ resize_weights(source, target).T, expected[0, 0], atol=1e-6
    )


def test_batch_bounds_every_call() -> None:
    seen = Seen()
    logits = cf.Classifier(seen, batch=2)(IMAGES)
    assert [s[0] for s in seen.shapes] == [2, 2, 1]
    np.testing.assert_array_equal(logits, means(IMAGES))


def test_kind_follows_the_images_unless_told() -> None:
    seen = Seen()
    classifier = cf.Classifier(seen)
    classifier(IMAGES)
    classifier(torch.from_numpy(IMAGES))
    cf.Classifier(seen, arrays="numpy")(torch.from_numpy(IMAGES))
    assert [type(i).__name__ for i in seen.images] == ["ndarray", "Tensor", "ndarray"]


def test_module_runs_in_eval_mode_without_gradients_in_its_dtype() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(64, 3).double()
            self.drop = torch.nn.Dropout(0.9)
            self.frozen = torch.nn.Dropout(0.9).eval()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert not torch.is_grad_enabled()
            assert not self.drop.training
            return self.linear(self.drop(x.flatten(1)))

    net = Net()
    net.frozen.eval()
    logits = classifier_from(net)(IMAGES)
    expected = net.linear(torch.from_numpy(IMAGES).double().flatten(1)).detach()
    np.testing.assert_allclose(logits, expected, rtol=1e-5)
    assert net.training
    assert net.drop.training
    assert not net.frozen.training


def test_a_raising_classifier_is_named_and_chained() -> None:
    def broken(images: Any) -> Any:
        raise KeyError("weights\nmore")

    with pytest.raises(cf.ClassifierError, match="broken raised KeyError") as caught:
        cf.Classifier(broken, name="broken")(IMAGES)
    assert isinstance(caught.value.__cause__, KeyError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("result", "outputs", "message"),
    [
        (np.zeros((4, 2)), "logits", r"float64 \[4, 2\], expected numbers \[5, K\]"),
        (np.zeros(5), "logits", r"expected numbers \[5, K\]"),
        (np.zeros((5, 2, 1)), "logits", r"expected numbers \[5, K\]"),
        (np.zeros((5, 1)), "logits", "outputs='sigmoid'"),
        (np.zeros((5, 2)), "sigmoid", "means one"),
        (np.full((5, 2), 3.0), "probs", "outputs='logits'"),
        (np.array([["a", "b"]] * 5), "logits", "expected numbers"),
        (None, "logits", "got NoneType"),
        ("text", "logits", "got str"),
        ((np.zeros((5, 2)), 1), "logits", "got tuple"),
    ],
)
def test_wrong_results_are_refused(result: Any, outputs: Any, message: str) -> None:
    with pytest.raises(cf.ClassifierError, match=message):
        cf.Classifier(lambda images: result, outputs=outputs)(IMAGES)


def test_the_number_of_outputs_stays() -> None:
    with pytest.raises(cf.ClassifierError, match=r"2 outputs per image, expected 3 \(labels"):
        cf.Classifier(means, labels=["a", "b", "c"])(IMAGES)
    widths = iter([2, 3])
    changing = cf.Classifier(lambda images: np.zeros((len(images), next(widths))))
    changing(IMAGES)
    with pytest.raises(cf.ClassifierError, match="3 outputs per image, expected 2"):
        changing(IMAGES)


@pytest.mark.parametrize(
    "options",
    [
        {"labels": "ab"},
        {"labels": ["a"]},
        {"labels": ["a", "a"]},
        {"labels": [1, 2]},
        {"outputs": "softmax"},
        {"arrays": "jax"},
        {"channels": 2},
        {"batch": 0},
        {"batch": True},
        {"size": 0},
        {"size": (1, 2, 3)},
        {"size": 8.0},
        {"mean": "x"},
        {"mean": [[1.0]]},
        {"mean": float("nan")},
        {"std": 0.0},
        {"std": [1, -1]},
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(cf.ClassifierError, match=next(iter(options))):
        cf.Classifier(means, **options)


def test_wrong_images_and_callables() -> None:
    with pytest.raises(cf.ClassifierError, match=r"\[N, C, H, W\]"):
        cf.Classifier(means)(IMAGES[0])
    with pytest.raises(cf.ClassifierError, match="takes 3 channels, images have 2"):
        cf.Classifier(means, channels=3)(np.zeros((1, 2, 4, 4), np.float32))
    with pytest.raises(cf.ClassifierError, match="mean has 3 numbers"):
        cf.Classifier(means, mean=[0, 0, 0])(IMAGES)
    with pytest.raises(cf.ClassifierError, match="must be callable"):
        cf.Classifier(7)  # type: ignore[arg-type]
    with pytest.raises(cf.ClassifierError, match="classifier must be a callable"):
        classifier_from(7)
    with pytest.raises(cf.ClassifierError, match="arrays='torch'"):
        cf.Classifier(torch.nn.Identity(), arrays="numpy")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"model": ("a", "b"), "bank": ("a", "b"), "classifier": None}, ("a", "b")),
        ({"model": ("0", "1"), "classifier": ("0", "1")}, ("0", "1")),
        ({"model": ("0", "1"), "classifier": None}, ("0", "1")),
        ({"model": None}, ()),
    ],
)
def test_class_names_that_agree(given: Any, expected: tuple[str, ...]) -> None:
    assert agree(given) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a", "b"), ("b", "a")),
        (("a", "b"), ("a", "b", "c")),
        (("0", "1"), ("1", "0")),
        (("0", "1"), ("a", "b", "c")),
        (("0", "1"), ("airplane", "truck")),
        (("airplane", "truck"), ("0", "1")),
    ],
)
def test_class_names_that_disagree_are_both_listed(one: Any, other: Any) -> None:
    with pytest.raises(cf.CAEError) as caught:
        agree({"model": one, "classifier": other})
    assert str(list(one)) in str(caught.value)
    assert str(list(other)) in str(caught.value)
    unnamed = ("0", "1") in (one, other) and len({*one, *other}) == 4
    assert ("--class-names" in str(caught.value)) == unnamed


def test_specification_of_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spec_module.py").write_text(
        "import numpy as np, cae_fast as cf\n"
        "def plain():\n    return lambda images: np.zeros((len(images), 2))\n"
        "def wrapped():\n    return cf.Classifier(plain(), labels=['a', 'b'])\n"
        "class Ready:\n"
        "    def __call__(self, images): return np.ones((len(images), 2))\n"
        "ready = Ready()\n"
        "def takes(images): return 1\n"
        "def nothing(): return None\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    assert cf.Classifier.load("spec_module:plain")(IMAGES).shape == (5, 2)
    assert cf.Classifier.load("spec_module:wrapped").labels == ("a", "b")
    assert cf.Classifier.load("spec_module:ready")(IMAGES)[0, 0] == 1
    assert cf.Classifier.load("spec_module:Ready")(IMAGES)[0, 0] == 1
    assert cf.Classifier.load("spec_module:plain", labels=["x", "y"]).labels == ("x", "y")
    for spec, message in [
        ("spec_module:absent", "has no 'absent'"),
        ("spec_module:takes", "without arguments"),
        ("spec_module:nothing", "callable"),
        ("spec_module:number", "callable"),
        ("no_such_module:x", "importing no_such_module failed"),
    ]:
        with pytest.raises(cf.ClassifierError, match=message):
            cf.Classifier.load(spec)
