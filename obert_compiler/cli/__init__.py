"""The command line, ``obertc``. Results go to stdout, everything else to stderr."""

from obert_compiler.cli.main import main

__all__ = ["main"]
