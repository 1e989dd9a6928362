# SPDX-License-Identifier: Apache-2.0
"""A whole explanation, flip search included: native engine beside the same with PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import cae_fast as cf
from cae_fast.testing import random_images, toy_classifier


@pytest.mark.benchmark(group="explain")
def bench_explain(model: cf.CAE, compare: Callable[..., None]) -> None:
    images = random_images(model.config, 2)
    classifier = toy_classifier(model.config)
    target = classifier(images[1:]).argmax(axis=1)
    native, eager = (cf.Explainer(model, classifier, backend=name) for name in ("cpu", "torch"))

    def explain(explainer: cf.Explainer) -> cf.Explanation:
        return explainer.explain(images[:1], target=target, exemplars=images[1:])

    ours, theirs = explain(native), explain(eager)
    assert list(ours.status) == list(theirs.status)
    np.testing.assert_allclose(ours.t_flip, theirs.t_flip, atol=1 / 256)
    compare(lambda: explain(native), lambda: explain(eager))
