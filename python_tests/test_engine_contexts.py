# SPDX-License-Identifier: Apache-2.0
"""Contexts of engines: kept by what may have captured them, made and run by one thread at a time.

The engine and its GPU are replaced here: what is tested is who keeps which context, and when.
"""

from __future__ import annotations

import contextlib
import gc
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from cae_fast.engines import runtime
from cae_fast.engines.runtime import Engine, EngineContext

torch = pytest.importorskip("torch")


class FakeContext:
    """Notes the addresses that each run is queued with."""

    def __init__(self) -> None:
        self.addresses: dict[str, int] = {}
        self.runs: list[dict[str, int]] = []

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address
        time.sleep(0.001)  # lets another thread in, where nothing keeps it out

    def execute_async_v3(self, stream: int) -> bool:
        self.runs.append(dict(self.addresses))
        return True


class FakeEngine(Engine):
    """The real choice of contexts, which are not TensorRT's."""

    def __init__(self, max_batch: int) -> None:
        self.max_batch = max_batch
        self.manifest: Any = SimpleNamespace(outputs={"logits": ["batch", 2]})
        self._index = 0
        self._torch = SimpleNamespace(
            cuda=SimpleNamespace(device=lambda index: contextlib.nullcontext())
        )
        self._contexts = OrderedDict()
        self._lock = threading.Lock()
        self.made: list[weakref.ref[EngineContext]] = []

    def _made(self, batch: int) -> EngineContext:
        time.sleep(0.01)
        context = CpuContext(FakeContext(), {}, 0, None)
        self.made.append(weakref.ref(context))
        return context


class CpuContext(EngineContext):
    """Takes tensors of the CPU."""

    def _queue(self, tensors: Mapping[str, Any], stream: int) -> None:
        for name, tensor in tensors.items():
            self._context.set_tensor_address(name, tensor.data_ptr())
        self._context.execute_async_v3(stream)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = SimpleNamespace(
        nn=torch.nn,
        empty=lambda *shape, device: torch.empty(*shape),
        cuda=SimpleNamespace(current_stream=lambda index: SimpleNamespace(cuda_stream=0)),
    )
    monkeypatch.setattr(runtime, "cuda_torch", lambda index: stand_in)


def test_a_module_keeps_every_context_that_a_graph_may_use(on_cpu: None) -> None:
    engine = FakeEngine(max_batch=20)
    module = runtime.engine_module(engine, 0)
    for _ in range(2):
        for batch in range(1, 21):
            assert module(torch.zeros(batch, 1, 2, 2)).shape == (batch, 2)
    gc.collect()
    assert len(engine.made) == 20
    assert all(made() is not None for made in engine.made)
    assert len(engine._contexts) == runtime._KEPT


def test_threads_share_contexts_and_do_not_mix_addresses(on_cpu: None) -> None:
    engine = FakeEngine(max_batch=4)
    contexts: list[EngineContext] = []
    pairs: set[tuple[int, int]] = set()

    def work() -> None:
        images, logits = torch.zeros(4, 1, 2, 2), torch.zeros(4, 2)
        context = engine.context(4, 0)
        contexts.append(context)
        pairs.add((images.data_ptr(), logits.data_ptr()))
        alive.append((images, logits))
        for _ in range(5):
            context.run({"images": images, "logits": logits}, 0)

    alive: list[Any] = []
    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(engine.made) == len({id(context) for context in contexts}) == 1
    runs = contexts[0]._context.runs
    assert len(runs) == 30
    assert {(run["images"], run["logits"]) for run in runs} == pairs


def test_streams_whose_runs_may_overlap_share_no_context(on_cpu: None) -> None:
    engine = FakeEngine(max_batch=4)
    first, second = engine.context(4, 1), engine.context(4, 2)
    assert first is not second
    assert engine.context(4, 1) is first
    assert engine.context(3, 1) not in (first, second)
