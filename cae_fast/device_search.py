# SPDX-License-Identifier: Apache-2.0
"""One group of images, explained on the device.

Encoding, exemplars, decoding, the search and the saliency are queued on one stream; the classifier
is called in between. Where it takes torch tensors on that GPU, all is captured in a CUDA graph the
second time that a group of the same size comes by, and replayed from then on: nothing waits for the
host. A classifier that cannot be captured is called from the host, with the same functions.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .arrays import Float32, kind_of, to_numpy
from .backends.cuda import CudaBackend
from .bank import CodeBank
from .path_search import Clock, Outcome, SearchRules

if TYPE_CHECKING:
    from ._C_emu import DeviceBank, GpuSearch

_KEPT = 4  # searches of different sizes or rules whose memory and graph are kept
_FEW_IMAGES = 3  # up to so many, a round looks at several points of each
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Group:
    """What a group of n images is to be searched for.

    Attributes:
        images: [n, C, S, S] float32, finite.
        wanted: Class of each, -1 any, -2 the runner-up; int32 [n].
        reachable: Classes [K] among which the runner-up is taken; bool.
        left_out: Images that are not searched; bool [n].
        ends: Class codes [n, D] where the paths lead, or None: the nearest `k` of the bank.
        k: Bank rows averaged.
        rules: Of the search.
        against_image: Differences are to the image, not to its reconstruction.
    """

    images: Float32
    wanted: npt.NDArray[np.int32]
    reachable: npt.NDArray[np.bool_]
    left_out: npt.NDArray[np.bool_]
    ends: Float32 | None
    k: int
    rules: SearchRules
    against_image: bool


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
        """Copies the bank to the device.

        Args:
            backend: The networks.
            bank: Where exemplars come from, or None.
        """
        self._backend = backend
        self._bank: DeviceBank | None = None
        if bank is not None:
            classes = np.where(bank.usable, bank.labels, -1).astype(np.int32)
            codes = np.ascontiguousarray(bank.codes, dtype=np.float32)
            self._bank = backend.module.DeviceBank(backend.engine, codes, classes)
        self._plans: OrderedDict[tuple[Any, ...], _Plan] = OrderedDict()
        self._turn = threading.Lock()
        self.why_stepped: str | None = None

    def run(
        self, group: Group, classify: Callable[[Any], Any], capturable: bool, clock: Clock
    ) -> Found:
        """Explains a group.

        Args:
            group: The images and what they are searched for.
            classify: Device array or tensor [m, C, S, S] -> logits [m, K], an array of any kind.
            capturable: `classify` takes tensors on this GPU and leaves the logits there.
            clock: Gets the stages "search" and "read".
        """
        self._backend.queue()  # refuses a fork, before a lock that was held in its parent
        with self._turn, self._backend.turn:
            plan = self._plan(group)
            with clock("search"):
                plan.run(group, classify, capturable and self.why_stepped is None)
                if plan.failure is not None:
                    self.why_stepped = plan.failure
            with clock("read"):
                return plan.read(self._backend.queue())

    @property
    def stepping(self) -> str:
        """How the last rounds were driven, for `meta`: "graph", "host", or "host: why"."""
        if self.why_stepped is not None:
            return f"host: {self.why_stepped}"
        last = next(reversed(self._plans.values()), None)
        return "graph" if last is not None and last.graph is not None else "host"

    def _plan(self, group: Group) -> _Plan:
        rules, count = group.rules, len(group.images)
        key = (count, rules, group.k, group.ends is None, group.against_image)
        plan = self._plans.pop(key, None)
        if plan is None:
            while len(self._plans) >= _KEPT:
                self._plans.popitem(last=False)
            few = count <= _FEW_IMAGES
            try:
                plan = self._make(group, few)
            except MemoryError:
                self._plans.clear()  # a smaller group is tried next: let it have their memory
                raise
        self._plans[key] = plan
        return plan

    def _make(self, group: Group, few: bool) -> _Plan:
        rules = group.rules
        search = self._backend.module.GpuSearch(
            self._backend.engine,
            self._bank if group.ends is None else None,
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
            against_image=group.against_image,
        )
        return _Plan(search, self._backend, given=group.ends is not None)


class _Plan:
    """Memory, and perhaps a graph, for groups of one size and one set of rules."""

    def __init__(self, search: GpuSearch, backend: CudaBackend, *, given: bool) -> None:
        self._search = search
        self._backend = backend
        self._given = given
        self._uses = 0
        self._logits: Any = None
        self.graph: Any = None
        self.failure: str | None = None

    def run(self, group: Group, classify: Callable[[Any], Any], capturable: bool) -> None:
        queue = self._backend.queue()
        paths = None
        if group.ends is not None:
            paths = np.ascontiguousarray(
                np.stack([group.ends, group.ends], axis=1), dtype=np.float32
            )
        self._search.set_inputs(
            group.images,
            group.wanted,
            group.reachable.astype(np.int32),
            group.left_out.astype(np.int32),
            paths,
            stream=queue,
        )
        self._uses += 1
        if self.graph is None and capturable and self._uses > 1:
            self._capture(classify)
        if self.graph is not None:
            self.graph.replay()
        else:
            self._step(classify, queue, ask=True)

    def _step(self, classify: Callable[[Any], Any], queue: int, *, ask: bool) -> None:
        """All rounds; with `ask`, the host looks after each whether another one is needed."""
        search = self._search
        self._logits = _contiguous(classify(search.images))
        search.begin(self._logits, self._given, stream=queue)
        for i in range(search.rounds):
            search.step(i, _contiguous(classify(search.decode(i, stream=queue))), stream=queue)
            if ask and search.remaining(stream=queue) == 0:
                break
        search.finish(stream=queue)

    def _capture(self, classify: Callable[[Any], Any]) -> None:
        """Captures all rounds in a graph; where that fails, says why in `failure`."""
        torch = sys.modules["torch"]
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._step(classify, self._backend.queue(), ask=False)
        except Exception as error:  # whatever a user's classifier does while it is captured
            self.failure = (str(error).strip().splitlines() or [type(error).__name__])[0]
            return
        self.graph = graph

    def read(self, queue: int) -> Found:
        found = self._search.result(stream=queue)
        count = len(found["status"])
        points = found["path_count"]
        none = np.zeros(count, dtype=np.int32)
        outcome = Outcome(
            status=found["status"],
            lo=found["lo"],
            hi=found["hi"],
            reached_class=found["reached_class"],
            evaluations=found["evaluations"],
            counterfactual=found["counterfactual"].numpy(queue),
            reconstruction=found["reconstruction"].numpy(queue),
            logits_counterfactual=found["logits_counterfactual"],
            steps=[found["path_step"][i, : points[i]].tolist() for i in range(count)],
            path_logits=[list(found["path_logits"][i, : points[i]]) for i in range(count)],
            difference=found["difference"].numpy(queue),
            saliency=found["saliency"].numpy(queue),
        )
        return Found(
            outcome=outcome,
            logits_source=to_numpy(self._logits).astype(np.float32),
            source=found["source_class"].astype(np.int64),
            target=found["target_class"].astype(np.int64),
            rows=found["exemplars"].astype(np.int64),
            missing=found.get("missing", none),
        )


def _contiguous(logits: Any) -> Any:
    """Logits as the engine reads them: float32, C-contiguous, aligned."""
    if kind_of(logits) == "torch":
        logits = logits.float().contiguous()
        return logits.clone() if logits.data_ptr() % 16 else logits
    return np.ascontiguousarray(to_numpy(logits), dtype=np.float32)
