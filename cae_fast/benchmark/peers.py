# SPDX-License-Identifier: Apache-2.0
"""The peers of a network task, built when asked for."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from .cases import EAGER, Case
from .limits import NotRun
from .machine import installed
from .tasks import Arrays, ExplainTask, NetworkTask

Peer = tuple[Callable[[], Arrays], str]
# What each needs: modules, and the package that brings them.
_NEEDS = {
    EAGER: {"torch": "PyTorch"},
    "torch.compile": {"torch": "PyTorch"},
    "ONNX Runtime": {"onnxruntime": "ONNX Runtime", "torch": "PyTorch", "onnxscript": "onnxscript"},
    "OpenVINO": {"openvino": "OpenVINO", "torch": "PyTorch", "onnxscript": "onnxscript"},
}


class PeerShop:
    """Builds peers; what several cases can share is made once.

    To be used as a context manager: exported files live that long.
    """

    def __init__(self, threads: int, compile_s: float) -> None:
        """Notes the limits.

        Args:
            threads: Of every peer.
            compile_s: Seconds in all for torch.compile.
        """
        self._threads = threads
        self._compile_s = compile_s
        self._compile_left_s = compile_s
        self._layouts: dict[tuple[str, str, int], str] = {}
        self._exported: dict[tuple[str, str, int], Path] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="cae-fast-bench-")

    def __enter__(self) -> PeerShop:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Removes the exported files."""
        self._folder.cleanup()

    def build(self, name: str, case: Case, task: NetworkTask) -> Peer:
        """A peer's program for a task, and what is to be said of it.

        Raises:
            NotRun: It is not installed, failed to build, or takes too long to.
        """
        self._check_installed(name)
        try:
            if name == EAGER:
                return self._eager(case, task)
            if name == "torch.compile":
                return self._compiled(case, task)
            return self._runtime(name, case, task)
        except NotRun:
            raise
        except Exception as error:  # a peer's own trouble must not end the run, but is shown
            reason = " ".join(str(error).split()) or type(error).__name__
            raise NotRun(f"failed: {type(error).__name__}: {reason:.200}") from error

    def authors(self, case: Case, task: ExplainTask) -> Peer:
        """The authors' procedure for one image.

        Raises:
            NotRun: PyTorch is not installed.
        """
        self._check_installed(EAGER)
        from .torch_peers import authors_procedure

        layout = self._layout(Case("decode", case.model, case.size, 1), task)
        return authors_procedure(task, layout), layout

    def _check_installed(self, name: str) -> None:
        for module, package in _NEEDS[name].items():
            if not installed(module):
                raise NotRun(f"{package} is not installed")

    def _eager(self, case: Case, task: NetworkTask) -> Peer:
        from .torch_peers import eager

        layout = self._layout(case, task)
        return eager(task, layout), layout

    def _compiled(self, case: Case, task: NetworkTask) -> Peer:
        from .torch_peers import TimeLimit, compiled

        if case.batch != 1 or case.model == "demo":
            raise NotRun("is compiled for the reference network at batch 1 only: it takes long")
        if self._compile_left_s <= 0:
            raise NotRun(f"the {self._compile_s:.0f} s for all compiling were over")
        layout = self._layout(case, task)
        start = time.monotonic()
        try:
            program = compiled(task, layout, self._compile_left_s)
        except TimeLimit:
            raise NotRun(
                f"compiling did not end in {time.monotonic() - start:.0f} s of the "
                f"{self._compile_s:.0f} s for all"
            ) from None
        finally:
            self._compile_left_s -= time.monotonic() - start
        return program, layout

    def _runtime(self, name: str, case: Case, task: NetworkTask) -> Peer:
        from .exported_peers import onnxruntime_program, openvino_program
        from .torch_peers import BATCH_NAME, export

        key = (case.kind, case.model, case.size)
        if key not in self._exported:
            file = Path(self._folder.name) / f"{'-'.join(map(str, key))}.onnx"
            export(case.kind, task.model, file)
            self._exported[key] = file
        file = self._exported[key]
        if name == "ONNX Runtime":
            return onnxruntime_program(file, BATCH_NAME, task, self._threads), ""
        return openvino_program(file, task, self._threads), ""

    def _layout(self, case: Case, task: NetworkTask | ExplainTask) -> str:
        from .torch_peers import faster_layout

        key = (case.kind, case.model, case.size)
        if key not in self._layouts:
            self._layouts[key] = faster_layout(case.kind, task.model)
        return self._layouts[key]
