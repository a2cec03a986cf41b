"""Plots as inline SVG that follow the page's light or dark theme, and the same figures as PNG.

SVG: text stays text (small, selectable, in the page's font), the background is transparent, and every colour is a CSS
variable with the light theme's value as fallback, so one file is readable on both. Same data, same bytes: no date, no
random ids, nothing from the machine's configuration. Colours are Okabe and Ito's, told apart by colour-blind readers.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike, NDArray

from tasks import records

# Role -> colour in the light theme. Each must be unique: the SVG's colours are replaced by role.
COLOURS: dict[str, str] = {
    "ink": "#1d2733",
    "muted": "#5f6b7a",
    "rule": "#d5dae1",
    "panel": "#f2f3f0",
    "blue": "#0072b2",
    "vermilion": "#c8510a",
    "green": "#00805d",
    "purple": "#a8558a",
    "grey": "#77808c",
}
STYLE: dict[str, object] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the layout does not depend on the machine's fonts
    "font.size": 10.0,
    "axes.edgecolor": COLOURS["rule"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlecolor": COLOURS["ink"],
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": COLOURS["rule"],
    "grid.linewidth": 0.6,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "xtick.major.size": 3.0,
    "ytick.major.size": 0.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "second-thought",
    "path.simplify": False,
}
WIDTH, HEIGHT = 5.4, 3.0  # inches; text of 10 points is legible from 360 to 560 CSS pixels of width


@dataclass(frozen=True)
class Line:
    """One series: ``x`` and ``y`` of equal length (NaN: no value there), the label at its end, its colour's role."""

    x: Sequence[float]
    y: Sequence[float]
    label: str
    colour: str = "blue"
    points: bool = False  # values measured now and then: joined markers instead of a smoothed line over faint points
    around: Sequence[tuple[float, float]] = ()  # low and high of each value, drawn as error bars of its markers


@dataclass(frozen=True)
class Event:
    """A vertical dashed marker at ``step``; events with the same label are labelled once."""

    step: float
    label: str


def smooth(y: ArrayLike, window: int | None = None) -> NDArray[np.float64]:
    """Centred running mean over ``window`` values (default: an eighth of them), shorter at the ends; NaN ignored."""
    values = np.asarray(y, dtype=np.float64)
    half = (window if window is not None else max(len(values) // 8, 1)) // 2
    padded = [values[max(i - half, 0) : i + half + 1] for i in range(len(values))]
    return np.array([np.nanmean(part) if np.isfinite(part).any() else np.nan for part in padded])


def _draw_line(axes: Axes, line: Line) -> float:
    """Draws a series and returns the height of its right end, where its label goes (NaN for an empty series)."""
    x, y = np.asarray(line.x, dtype=np.float64), np.asarray(line.y, dtype=np.float64)
    present = np.isfinite(y)
    if not present.any():
        return float("nan")
    colour = COLOURS[line.colour]
    if line.points:
        for place, (low, high) in zip(x, line.around, strict=False):
            axes.plot([place, place], [low, high], color=colour, linewidth=1.0, alpha=0.7, clip_on=False)
        axes.plot(x[present], y[present], "o-", color=colour, markersize=4.5, linewidth=1.2, clip_on=False)
        return float(y[present][-1])
    axes.plot(x, y, "o", color=colour, markersize=2.2, alpha=0.42, markeredgewidth=0)
    smoothed = np.where(present, smooth(y), np.nan)
    axes.plot(x, smoothed, color=colour, linewidth=2.0, solid_capstyle="round")
    return float(smoothed[np.isfinite(smoothed)][-1])


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Moves label heights apart to at least ``gap``, keeping their order and, as far as possible, their places."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = [heights[i] for i in order]
    for _ in range(100):
        overlaps = [k for k in range(1, len(placed)) if placed[k] - placed[k - 1] < gap * 0.999]
        if not overlaps:
            break
        for k in overlaps:
            middle = (placed[k] + placed[k - 1]) / 2
            placed[k - 1], placed[k] = min(placed[k - 1], middle - gap / 2), max(placed[k], middle + gap / 2)
    result = list(heights)
    for place, i in zip(placed, order, strict=True):
        result[i] = place
    return result


def _label_ends(axes: Axes, lines: Sequence[Line], ends: Sequence[float]) -> None:
    """Writes each line's label beside its right end, in its colour, without overlaps."""
    shown = [(line, end) for line, end in zip(lines, ends, strict=True) if line.label and np.isfinite(end)]
    low, high = axes.get_ylim()
    places = spread([end for _, end in shown], gap=0.085 * (high - low))
    for (line, _), place in zip(shown, places, strict=True):
        axes.annotate(
            line.label,
            (1.0, place),
            xycoords=axes.get_yaxis_transform(),
            xytext=(5, 0),
            textcoords="offset points",
            color=COLOURS[line.colour],
            va="center",
            annotation_clip=False,
        )


def _mark_events(axes: Axes, events: Sequence[Event]) -> None:
    """Dashed lines at the events; each distinct label once, above the axes, on a row of its own if it would overlap."""
    left, right = axes.get_xlim()
    rows: list[float] = []  # right end of the last label on each row, as a share of the axes
    labelled: set[str] = set()
    for event in sorted(events, key=lambda e: (e.step, e.label)):
        axes.axvline(event.step, color=COLOURS["muted"], linewidth=0.9, linestyle=(0, (3, 3)), zorder=1)
        if event.label in labelled:
            continue
        labelled.add(event.label)
        width = 0.0175 * len(event.label)
        start = min((event.step - left) / (right - left), 1.0 - width)
        row = next((i for i, taken in enumerate(rows) if taken <= start), len(rows))
        rows[row : row + 1] = [start + width + 0.02]
        axes.annotate(
            event.label,
            (start, 1.0),
            xycoords="axes fraction",
            xytext=(0, 3 + 11 * row),
            textcoords="offset points",
            color=COLOURS["muted"],
            fontsize=8.5,
        )


def draw(
    axes: Axes,
    lines: Sequence[Line],
    *,
    ylabel: str,
    xlabel: str = "RL step (policy update)",
    events: Sequence[Event] = (),
    percent: bool = False,
    ylim: tuple[float | None, float | None] = (None, None),
) -> None:
    """Draws series with direct labels and event markers into ``axes``; ``percent`` shows shares as percentages."""
    ends = [_draw_line(axes, line) for line in lines]
    axes.set_ylim(*ylim)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 4, 5, 10]))
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.set_xlim(*axes.get_xlim())
    _mark_events(axes, events)
    _label_ends(axes, lines, ends)


