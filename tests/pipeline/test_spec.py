"""The grammar: text to pass and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obert_compiler.errors import SpecError, UsageError
from obert_compiler.pipeline.registry import passes_from_text
from obert_compiler.pipeline.spec import ParsedSpec, Spec, parse_specs


@dataclass(frozen=True)
class Options(Spec):
    name: ClassVar[str] = "options"

    ratio: float = 0.5
    count: int | None = None
    on: bool = False
    method: Literal["fast", "exact"] = "fast"
    names: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()


def read(text: str) -> Options:
    (spec,) = parse_specs(text)
    return Options.from_options(spec.options)


@given(
    st.builds(
        Options,
        ratio=st.floats(allow_nan=False, allow_infinity=False),
        count=st.none() | st.integers(),
        on=st.booleans(),
        method=st.sampled_from(["fast", "exact"]),
        names=st.lists(st.from_regex(r"[a-z.]+(@0\.5)?", fullmatch=True)).map(tuple),
        layers=st.lists(st.integers(min_value=0)).map(tuple),
    )
)
def test_text_of_options_parses_back(options: Options) -> None:
    if options.names == () or options.layers == ():
        options = Options(options.ratio, options.count, options.on, options.method)
    assert read(str(options)) == options


def test_default_options_are_not_printed() -> None:
    assert str(Options()) == "options"
    assert str(Options(count=3, on=True)) == "options:count=3:on=true"


def test_dashes_and_underscores_in_option_names_are_the_same() -> None:
    assert parse_specs("a:b-c=1") == [ParsedSpec("a", {"b_c": "1"})]


def test_none_is_the_empty_pipeline() -> None:
    assert parse_specs("none") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("options:ratio=x", "expected a number, found 'x'"),
        ("options:count=1.5", "expected a whole number, found '1.5'"),
        ("options:on=maybe", "expected true or false, found 'maybe'"),
        ("options:method=slow", "expected fast or exact, found 'slow'"),
        ("options:speed=1", "option 'speed' of 'options': expected one of count"),
        ("options:ratio", "expected name=value"),
        ("options:ratio=1:ratio=2", "is given twice"),
        ("options,,options", "found an empty item"),
    ],
)
def test_errors_say_what_was_expected_and_found(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        [Options.from_options(spec.options) for spec in parse_specs(text)]


def test_an_unknown_pass_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"pass 'prone' is unknown: expected one of .*prune"):
        passes_from_text("prone")
