"""List every registered pass with its options."""

from __future__ import annotations

import argparse

from obert_compiler.cli.console import Console

__all__ = ["NAME", "SUMMARY", "add_arguments", "run"]

NAME = "passes"
SUMMARY = "list every pass with its options"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``obertc passes`` accepts nothing of its own."""
    del parser


def run(options: argparse.Namespace, console: Console) -> int:
    """Print the list."""
    from obert_compiler.cli.options import entries, print_entries
    from obert_compiler.pipeline.registry import PASSES

    del options
    print_entries(entries(PASSES), console)
    return 0
