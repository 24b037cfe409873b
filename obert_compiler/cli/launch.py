"""Being one of several processes: what ``torchrun`` and ``accelerate launch`` start.

Each of them runs the same command. One writes and speaks; an error is told once, with the rank it
came from, and left in the file that torchrun reads (TORCHELASTIC_ERROR_FILE).
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from obert_compiler.errors import LostProcessError, TerminatedError

if TYPE_CHECKING:
    from obert_compiler.backends.torch.process_group import ProcessGroup

__all__ = ["Terminated", "joined", "launched", "told_once"]


class Terminated(BaseException):
    """SIGTERM came, from the launcher when another process has ended."""


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined() -> Iterator[ProcessGroup]:
    """The group of all processes; inside, SIGTERM raises `Terminated`.

    torch's own warnings, one from each process, stay out of what the user reads.

    Raises:
        LostProcessError: the processes did not meet.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported
    from obert_compiler.backends.torch.process_group import ProcessGroup

    def terminate(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise Terminated

    group = ProcessGroup.join()
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield group
    finally:
        signal.signal(signal.SIGTERM, before)
    # After an error the others may be gone, and leaving would wait for them.
    group.leave()


def told_once(group: ProcessGroup, error: BaseException, message: str) -> str | None:
    """The line to print for an error of this process; None where another process has told one.

    A process that only noticed the end of another tells who that was, and is not on record.
    """
    from obert_compiler.backends.torch.process_group import ENDED

    # The launcher's SIGTERM may come while the line is being found; this process ends in any case.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # torch and the Trainer raise what a broken connection gave them.
    broken = isinstance(error, RuntimeError) or isinstance(error.__cause__, RuntimeError)
    ended = isinstance(error, Terminated | TerminatedError)
    lost = None if isinstance(error, LostProcessError) else group.lost(wait=broken and not ended)
    if lost is not None:
        message = f"{lost} {ENDED}"
    elif ended and not group.writer:
        return None
    elif not ended and not isinstance(error, LostProcessError | KeyboardInterrupt):
        message = f"rank {group.rank}: {message}"
        with suppress(OSError):
            _leave_record(error, message)
    return message if group.first_to_fail() else None


def _leave_record(error: BaseException, message: str) -> None:
    """The file that torchrun reads and shows as the cause."""
    name = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if name is not None:
        # torchrun prints the call stack alone.
        extra = {"py_callstack": message, "timestamp": str(int(time.time()))}
        content = {"message": f"{type(error).__name__}: {message}", "extraInfo": extra}
        Path(name).write_text(json.dumps({"message": content}), encoding="utf-8")
