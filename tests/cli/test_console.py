"""Tables, JSON, notes and bars."""

from __future__ import annotations

import io
import json

from obert_compiler.cli.console import Console


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_table_is_aligned() -> None:
    out = io.StringIO()
    Console(out, io.StringIO()).table(("name", "n"), [("a", "10"), ("long", "2")], numbers=" r")
    assert out.getvalue() == "name   n\n----  --\na     10\nlong   2\n"


def test_json_replaces_tables_and_lines() -> None:
    out = io.StringIO()
    console = Console(out, io.StringIO(), as_json=True)
    console.table(("name",), [("a",)])
    console.line("text")
    console.result({"größe": 1})
    assert json.loads(out.getvalue()) == {"größe": 1}


def test_no_bar_where_stderr_is_no_terminal() -> None:
    err = io.StringIO()
    with Console(io.StringIO(), err) as console:
        assert list(console.track(range(3), "counting")) == [0, 1, 2]
        console.say("a [bold] note\n of two lines")
    assert err.getvalue() == "obertc: a [bold] note of two lines\n"


def test_bars_may_be_nested_and_notes_stay_whole_on_a_terminal() -> None:
    err = _Terminal()
    note = "note [x] " + "word " * 40
    with Console(io.StringIO(), err) as console:
        for _ in console.track(range(2), "outer"):
            for _ in console.track(iter(range(2)), "inner", 2):
                console.say(note)
    shown = err.getvalue()
    assert "outer" in shown
    assert "inner" in shown
    assert shown.count("obertc: " + note.strip()) == 4
