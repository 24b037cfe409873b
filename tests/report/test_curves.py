"""Learning curves of passes that train."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from obert_compiler.report.curves import curves_of, line_chart


def test_each_figure_with_two_points_has_a_chart() -> None:
    curve = [
        {"step": 1, "loss": 2.0, "accuracy": 0.5},
        {"step": 2, "loss": 1.0},
        {"step": 3, "loss": 0.5, "learning_rate": 1e-4},
        {"step": 3, "accuracy": 0.75},
    ]
    assert [name for name, _ in curves_of(curve)] == ["loss", "accuracy"]
    assert curves_of([]) == []


def test_the_line_goes_from_corner_to_corner_of_its_axes() -> None:
    svg = line_chart([(10, 4.0), (20, 1.0), (30, 2.0)], title="loss <by> step")
    root = ElementTree.fromstring(svg)
    axis, line = (p.attrib["points"] for p in root.iter("polyline"))
    (left, top), (_, bottom), (right, _) = (map(float, p.split(",")) for p in axis.split())
    points = [tuple(map(float, p.split(","))) for p in line.split()]
    assert points == [
        (left, top),
        (left + (right - left) / 2, bottom),
        (right, round(bottom - (bottom - top) / 3, 1)),
    ]
    assert re.findall(">([^<]+)</text>", svg) == ["4", "1", "10", "step 30"]
    assert "loss &lt;by&gt; step" in svg


def test_a_line_without_extent_lies_in_the_middle() -> None:
    assert 'class="curve" points="183.0,54.0"' in line_chart([(1, 0.5)], title="one")
