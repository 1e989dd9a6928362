# SPDX-License-Identifier: Apache-2.0
"""Explaining one shard of a run: image files in, a Parquet file and its done-marker out."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cae_fast.files import atomic_write
from cae_fast.images import iter_batches
from cae_fast.ray_jobs.run_files import RunFiles, pyarrow_packages
from cae_fast.report.table import table_rows, table_schema

if TYPE_CHECKING:
    from cae_fast.explainer import Explainer
    from cae_fast.explanation import Explanation

#: Columns beside the table's, where pictures are asked for: PNG files of the model's size.
PICTURES = ("saliency_png", "counterfactual_png")
_SHOWN = ("flipped", "already_target", "reconstruction_flips")


@dataclass(frozen=True)
class Recipe:
    """What a worker needs to explain as the others do; plain values that travel.

    Attributes:
        model: model.safetensors.
        classifier: As in `cf.Classifier.load`.
        bank: bank.parquet or bank.csv.
        backend: As in `cf.Explainer`.
        device: As in `cf.Explainer`.
        max_batch: As in `cf.Explainer`.
        isolate: The classifier in a process of its own.
        options: Of `cf.Explainer.explain`.
        pictures: Keep maps and counterfactuals.
    """

    model: str
    classifier: str
    bank: str
    backend: str
    device: str | None
    max_batch: int | None
    isolate: bool
    options: dict[str, Any]
    pictures: bool

    def explainer(self, backend: str | None = None) -> Explainer:
        """Loads everything.

        Args:
            backend: Instead of the recipe's, on its default device.

        Raises:
            CAEError: A file is damaged, or the files do not belong together.
            BackendUnavailable: The backend cannot run here.
        """
        from cae_fast.bank import CodeBank
        from cae_fast.classifier import Classifier
        from cae_fast.explainer import Explainer
        from cae_fast.model import CAE

        load = {"isolate": True} if self.isolate else {}
        return Explainer(
            CAE.load(self.model),
            Classifier.load(self.classifier, **load),
            bank=CodeBank.load(self.bank),
            backend=backend or self.backend,
            device=None if backend else self.device,
            max_batch=self.max_batch,
        )


def explain_shard(explainer: Explainer, run: RunFiles, shard: int, recipe: Recipe) -> int:
    """Explains the images of a shard, unless that is done.

    Memory is that of `max_batch` images, whatever the shard's size.

    Args:
        explainer: With the bank.
        run: The run's folder.
        shard: Its number.
        recipe: Options.

    Returns:
        Images explained now: 0 where the shard was done.

    Raises:
        CAEError: An option or a file is wrong; an image that cannot be read is a `rejected` row.
        OSError: The file system refused.
    """
    if run.marker(shard) is not None:
        return 0
    arrow, parquet = pyarrow_packages()
    start = time.monotonic()
    totals: Counter[str] = Counter()
    schema = table_schema()
    if recipe.pictures:
        for name in PICTURES:
            schema = schema.append(arrow.field(name, arrow.binary()))
    with (
        atomic_write(run.shard_path(shard)) as temporary,
        parquet.ParquetWriter(temporary, schema) as writer,
    ):
        for part in _explained(explainer, run, shard, recipe):
            rows = table_rows(part)
            if recipe.pictures:
                rows = [row | _pictures(part, i) for i, row in enumerate(rows)]
            writer.write_table(arrow.Table.from_pylist(rows, schema))
            totals.update(str(status) for status in part.status)
    images = sum(totals.values())
    run.mark_done(
        shard,
        {
            "shard": shard,
            "images": images,
            "totals": dict(totals),
            "seconds": round(time.monotonic() - start, 3),
            "host": socket.gethostname(),
            "pid": os.getpid(),
        },
    )
    return images


def _explained(
    explainer: Explainer, run: RunFiles, shard: int, recipe: Recipe
) -> Iterator[Explanation]:
    """Explanations of a shard's images, a batch of the engine's at a time."""
    config = explainer.model.config
    files, names = run.files_of(shard)
    first = 0
    for images, reasons in iter_batches(
        files,
        explainer.backend.max_batch,
        size=config.image_size,
        channels=config.in_channels,
        on_error="collect",
    ):
        yield explainer.explain(
            images,
            names=names[first : first + len(images)],
            rejected=reasons,
            **recipe.options,
        ).numpy()
        first += len(images)


def _pictures(part: Explanation, i: int) -> dict[str, bytes | None]:
    """Map and counterfactual of one image; None where nothing is reported."""
    from cae_fast.pictures import image_png

    if str(part.status[i]) not in _SHOWN:
        return dict.fromkeys(PICTURES)
    return {
        "saliency_png": image_png(part.saliency[i][None] * 2 - 1),
        "counterfactual_png": image_png(part.counterfactual[i]),
    }
