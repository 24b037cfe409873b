"""Say where the engine lies and whether it runs here.

The engine is an execution provider for ONNX Runtime, a shared library. Programs in other languages
register it under the name ObertExecutionProvider; docs/engine.md says how.
"""

from __future__ import annotations

import argparse

from obert_compiler.cli.console import Console

__all__ = ["NAME", "SUMMARY", "add_arguments", "run"]

NAME = "engine"
SUMMARY = "where the execution provider for ONNX Runtime lies, and whether it loads"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``obertc engine`` accepts."""
    parser.add_argument(
        "--path", action="store_true", help="print the path of the library, without loading it"
    )


def run(options: argparse.Namespace, console: Console) -> int:
    """Print the path, or what loading the library shows.

    Raises:
        FailureError: there is no library, or ONNX Runtime cannot use it.
    """
    from obert_compiler.runtime.provider import describe_engine, engine_library, no_library

    if options.path:
        library = engine_library()
        if library is None:
            raise no_library()
        console.result({"path": str(library)})
        console.line(str(library))
        return 0
    found = describe_engine()
    console.result(found.to_dict())
    for name, value in found.to_dict().items():
        console.line(f"{name:12} {value}")
    return 0