def curve(
    lines: Sequence[Line],
    *,
    name: str,
    alt: str,
    ylabel: str,
    xlabel: str = "RL step (policy update)",
    events: Sequence[Event] = (),
    percent: bool = False,
    ylim: tuple[float | None, float | None] = (None, None),
    size: tuple[float, float] = (WIDTH, HEIGHT),
) -> str:
    """One figure as an SVG string.

    Args:
        lines: the series; every one is labelled at its end.
        name: unique on the page; prefixes the SVG's internal ids.
        alt: what the figure shows, for readers who do not see it.
        ylabel: what the vertical axis measures, with its unit.
        xlabel: the same for the horizontal axis.
        events: dashed vertical markers.
        percent: whether the values are shares to be shown as percentages.
        ylim: lower and upper limit of the vertical axis; None leaves one to the data.
        size: inches.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot(), lines, ylabel=ylabel, xlabel=xlabel, events=events, percent=percent, ylim=ylim)
        return to_svg(figure, name=name, alt=alt)


def sparkline(line: Line, *, name: str, alt: str, top: float) -> str:
    """A small curve without axes, from zero to ``top``, for a grid of many."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.0, 0.62), layout="constrained")
        axes = figure.add_subplot()
        _draw_line(axes, line)
        axes.set_ylim(-0.06 * top, 1.08 * top)
        axes.axhline(0.0, color=COLOURS["rule"], linewidth=0.8, zorder=0)
        axes.set_axis_off()
        return to_svg(figure, name=name, alt=alt)


def to_svg(figure: Figure, *, name: str, alt: str) -> str:
    """A figure as an ``<svg>`` element with theme colours, scalable, without prolog and metadata."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    # A <style> inside an inline SVG would hold for the whole page; metadata and group ids serve nobody here.
    svg = re.sub(r"\s*<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(url\(#|xlink:href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    svg = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag.group()), svg)  # coordinates, not tick labels
    for role, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{role}, {colour})")
    head = f'<svg data-name="{name}" role="img" aria-label="{html.escape(alt)}" stroke-linejoin="round"'
    svg = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', "", svg, count=1)
    return re.sub(r">\s+<", "><", svg.replace("<svg", head, 1))


def standalone(svg: str, theme: str) -> str:
    """An inline figure as a file of its own: the page's colours, light or dark by the reader's setting, on the page's background.

    Args:
        svg: what `to_svg` gave.
        theme: CSS that sets the variables of the colours and fonts, for both settings.
    """
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert box, "a figure without a viewBox"
    width, height = (float(side) for side in box.groups())
    scale = min(4 / 3, 1200 / width)  # points to pixels
    body = svg.index(">") + 1
    head = svg[: body - 1].replace("<svg", f'<svg width="{width * scale:.0f}" height="{height * scale:.0f}"', 1)
    look = f"<style>{theme}svg {{ font-family: var(--sans); }}</style>"
    return f'{head}>{look}<rect width="100%" height="100%" style="fill: var(--bg)"/>{svg[body:]}\n'


def save_png(figure: Figure, path: Path, dpi: int = 144) -> Path:
    """Writes a figure as PNG on white, by way of a temporary name; no date, so the same data give the same bytes."""
    FigureCanvasAgg(figure)
    with matplotlib.rc_context(STYLE), records.atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return path
