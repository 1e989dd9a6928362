# SPDX-License-Identifier: Apache-2.0
"""The Captum and Quantus adapters against the real packages, on the bundled digits."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from cae_fast import CAE, CodeBank, Explainer, load_images
from cae_fast.demo import model_folder
from cae_fast.integrations.captum import FLAT, ClassAssociationEmbedding
from cae_fast.integrations.quantus import explain_func
from cae_fast.training.classifier_network import ResidualClassifier

pytest.importorskip("captum")


@cache
def explainer() -> Explainer:
    folder = model_folder("digits")
    bank = CodeBank.load(folder / "bank.csv")
    return Explainer(
        CAE.load(folder / "model.safetensors"), str(folder / "classifier.onnx"), bank=bank
    )


@cache
def samples(count: int = 3) -> torch.Tensor:
    files = sorted((model_folder("digits") / "samples").glob("*.png"))[:count]
    return torch.from_numpy(load_images(files, size=32, channels=1))


def forward(images: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(explainer().classifier(images.detach().numpy().astype(np.float32)))


def cae(function: Any = forward) -> ClassAssociationEmbedding:
    return ClassAssociationEmbedding(function, explainer())


def test_tensor_in_tensor_out_and_tuple_in_tuple_out() -> None:
    method = cae()
    whole = method.attribute(samples())
    assert whole.shape == samples().shape
    assert torch.isfinite(whole).all()
    (again,) = method.attribute((samples(),))
    assert torch.equal(whole, again)
    assert method.attribute(samples().double()).dtype == torch.float64
    assert not method.multiplies_by_inputs
    assert not method.has_convergence_delta()


def test_the_map_is_the_explainers_difference_and_depends_on_the_target() -> None:
    method = cae()
    predicted = forward(samples()).argmax(1)
    found = method.attribute(samples(), target=predicted)
    assert method.explanation is not None
    expected = np.abs(explainer().explain(samples().numpy()).difference)
    assert np.allclose(found.numpy(), expected, atol=1e-6)
    assert (found >= 0).all()
    other = int((predicted[0] + 1) % 10)
    against = method.attribute(samples()[:1], target=other)
    assert (against <= 0).all()
    assert not torch.allclose(against.abs(), found[:1], atol=1e-3)
    assert method.explanation.target_class[0] == other
    method.attribute(samples()[:1], target=int(predicted[0]), counter_target=other)
    assert method.explanation.target_class[0] == other


def test_exemplars_as_baselines_and_codes() -> None:
    method = cae()
    bank = explainer().bank
    assert bank is not None
    predicted = forward(samples()).argmax(1).numpy()
    rows = np.asarray(explainer().explain(samples(), target=list((predicted + 1) % 10)).exemplar)
    codes = torch.from_numpy(bank.codes[rows].mean(axis=1, dtype=np.float64).astype(np.float32))
    target = torch.from_numpy((predicted + 1) % 10)
    nearest = method.attribute(samples(), target=target)
    reach = method.explanation.reach
    given = method.attribute(samples(), target=target, additional_forward_args=codes, reach=reach)
    assert torch.allclose(nearest, given, atol=1e-6)
    far = bank.nearest(bank.codes[rows[0, :1]], (predicted[0] + 1) % 10, 40)[0, -1]
    one = method.attribute(samples(), target=target, baselines=torch.from_numpy(bank.codes[[far]]))
    assert not torch.allclose(one, nearest, atol=1e-3)
    images = method.attribute(samples(), target=target, baselines=samples().flip(0))
    assert images.shape == samples().shape
    with pytest.raises(ValueError, match="given twice"):
        method.attribute(samples(), baselines=codes[:1], additional_forward_args=codes)


def test_noise_tunnel_and_sensitivity() -> None:
    from captum.attr import NoiseTunnel
    from captum.metrics import sensitivity_max

    tunnel = NoiseTunnel(cae()).attribute(samples(2), nt_samples=3, stdevs=0.05)
    assert tunnel.shape == (2, 1, 32, 32)
    assert not torch.equal(tunnel, cae().attribute(samples(2)))
    sensitivity = sensitivity_max(cae().attribute, samples(2), n_perturb_samples=2)
    assert sensitivity.shape == (2,)
    assert (sensitivity > 0).all()


def test_captums_plot_takes_every_map() -> None:
    from captum.attr import visualization
    from matplotlib.figure import Figure

    constant = ClassAssociationEmbedding(
        lambda images: torch.tensor([[1.0] + [0.0] * 9]).repeat(len(images), 1), explainer()
    )
    unreadable = torch.full((1, 1, 32, 32), float("nan"))
    for method, images in ((cae(), samples(1)), (constant, samples(1)), (cae(), unreadable)):
        values = method.attribute(images)
        assert torch.isfinite(values).all()
        assert (values != 0).any()
        hwc = values[0].permute(1, 2, 0).numpy()
        figure, _ = visualization.visualize_image_attr(
            hwc,
            np.nan_to_num((images[0].permute(1, 2, 0).numpy() + 1) / 2),
            method="blended_heat_map",
            sign="absolute_value",
            use_pyplot=False,
        )
        assert isinstance(figure, Figure)
    assert (cae().attribute(unreadable) == FLAT).all()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"target": 10}, "target must be a class in 0..9, got 10"),
        ({"target": -1}, "target must be a class"),
        ({"target": 1.5}, "class index"),
        ({"target": True}, "class index"),
        ({"target": [1, 2]}, "one class or 3"),
        ({"counter_target": 99}, "counter_target must be a class"),
        ({"baselines": 0}, "baselines must be a tensor"),
        ({"saliency": "evidence"}, "takes no saliency"),
    ],
)
def test_wrong_arguments_are_named(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        cae().attribute(samples(), **wrong)


@cache
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return ResidualClassifier(1, 10, 4).eval()


def test_quantus_explains_the_model_it_is_given() -> None:
    explain = explain_func(explainer())
    images = samples().numpy()
    targets = network()(samples()).argmax(1).numpy()
    maps = explain(model=network(), inputs=images, targets=targets)
    own = explain(model=None, inputs=images, targets=targets)
    assert maps.shape == own.shape == (3, 1, 32, 32)
    assert np.ptp(maps.reshape(3, -1), axis=1).min() > 0
    assert np.allclose(maps.max(axis=(1, 2, 3)), 1)
    assert not np.allclose(maps, own)
    one = explain(model=network(), inputs=images[1:2], targets=targets[1:2])
    assert np.allclose(one, maps[1:2], atol=1e-5)  # normalised image by image


def test_a_quantus_metric_and_mprt_run() -> None:
    quantus = pytest.importorskip("quantus")
    images = samples().numpy()
    targets = network()(samples()).argmax(1).numpy()
    common = {"model": network(), "x_batch": images, "y_batch": targets}
    sparse = quantus.Sparseness(disable_warnings=True)(
        **common, a_batch=None, explain_func=explain_func(explainer()), device="cpu"
    )
    assert len(sparse) == 3
    assert all(0 <= value <= 1 for value in sparse)
    scores = quantus.MPRT(disable_warnings=True, layer_order="top_down")(
        **common, a_batch=None, explain_func=explain_func(explainer()), device="cpu"
    )
    assert np.isfinite(np.array(list(scores.values()), dtype=float)).all()
    assert len(scores) > 3
