# SPDX-License-Identifier: Apache-2.0
"""One group of images, explained on the device.

Encoding, exemplars, decoding, the search and the saliency are queued on one stream; the classifier
is called in between. A torch module on that GPU, or a function with `capture=True`, is captured
with all the rest in a CUDA graph the second time that a group of the same size comes by, and
replayed from then on: nothing waits for the host. Any other classifier is called from the host,
with the same functions.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .arrays import Float32, Kind, as_kind, kind_of, to_numpy
from .backends.cuda import CudaBackend
from .backends.cuda_graph import Part, capture, capture_rounds
from .bank import CodeBank
from .classifier_input import InputForm
from .memory import is_out_of_memory
from .path_search import STATUSES, Clock, Outcome, SearchRules

if TYPE_CHECKING:
    from ._C_emu import DeviceBank, GpuSearch

LARGEST_CODE = 128  # numbers of a class code that exemplars are looked up by on the device
_KEPT = 4  # searches of different sizes or rules whose memory and graph are kept
_ATTEMPTS = 2  # at capturing a group's graph: the second after what was passing, such as memory
_FEW_IMAGES = 3  # up to so many, a round looks at several points of each
_SIZES = 3  # that rounds of many images come in: all points, a half, a quarter
_LEAST_SIZE = 8  # points: rounds of fewer are as quick
IntArray = npt.NDArray[np.int64]
Classify: TypeAlias = Callable[[Any, InputForm | None], Any]


@dataclass(frozen=True)
class Group:
    """What a group of n images is to be searched for.

    Attributes:
        images: [n, C, S, S] float32, finite: NumPy, or a tensor on the device.
        wanted: Class of each, -1 any, -2 the runner-up; int32 [n].
        reachable: Classes [K] among which the runner-up is taken; bool.
        left_out: Images that are not searched; bool [n].
        paths: Polylines [n, V, D], their first vertex the image's own code whatever it says; None
            is straight to the nearest `k` of the bank.
        pool: Rows of the bank [B] that may be exemplars; None with `paths`.
        k: Bank rows averaged.
        reach: How far beyond them paths lead, see :class:`.manifold.paths.GuidedPaths`; 1 with
            `paths`.
        rules: Of the search.
        against_image: Differences are to the image, not to its reconstruction.
        form: How the classifier wants path points; None: as images.
    """

    images: Any
    wanted: npt.NDArray[np.int32]
    reachable: npt.NDArray[np.bool_]
    left_out: npt.NDArray[np.bool_]
    paths: Float32 | None
    pool: npt.NDArray[np.bool_] | None
    k: int
    reach: float
    rules: SearchRules
    against_image: bool
    form: InputForm | None = None


@dataclass(frozen=True)
class Found:
    """What a group came to; `missing` are bank rows that a class has too few, [n]."""

    outcome: Outcome
    logits_source: Float32
    source: IntArray
    target: IntArray
    rows: IntArray
    missing: npt.NDArray[np.int32]


class DeviceSearcher:
    """Explains groups of images on the GPU of a backend. Threads are served in turns."""

    def __init__(self, backend: CudaBackend, bank: CodeBank | None) -> None:
        """Remembers where exemplars come from; what of it is asked for is copied to the device.

        Args:
            backend: The networks.
            bank: Where exemplars come from, or None.
        """
        self._backend = backend
        self._bank = bank
        self._pools: OrderedDict[bytes, DeviceBank] = OrderedDict()
        self._plans: OrderedDict[tuple[Any, ...], _Plan] = OrderedDict()
        self._busy = False
        self.stepping = "host"

    def run(
        self,
        group: Group,
        classify: Classify,
        state: tuple[Any, ...] | None,
        clock: Clock,
        pictures: Kind = "numpy",
    ) -> Found:
        """Explains a group.

        How the rounds were driven is then in `stepping`: "graph", "host", or "host: why".

        Args:
            group: The images and what they are searched for.
            classify: (device array [m, C, S, S], None) or (points in the group's form, that form)
                -> logits [m, K], an array of any kind.
            state: What a graph of `classify` depends on, where it may be captured; else None.
            clock: Gets the stages "search" and "read".
            pictures: Kind of the images that come back; "torch" leaves them on the device.

        Raises:
            RuntimeError: `classify` itself asks for an explanation here.
        """
        with self._backend.working() as queue:
            if self._busy:
                raise RuntimeError("a classifier cannot call explain() of the explainer it is in")
            self._busy = True
            try:
                plan = self._plan(group)
                with clock("search"):
                    plan.run(group, classify, state, queue)
                self.stepping = plan.stepping
                with clock("read"):
                    return plan.read(queue, pictures)
            except Exception as error:
                if is_out_of_memory(error):
                    self._release()  # a smaller group is tried next: let it have their memory
                raise
            finally:
                self._busy = False

    def _release(self) -> None:
        self._plans.clear()
        cuda: Any = getattr(sys.modules.get("torch"), "cuda", None)
        if self._backend.index is not None and cuda is not None and cuda.is_initialized():
            cuda.empty_cache()

    def _plan(self, group: Group) -> _Plan:
        rules, count = group.rules, len(group.images)
        width = None if group.paths is None else group.paths.shape[1]
        ends = group.k, group.reach, width, _name(group.pool)
        key = (count, rules, *ends, group.against_image, group.form)
        plan = self._plans.pop(key, None)
        if plan is None:
            while len(self._plans) >= _KEPT:
                self._plans.popitem(last=False)
            plan = self._make(group, count <= _FEW_IMAGES)
        self._plans[key] = plan
        return plan

    def _bank_of(self, group: Group) -> DeviceBank | None:
        """The rows that a group's exemplars are looked for in, on the device."""
        if group.paths is not None or group.pool is None or self._bank is None:
            return None
        name = _name(group.pool)
        made = self._pools.pop(name, None)
        if made is None:
            classes = np.where(group.pool, self._bank.labels, -1).astype(np.int32)
            codes = np.ascontiguousarray(self._bank.codes, dtype=np.float32)
            made = self._backend.module.DeviceBank(self._backend.engine, codes, classes)
            while len(self._pools) >= _KEPT:
                self._pools.popitem(last=False)
        self._pools[name] = made
        return made

    def _make(self, group: Group, few: bool) -> _Plan:
        rules = group.rules
        packed = self._backend.compact and len(group.images) > _LEAST_SIZE
        search = self._backend.module.GpuSearch(
            self._backend.engine,
            self._bank_of(group),
            images=len(group.images),
            num_classes=rules.num_classes,
            grid=rules.grid,
            coarse=rules.coarse,
            depth=2 if few and rules.search == "bisection" else 1,
            min_probability=rules.min_probability,
            # Of many images, point after point: no more is decoded and classified than needed.
            coarse_batch=None if few else 1,
            method=rules.search,
            exemplars=group.k,
            reach=group.reach,
            vertices=2 if group.paths is None else group.paths.shape[1],
            against_image=group.against_image,
            classifier_input=None if group.form is None else group.form.to_dict(),
            packed=packed,
            elsewhere=self._backend.elsewhere,
        )
        return _Plan(search, self._backend, given=group.paths is not None, packed=packed)


class _Plan:
    """Memory, and perhaps a graph, for groups of one size and one set of rules."""

    def __init__(
        self, search: GpuSearch, backend: CudaBackend, *, given: bool, packed: bool
    ) -> None:
        self._search = search
        self._packed = packed
        self._backend = backend
        self._rounds = backend.rounds(search)
        self._given = given
        self._uses = 0
        self._attempts = 0
        self._logits: Any = None
        self._captured_logits: Any = None
        self._why = ""  # it was not captured
        self._state: tuple[Any, ...] | None = None  # that `_replay` was captured in
        self._replay: Part | None = None
        self.stepping = "host"

    def run(
        self,
        group: Group,
        classify: Classify,
        state: tuple[Any, ...] | None,
        queue: int,
    ) -> None:
        if self._replay is not None and state is not None and state != self._state:
            self._replay, self._uses = None, 0
        self._set_inputs(group, group.left_out, queue)
        self._uses += 1
        self.stepping = "graph"
        if self._replay is not None and state is not None:
            self._logits = self._captured_logits
            self._replay(queue)
            return
        if state is not None and self._uses > 1 and self._attempts < _ATTEMPTS:
            why = self._capture(group, classify, queue)
            if not why:
                self._state = state
                return
            self._why = why
            self._set_inputs(group, group.left_out, queue)  # a capture may have changed them
        self.stepping = f"host: {self._why}" if self._why and state is not None else "host"
        self._step(group, classify, queue)

    def _set_inputs(self, group: Group, left_out: npt.NDArray[np.bool_], queue: int) -> None:
        self._search.set_inputs(
            group.images,
            group.wanted,
            group.reachable.astype(np.int32),
            left_out.astype(np.int32),
            None if group.paths is None else np.ascontiguousarray(group.paths),
            stream=queue,
        )

    def _parts(
        self, group: Group, classify: Classify, *, ask: bool
    ) -> tuple[Part, list[dict[int, Part]], Part]:
        """What queues the search: its beginning, each of its rounds by size, its end."""
        search = self._search

        def logits_of(images: Any, form: InputForm | None, queue: int) -> Any:
            if ask:
                self._backend.wait(queue)  # whoever reads them may be on another stream
            return _readable(classify(images, form), self._backend.index)

        def begin(queue: int) -> None:
            self._logits = logits_of(search.images, None, queue)
            self._rounds.begin(self._logits, self._given, queue)

        def step(i: int, size: int, queue: int) -> None:
            points = self._rounds.decode(i, size, queue)
            search.step(i, logits_of(points, group.form, queue), stream=queue)

        rounds: list[dict[int, Part]] = [
            {size: partial(step, i, size) for size in self._sizes(search.round_points(i))}
            for i in range(search.rounds)
        ]
        return begin, rounds, lambda queue: search.finish(stream=queue)

    def _sizes(self, points: int) -> list[int]:
        """In which a round of so many points is decoded and classified, largest first.

        Few of them, and always the same: a classifier may be compiled for each.
        """
        sizes = [points]
        while self._packed and len(sizes) < _SIZES and sizes[-1] > _LEAST_SIZE:
            sizes.append(-(-sizes[-1] // 2))
        return sizes

    def _step(self, group: Group, classify: Classify, queue: int) -> None:
        """All rounds; the host looks after each whether another one is needed."""
        begin, rounds, finish = self._parts(group, classify, ask=True)
        begin(queue)
        needed = max(rounds[0])
        for sizes in rounds:
            sizes[min(size for size in sizes if size >= needed)](queue)
            needed = self._search.remaining(stream=queue)
            if needed == 0:
                break
        finish(queue)

    def _captured(self, group: Group, classify: Classify) -> Part:
        """The search in a graph; where the backend says so, without what is not needed."""
        begin, rounds, finish = self._parts(group, classify, ask=False)
        if (self._backend.early_exit or self._packed) and len(rounds) > 1:
            return capture_rounds(begin, rounds, finish, backend=self._backend, search=self._search)

        def run(queue: int) -> None:
            for part in (begin, *(sizes[max(sizes)] for sizes in rounds), finish):
                part(queue)

        return capture(run, self._backend.index)

    def _capture(self, group: Group, classify: Classify, queue: int) -> str:
        """Captures all rounds in a graph and replays it; "" or why that cannot be.

        The graph must leave out images that are to be left out, else it is empty, and find in the
        others what the same calls found before.
        """
        self._attempts += 1
        try:
            replay = self._captured(group, classify)
            logits = self._logits
            if self._packed:  # in the sizes that the graph will choose: others may round otherwise
                self._set_inputs(group, group.left_out, queue)
                self._step(group, classify, queue)
            expected = self._search.result(stream=queue)
            self._set_inputs(group, np.ones_like(group.left_out), queue)
            replay(queue)
            nothing = self._search.result(stream=queue)["status"]
            if (nothing != STATUSES.index("non_finite")).any():
                return "nothing of it was captured"
            self._set_inputs(group, group.left_out, queue)
            replay(queue)
            found = self._search.result(stream=queue)
            if any((found[name] != expected[name]).any() for name in ("status", "lo", "hi")):
                return "what was captured finds something else"
        except Exception as error:  # whatever a user's classifier does while it is captured
            if is_out_of_memory(error):
                raise
            return (str(error).strip().splitlines() or [type(error).__name__])[0]
        self._replay, self._captured_logits, self._logits = replay, logits, logits
        return ""

    def read(self, queue: int, pictures: Kind) -> Found:
        found = self._search.result(stream=queue)

        def picture(name: str) -> Any:
            """Out of the search's own memory, which the next group will be written to."""
            held = found[name]
            return held.numpy(queue) if pictures == "numpy" else as_kind(held, pictures).clone()

        count = len(found["status"])
        points = found["path_count"]
        none = np.zeros(count, dtype=np.int32)
        outcome = Outcome(
            status=found["status"],
            lo=found["lo"],
            hi=found["hi"],
            reached_class=found["reached_class"],
            evaluations=found["evaluations"],
            counterfactual=picture("counterfactual"),
            reconstruction=picture("reconstruction"),
            logits_counterfactual=found["logits_counterfactual"],
            steps=[found["path_step"][i, : points[i]].tolist() for i in range(count)],
            path_logits=[list(found["path_logits"][i, : points[i]]) for i in range(count)],
            difference=picture("difference"),
            saliency=picture("saliency"),
        )
        return Found(
            outcome=outcome,
            logits_source=to_numpy(self._logits).astype(np.float32),
            source=found["source_class"].astype(np.int64),
            target=found["target_class"].astype(np.int64),
            rows=found["exemplars"].astype(np.int64),
            missing=found.get("missing", none),
        )


def _name(pool: npt.NDArray[np.bool_] | None) -> bytes:
    """What tells one choice of bank rows from another."""
    return b"" if pool is None else np.packbits(pool).tobytes()


def _readable(logits: Any, index: int | None) -> Any:
    """Logits as the engine reads them: float32, C-contiguous, aligned, on its GPU or the host."""
    if kind_of(logits) != "torch":
        return np.ascontiguousarray(to_numpy(logits), dtype=np.float32)
    logits = logits.detach().float().contiguous()
    if index is not None and logits.is_cuda and logits.device.index != index:
        logits = logits.to(f"cuda:{index}")
    return logits.clone() if logits.data_ptr() % 16 else logits
