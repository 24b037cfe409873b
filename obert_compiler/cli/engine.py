"""Say where the execution provider for ONNX Runtime lies."""

from __future__ import annotations

import argparse

from obert_compiler.cli.console import Console
from obert_compiler.errors import FailureError

__all__ = ["NAME", "SUMMARY", "add_arguments", "run"]

NAME = "engine"
SUMMARY = "where the execution provider for ONNX Runtime lies"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``obertc engine`` accepts."""
    parser.add_argument("--path", action="store_true", help="print the path of the library")


def run(options: argparse.Namespace, console: Console) -> int:
    """Report that there is none.

    Raises:
        FailureError: this build carries no engine.
    """
    del options, console
    raise FailureError(
        "engine: expected the library of an execution provider, found none; this build carries no "
        "engine, compiled models run in stock ONNX Runtime"
    )
