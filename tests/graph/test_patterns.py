"""One way to choose sites by name."""

import pytest

from obert_compiler.graph.patterns import matches

NAME = "bert.encoder.layer.10.attention.self.query"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("query", True),
        ("layer.1", True),  # a substring, so layer.10 too
        ("layer.1.", False),
        (NAME, True),
        ("Query", False),
        ("*.query", True),
        ("query*", False),  # a glob must fit the whole name
        ("*.layer.?.*", False),
        ("*.layer.??.*", True),
        ("*attention*", True),
        ("a.b", False),  # a dot is a dot
        ("", True),
    ],
)
def test_matches(pattern: str, expected: bool) -> None:
    assert matches(NAME, pattern) is expected
