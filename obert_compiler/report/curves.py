"""Learning curves as inline SVG, and which of them a pass has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["Curves", "curves_of", "line_chart"]

_WIDTH, _HEIGHT = 320.0, 120.0
_LEFT, _BOTTOM, _TOP = 52.0, 18.0, 6.0

Curves = list[tuple[str, str]]
"""Charts of one pass: what is drawn, and the drawing."""


def curves_of(curve: Sequence[Mapping[str, float]]) -> Curves:
    """A chart of every figure of a learning curve that has at least two points.

    Args:
        curve: entries with ``step`` and any other figures by name, as passes that train report
            them.
    """
    names = dict.fromkeys(name for point in curve for name in point if name != "step")
    charts = []
    for name in names:
        points = [(p["step"], p[name]) for p in curve if name in p]
        if len(points) > 1:
            charts.append((name, line_chart(points, title=f"{name} by step")))
    return charts


def line_chart(points: Sequence[tuple[float, float]], *, title: str) -> str:
    """One line as an ``<svg>`` element, with the ends of both axes written beside it.

    Args:
        points: at least one, by rising first coordinate.
        title: what a screen reader says of the chart.
    """
    xs, ys = zip(*points, strict=True)
    low, high = min(ys), max(ys)
    right, bottom = _WIDTH - 6, _HEIGHT - _BOTTOM

    def place(x: float, y: float) -> str:
        across = (x - xs[0]) / (xs[-1] - xs[0]) if xs[-1] > xs[0] else 0.5
        up = (y - low) / (high - low) if high > low else 0.5
        return f"{_LEFT + across * (right - _LEFT):.1f},{bottom - up * (bottom - _TOP):.1f}"

    line = " ".join(place(x, y) for x, y in points)
    texts = [
        (_LEFT - 4, _TOP + 8, _short(high), "end"),
        (_LEFT - 4, bottom, _short(low), "end"),
        (_LEFT, _HEIGHT - 4, _short(xs[0]), "start"),
        (right, _HEIGHT - 4, f"step {_short(xs[-1])}", "end"),
    ]
    labels = "".join(
        f'<text class="value" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
        for x, y, text, anchor in texts
    )
    return (
        f'<svg role="img" viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}">'
        f"<title>{escape(title)}</title>"
        f'<polyline class="axis" points="{_LEFT},{_TOP} {_LEFT},{bottom} {right},{bottom}"/>'
        f'<polyline class="curve" points="{line}"/>{labels}</svg>'
    )


def _short(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.3g}"
