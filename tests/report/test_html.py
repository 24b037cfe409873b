"""report.html: what it says, that it is self-contained, and that it fits a phone."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from obert_compiler.report.html import render_html

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]


def test_page_states_every_figure(report: dict[str, Any]) -> None:
    page = render_html(report)
    for text in ("accuracy", "0.9050", "-0.0050", "12.35x smaller", "2.50x faster", "4.00 ms"):
        assert text in page
    assert "prune:sparsity=0.8:block=4" in page
    assert "models" not in page.split("<h1>")[1].split("</h1>")[0]


def test_text_from_the_model_is_escaped(report: dict[str, Any]) -> None:
    page = render_html(report)
    assert "tiny &amp; co" in page
    assert "outside the &lt;encoder&gt; layers" in page
    assert "<encoder>" not in page


def test_page_loads_nothing(report: dict[str, Any]) -> None:
    page = render_html(report)
    assert re.findall(r"(?:src|href|action)\s*=|url\(|@import|<script|<link|<iframe", page) == []
    assert "://" not in page


def test_every_chart_is_well_formed_xml(report: dict[str, Any]) -> None:
    charts = re.findall(r"<svg.*?</svg>", render_html(report), flags=re.DOTALL)
    assert len(charts) == 5
    for chart in charts:
        root = ET.fromstring(chart)
        width = float(root.attrib["viewBox"].split()[2])
        for bar in root.iter("rect"):
            assert float(bar.attrib["x"]) + float(bar.attrib["width"]) <= width


def test_parts_that_were_not_measured_are_left_out(report: dict[str, Any]) -> None:
    bare = copy.deepcopy(report) | {"metric": None, "latency": None, "passes": [], "notes": []}
    bare["recipe"]["passes"] = []
    for site in bare["sites"]:
        site["sparsity"] = 0.0
    page = render_html(bare)
    assert "--eval-data" in page
    assert "lowered and written unchanged" in page
    assert page.count("<svg") == 1


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [320, 390, 1200])
def test_page_fits_the_window(report: dict[str, Any], tmp_path: Path, width: int) -> None:
    """No horizontal overflow, even with long names, with the table of sites open."""
    report["model"]["location"] = "an-organisation/" + "a-very-long-model-name" * 5
    # The probe writes the widths into the page; it is in the test alone, not in the report. The
    # page is framed because a headless window has a smallest width of its own.
    page = render_html(report).replace("<details>", "<details open>")
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<body><iframe src="report.html" width="{width}" height="800"></iframe><script>'
        "onload = () => { const d = frames[0].document.documentElement;"
        "const right = e => e.getBoundingClientRect().right;"
        "const cut = [...d.querySelectorAll('svg text')]"
        ".filter(t => right(t) > right(t.closest('svg')) + 0.5).length;"
        "document.title = `${d.scrollWidth} ${d.clientWidth} ${cut}`; }</script></body>",
        encoding="utf-8",
    )
    dom = _chromium(tmp_path, "--allow-file-access-from-files", "--dump-dom", frame.as_uri())
    found = re.search(r"<title>(\d+) (\d+) (\d+)</title>", dom)
    assert found is not None, dom[:300]
    scroll_width, client_width, cut_texts = map(int, found.groups())
    assert 0 < client_width <= width
    assert scroll_width == client_width
    assert cut_texts == 0


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_page_paints_in_a_browser(report: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(render_html(report), encoding="utf-8")
    picture = tmp_path / "report.png"
    _chromium(tmp_path, f"--screenshot={picture}", "--window-size=600,1600", file.as_uri())
    blank = tmp_path / "blank.html"
    blank.write_text("<!doctype html>", encoding="utf-8")
    nothing = tmp_path / "blank.png"
    _chromium(tmp_path, f"--screenshot={nothing}", "--window-size=600,1600", blank.as_uri())
    assert picture.stat().st_size > 5 * nothing.stat().st_size


def _chromium(folder: Path, *arguments: str) -> str:
    assert CHROMIUM is not None
    profile = f"--user-data-dir={folder / 'profile'}"
    done = subprocess.run(
        [CHROMIUM, *FLAGS, profile, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout
