# SPDX-License-Identifier: Apache-2.0
"""A model on a backend: images to codes, codes to images, images along paths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .arrays import checked_codes, finite_images, like, to_numpy
from .backends import Backend
from .backends.base import CodeArray
from .bank import CodeBank
from .exemplars import Exemplars
from .manifold.paths import GuidedPaths, decode_along
from .memory import allocate_rows, in_groups
from .model import CAE


@dataclass(frozen=True)
class Codes:
    """Both codes of N images.

    Attributes:
        individual: What stays the image's own, [N, 4w, S / 4, S / 4].
        class_code: What the classes differ in, [N, D].
    """

    individual: Any
    class_code: Any


class Codec:
    """Encodes and decodes.

    Attributes:
        model: The model.
        backend: Its networks on a device.
        bank: Where exemplars are found that are given as rows, or None.
    """

    model: CAE
    backend: Backend
    bank: CodeBank | None

    def encode(self, images: Any) -> Codes:
        """Both codes of images [N, C, S, S], N may be 0; arrays of the kind that came in.

        Raises:
            ValueError: Wrong dtype, rank or shape, or pixels that are NaN, Inf or out of range.
            OutOfMemory: The codes do not fit, or one image alone does not.
        """
        config = self.model.config
        array = finite_images(images, config.image_shape)
        count = len(array)
        individual = allocate_rows((count, *config.individual_shape), "codes")
        class_code = allocate_rows((count, config.code_dim), "codes")

        def encode(rows: slice, _: int) -> None:
            group = self.backend.encode(np.ascontiguousarray(array[rows]))
            individual[rows], class_code[rows] = map(to_numpy, group)

        in_groups(encode, count, self.backend.max_batch, what="images to encode")
        return Codes(like(individual, images), like(class_code, images))

    def decode(self, individual: Any, class_code: Any) -> Any:
        """Images from codes.

        Args:
            individual: [N, 4w, S / 4, S / 4], or one for all class codes; N may be 0.
            class_code: [N, D], or one for all individual codes.

        Returns:
            Images [N, C, S, S], of the kind of `individual`.

        Raises:
            ValueError: Wrong rank or shape, or values that are not finite.
            OutOfMemory: The images do not fit, or one code alone does not.
        """
        shape = self.model.config.individual_shape
        source = checked_codes(individual, shape, "individual")
        codes = checked_codes(class_code, (self.model.config.code_dim,), "class_code")
        count = len(codes) if len(source) == 1 else len(source)
        if len(codes) not in (1, count):
            rows = f"individual has {len(source)} rows, class_code {len(codes)}"
            raise ValueError(f"{rows}: expected the same number")
        codes = np.broadcast_to(codes, (count, codes.shape[1]))
        images = allocate_rows((count, *self.model.config.image_shape), "images")

        def decode(rows: slice, _: int) -> None:
            group = np.ascontiguousarray(codes[rows])
            if len(source) == 1:
                index, wanted = np.zeros(len(group), dtype=np.int32), source
            else:
                index, wanted = np.arange(len(group), dtype=np.int32), source[rows]
            images[rows] = to_numpy(self.backend.decode(wanted, group, index))

        in_groups(decode, count, self.backend.max_batch, what="codes to decode")
        return like(images, individual)

    def path(
        self,
        images: Any,
        exemplars: Any,
        t: npt.ArrayLike,
        *,
        path: Literal["line", "graph"] = "line",
        reach: float = 1.0,
    ) -> Any:
        """Images decoded along guided paths.

        Args:
            images: [N, C, S, S]; N may be 0.
            exemplars: Images, class codes or bank rows, as in :meth:`explain`.
            t: Positions [T] in [0, 1], by arc length.
            path: As in :meth:`explain`.
            reach: In [1, 4]; `Explanation.reach` gives the lines of an explanation again.

        Returns:
            [N, T, C, S, S], of the kind of `images`.

        Raises:
            ValueError: A wrong argument; the message names it.
            OutOfMemory: The frames do not fit, or one alone does not.
        """
        if exemplars is None or isinstance(exemplars, str):
            raise ValueError(f"exemplars must be images, class codes or bank rows, got {exemplars}")
        paths, count = GuidedPaths(path, self.bank, reach), len(images)
        config = self.model.config
        chosen = Exemplars(
            exemplars, count, k=1, config=config, backend=self.backend, bank=self.bank
        )
        return self._along(
            images,
            t,
            lambda first, start: paths.vertices(start, chosen.given(first, len(start))),
        )

    def path_between(self, images: Any, vertices: Any, t: npt.ArrayLike) -> Any:
        """Images decoded along paths of one's own, such as `Explanation.second_path`.

        Args:
            images: [N, C, S, S], whose individual codes are decoded; N may be 0.
            vertices: Polylines of class codes [N, V, D].
            t: Positions [T] in [0, 1], by arc length.

        Returns:
            [N, T, C, S, S], of the kind of `images`.

        Raises:
            ValueError: A wrong argument; the message names it.
            OutOfMemory: The frames do not fit, or one alone does not.
        """
        lines = np.asarray(to_numpy(vertices))
        fits = lines.ndim == 3 and lines.shape[1] > 0 and lines.dtype.kind == "f"
        wanted = (len(images), self.model.config.code_dim)
        if not fits or (lines.shape[0], lines.shape[2]) != wanted or not np.isfinite(lines).all():
            raise ValueError(
                f"vertices must be finite class codes [{wanted[0]}, V, {wanted[1]}], got "
                f"{lines.dtype} {list(lines.shape)}"
            )
        return self._along(
            images,
            t,
            lambda first, start: lines[first : first + len(start)].astype(start.dtype),
        )

    def _along(
        self, images: Any, t: npt.ArrayLike, lay: Callable[[int, CodeArray], CodeArray]
    ) -> Any:
        """Decodes paths that `lay` lays of images `first`, ... with class codes [n, D]."""
        config = self.model.config
        array = finite_images(images, config.image_shape)
        positions = np.atleast_1d(to_numpy(t)).astype(np.float32)
        inside = ((positions >= 0) & (positions <= 1)).all()
        if positions.ndim != 1 or positions.size == 0 or not inside:
            raise ValueError(f"t must be positions [T] in [0, 1], got {t!r}")
        frames = allocate_rows((len(array), len(positions), *config.image_shape), "frames")

        def decode(rows: slice, in_flight: int) -> None:
            individual, start = self.backend.encode(np.ascontiguousarray(array[rows]))
            vertices = lay(rows.start, start)
            decode_along(frames[rows], self.backend, individual, vertices, positions, in_flight)

        in_groups(decode, len(array), self.backend.max_batch, what="images to decode along paths")
        return like(frames, images)
