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
DODGE = 0.05  # levels by which the models of a figure stand apart, so that none hides another


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
    """Training accuracy, pass@1 on validation problems, and the majority vote of each rollout's groups (cons@k)."""
    return [
        line(steps, "accuracy", "training", "blue"),
        line(steps, "validation_pass1", "validation", "green", points=True),
        line(steps, "cons", "majority", "purple", points=True),
    ]


def _top(values: pd.Series) -> float | None:
    """Upper limit of an axis that a few single steps would stretch beyond use; None where none would."""
    usual = 1.5 * float(values.quantile(0.95))
    return usual if float(values.max()) > 2 * usual > 0 else None


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
                "ylim": (0.0, _top(steps["kl"])),
            },
        ),
        "gradient": (
            [line(steps, "grad_norm", "", "blue")],
            {"ylabel": "gradient norm before clipping", "ylim": (0.0, _top(steps["grad_norm"]))},
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


def dots(
    rows: Mapping[str, Mapping[str, Interval]], colours: Mapping[str, str], *, name: str, alt: str, xlabel: str, percent: bool = True
) -> str:  # fmt: skip
    """Figures with their intervals as dots on horizontal lines.

    Args:
        rows: for each row its series' intervals; a series may be missing.
        colours: role of each series' colour, in their order from top to bottom within a row.
        name, alt, xlabel: see `plots.curve`.
        percent: shares; the axis ends at 100 %, or where they do if all are small.
    """
    offsets = dict(zip(colours, np.linspace(-0.22, 0.22, len(colours)) if len(colours) > 1 else [0.0], strict=True))
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(plots.WIDTH, 0.75 + max(0.3, 0.13 * len(colours)) * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        for place, intervals in enumerate(rows.values()):
            for series, value in intervals.items():
                colour, height = COLOURS[colours[series]], place + offsets[series]
                axes.plot([value["low"], value["high"]], [height] * 2, color=colour, linewidth=1.6, solid_capstyle="round", clip_on=False)
                axes.plot(value["mean"], height, "o", color=colour, markersize=5, clip_on=False)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.tick_params(axis="y", labelcolor=COLOURS["ink"])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        top = max(value["high"] for intervals in rows.values() for value in intervals.values())
        axes.set_xlim(0.0, 1.0 if percent and top > 0.4 else None)
        if percent:
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel(xlabel)
        axes.grid(axis="x")
        return plots.to_svg(figure, name=name, alt=alt)


def length_by_level(evaluations: Mapping[str, Mapping[str, Any]], colours: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """Response length against the level of a problem with intervals, a line a model; a figure a family of at least two levels.

    Args:
        evaluations: by model; "by_level" maps "<family>-<level>" to metrics.
        colours: for each model its title and its colour's role; others are left out.
    """
    families: dict[str, list[Line]] = {}
    for number, (model, (title, colour)) in enumerate(colours.items()):
        levels: dict[str, dict[int, Mapping[str, Any]]] = {}
        for label, found in (evaluations[model]["by_level"] if model in evaluations else {}).items():
            levels.setdefault(label.rsplit("-", 1)[0], {})[int(label.rsplit("-", 1)[1])] = found
        for family, found in sorted(levels.items()):
            if len(found) > 1:
                families.setdefault(family, []).append(
                    _lengths(dict(sorted(found.items())), title, colour, DODGE * (number - len(colours) // 2))
                )
    return {
        family: plots.curve(
            lines, name=f"level-{family}", alt=_alt(f"length at {family}", lines, "levels"), ylabel="response length (tokens)",
            xlabel="level of the problem", ylim=(0.0, None),
        )
        for family, lines in sorted(families.items())
    }  # fmt: skip


def _lengths(levels: Mapping[int, Mapping[str, Any]], title: str, colour: str, dodge: float) -> Line:
    spread = [found["intervals"].get("length") or {"low": found["length"], "high": found["length"]} for found in levels.values()]
    lengths = [float(found["length"]) for found in levels.values()]
    return Line([level + dodge for level in levels], lengths, title, colour, points=True, around=[(s["low"], s["high"]) for s in spread])


def contrast(
    tables: Mapping[str, pd.DataFrame], column: str, lines: Mapping[str, tuple[str, str]], *, name: str, ylabel: str
) -> str:  # fmt: skip
    """One column of the step tables of several runs over RL steps, as SVG.

    Args:
        tables: by run.
        lines: for each run that is drawn its label and its colour's role.
    """
    drawn = [line(tables[run], column, label, colour) for run, (label, colour) in lines.items() if run in tables]
    return plots.curve(drawn, name=name, alt=_alt(name, drawn), ylabel=ylabel, percent=True, ylim=(0.0, 1.0))


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
