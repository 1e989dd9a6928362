# SPDX-License-Identifier: Apache-2.0
"""What a classifier gets of path points: made by the decoder's last kernel, or by torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from explain_cases import FIELDS, World

import cae_fast as cf
from cae_fast.backends.cuda import CudaBackend
from cae_fast.classifier_calls import ClassifierCalls
from cae_fast.classifier_input import InputForm

torch = pytest.importorskip("torch")
nn = torch.nn


class Seen(nn.Module):  # type: ignore[misc, name-defined]
    """A convolution whose inputs are kept."""

    def __init__(self, channels: int, dtype: Any, *, channels_last: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(channels, 3, 3).to(dtype)
        if channels_last:
            self.conv = self.conv.to(memory_format=torch.channels_last)
        self.inputs: list[Any] = []

    def forward(self, images: Any) -> Any:
        self.inputs.append(images)
        return self.conv(images).float().mean(dim=(2, 3))


CASES = {
    "normalised": (3, torch.float32, False, {"mean": [0.4, 0.5, 0.3], "std": [0.3, 0.2, 0.25]}),
    "one number": (1, torch.float32, False, {"mean": 0.4}),
    "halves": (3, torch.float16, False, {}),
    "prepared": (3, torch.float16, True, {"mean": 0.45, "std": [0.3, 0.2, 0.25]}),
    "float32, channels last": (3, torch.float32, True, {}),
    "grey to RGB": (1, torch.float16, True, {"channels": 3, "mean": 0.45, "std": 0.3}),
    "grey as it is": (1, torch.float16, False, {}),
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_points_are_written_as_torch_would_make_them(case: str, gpu: str) -> None:
    """Bit for bit, whatever the dtype and layout; the images beside them are as ever."""
    channels, dtype, channels_last, options = CASES[case]
    world = World(count=2, in_channels=channels)
    inputs = options.get("channels", channels)
    module = Seen(inputs, dtype, channels_last=channels_last)
    module = module.to("cpu" if gpu == "emu" else gpu)
    classifier = cf.Classifier(module, **options)
    explainer = world.explainer(classifier, backend="cuda", device=gpu)
    backend = explainer.backend
    assert isinstance(backend, CudaBackend)
    calls = ClassifierCalls(classifier, world.model.config, backend, world.images)
    form = calls.form()
    assert form is not None
    assert form.channels_last is channels_last
    search = backend.module.GpuSearch(
        backend.engine,
        None,
        images=2,
        num_classes=3,
        grid=8,
        classifier_input=form.to_dict(),
    )
    nobody, paths = np.zeros(2, np.int32), np.stack([world.ends, world.ends], axis=1)
    search.set_inputs(world.images, nobody + 1, np.ones(3, np.int32), nobody, paths)
    search.begin(np.array([[2, 1, 0]] * 2, np.float32), True)
    written = search.decode(0)
    points = torch.from_numpy(search.points.numpy())
    assert points.abs().max() <= 1
    assert points.std() > 0.01
    calls.on_device(written, form)
    calls.on_device(points.to(module.conv.weight.device), None)
    ready, made = module.inputs
    assert ready.dtype == made.dtype == dtype
    assert ready.shape == made.shape == (10, inputs, 16, 16)
    assert torch.equal(ready, made)
    assert ready.is_contiguous(memory_format=torch.channels_last) is channels_last or inputs == 1


def test_explains_as_from_the_host(gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole search on inputs that the kernel wrote."""
    world = World(count=3, in_channels=3)
    module = Seen(3, torch.float32).to("cpu" if gpu == "emu" else gpu)
    classifier = cf.Classifier(module, mean=[0.4, 0.5, 0.3], std=0.25, batch=2)
    explainer = world.explainer(classifier, backend="cuda", device=gpu)
    asked = {"exemplars": world.ends, "target": "any", "tolerance": 1 / 16}
    found = explainer.explain(world.images, **asked)
    monkeypatch.setattr(explainer, "_on_device", lambda *_: None)
    stepped = explainer.explain(world.images, **asked)
    for name in set(FIELDS) - {"evaluations"}:
        np.testing.assert_array_equal(getattr(found, name), getattr(stepped, name), err_msg=name)


def test_which_classifiers_get_what() -> None:
    def form(fn: Any, have: int = 3, side: int = 16, **options: Any) -> InputForm | None:
        return cf.Classifier(fn, **options).input_form(have, side)

    plain = nn.Conv2d(3, 2, 3)
    assert form(plain) is None  # images serve as they are
    assert form(plain, 3, 32, mean=0.5) == InputForm(
        "float32", 3, False, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)
    )
    assert form(nn.Conv2d(3, 2, 3).bfloat16()) is None  # the kernel writes no bfloat16
    assert form(nn.Conv2d(3, 2, 3).double(), mean=0.5) is None
    resized = cf.Classifier(plain, mean=0.5, size=32)
    assert resized.input_form(3, 16) is None
    assert resized.input_form(3, 32) is not None
    assert form(plain, channels=1, mean=0.5) is None  # from RGB
    assert form(plain, std=[0.1, 0.2]) is None  # wrong, as the first call says
    assert form(lambda x: x, 1, channels=3) == InputForm("float32", 3, False, None, None)


def test_halves_are_rounded_once() -> None:
    """Normalised in float32: in halves, pixels near the mean would lose most of their bits."""
    module = Seen(1, torch.float16)
    classifier = cf.Classifier(module, mean=0.5, std=1 / 1024)
    image = torch.full((1, 1, 4, 4), 1e-5)
    classifier.on_device(image)
    (seen,) = module.inputs
    assert seen.dtype == torch.float16
    np.testing.assert_allclose(seen.float().numpy(), 1e-5 / 2 * 1024, rtol=4e-3)


def test_a_form_that_cannot_be(gpu: str) -> None:
    world = World(count=1)
    backend = world.explainer(backend="cuda", device=gpu).backend
    assert isinstance(backend, CudaBackend)
    good = InputForm("float16", 3, True, None, None).to_dict()
    for change, said in (
        ({"dtype": "float64"}, "dtype must be"),
        ({"channels": 9}, "channels must be"),
        ({"mean": [0.5], "std": [1.0]}, "mean and std must be 3 numbers"),
    ):
        with pytest.raises(ValueError, match=said):
            backend.module.GpuSearch(
                backend.engine,
                None,
                images=1,
                num_classes=3,
                grid=8,
                classifier_input=good | change,
            )
