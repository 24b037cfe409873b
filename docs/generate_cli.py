"""Write docs/cli.md from the argument parser and the registry (`make docs`)."""

from __future__ import annotations

import argparse
from pathlib import Path

from obert_compiler.cli.options import Entry, entries
from obert_compiler.cli.parser import COMMANDS, build_parser
from obert_compiler.pipeline.registry import BACKENDS, PASSES

FILE = Path(__file__).with_name("cli.md")

HEAD = """# Command line

<!-- Written by docs/generate_cli.py from the code (`make docs`); do not edit. -->

Results go to stdout, progress and notes to stderr; bars are drawn only where stderr is a terminal.
Every command takes `--json` (the result as JSON, nothing else on stdout) and `--debug`. An error is
one line on stderr, and a traceback only with `--debug`.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | failure: the request is sound, but the work cannot be done |
| 2 | misuse: the command, an option, a recipe or an argument is wrong |
| 130 | interrupted |
| 141 | the reader of stdout went away |

A data FILE is jsonl, csv, parquet or txt (each also `.gz`), or the name of a hub data set; a graph
without a task takes `.npz` with one array per input.
"""

GRAMMAR = """
## Passes

`--passes prune:sparsity=0.9:block=4,quant,pack`: commas between passes, colons before options, `+`
between the items of a list. Nothing in it needs quotes in a shell but `*` in a pattern. A pattern
of sites matches when it is a part of the name, or by `*` and `?`. The same text works in a recipe
and stands in the report.
"""


def main() -> None:
    """Write the file."""
    FILE.write_text(render(), encoding="utf-8")


def render() -> str:
    """The whole page."""
    parts = [HEAD]
    commands = _subparsers(build_parser())
    parts += [_command(name, commands[name]) for name in (module.NAME for module in COMMANDS)]
    parts.append(GRAMMAR)
    parts += [_entry(entry) for entry in entries(PASSES) if entry.distribution == "obert-compiler"]
    parts.append("\n## Back ends\n")
    parts += [_entry(e) for e in entries(BACKENDS) if e.distribution == "obert-compiler"]
    return "".join(parts)


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:  # argparse has no public way
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _command(name: str, parser: argparse.ArgumentParser) -> str:
    lines = [f"\n## obertc {name}\n", (parser.description or "").strip(), ""]
    rows = []
    for action in parser._actions:
        if action.dest in {"help", "json", "debug"}:
            continue
        written = ", ".join(action.option_strings) or str(action.metavar)
        if action.option_strings and action.metavar:
            written += f" {action.metavar}"
        required = " (required)" if action.option_strings and action.required else ""
        rows.append(f"| `{written}` | {action.help}{required} |")
    if rows:
        lines += ["| argument | meaning |", "|---|---|", *rows, ""]
    return "\n".join(_fenced(lines))


def _fenced(lines: list[str]) -> list[str]:
    """Indented example lines as code blocks."""
    text = "\n".join(lines).splitlines()
    fenced: list[str] = []
    inside = False
    for line in text:
        example = line.startswith("  ")
        if example != inside:
            fenced.append("```" if inside else "```sh")
            inside = example
        fenced.append(line.removeprefix("  "))
    return [*fenced, ""]


def _entry(entry: Entry) -> str:
    lines = [f"\n### {entry.name}\n", f"{entry.summary[0].upper()}{entry.summary[1:]}.", ""]
    if entry.options:
        lines += ["| option | default | accepts | meaning |", "|---|---|---|---|"]
        for option in entry.options:
            doc = option.doc.replace("``", "`").replace("|", "\\|")
            accepts = option.type.replace("|", "\\|")
            lines.append(f"| `{option.name}` | `{option.default}` | {accepts} | {doc} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
