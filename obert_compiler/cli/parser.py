"""The argument parser, put together from one file per command."""

from __future__ import annotations

import argparse
from typing import NoReturn

import obert_compiler
from obert_compiler.cli import backends, bench, engine, inspect, passes
from obert_compiler.cli import compile as compile_command
from obert_compiler.cli import eval as eval_command
from obert_compiler.errors import UsageError

__all__ = ["COMMANDS", "build_parser"]

COMMANDS = (compile_command, eval_command, bench, inspect, passes, backends, engine)
"""Modules of the commands: NAME, SUMMARY, add_arguments(parser) and run(options, console).

``MANY_PROCESSES`` is True in one that shares its work among the processes of a launcher; one of
them runs any other command, and the rest have nothing to do.
"""


class _Parser(argparse.ArgumentParser):
    """Raises on misuse instead of printing the usage, so that every error is one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see '{self.prog} --help'")


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``obertc``; ``options.run`` is the command's function."""
    parser = _Parser(
        prog="obertc",
        description="Compress BERT-type encoders into one small standard ONNX file.",
        epilog="Exit codes: 0 done, 1 failure, 2 misuse.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=obert_compiler.__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in COMMANDS:
        command = commands.add_parser(
            module.NAME,
            help=module.SUMMARY,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(command)
        common = command.add_argument_group("everywhere")
        common.add_argument("--json", action="store_true", help="print the result as JSON")
        common.add_argument("--debug", action="store_true", help="show tracebacks and warnings")
        many = getattr(module, "MANY_PROCESSES", False)
        command.set_defaults(run=module.run, many_processes=many)
    return parser
