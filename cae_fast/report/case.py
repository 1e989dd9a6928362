# SPDX-License-Identifier: Apache-2.0
"""One explained image as plain values, and what its status means in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cae_fast.classifier_outputs import softmax
from cae_fast.maps import MAP_NAMES, kind_shown

# Short labels for badges, totals and tables.
STATUS_LABELS: Mapping[str, str] = {
    "flipped": "Flipped",
    "not_flipped": "Not a counterfactual",
    "already_target": "Already the target class",
    "reconstruction_flips": "Reconstruction flips",
    "non_finite": "Not finite",
    "rejected": "Rejected",
}


@dataclass(frozen=True)
class Case:
    """What the explanation says of one image; classes as names, undefined numbers as None."""

    index: int
    name: str
    status: str
    source: str
    target: str
    reached: str
    source_index: int
    target_index: int
    reached_index: int
    t_flip: float | None
    bracket: tuple[float, float] | None
    path_t: npt.NDArray[np.float64]  # [T]
    path_probs: npt.NDArray[np.float64]  # [T, K]
    class_names: tuple[str, ...]
    evaluations: int
    exemplars: tuple[str, ...]
    exemplar_t: float  # where the path passes them, or ends
    reason: str
    map_name: str
    reconstructed: str  # class of the image decoded from its own codes
    second_path: bool
    start_moved: bool  # to where the image is read as of its class, which it was not

    @property
    def has_path(self) -> bool:
        """Whether points of a path were classified and may be drawn."""
        return self.has_pictures and self.status != "already_target" and len(self.path_t) > 0

    @property
    def has_pictures(self) -> bool:
        """Whether decoded pictures exist."""
        return self.status not in ("non_finite", "rejected")

    @property
    def shown_t(self) -> float | None:
        """Position of the reported point, also where nothing flipped."""
        if self.t_flip is not None:
            return self.t_flip
        if self.status != "not_flipped" or not len(self.path_t):
            return None
        if self.target_index >= 0:
            return float(self.path_t[int(np.argmax(self.path_probs[:, self.target_index]))])
        return float(self.path_t[int(np.argmin(self.path_probs[:, self.source_index]))])

    def probability(self, class_index: int, t: float) -> float | None:
        """Probability of a class at the classified point nearest to t; None without points."""
        if class_index < 0 or not len(self.path_t):
            return None
        row = int(np.argmin(np.abs(self.path_t - t)))
        value = float(self.path_probs[row, class_index])
        return value if math.isfinite(value) else None


def cases(explanation: Any) -> list[Case]:
    """Each image of a `cf.Explanation` as a `Case`, in order."""
    class_names = tuple(str(name) for name in explanation.class_names)
    if not class_names:
        class_names = tuple(map(str, range(np.shape(explanation.logits_source)[1])))
    again, starts = explanation.searched_again, explanation.start_class
    return [
        _case(explanation, i, class_names, bool(again[i]), int(starts[i]))
        for i in range(len(explanation.status))
    ]


def _case(
    explanation: Any, i: int, class_names: tuple[str, ...], again: bool, start_class: int
) -> Case:
    def label(class_index: int) -> str:
        if 0 <= class_index < len(class_names):
            return class_names[class_index]
        return "any other class" if class_index == -1 else str(class_index)

    source, target, reached = (
        int(np.asarray(getattr(explanation, f"{which}_class"))[i])
        for which in ("source", "target", "reached")
    )
    low, high = (float(end) for end in explanation.bracket[i])
    t_flip = float(explanation.t_flip[i])
    return Case(
        index=i,
        name=_name(explanation, i),
        status=str(explanation.status[i]),
        source=label(source) if source >= 0 else "unknown",
        target=label(target),
        reached=label(reached) if reached >= 0 else "none",
        source_index=source,
        target_index=target,
        reached_index=reached,
        t_flip=t_flip if math.isfinite(t_flip) else None,
        bracket=(low, high) if math.isfinite(low) and math.isfinite(high) else None,
        path_t=np.asarray(explanation.path_t[i], dtype=np.float64),
        path_probs=softmax(explanation.path_logits[i]),
        class_names=class_names,
        evaluations=int(explanation.evaluations[i]),
        exemplars=_exemplars(explanation, i),
        exemplar_t=1 / explanation.reach,
        reconstructed=_reconstructed(explanation, i, label),
        second_path=again,
        start_moved=again and start_class == source != explanation.reconstructed_class[i],
        reason=_reason(explanation, i),
        map_name=_map_name(explanation, i),
    )


def _reconstructed(explanation: Any, i: int, label: Callable[[int], str]) -> str:
    classes = explanation.reconstructed_class
    index = -1 if classes is None else int(np.asarray(classes)[i])
    return label(index) if index >= 0 else "unknown"


def _map_name(explanation: Any, i: int) -> str:
    kind = explanation.meta.get("parameters", {}).get("saliency", "difference")
    shown = kind_shown(str(kind), str(explanation.status[i]))
    return MAP_NAMES.get(shown, shown)  # a file may be of another version


def _name(explanation: Any, i: int) -> str:
    names = getattr(explanation, "names", None)
    return str(names[i]) if names is not None and i < len(names) else f"image {i}"


def _exemplars(explanation: Any, i: int) -> tuple[str, ...]:
    names = getattr(explanation, "exemplar_names", None)
    if names is not None and i < len(names):
        row = names[i]
        row = [row] if isinstance(row, str) else list(row or ())
        return tuple(str(name) for name in row if name)
    rows = np.asarray(explanation.exemplar[i]).ravel().tolist()
    return tuple(f"bank row {int(row)}" for row in rows if row >= 0)


def _reason(explanation: Any, i: int) -> str:
    reasons = explanation.meta.get("rejected", {})
    if isinstance(reasons, Mapping):
        return str(reasons.get(i, reasons.get(str(i), "")) or "")
    return str(reasons[i] or "") if i < len(reasons) else ""


def percent(value: float | None) -> str:
    """A probability for people: "97 %", with a decimal near the ends, "unknown" for None."""
    if value is None or not math.isfinite(value):
        return "unknown"
    share = 100.0 * value
    if 0.0 < share < 1.0 or 99.0 < share < 100.0:
        clipped = min(max(share, 0.1), 99.9)
        return f"{'<' if share < 0.1 else '>' if share > 99.9 else ''}{clipped:.1f} %"
    return f"{share:.0f} %"


def thousandths(t: float) -> str:
    """A position in three decimals, halves up as the service's page has them: 0.8125 is 0.813."""
    return f"{math.floor(1000 * t + 0.5) / 1000:.3f}"


