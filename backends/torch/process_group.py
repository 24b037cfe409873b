"""The processes that ``torchrun`` or ``accelerate launch`` started, over torch.distributed.

Sums and results of passes live in main memory and travel by gloo; the gradients of training travel
as the Trainer has them, by NCCL where there is CUDA. The group is the default one of
torch.distributed, so Accelerate joins it instead of making its own.

A process that dies takes the run with it. The launcher ends the others, and so does the connection
that breaks under a collective call; a process that stops without dying is given up after the
timeout. Whoever fails first says so in one line, the others are silent.
"""

from __future__ import annotations

import datetime
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import psutil
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from obert_compiler.errors import LostProcessError, UsageError
from obert_compiler.pipeline.processes import Float64Array, Processes

__all__ = ["ENDED", "ProcessGroup"]

T = TypeVar("T")

_TIMEOUT = "OBERTC_PROCESS_TIMEOUT"
_DEFAULT_SECONDS = 7200
"""One process measures and writes while the others wait: longer than that takes."""

ENDED = "ended before its work was done, killed or out of memory; start again with --resume"
"""What is said of a process that left no message."""

_SEEN_GONE_SECONDS = 5.0

_PART_VALUES = 1 << 22
"""Values that are added up at a time: 32 MiB in float64."""


class ProcessGroup(Processes):
    """The processes of a launcher; `join` makes it.

    Args:
        store: what processes tell one another beside collective calls.
        rank: of this process.
        count: of processes.
        seconds: how long a collective call waits for the others.
    """

    def __init__(self, store: Store, rank: int, count: int, seconds: float) -> None:
        self.rank, self.count = rank, count
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self._store = store
        self._seconds = seconds
        self._calls = 0
        self._peers: list[tuple[str, int, float]] = []

    @classmethod
    def join(cls) -> ProcessGroup:
        """Meet the other processes of the launcher.

        Raises:
            UsageError: the timeout is no number of seconds.
            LostProcessError: a process did not come.
        """
        seconds = _seconds()
        timeout = datetime.timedelta(seconds=seconds)
        expected = int(os.environ["WORLD_SIZE"])
        try:
            store, rank, count = next(rendezvous("env://", timeout=timeout))
            store.set_timeout(timeout)
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(
                backend,
                store=PrefixStore("default", store),
                rank=rank,
                world_size=count,
                timeout=timeout,
            )
        except (RuntimeError, ValueError) as error:
            raise LostProcessError(
                f"expected {expected} processes within {seconds:g} s, found: {error}; look at the "
                f"launcher's --nproc-per-node and --nnodes, or raise {_TIMEOUT}"
            ) from error
        group = cls(PrefixStore("obertc", store), rank, count, seconds)
        own = psutil.Process()
        group._peers = group.gather((socket.gethostname(), own.pid, own.create_time()))
        return group

    def leave(self) -> None:
        """Take this process out of the group; the others may still be at work."""
        with suppress(RuntimeError):  # the store went with the process that held it
            self._store.set(f"left-{self.rank}", "")
        dist.destroy_process_group()

    def sum(self, array: Float64Array) -> Float64Array:
        """The sum over processes of a float64 array, the same on all of them."""
        total = np.array(array, np.float64, order="C")
        self._call(lambda: dist.all_reduce(torch.from_numpy(total)))
        return total

    def add_up(self, array: npt.NDArray[Any], owner: int) -> None:
        """Put the sum over processes into ``array`` of the process ``owner``."""
        flat = array.reshape(-1)

        def parts() -> None:
            for start in range(0, flat.size, _PART_VALUES):
                part = torch.from_numpy(flat[start : start + _PART_VALUES].astype(np.float64))
                dist.reduce(part, owner)
                if self.rank == owner:
                    flat[start : start + _PART_VALUES] = part.numpy()

        self._call(parts)

    def gather(self, value: T) -> list[T]:
        """``value`` of every process, by rank, on all of them."""
        found: list[Any] = [None] * self.count
        self._call(lambda: dist.all_gather_object(found, value))
        return found

    def broadcast(self, value: T) -> T:
        """``value`` of rank 0, on all processes."""
        held = [value]
        self._call(lambda: dist.broadcast_object_list(held, 0))
        return held[0]

    def first_to_fail(self) -> bool:
        """Whether no other process has failed yet; asked once, by a process that fails."""
        try:
            return int(self._store.add("failed", 1)) == 1
        except RuntimeError:  # the store went with the process that held it
            return True

    def lost(self, *, wait: bool = False) -> str | None:
        """Who ended before its work was done, as far as can be seen from here.

        Args:
            wait: whether to wait a moment for it: a connection breaks before the process at its
                end is seen to be gone.

        Returns:
            Rank, process and machine; None where nobody is known to be gone.
        """
        until = time.monotonic() + (_SEEN_GONE_SECONDS if wait else 0)
        found = self._gone()
        while found is None and time.monotonic() < until:
            time.sleep(0.05)
            found = self._gone()
        return found

    def _gone(self) -> str | None:
        host = socket.gethostname()
        for rank, (where, pid, born) in enumerate(self._peers):
            if rank == self.rank or where != host or _lives(pid, born):
                continue
            with suppress(RuntimeError):
                if self._store.check([f"left-{rank}"]):
                    continue
            return f"rank {rank} (process {pid} on {host})"
        return None

    def _call(self, collective: Callable[[], object]) -> None:
        self._calls += 1
        start = time.monotonic()
        try:
            self._store.set(f"calls-{self.rank}", str(self._calls))
            collective()
        except RuntimeError as error:
            late = time.monotonic() - start >= self._seconds
            raise LostProcessError(self._why(error, late)) from error

    def _why(self, error: RuntimeError, late: bool) -> str:
        lost = self.lost(wait=not late)
        if lost is not None:
            return f"{lost} {ENDED}"
        missing = [str(rank) for rank in range(self.count) if self._calls_of(rank) < self._calls]
        who = f"rank {', '.join(missing)}" if missing else "another process"
        if late:
            return (
                f"{who} did not come within {self._seconds:g} s; look at its machine and start "
                f"again with --resume, or raise {_TIMEOUT}"
            )
        return f"{who} is out of reach: {error}; look at its machine and start again with --resume"

    def _calls_of(self, rank: int) -> int:
        try:
            key = f"calls-{rank}"
            return int(self._store.get(key)) if self._store.check([key]) else 0
        except RuntimeError:
            return self._calls


def _seconds() -> float:
    text = os.environ.get(_TIMEOUT, str(_DEFAULT_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UsageError(f"{_TIMEOUT}: expected seconds above 0, found '{text}'")
    return seconds


def _lives(pid: int, born: float) -> bool:
    try:
        process = psutil.Process(pid)
        # A number that was given out again is another process.
        return abs(process.create_time() - born) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
