"""The figures: what they draw, how they look, and that they follow the page's theme."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tasks.monitoring import figures, plots
from tests.fake_run import RAISED, TAKEOFF, steps_table


def test_smoothing_keeps_level_and_length_and_skips_gaps() -> None:
    assert plots.smooth([2.0] * 9) == pytest.approx(np.full(9, 2.0))
    assert plots.smooth([0.0, 3.0, np.nan, 5.0], window=3) == pytest.approx([1.5, 1.5, 4.0, 5.0])
    assert np.isnan(plots.smooth([np.nan, np.nan])).all()


def test_labels_are_spread_in_their_order() -> None:
    placed = plots.spread([0.50, 0.52, 0.1, 0.51], gap=0.1)
    assert np.diff(np.sort(placed)).min() > 0.099
    assert list(np.argsort(placed)) == [2, 0, 3, 1]
    assert placed[2] == 0.1


def test_figures_follow_the_page_in_colour_and_font() -> None:
    svg = plots.curve([plots.Line([0, 1, 2], [0.004, 0.006, 0.009], "a & b")], name="fig", alt='"x" & <y>', ylabel="kl (nats)")
    ET.fromstring(svg)  # well-formed
    assert 'aria-label="&quot;x&quot; &amp; &lt;y&gt;"' in svg and "a &amp; b" in svg and "kl (nats)" in svg
    assert "var(--blue, " in svg and "font-family: inherit" in svg and "DejaVu" not in svg
    bare = re.sub(r"var\(--\w+, #[0-9a-f]{6}\)", "", svg)
    assert not re.findall(r"#[0-9a-f]{6}\b", bare)  # no colour that would not follow the theme
    assert ">0.004<" in svg  # tick labels keep their digits


def test_the_overview_picture_is_a_png_without_a_date(tmp_path: Path) -> None:
    path = figures.save_overview(steps_table(), TAKEOFF, tmp_path / "new" / "curves.png")
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG") and b"tIME" not in content and b"Software" not in content


def test_lengths_by_level_have_error_bars_and_one_level_has_no_figure() -> None:
    def at(length: float) -> dict:
        return {"length": length, "intervals": {"length": {"mean": length, "low": length - 5, "high": length + 5}}}

    told = {"r1": {"by_level": {"calc-1": at(10), "calc-10": at(90), "calc-2": at(20), "expr-3": at(50)}}}
    found = figures.length_by_level(told, {"r1": ("R1", "blue"), "zero": ("Zero", "green")})
    assert list(found) == ["calc"]
    assert "R1 from 10 to 90" in found["calc"]  # in the order of levels, not of letters


def test_events_are_found() -> None:
    table = steps_table()
    assert [(e.step, e.label) for e in figures.limit_raised(table)] == [(RAISED, "length limit raised to 144")]
    assert [e.step for e in figures.reference_replaced(table)] == [21, 41]


def test_an_axis_is_not_stretched_by_a_few_single_steps() -> None:
    flat = pd.Series([1.0] * 99)
    assert figures._top(pd.concat([flat, pd.Series([30.0])])) == 1.5
    assert figures._top(pd.concat([flat, pd.Series([2.5])])) is None and figures._top(pd.Series([0.0] * 9)) is None
