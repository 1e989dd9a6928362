# SPDX-License-Identifier: Apache-2.0
"""Classifiers in half precision, checked against the original."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cae_fast as cf

torch = pytest.importorskip("torch")
nn = torch.nn


def network(*, scale: float = 1.0) -> Any:
    """Convolution, batch norm with statistics of its own, two classes."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    layers = (nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    head = nn.Linear(4, 2)
    with torch.no_grad():
        head.weight.mul_(scale)
        head.bias.mul_(scale)
    return nn.Sequential(*layers, head).eval()


def images(count: int = 8) -> Any:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_decides_the_same_and_says_how_near() -> None:
    module = network()
    classifier = cf.Classifier(module, labels=["a", "b"], mean=0.5, std=0.5)
    quick = classifier.prepared(images(), dtype="bfloat16")
    np.testing.assert_allclose(quick(images(3)), classifier(images(3)), atol=0.05)
    facts = quick.metadata["prepared"]
    assert facts["batch_norms_folded"] is True
    assert facts["checked_images"] == 8
    assert 0 < facts["largest_logit_difference"] < 0.05
    parts = list(quick.function.modules())  # type: ignore[attr-defined]
    assert not any(isinstance(part, nn.BatchNorm2d) for part in parts)
    assert all(p.dtype == torch.bfloat16 for p in quick.function.parameters())  # type: ignore[attr-defined]
    # The original is as it was.
    assert next(module.parameters()).dtype == torch.float32
    assert any(isinstance(part, nn.BatchNorm2d) for part in module.modules())
    assert "prepared" not in classifier.metadata
    assert quick.labels == ("a", "b")


def test_refused_where_it_decides_otherwise() -> None:
    """Weights beyond what halves hold."""
    with pytest.raises(cf.ClassifierError, match="decides otherwise in float16"):
        cf.Classifier(network(scale=1e6)).prepared(images())


def test_wrong_arguments() -> None:
    with pytest.raises(cf.ClassifierError, match=r"no torch\.nn\.Module"):
        cf.Classifier(lambda x: x).prepared(images())
    with pytest.raises(cf.ClassifierError, match="dtype must be"):
        cf.Classifier(network()).prepared(images(), dtype="int8")
    with pytest.raises(cf.ClassifierError, match="at least one"):
        cf.Classifier(network()).prepared(images(0))


class Untraceable(nn.Module):  # type: ignore[misc, name-defined]
    """Looks at its input: cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: Any) -> Any:
        return self.inner(x) if float(x.abs().sum()) >= 0 else x


def test_what_cannot_be_traced_keeps_its_norms() -> None:
    quick = cf.Classifier(Untraceable()).prepared(images(), dtype="bfloat16")
    assert quick.metadata["prepared"]["batch_norms_folded"] is False
