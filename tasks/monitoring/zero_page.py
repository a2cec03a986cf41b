"""What the report shows of R1-Zero: its training, its words, and base, Zero and the control on held-out problems."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from markupsafe import Markup

from tasks.evaluation import metrics
from tasks.monitoring import examples, figures
from tasks.monitoring.changepoint import takeoff
from tasks.monitoring.reflection import CHINESE, WORDS

MODELS = {"base": "Base", "zero_no_reflection": "Zero, reflection forbidden", "zero": "Zero"}
COLOURS = {"base": "grey", "zero_no_reflection": "vermilion", "zero": "blue"}
GROUPS = {"by_domain": "Domain", "by_family": "Family", "by_language": "Language of the question"}
LEVELS = {"by_level": "Family and level"}


def _solved(samples: pd.DataFrame) -> pd.Series:
    """Share of correct samples of each problem."""
    return samples.groupby("prompt_id")["correct"].mean()


def cost_of_forbidding(inputs: Mapping[str, Any]) -> dict[str, float] | None:
    """Pass@1 lost by the same weights when reflective words are forbidden, paired by problem."""
    free, forbidden = inputs["samples_zero"], inputs["samples_zero_no_reflection"]
    if free is None or forbidden is None:
        return None
    return metrics.spread((_solved(free) - _solved(forbidden)).dropna())


def right_if_well_formed(samples: pd.DataFrame | None) -> float | None:
    """Share of right answers among the well-formed samples; None without any."""
    if samples is None or not samples["format"].any():
        return None
    return float(samples.loc[samples["format"], "correct"].mean())


def comparison(inputs: Mapping[str, Any], kinds: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows of the table of models: for each kind of group its title, then names with each model's metrics."""
    evaluations = {m: inputs[f"evaluate_{m}"] for m in MODELS if inputs[f"evaluate_{m}"]}
    rows: list[dict[str, Any]] = []
    for kind, title in kinds.items():
        names = sorted({name for e in evaluations.values() for name in e[kind]})
        rows += [{"title": title}] if names else []
        for name in names:
            found = {m: _group(e[kind][name], e["samples_per_problem"]) for m, e in evaluations.items() if name in e[kind]}
            rows.append({"name": name, "kind": kind, "models": found})
    return rows


def _group(group: Mapping[str, Any], k: int) -> dict[str, Any]:
    return {**group, "cons": group[f"cons@{k}"], "interval": group["intervals"]["pass@1"]}


def total(inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table's first row, all problems; empty without any evaluation."""
    found = {m: _overall(inputs[f"evaluate_{m}"]) for m in MODELS if inputs[f"evaluate_{m}"]}
    return [{"name": "All problems", "total": True, "models": found}] if found else []


def _overall(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation's totals in the shape of one of its groups."""
    return {
        "problems": evaluation["problems"],
        "pass@1": evaluation["pass@1"]["mean"],
        "interval": evaluation["pass@1"],
        "cons": evaluation["cons"]["mean"],
        "wait_share": evaluation["wait_share"],
        "length": evaluation["length"]["mean"],
        "language_consistency": evaluation["language_consistency"],
    }


def takeoff_step(inputs: Mapping[str, Any]) -> int | None:
    """The step at which "wait" takes off, with the seed that `zero` used, so that both say the same."""
    steps, summary = inputs["zero_steps"], inputs["zero_summary"] or {}
    return None if steps is None else takeoff(steps["wait_share"], steps["step"], seed=summary.get("seed", 0))


def word_ratio(base: Mapping[str, Any] | None, zero: Mapping[str, Any] | None) -> float | None:
    """How many times as many reflective words Zero writes as the base; None if unknown or the base writes none."""
    if not base or not zero:
        return None
    before, after = (sum(e["words_per_1000_samples"].values()) for e in (base, zero))
    return after / before if before else None


def word_table(steps: pd.DataFrame) -> list[dict[str, Any]]:
    """For each word: Chinese counterparts, occurrences per 1,000 samples in the first and last tenth of the steps."""
    tenth = max(len(steps) // 10, 1)
    return [
        {
            "word": word,
            "chinese": "、".join(entry.split("|")[1] if "|" in entry else entry for entry in CHINESE[word]),
            "first": float(steps[word].head(tenth).mean()),
            "last": float(steps[word].tail(tenth).mean()),
        }
        for word in WORDS
    ]


def _side_by_side(inputs: Mapping[str, Any], shown: int) -> list[examples.Example]:
    test, base, zero = inputs["test"], inputs["samples_base"], inputs["samples_zero"]
    return [] if test is None or base is None or zero is None else examples.examples(test, base, zero, shown)


def _family_dots(rows: list[dict[str, Any]]) -> str | None:
    """The figure of pass@1 by family, for the rows of the families in the table of models."""
    families = [row for row in rows if row.get("kind") == "by_family"]
    told = {row["name"]: {m: g["interval"] for m, g in row["models"].items() if g["interval"]} for row in families}
    alt = "Pass@1 of the models by family; the table has the numbers."
    return figures.dots(told, COLOURS, name="families", alt=alt, xlabel="pass@1 with 95 % interval") if told else None


def context(inputs: Mapping[str, Any], shown: int) -> dict[str, Any]:
    """What the template's part on R1-Zero needs; at most ``shown`` problems side by side. ``figure`` holds SVG by name."""
    steps, rows = inputs["zero_steps"], comparison(inputs, GROUPS)
    step = takeoff_step(inputs)
    curves = {} if steps is None else figures.training_curves(steps, step)
    return {
        "models": MODELS,
        "takeoff_step": step,
        "last_step": None if steps is None else int(steps["step"].iloc[-1]),
        "limits": [] if steps is None else [e.step for e in figures.limit_raised(steps)],
        "figure": curves | {"families": _family_dots(rows)},
        "word_figure": {} if steps is None else {word: Markup(svg) for word, svg in figures.word_curves(steps).items()},
        "words": [] if steps is None else word_table(steps),
        "rows": total(inputs) + rows,
        "level_rows": comparison(inputs, LEVELS),
        "cost": cost_of_forbidding(inputs),
        "formed": right_if_well_formed(inputs["samples_zero_no_reflection"]),
        "word_ratio": word_ratio(inputs["evaluate_base"], inputs["evaluate_zero"]),
        "examples": _side_by_side(inputs, shown),
        "how_picked": examples.HOW,
    }
