# SPDX-License-Identifier: Apache-2.0
"""Several processes started by torchrun; one process without it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from types import TracebackType

import torch

from ..errors import CAEError

# The first process may train a critic and warm up the class encoder while the others wait.
_LONGEST_WAIT = timedelta(hours=6)


class Processes:
    """The processes of a run; a context manager that joins and leaves the group.

    Attributes:
        rank: Number of this process.
        local_rank: Its number on this machine.
        world: How many there are.
    """

    def __init__(self) -> None:
        """Reads torchrun's environment variables.

        Raises:
            CAEError: They are set but not numbers.
        """
        try:
            self.rank, self.local_rank, self.world = (
                int(os.environ.get(name, default))
                for name, default in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"))
            )
        except ValueError as error:
            raise CAEError(f"RANK, LOCAL_RANK and WORLD_SIZE must be numbers ({error})") from error
        self._joined = False

    @property
    def first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def __enter__(self) -> Processes:
        """Joins the group where there is one: NCCL on GPUs, Gloo on CPUs."""
        if self.world > 1 and not torch.distributed.is_initialized():
            torch.distributed.init_process_group(
                "nccl" if torch.cuda.is_available() else "gloo", timeout=_LONGEST_WAIT
            )
            self._joined = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leaves the group."""
        if self._joined:
            torch.distributed.destroy_process_group()

    def wait(self) -> None:
        """Waits until all processes are here."""
        if self.world > 1:
            torch.distributed.barrier()

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process runs the block before the others do."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()
