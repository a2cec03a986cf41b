"""What the report shows of the ablations: one change at a time, on the same data and the same number of samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.monitoring import figures
from tasks.monitoring.sources import ABLATIONS
from tasks.monitoring.stage_table import Interval

Inputs = Mapping[str, Any]  # see sources.load
COLOURS = {"pass@1": "blue", "cons": "green"}

# Name of a figure -> column, label of its axis, and the runs that it sets beside each other with label and colour.
CONTRASTS: dict[str, tuple[str, str, dict[str, tuple[str, str]]]] = {
    "ablation-ppo": ("accuracy", "correct answers", {
        "grpo": ("GRPO", "blue"), "ppo_lambda_1": ("PPO, λ 1", "green"), "ppo_lambda_095": ("PPO, λ 0.95", "vermilion")}),
    "ablation-ratio": ("accuracy", "correct answers", {"grpo": ("token", "blue"), "sequence_level": ("sequence", "vermilion")}),
    "ablation-clip": ("accuracy", "correct answers", {"clip_10": ("clip 10", "blue"), "clip_02": ("clip 0.2", "vermilion")}),
    "ablation-language": ("language_consistency", "language consistency", {
        "language_on": ("rewarded", "blue"), "language_off": ("not", "vermilion")}),
}  # fmt: skip


def _interval(value: Any) -> Interval | None:
    """A figure with its interval; a bare number has none to show but itself."""
    return value if value is None or isinstance(value, Mapping) else {"mean": value, "low": value, "high": value}


def _row(told: Mapping[str, Any]) -> dict[str, Any]:
    found = told["evaluation"]
    cons = next((value for key, value in found.items() if key.startswith("cons@")), None)
    figures_ = {key: _interval(found.get(key)) for key in ("pass@1", "language_consistency", "mixed_share", "wait_share", "length")}
    flops = (told.get("flops") or {}).get("total")
    return {
        **told,
        **figures_,
        "cons": _interval(cons),
        "flops": flops,
        "settings": told.get("settings") or {},
        "same_as": told.get("same_as"),
    }


def _figures(inputs: Inputs, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    tables = {a: inputs[f"ablation_{a}_steps"] for a in ABLATIONS if inputs[f"ablation_{a}_steps"] is not None}
    drawn = {
        name: figures.contrast(tables, column, lines, name=name, ylabel=ylabel)
        for name, (column, ylabel, lines) in CONTRASTS.items()
        if len(lines.keys() & tables.keys()) > 1
    }
    told = {row["title"]: {series: row[series] for series in COLOURS if row[series]} for row in rows.values()}
    if told:
        alt = "Pass@1 and majority vote of each ablation; the table has the numbers."
        drawn["ablations"] = figures.dots(told, COLOURS, name="ablations", alt=alt, xlabel="solved, with 95 % interval")
    return drawn


def context(inputs: Inputs) -> dict[str, Any]:
    """What the template's part on ablations needs; ``figure`` holds SVG by name."""
    rows = {a: _row(told) for a in ABLATIONS if (told := inputs[f"ablation_{a}"])}
    lacking = [name for a in ABLATIONS for name in (f"ablation_{a}", f"ablation_{a}_steps") if inputs[name] is None]
    return {"ablations": rows, "ablation_lacking": lacking, "figure": _figures(inputs, rows)}
