"""The report's figures, from the per-step table and the evaluation metrics."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from tasks.monitoring import plots
from tasks.monitoring.plots import COLOURS, Event, Line
from tasks.monitoring.reflection import WORDS

Interval = Mapping[str, float]  # mean, low, high
FAMILY_COLOURS = ("blue", "vermilion", "green", "purple", "grey", "ink")
MODEL_COLOURS = {"base": "grey", "zero_no_reflection": "vermilion", "zero": "blue"}


def limit_raised(steps: pd.DataFrame) -> list[Event]:
    """Steps at which the length limit goes up."""
    raised = steps["max_new_tokens"].diff() > 0
    return [Event(step, f"length limit raised to {limit:.0f}") for step, limit in steps.loc[raised, ["step", "max_new_tokens"]].to_numpy()]


def reference_replaced(steps: pd.DataFrame) -> list[Event]:
    """Steps at which the reference model is replaced by the policy (its age falls)."""
    return [Event(float(step), "reference replaced") for step in steps.loc[steps["reference_age"].diff() < 0, "step"]]


def take_off(step: int | None) -> list[Event]:
    """The detected take-off of "wait", if any."""
    return [] if step is None else [Event(step, f"take-off of “wait”: step {step}")]


def line(steps: pd.DataFrame, column: str, label: str, colour: str, points: bool = False) -> Line:
    """One column of the per-step table as a series."""
    return Line(steps["step"].to_list(), steps[column].to_list(), label, colour, points)


def accuracy_lines(steps: pd.DataFrame) -> list[Line]:
    return [
        line(steps, "accuracy", "training", "blue"),
        line(steps, "validation_pass1", "validation", "green", points=True),
    ]


def training_curves(
    steps: pd.DataFrame, takeoff_step: int | None, names: Collection[str] | None = None, prefix: str = ""
) -> dict[str, str]:  # fmt: skip
    """The curves over RL steps as SVG, by name with its prefix; all of them, or those of `names`."""
    raised, takeoff = limit_raised(steps), take_off(takeoff_step)
    share = {"percent": True, "ylim": (0.0, 1.0)}
    specs: dict[str, tuple[list[Line], dict[str, Any]]] = {
        "accuracy": (accuracy_lines(steps), {"ylabel": "correct answers", "events": raised + takeoff, **share}),
        "length": (
            [line(steps, "length", "", "blue")],
            {"ylabel": "response length (tokens)", "events": raised, "ylim": (0.0, None)},
        ),
        "wait": (
            [line(steps, "wait_share", "", "blue")],
            {"ylabel": "samples that say “wait”", "events": takeoff, "percent": True, "ylim": (0.0, None)},
        ),
        "reward": (
            [
                line(steps, "reward", "total", "blue"),
                line(steps, "reward_accuracy", "accuracy", "green"),
                line(steps, "reward_format", "format", "purple"),
                line(steps, "reward_preference", "reward model", "vermilion"),
            ],
            {"ylabel": "reward (points per sample)", "events": raised, "ylim": (0.0, None)},
        ),
        "language": (
            [
                line(steps, "language_consistency", "consistency", "blue"),
                line(steps, "mixed_language", "mixed", "vermilion"),
            ],
            {"ylabel": "share of words, of thoughts", "events": takeoff, **share},
        ),
        "defects": (
            [
                line(steps, "repetition", "repetition", "purple"),
                line(steps, "no_answer", "no answer", "grey"),
                line(steps, "truncated", "truncated", "vermilion"),
            ],
            {"ylabel": "share of completions", "events": raised, "percent": True, "ylim": (0.0, None)},
        ),
        "entropy": ([line(steps, "entropy", "", "blue")], {"ylabel": "entropy (nats per token)", "ylim": (0.0, None)}),
        "kl": (
            [line(steps, "kl", "", "blue")],
            {
                "ylabel": "KL to the reference (nats per token)",
                "events": reference_replaced(steps),
                "ylim": (0.0, None),
            },
        ),
        "gradient": (
            [line(steps, "grad_norm", "", "blue")],
            {"ylabel": "gradient norm before clipping", "ylim": (0.0, None)},
        ),
        "groups": (
            [
                line(steps, "informative_groups", "informative", "blue"),
                line(steps, "clip_share", "clipped", "vermilion"),
            ],
            {"ylabel": "share of groups, of tokens", **share},
        ),
    }
    return {
        prefix + name: plots.curve(lines, name=prefix + name, alt=_alt(name, lines), **options)
        for name, (lines, options) in specs.items()
        if names is None or name in names
    }


def loss_curve(steps: pd.DataFrame, name: str) -> str:
    """The loss of supervised fine-tuning over its updates, as SVG."""
    lines = [line(steps, "loss", "", "blue")]
    ylabel = "loss (nats per response token)"
    return plots.curve(lines, name=name, alt=_alt("loss", lines, "updates"), ylabel=ylabel, xlabel="update", ylim=(0.0, None))


def monitor(steps: pd.DataFrame, alarm: Mapping[str, Any] | None, name: str) -> str:
    """The reward model's score and the verifiable benchmark over RL steps, as SVG; the window of an alarm is marked."""
    lines = [
        line(steps, "reward_preference", "reward model", "vermilion"),
        line(steps, "validation_pass1", "benchmark", "green", points=True),
    ]
    events = [Event(alarm["first_step"], "they part"), Event(alarm["last_step"], "they part")] if alarm else []
    ylabel = "mean score, pass@1 on validation"
    return plots.curve(lines, name=name, alt=_alt("the monitor", lines), ylabel=ylabel, events=events, percent=True, ylim=(0.0, 1.0))


