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
from typing import TextIO

from obert_compiler.cli.console import Console
from obert_compiler.cli.parser import build_parser
from obert_compiler.errors import ObertError

__all__ = ["main"]

_OF_THE_COMPILE_EXTRA = frozenset(
    {"accelerate", "datasets", "safetensors", "seqeval", "tokenizers", "torch", "transformers"}
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``obertc`` with ``argv``, by default the process's own; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    with contextlib.ExitStack() as stack:
        stdout = sys.stdout
        # A library that prints must not end up between the lines of a result.
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        if not debug:
            stack.enter_context(_quiet_libraries())
        try:
            return _run(arguments, stdout)
        except ObertError as error:
            return _fail(str(error), error.exit_code, debug)
        except KeyboardInterrupt:
            return _fail("interrupted", 130, debug)
        except BrokenPipeError:
            # The interpreter flushes stdout once more at exit, and would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
            return 141
        except MemoryError:
            return _fail("out of memory; use a smaller model, --samples or --seq-len", 1, debug)
        except ModuleNotFoundError as error:
            return _fail(*_missing_module(error), debug)
        except OSError as error:
            name = f"'{error.filename}': " if error.filename else ""
            return _fail(f"{name}{error.strerror or error}", 1, debug)
        except Exception as error:  # noqa: BLE001 - the last line of defence
            return _fail(_internal(error), 1, debug)


def _run(arguments: list[str], stdout: TextIO) -> int:
    parser = build_parser()
    with contextlib.redirect_stdout(stdout):  # --help and --version print
        options = parser.parse_args(arguments)
    console = Console(stdout, sys.stderr, as_json=options.json)
    with console:
        code: int = options.run(options, console)
    console.flush()
    return code


def _missing_module(error: ModuleNotFoundError) -> tuple[str, int]:
    name = (error.name or "").partition(".")[0]
    if name not in _OF_THE_COMPILE_EXTRA:
        return _internal(error), 1
    return (
        f"package '{name}': expected it for this command, found it not installed; run "
        "pip install 'obert-compiler[compile]'",
        2,
    )


def _internal(error: Exception) -> str:
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
