"""Entry point of ``obertc``: reads the arguments, runs one command, turns errors into one line.

Exit codes: 0 done, 1 failure, 2 misuse, 130 interrupted, 141 the reader of stdout went away.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from obert_compiler.cli.console import Console
from obert_compiler.cli.launch import Terminated, joined, launched, told_once
from obert_compiler.cli.parser import build_parser
from obert_compiler.errors import ObertError
from obert_compiler.pipeline.processes import Processes

if TYPE_CHECKING:
    from obert_compiler.backends.torch.process_group import ProcessGroup

__all__ = ["main"]

_OF_THE_COMPILE_EXTRA = frozenset(
    {"accelerate", "datasets", "safetensors", "seqeval", "tokenizers", "torch", "transformers"}
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``obertc`` with ``argv``, by default the process's own; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    group: ProcessGroup | None = None
    with contextlib.ExitStack() as stack:
        stdout = sys.stdout
        # A library that prints must not end up between the lines of a result.
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        if not debug:
            stack.enter_context(_quiet_libraries())
        try:
            if launched():
                group = stack.enter_context(joined())
            return _run(arguments, stdout, group)
        except BrokenPipeError:
            # The interpreter flushes stdout once more at exit, and would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
            return 141
        except (KeyboardInterrupt, Terminated, Exception) as error:  # noqa: BLE001 - last line of defence
            message, code = _described(error)
            told = message if group is None else told_once(group, error, message)
            return code if told is None else _fail(told, code, debug)


def _run(arguments: list[str], stdout: TextIO, group: ProcessGroup | None) -> int:
    parser = build_parser()
    silent = group is not None and not group.writer
    with contextlib.ExitStack() as stack:
        stderr = sys.stderr
        if silent:
            stdout = stderr = stack.enter_context(Path(os.devnull).open("w"))
        with contextlib.redirect_stdout(stdout):  # --help and --version print
            options = parser.parse_args(arguments)
        if silent and not options.many_processes:
            return 0
        options.processes = Processes() if group is None else group
        console = stack.enter_context(Console(stdout, stderr, as_json=options.json))
        code: int = options.run(options, console)
        console.flush()
    return code


def _described(error: BaseException) -> tuple[str, int]:
    """What to say of ``error``, and the exit code."""
    if isinstance(error, ObertError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, Terminated):
        return "terminated", 143
    if isinstance(error, MemoryError):
        return "out of memory; use a smaller model, --samples or --seq-len", 1
    if isinstance(error, ModuleNotFoundError):
        return _missing_module(error)
    if isinstance(error, OSError):
        name = f"'{error.filename}': " if error.filename else ""
        return f"{name}{error.strerror or error}", 1
    return _internal(error), 1


def _missing_module(error: ModuleNotFoundError) -> tuple[str, int]:
    name = (error.name or "").partition(".")[0]
    if name not in _OF_THE_COMPILE_EXTRA:
        return _internal(error), 1
    return (
        f"package '{name}': expected it for this command, found it not installed; run "
        "pip install 'obert-compiler[compile]'",
        2,
    )


def _internal(error: BaseException) -> str:
    text = " ".join(str(error).split())[:200]
    kind = type(error).__name__
    return f"internal error, {kind}: {text}; run again with --debug and report it"


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"obertc: error: {' '.join(message.split())}", file=sys.stderr)
    return code


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Silence what libraries say on the side; with --debug they speak."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