def _alt(name: str, lines: Sequence[Line], over: str = "RL steps") -> str:
    """First and last value of every series, for readers who do not see the figure."""
    told = []
    for series in lines:
        values = plots.smooth(series.y)
        present = values[np.isfinite(values)]
        if len(present):
            told.append(f"{series.label or name} from {present[0]:.3g} to {present[-1]:.3g}")
    return f"Curve of {name} over {over}: " + ("; ".join(told) or "no values") + "."


def word_curves(steps: pd.DataFrame) -> dict[str, str]:
    """A small curve for each of the ten words, all on one scale so that they can be compared."""
    top = max(float(np.nanmax([plots.smooth(steps[word].to_list()).max() for word in WORDS])), 1.0)
    return {
        word: plots.sparkline(
            line(steps, word, "", "blue"),
            name=f"word-{word}",
            alt=_alt(word, [line(steps, word, word, "blue")]),
            top=top,
        )
        for word in WORDS
    }


def dots(rows: Mapping[str, Mapping[str, Interval]], *, name: str, alt: str) -> str:
    """Pass@1 with its interval for each row (family) and model: dots on horizontal lines, models in their colours."""
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(plots.WIDTH, 0.75 + 0.38 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        for place, intervals in enumerate(rows.values()):
            for model, offset in zip(MODEL_COLOURS, (-0.2, 0.0, 0.2), strict=True):
                if model in intervals:
                    value, colour, height = intervals[model], COLOURS[MODEL_COLOURS[model]], place - offset
                    axes.plot([value["low"], value["high"]], [height] * 2, color=colour, linewidth=1.6, solid_capstyle="round")
                    axes.plot(value["mean"], height, "o", color=colour, markersize=5)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.tick_params(axis="y", labelcolor=COLOURS["ink"])
        axes.invert_yaxis()
        axes.set_xlim(0.0, 1.0)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("pass@1 with 95 % interval")
        axes.grid(axis="x")
        return plots.to_svg(figure, name=name, alt=alt)


def by_level(levels: Mapping[str, Mapping[str, float]], key: str, *, name: str, ylabel: str, percent: bool = False) -> str | None:
    """A metric against the level of a problem, one line a family with at least two levels; None if there is none.

    Args:
        levels: ``by_level`` of an evaluation: "<family>-<level>" to metrics.
        key: of the metric.
    """
    families: dict[str, dict[int, float]] = {}
    for label, metrics in levels.items():
        family, level = label.rsplit("-", 1)
        families.setdefault(family, {})[int(level)] = float(metrics[key])
    lines = [
        Line(sorted(values), [values[level] for level in sorted(values)], family, colour, points=True)
        for (family, values), colour in zip(sorted(f for f in families.items() if len(f[1]) > 1), FAMILY_COLOURS, strict=False)
    ]
    if not lines:
        return None
    limits = (0.0, 1.0) if percent else (0.0, None)
    return plots.curve(
        lines,
        name=name,
        alt=_alt(f"{ylabel} by level", lines),
        ylabel=ylabel,
        xlabel="level of the problem",
        percent=percent,
        ylim=limits,
    )


def save_overview(steps: pd.DataFrame, takeoff_step: int | None, path: Path) -> Path:
    """The README's picture: accuracy, length and "wait" over RL steps, side by side."""
    raised, takeoff = limit_raised(steps), take_off(takeoff_step)
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(12.0, 3.2), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        plots.draw(left, accuracy_lines(steps), ylabel="correct answers", percent=True, ylim=(0.0, 1.0))
        plots.draw(
            middle,
            [line(steps, "length", "", "blue")],
            ylabel="response length (tokens)",
            events=raised,
            ylim=(0.0, None),
        )
        plots.draw(
            right,
            [line(steps, "wait_share", "", "blue")],
            ylabel="samples that say “wait”",
            events=takeoff,
            percent=True,
            ylim=(0.0, None),
        )
        return plots.save_png(figure, path)
