# SPDX-License-Identifier: Apache-2.0
"""Other methods' saliency maps of the same images and classifier, through Captum.

And two that know nothing: a flat map and a Gaussian in the middle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import Float32
from ..errors import CAEError, missing_extra
from .differentiable import Differentiable

Classes = npt.NDArray[np.int64]
#: Images [n, C, S, S] and their explained classes [n] -> saliency [n, S, S], not negative.
Attribute = Callable[[Float32, Classes], npt.NDArray[np.floating[Any]]]

GRADIENT_METHODS = ("gradcam", "guided_backprop", "integrated_gradients", "smoothgrad", "gradshap")
BLACK_BOX_METHODS = ("occlusion", "lime", "kernelshap")
BLIND_METHODS = ("uniform", "gaussian")
#: The CAE's own methods, and the kind of map (`maps.MapKind`) that each is.
OWN_METHODS = {
    "cae": "difference",
    "cae-mean-k": "mean-k",
    "cae-weighted": "weighted",
    "cae-smooth": "smooth",
    "cae-edit": "edit",
    "cae-evidence": "evidence",
}
TITLES = {
    "cae": "CAE, the change",
    "cae-mean-k": "CAE, mean of k",
    "cae-weighted": "CAE, path-weighted",
    "cae-smooth": "CAE, smoothed",
    "cae-edit": "CAE, smallest edit",
    "cae-evidence": "CAE, evidence",
    "gradcam": "Grad-CAM",
    "guided_backprop": "guided backpropagation",
    "integrated_gradients": "integrated gradients",
    "smoothgrad": "SmoothGrad",
    "gradshap": "GradientSHAP",
    "occlusion": "occlusion",
    "lime": "LIME",
    "kernelshap": "KernelSHAP",
    "uniform": "uniform map",
    "gaussian": "centred Gaussian",
}
#: All methods, as `--methods all` takes them.
METHODS = tuple(TITLES)

_IG_STEPS = 50
_NOISE_SAMPLES = 25
_NOISE = 0.15 * 2  # of the range of pixels, as Smilkov et al. (2017) recommend 10-20 %
_SHAP_SAMPLES = 25
_SUPERPIXELS_A_SIDE = 8
_PERTURBATIONS_AT_ONCE = 32


def make_baseline(
    name: str,
    classifier: Callable[[Float32], Float32],
    gradients: Differentiable | str,
    background: Float32,
    *,
    samples: int = 500,
    seed: int = 0,
) -> Attribute | str:
    """A method by its name, or why it cannot run on this classifier.

    Maps explain the logit of the given class. Gradients and Shapley values count by magnitude,
    summed over channels; what perturbation methods attribute counts where it speaks for the class.
    Occlusion slides a window of side / 8 in steps of half of it; LIME and KernelSHAP share a grid
    of 8 x 8 squares.

    Args:
        name: One of METHODS but OWN_METHODS.
        classifier: Asked by black-box methods.
        gradients: From :func:`cae_fast.evaluation.differentiable.differentiable`.
        background: Images [M, C, S, S] that GradientSHAP starts from.
        samples: Evaluations of LIME and KernelSHAP an image.
        seed: Of methods that draw.

    Raises:
        CAEError: Unknown name.
        MissingExtra: Captum is not installed.
    """
    if name in BLIND_METHODS:
        return _uniform if name == "uniform" else _gaussian
    if name not in METHODS or name in OWN_METHODS:
        raise CAEError(f"unknown method {name!r}; known are {', '.join(METHODS)}")
    try:
        import captum.attr as attr
        import torch
    except ImportError as error:
        raise missing_extra("captum", error.name or "captum") from error
    if name in GRADIENT_METHODS:
        if isinstance(gradients, str):
            return gradients
        if name == "gradcam" and gradients.last_maps is None:
            return "the classifier has no feature maps that Grad-CAM could weigh"
        if name == "guided_backprop" and not gradients.has_relu:
            return "the classifier has no ReLU that guided backpropagation could guide"
        run = _gradient_method(name, gradients, background, attr, torch)
    else:
        run = _black_box_method(name, classifier, samples, attr, torch)

    def attribute(images: Float32, classes: Classes) -> npt.NDArray[np.floating[Any]]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            state = np.random.get_state()  # noqa: NPY002 - Captum draws from the global generator
            np.random.seed(seed)  # noqa: NPY002
            try:
                found = run(torch.from_numpy(np.ascontiguousarray(images)), classes)
            finally:
                np.random.set_state(state)  # noqa: NPY002
        maps: npt.NDArray[np.floating[Any]] = found.detach().numpy()
        return maps

    return attribute


def _uniform(images: Float32, classes: Classes) -> npt.NDArray[np.floating[Any]]:
    return np.ones((len(images), *images.shape[2:]), dtype=np.float32)


def _gaussian(images: Float32, classes: Classes) -> npt.NDArray[np.floating[Any]]:
    """A Gaussian in the middle, a quarter of the side wide."""
    side = images.shape[2]
    line = np.exp(-0.5 * ((np.arange(side) - (side - 1) / 2) / (side / 4)) ** 2)
    return np.broadcast_to(np.outer(line, line), (len(images), side, side)).astype(np.float32)


def _gradient_method(
    name: str, gradients: Differentiable, background: Float32, attr: Any, torch: Any
) -> Callable[[Any, Classes], Any]:
    module = gradients.module

    def magnitude(attributions: Any) -> Any:
        return attributions.abs().sum(dim=1)

    def run(images: Any, classes: Classes) -> Any:
        target = torch.from_numpy(classes)
        if name == "gradcam":
            method = attr.LayerGradCam(module, gradients.last_maps)
            images = images.clone().requires_grad_()  # the weights need no gradients
            coarse = method.attribute(images, target=target, relu_attributions=True)
            return _enlarged(coarse.sum(dim=1), images.shape[2], torch)
        if name == "guided_backprop":
            return magnitude(attr.GuidedBackprop(module).attribute(images, target=target))
        if name == "integrated_gradients":
            method = attr.IntegratedGradients(module)
            blank = torch.full_like(images, -1.0)
            found = method.attribute(
                images, blank, target=target, n_steps=_IG_STEPS, internal_batch_size=64
            )
            return magnitude(found)
        if name == "smoothgrad":
            tunnel = attr.NoiseTunnel(attr.Saliency(module))
            found = tunnel.attribute(
                images,
                nt_type="smoothgrad",
                nt_samples=_NOISE_SAMPLES,
                nt_samples_batch_size=1,
                stdevs=_NOISE,
                target=target,
            )
            return magnitude(found)
        found = attr.GradientShap(module).attribute(
            images, torch.from_numpy(background), n_samples=_SHAP_SAMPLES, target=target
        )
        return magnitude(found)

    return run


def _enlarged(maps: Any, side: int, torch: Any) -> Any:
    """Coarse maps [N, h, w] at the size of the images, bilinear."""
    resized = torch.nn.functional.interpolate(
        maps[:, None].float(), size=(side, side), mode="bilinear", align_corners=False
    )
    return resized[:, 0].clamp(min=0)


def _black_box_method(
    name: str, classifier: Callable[[Float32], Float32], samples: int, attr: Any, torch: Any
) -> Callable[[Any, Classes], Any]:
    def forward(images: Any) -> Any:
        return torch.from_numpy(classifier(images.detach().numpy()))

    def run(images: Any, classes: Classes) -> Any:
        side, channels = images.shape[2], images.shape[1]
        target = torch.from_numpy(classes)
        if name == "occlusion":
            window = max(1, side // 8)
            found = attr.Occlusion(forward).attribute(
                images,
                sliding_window_shapes=(channels, window, window),
                strides=(channels, max(1, window // 2), max(1, window // 2)),
                baselines=images.mean(dim=(2, 3), keepdim=True).expand_as(images),
                target=target,
                perturbations_per_eval=_PERTURBATIONS_AT_ONCE,
            )
            return found.sum(dim=1).clamp(min=0)
        cuts = torch.arange(side) * _SUPERPIXELS_A_SIDE // side
        grid = (cuts[:, None] * _SUPERPIXELS_A_SIDE + cuts[None, :])[None, None]
        method = attr.Lime(forward) if name == "lime" else attr.KernelShap(forward)
        found = [
            method.attribute(
                image[None],
                baselines=image.mean(dim=(1, 2), keepdim=True).expand_as(image)[None],
                target=int(label),
                feature_mask=grid,
                n_samples=samples,
                perturbations_per_eval=_PERTURBATIONS_AT_ONCE,
            )
            for image, label in zip(images, classes, strict=True)
        ]
        return torch.cat(found)[:, 0].clamp(min=0)

    return run
