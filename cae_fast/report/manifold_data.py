# SPDX-License-Identifier: Apache-2.0
"""What the page and the pictures of a manifold show."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cae_fast.bank import CodeBank
from cae_fast.manifold.directions import Strip
from cae_fast.manifold.measures import Principal
from cae_fast.manifold.views import View

if TYPE_CHECKING:
    from cae_fast.explanation import Explanation

IntArray = npt.NDArray[np.int64]

#: Told apart with the common kinds of colour blindness (Okabe and Ito, 2008), the last ones added;
#: from the ninth class on the shape of a point changes as well.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d46", "#7f7f7f")
SHAPES = ("circle", "square", "triangle", "cross")


def color_of(index: int) -> str:
    """Colour of a class."""
    return COLORS[index % len(COLORS)]


def shape_of(index: int) -> str:
    """Shape of a class's points."""
    return SHAPES[index // len(COLORS) % len(SHAPES)]


@dataclass(frozen=True)
class Placed:
    """New images among the codes of a bank.

    Attributes:
        names: M names.
        codes: [M, D].
        predicted: Classes by the classifier [M], -1 without one.
        nearest: Bank rows, the nearest first, [M, 5 or fewer].
        apart: Distance to the nearest code over the median of the bank's own: well above 1 is
            unlike anything in the bank.
        thumbnails: M PNG files.
    """

    names: list[str]
    codes: npt.NDArray[np.float32]
    predicted: IntArray
    nearest: IntArray
    apart: npt.NDArray[np.float64]
    thumbnails: list[bytes]


@dataclass(frozen=True)
class Manifold:
    """Everything that was found out about a bank.

    Attributes:
        bank: The bank.
        principal: Of all its codes.
        views: In the plane.
        missing: Views that could not be had, with reasons.
        edges: Of the neighbour graph [E, 2]; None without SciPy.
        parts: Parts that neighbours alone leave; None without SciPy.
        knn: Accuracy of k neighbours of other groups, None where there are too few.
        centre: Accuracy of the nearest class centre, likewise.
        placed: New images.
        strips: Decoded images along the directions.
        explanations: Of bank rows and new images, or None.
        explained: Points that have one: bank rows, and B + i for new image i.
        notes: What is missing and why.
    """

    bank: CodeBank
    principal: Principal
    views: list[View]
    missing: dict[str, str]
    edges: IntArray | None
    parts: int | None
    knn: dict[int, float | None]
    centre: float | None
    placed: Placed
    strips: list[Strip] = field(default_factory=list)
    explanations: Explanation | None = None
    explained: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """The numbers, for JSON."""
        principal = self.principal
        return {
            "images": len(self.bank),
            "classes": list(self.bank.class_names),
            "code_dim": self.bank.code_dim,
            "participation_ratio": principal.participation,
            "components_90": principal.components(0.90),
            "components_99": principal.components(0.99),
            "explained_variance": principal.shares.tolist(),
            "knn_accuracy": {str(k): value for k, value in self.knn.items()},
            "nearest_centre_accuracy": self.centre,
            "groups": len(set(self.bank.groups)),
            "graph_parts": self.parts,
            "graph_edges": None if self.edges is None else len(self.edges),
            "views": [view.name for view in self.views],
            "missing": self.missing,
            "placed": [
                {
                    "name": name,
                    "predicted": None if c < 0 else self.bank.class_names[c],
                    "nearest": [self.bank.names[row] for row in rows],
                    "nearest_classes": [
                        self.bank.class_names[self.bank.labels[row]] for row in rows
                    ],
                    "apart": round(float(apart), 4),
                }
                for name, c, rows, apart in zip(
                    self.placed.names,
                    self.placed.predicted.tolist(),
                    self.placed.nearest.tolist(),
                    self.placed.apart,
                    strict=True,
                )
            ],
            "explained": len(self.explained),
            "notes": self.notes,
        }
