"""Bar charts as inline SVG: no script, no font file, colours from the page's style sheet.

A chart is drawn for a width of 320 units and scaled to the width of the page by its viewBox, so
that its text stays readable on a phone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Bar", "bar_chart"]

_WIDTH = 320.0
_ROW = 18.0
_THICK = 10.0
_GAP_BETWEEN_GROUPS = 8.0
_CHARACTER = 6.0
"""Width of an average character at the label size, in units."""


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        label: text on its left.
        value: length; 0 or more.
        text: text at its end.
        group: name above the first of several neighbouring bars of one group; "" for none.
        tone: ``main`` for what the chart is about, ``quiet`` for what it is compared with.
    """

    label: str
    value: float
    text: str
    group: str = ""
    tone: str = "main"


def bar_chart(bars: Sequence[Bar], *, title: str, maximum: float | None = None) -> str:
    """Horizontal bars under each other as one ``<svg>`` element.

    Args:
        bars: from top to bottom.
        title: what a screen reader says of the chart.
        maximum: value of a bar over the whole width; the largest value by default.
    """
    if not bars:
        return ""
    top = maximum if maximum is not None else max(bar.value for bar in bars)
    label_width = min(_CHARACTER * max(len(bar.label) for bar in bars) + 6, _WIDTH * 0.46)
    text_width = _CHARACTER * max(len(bar.text) for bar in bars) + 10
    room = _WIDTH - label_width - text_width
    parts: list[str] = []
    y, group = 0.0, ""
    for bar in bars:
        if bar.group != group:
            y += _GAP_BETWEEN_GROUPS if y else 0.0
            group = bar.group
            if group:
                parts.append(_text(0, y + 13, group, "group"))
                y += _ROW
        length = max(room * bar.value / top, 1.0) if top > 0 and bar.value > 0 else 0.0
        middle = y + _ROW / 2
        parts.append(_text(0, middle + 4, _shorten(bar.label, label_width), "label"))
        parts.append(
            f'<rect class="{escape(bar.tone)}" x="{label_width:.1f}" y="{middle - _THICK / 2:.1f}" '
            f'width="{length:.1f}" height="{_THICK}" rx="2">'
            f"<title>{escape(bar.label)}: {escape(bar.text)}</title></rect>"
        )
        parts.append(_text(label_width + length + 4, middle + 4, bar.text, "value"))
        y += _ROW
    return (
        f'<svg role="img" viewBox="0 0 {_WIDTH:.0f} {y:.0f}" preserveAspectRatio="xMinYMin meet">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _shorten(label: str, width: float) -> str:
    room = int((width - 4) / _CHARACTER)
    return label if len(label) <= room else "…" + label[-(room - 1) :]
