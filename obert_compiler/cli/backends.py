"""List every registered back end with its options."""

from __future__ import annotations

import argparse

from obert_compiler.cli.console import Console

__all__ = ["NAME", "SUMMARY", "add_arguments", "run"]

NAME = "backends"
SUMMARY = "list every back end with its options"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``obertc backends`` accepts nothing of its own."""
    del parser


def run(options: argparse.Namespace, console: Console) -> int:
    """Print the list."""
    from obert_compiler.cli.options import entries, print_entries
    from obert_compiler.pipeline.registry import BACKENDS

    del options
    print_entries(entries(BACKENDS), console)
    return 0
