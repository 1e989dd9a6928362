# SPDX-License-Identifier: Apache-2.0
"""`cae-fast explain --ray`: engine actors of Ray Data over the shards of a run."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cae_fast.errors import CAEError
from cae_fast.ray_jobs import run_files
from cae_fast.ray_jobs.run_files import RunFiles
from cae_fast.ray_jobs.session import ray_session
from cae_fast.ray_jobs.shards import Recipe, explain_shard
from cae_fast.report.from_files import image_files, image_names

if TYPE_CHECKING:
    from cae_fast.explainer import Explainer

#: A shard whose worker ended so often is not tried again: it would end every worker.
RETRIES = 3
# Shards are handed out in tasks; a task that is run again leaves out what is done.
_MOST_TASKS = 10_000


@dataclass(frozen=True)
class Workers:
    """Who explains.

    Attributes:
        count: Engine actors.
        cpus: CPUs of each, also its threads.
        gpus: GPUs of each; a fraction shares one.
        address: Of a Ray cluster; None starts Ray on this machine.
        store_mb: Object store of a Ray started here, MB.
    """

    count: int = 2
    cpus: int = 1
    gpus: float = 0.0
    address: str | None = None
    store_mb: int = 200

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            CAEError: One is out of range.
        """
        for name, value, least in (
            ("workers", self.count, 1),
            ("cpus of a worker", self.cpus, 1),
            ("gpus of a worker", self.gpus, 0),
        ):
            if not value >= least:
                raise CAEError(f"{name} must be at least {least}, got {value}")


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
        images: Images in all.
        shards: Shards in all.
        shards_before: That were done when this command began.
        totals: Images of each status.
    """

    images: int
    shards: int
    shards_before: int
    totals: dict[str, int]


class ShardWorker:
    """Explains shards in an actor; model, classifier and bank are loaded at the first."""

    def __init__(self, recipe: Recipe, folder: str) -> None:
        """Remembers what to load, so that a fault in it is an answer and no dead actor."""
        self.recipe = recipe
        self.folder = folder
        self._explainer: Explainer | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Explains the shards of a batch.

        Args:
            batch: {"shard": int64 [B]}.

        Returns:
            {"shard": B, "images": B, explained now, "error": B, a pickled exception or nothing}.
        """
        shards = [int(shard) for shard in batch["shard"]]
        images, errors = [], []
        for shard in shards:
            done, error = self._one(shard)
            images.append(done)
            errors.append(error)
        return {"shard": shards, "images": images, "error": errors}

    def _one(self, shard: int) -> tuple[int, bytes]:
        try:
            if self._explainer is None:
                self._explainer = self.recipe.explainer()
            return explain_shard(self._explainer, RunFiles(self.folder), shard, self.recipe), b""
        except Exception as error:
            return 0, _packed(error)


def explain_in_shards(
    recipe: Recipe,
    sources: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    shard_size: int = 1000,
    workers: Workers = Workers(),
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> RunResult:
    """Explains image files in shards on Ray; started again, it goes on where it ended.

    Which images belong to a run is settled when it begins: files that come later do not.

    Args:
        recipe: Files and options.
        sources: Image files, and folders of them; every worker must see them under these names.
        out: Folder of the run, which every worker must see.
        shard_size: Images of a shard.
        workers: Who explains.
        overwrite: Start a run over that lies in `out`.
        on_progress: Called with (shards done, shards in all).

    Returns:
        What the run came to.

    Raises:
        CAEError: A file or option is wrong, or `out` holds another run or something else.
        BackendUnavailable: Ray cannot be used.
        ChildProcessError: A shard's workers ended, each time it was tried.
        MissingExtra: Ray or pyarrow is not installed.
    """
    if shard_size < 1:
        raise CAEError(f"shard size must be at least 1, got {shard_size}")
    run_files.pyarrow_packages()
    folder = Path(out).absolute()
    begun = run_files.was_begun(folder)
    asked = _asked(recipe, sources, shard_size)
    files = image_files(sources) if overwrite or not begun else []
    with run_files.only_one(folder):
        if overwrite:
            run_files.clear(folder)
        begun = run_files.was_begun(folder)
        if begun:
            run = run_files.continued(folder, asked)
        else:
            run = run_files.begin(folder, asked, files, image_names(files))
        pending = run.pending()
        before = run.shards - len(pending)
        if pending:
            _explain_pending(recipe, run, pending, workers, on_progress)
        return RunResult(run.images, run.shards, before, run.finish())


def _asked(
    recipe: Recipe, sources: Sequence[str | os.PathLike[str]], shard_size: int
) -> dict[str, Any]:
    """What a run is told apart by; loads everything once, so that faults show before Ray starts."""
    explainer = recipe.explainer("cpu")
    classifier = explainer.classifier
    assert explainer.bank is not None
    # One grey image, all options: a wrong one is refused here.
    grey = np.zeros((1, *explainer.model.config.image_shape), dtype=np.float32)
    explainer.explain(grey, **recipe.options)
    return {
        "sources": [os.fsencode(Path(s).absolute()).decode("utf-8", "replace") for s in sources],
        "model": explainer.model.sha256,
        "classifier": classifier.sha256 or recipe.classifier,
        "bank": explainer.bank.sha256,
        "options": recipe.options,
        "pictures": recipe.pictures,
        "shard_size": shard_size,
    }


def _explain_pending(
    recipe: Recipe,
    run: RunFiles,
    pending: list[int],
    workers: Workers,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    cpus = workers.count * workers.cpus
    with ray_session(workers.address, cpus=cpus, store_mb=workers.store_mb) as ray:
        import ray.data as data

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        tasks = min(len(pending), _MOST_TASKS)
        answers = data.from_items(
            [{"shard": shard} for shard in pending], override_num_blocks=tasks
        ).map_batches(
            ShardWorker,
            batch_size=1,
            compute=data.ActorPoolStrategy(
                size=min(workers.count, len(pending)), max_tasks_in_flight_per_actor=1
            ),
            fn_constructor_args=(recipe, str(run.folder)),
            num_cpus=workers.cpus,
            num_gpus=workers.gpus,
            ray_remote_args_fn=_retries,
        )
        done = run.shards - len(pending)
        try:
            for answer in answers.iter_rows():
                if answer["error"]:
                    raise pickle.loads(answer["error"])  # of our own workers
                done += 1
                if on_progress is not None:
                    on_progress(done, run.shards)
        except ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())[:300]
            raise ChildProcessError(
                f"workers ended ({reason}); {done} of {run.shards} shards are done, and the same "
                "command goes on from there"
            ) from None


def _retries() -> dict[str, int]:
    """What Ray Data is told of actors; by itself it would try a task for ever."""
    return {"max_restarts": -1, "max_task_retries": RETRIES}


def _packed(error: Exception) -> bytes:
    """An exception that can travel; one that cannot becomes its text."""
    try:
        packed = pickle.dumps(error)
        pickle.loads(packed)
        return packed
    except Exception:
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
