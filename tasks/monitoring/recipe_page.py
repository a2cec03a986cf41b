"""What the report shows of the recipe from Zero to R1: the stage table, and each stage's curves and examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.config import fingerprint
from tasks.monitoring import examples, figures, stage_table
from tasks.monitoring.stage_table import STAGES

CURVES = {
    "dev2": ("accuracy", "language", "length", "wait", "reward", "entropy"),
    "r1": ("accuracy", "language", "length", "wait", "reward", "entropy"),
}

# Sections of params.yaml behind the price of the language reward, from the data to the evaluation of dev2.
PRICED = ("curate", "rl", "zero", "cold_start", "sft", "dev1", "dev2", "evaluate")


def price_settings(params: Mapping[str, Any]) -> str:
    """Fingerprint of the parameters with which the price of the language reward is measured; seeds apart, as it is a mean over them.

    Args:
        params: params.yaml as it stands, defaults not filled in.
    """
    return fingerprint([{key: value for key, value in params.get(name, {}).items() if key != "seed"} for name in PRICED])


def price_is_old(inputs: Mapping[str, Any]) -> bool:
    """Whether the price was measured with other parameters than those of params.yaml; False if either is missing."""
    price, params = inputs["language_price"], inputs["params"]
    return bool(price and params) and price.get("settings") != price_settings(params)


def _curves(inputs: Mapping[str, Any]) -> dict[str, str]:
    """SVG by name: "dev2-accuracy", "r1-monitor", "dev1-loss" and so on, for the stages that have been trained."""
    found: dict[str, str] = {}
    for stage, names in CURVES.items():
        if inputs[f"{stage}_steps"] is not None:
            found |= figures.training_curves(inputs[f"{stage}_steps"], None, names, prefix=f"{stage}-")
    for stage in ("dev1", "dev3"):
        if inputs[f"{stage}_steps"] is not None:
            found[f"{stage}-loss"] = figures.loss_curve(inputs[f"{stage}_steps"], f"{stage}-loss")
    if inputs["r1_steps"] is not None:
        alarm = (inputs["r1_summary"] or {}).get("hacking")
        found["r1-monitor"] = figures.monitor(inputs["r1_steps"], alarm, "r1-monitor")
    return found


def _examples(inputs: Mapping[str, Any]) -> list[examples.OpenExample]:
    dev3, r1 = inputs["samples_dev3_open"], inputs["samples_r1_open"]
    return [] if dev3 is None or r1 is None else examples.open_examples(dev3, r1)


def context(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What the template's parts on the stages need; ``figure`` holds SVG by name."""
    evaluations = {stage: inputs[f"evaluate_{stage}"] for stage in STAGES}
    return {
        "stages": STAGES,
        "blocks": stage_table.blocks(evaluations, inputs["compare"]),
        "left_out": stage_table.left_out(evaluations),
        "paper_stages": stage_table.PAPER,
        "price_is_old": price_is_old(inputs),
        "figure": _curves(inputs),
        "open_examples": _examples(inputs),
        "how_open": examples.HOW_OPEN,
    }