def _secondly(case: Case) -> str:
    """What a second path is one for; "" of a first one."""
    if not case.second_path:
        return ""
    if case.start_moved:
        return (
            f" Decoded from its own codes the image is read as “{case.reconstructed}”, so the path "
            f"begins at a code near by that is read as “{case.source}”."
        )
    return (
        " Towards its nearest exemplars nothing flips, so the path leads to others, from the "
        "middle of their class."
    )


def passed_before(case: Case) -> tuple[float, str] | None:
    """The third class that the image is read as just before its flip, and since which point."""
    if case.t_flip is None:
        return None
    passed: tuple[float, str] | None = None
    for row in np.argsort(-case.path_t):  # backwards from the flip
        t, probs = float(case.path_t[row]), case.path_probs[row]
        if t > case.t_flip - 1e-9:
            continue
        if not np.isfinite(probs).all() or int(probs.argmax()) == case.source_index:
            break
        passed = t, case.class_names[int(probs.argmax())] if passed is None else passed[1]
    return passed


def sentence(case: Case) -> str:
    """What happened to the image, in one or two plain sentences (not escaped)."""
    source, target = f"“{case.source}”", f"“{case.target}”"
    if case.target_index == -1:
        target = "another class"
    if case.status == "flipped" and case.t_flip is not None and case.bracket is not None:
        passed = passed_before(case)
        yet = "it does not yet." if passed is None else f"not yet, but “{passed[1]}”."
        return (
            f"The classifier reads the image as {source}. On the path towards the exemplar it "
            f"changes its mind at t = {thousandths(case.t_flip)}: from there it says "
            f"“{case.reached}”, and at {thousandths(case.bracket[0])} {yet}{_secondly(case)}"
        )
    if case.status == "not_flipped":
        best = case.probability(case.target_index, case.shown_t or 0.0)
        closest = "" if best is None else f", where it gives {target} {percent(best)}"
        return (
            f"Not a counterfactual: at no evaluated point of the path does the classifier say "
            f"{target}. What is shown is the nearest it came{closest}.{_secondly(case)}"
        )
    if case.status == "already_target":
        return f"The classifier already reads the image as {target}; there is nothing to change."
    if case.status == "reconstruction_flips":
        return (
            f"The classifier reads the image as {source}, but its mere reconstruction (t = 0) "
            f"already as “{case.reached}”. The map shows what the reconstruction changed."
        )
    if case.status == "non_finite":
        return (
            "Classifier outputs, codes or decoded pixels were not finite numbers (NaN or "
            "infinity), so nothing can be said about this image."
        )
    why = f": {case.reason}" if case.reason else ""
    return f"The input was refused{why}."
