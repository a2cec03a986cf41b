"""The claims' rules: each is met on one side of its threshold and not on the other."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from tasks.monitoring import claims
from tasks.monitoring.sources import SOURCES


def around(mean: float, half: float = 0.01) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def evaluated(solved: float = 0.5, **figures: Any) -> dict[str, Any]:
    """An evaluation with the figures that the claims read; those named differ from the usual ones."""
    usual = {"length": around(20, 1), "wait_share": around(0.1), "mixed_share": around(0.1), "language_consistency": around(0.97)}
    open_figures = {"unsafe": around(0.5), "refusal": around(0.1), "trivial_thought": around(8, 1)}
    found = usual | open_figures | figures
    return {
        "pass@1": around(solved), "cons": figures.get("cons", around(solved)), "words_per_1000_samples": figures.get("words", {"wait": 10}),
        "intervals": {name: found[name] for name in usual}, "open": {name: found[name] for name in open_figures},
        "by_level": figures.get("by_level", {}),
    }  # fmt: skip


def ablation(solved: float, language: Any = 0.9, memory: float = 1.0, seconds: float = 1.0) -> dict[str, Any]:
    return {"evaluation": {"pass@1": around(solved), "language_consistency": language}, "state_bytes": memory, "seconds": seconds}


def steps(takeoff: int) -> pd.DataFrame:
    """100 steps in which "wait" rises from 0 to .5 within 20 steps from `takeoff` on."""
    return pd.DataFrame({"step": range(100), "wait_share": [min(max((i - takeoff) / 40, 0.0), 0.5) + 0.002 * (i % 3) for i in range(100)]})


def levels(top: float) -> dict[str, Any]:
    return {"calc-1": {"length": 10}, "calc-2": {"length": 30}, "calc-5": {"length": 10 * top}, "expr-3": {"length": 90}}


def preferred(low: float) -> dict[str, Any]:
    return {"models": {"r1": {"preferred": {"half": {"mean": 0.6, "low": low, "high": 0.7}}}, "base": {"preferred": {"half": around(0.3)}}}}


ALARM = {"first_step": 3, "last_step": 9, "reward_rise": 0.1, "benchmark_fall": 0.2}
# Beginning of the claim -> inputs that meet the rule, and inputs that just do not.
SIDES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "RL on the base": ({"evaluate_base": evaluated(0.2), "evaluate_zero": evaluated(0.31)}, {"evaluate_zero": evaluated(0.29)}),
    "A majority vote": (
        {"evaluate_base": evaluated(), "evaluate_zero": evaluated(0.9, cons=around(0.911))},
        {"evaluate_zero": evaluated(0.9, cons=around(0.909))},
    ),
    "Answers grow": (
        {"evaluate_base": evaluated(), "evaluate_zero": evaluated(length=around(31, 1))},
        {"evaluate_zero": evaluated(length=around(29, 1))},
    ),
    "Reflective words": (
        {"evaluate_base": evaluated(), "evaluate_zero": evaluated(words={"wait": 30, "but": 20})},
        {"evaluate_zero": evaluated(words={"wait": 49})},
    ),
    "“Wait” becomes": (
        {"evaluate_base": evaluated(), "evaluate_zero": evaluated(wait_share=around(0.13))},
        {"evaluate_zero": evaluated(wait_share=around(0.119))},
    ),
    "“Wait” is absent": ({"zero_steps": steps(30), "zero_summary": {"seed": 0}}, {"zero_steps": steps(0)}),
    "Zero mixes": (
        {"evaluate_base": evaluated(), "evaluate_zero": evaluated(mixed_share=around(0.13))},
        {"evaluate_zero": evaluated(mixed_share=around(0.11))},
    ),
    "The cold start": ({"evaluate_zero": evaluated(0.9), "evaluate_dev1": evaluated(0.87)}, {"evaluate_dev1": evaluated(0.89)}),
    "Reasoning RL": ({"evaluate_dev1": evaluated(0.8), "evaluate_dev2": evaluated(0.83)}, {"evaluate_dev2": evaluated(0.81)}),
    "The language reward makes": (
        {"evaluate_zero": evaluated(language_consistency=around(0.8)), "evaluate_dev2": evaluated(language_consistency=around(0.951))},
        {"evaluate_dev2": evaluated(language_consistency=around(0.949))},
    ),
    "The language reward costs": (
        {"ablation_language_on": ablation(0.86, around(0.95)), "ablation_language_off": ablation(0.9, 0.8)},
        {"ablation_language_on": ablation(0.84, 0.95)},
    ),
    "SFT on the mix": (
        {"evaluate_dev2": evaluated(0.9), "evaluate_dev3": evaluated(0.95), "evaluate_r1": evaluated(0.885)},
        {"evaluate_r1": evaluated(0.875)},
    ),
    "Preference RL": ({"compare": preferred(0.51)}, {"compare": preferred(0.49)}),
    "Safety RL lowers": (
        {"evaluate_dev3": evaluated(), "evaluate_r1": evaluated(unsafe=around(0.47))},
        {"evaluate_r1": evaluated(unsafe=around(0.49))},
    ),
    "Safety RL makes": (
        {"evaluate_dev3": evaluated(), "evaluate_r1": evaluated(refusal=around(0.13))},
        {"evaluate_r1": evaluated(refusal=around(0.11))},
    ),
    "A helpfulness reward": ({"r1_summary": {"hacking": ALARM}}, {"r1_summary": {"hacking": None}}),
    "Thinking adapts": ({"evaluate_r1": evaluated(by_level=levels(1.6))}, {"evaluate_r1": evaluated(by_level=levels(1.4))}),
    "Trivial prompts": (
        {"evaluate_zero": evaluated(), "evaluate_r1": evaluated(trivial_thought=around(5, 1))},
        {"evaluate_r1": evaluated(trivial_thought=around(7, 1))},
    ),
    "Distillation beats RL at the same compute (small": (
        {"evaluate_rl_small": evaluated(0.6), "evaluate_distill_small": evaluated(0.69)},
        {"evaluate_distill_small": evaluated(0.67)},
    ),
    "Distillation beats RL at the same compute (tiny": (
        {"evaluate_rl_tiny": evaluated(0.4), "evaluate_distill_tiny": evaluated(0.49)},
        {"evaluate_distill_tiny": evaluated(0.47)},
    ),
    "PPO at lambda 1": (
        {"ablation_grpo": ablation(0.9), "ablation_ppo_lambda_1": ablation(0.92)},
        {"ablation_ppo_lambda_1": ablation(0.86)},
    ),
    "PPO at the usual": (
        {"ablation_grpo": ablation(0.9), "ablation_ppo_lambda_095": ablation(0.84)},
        {"ablation_ppo_lambda_095": ablation(0.86)},
    ),
    "PPO costs": (
        {"ablation_grpo": ablation(0.9), "ablation_ppo_lambda_1": ablation(0.9, 0.9, 1.3, 1.1)},
        {"ablation_ppo_lambda_1": ablation(0.9, 0.9, 1.3, 0.9)},
    ),
    "A small clip": ({"ablation_clip_10": ablation(0.9), "ablation_clip_02": ablation(0.84)}, {"ablation_clip_02": ablation(0.96)}),
    "Ratios of tokens": (
        {"ablation_grpo": ablation(0.9), "ablation_sequence_level": ablation(0.84)},
        {"ablation_sequence_level": ablation(0.86)},
    ),
}


def row(beginning: str, inputs: dict[str, Any]) -> claims.Row:
    found = [r for r in claims.table(dict.fromkeys(SOURCES) | inputs) if r.claim.what.startswith(beginning)]
    assert len(found) == 1, beginning
    return found[0]


def test_every_claim_is_tried_on_both_sides() -> None:
    assert all(sum(c.what.startswith(name) for name in SIDES) == 1 for c in claims.CLAIMS) and len(SIDES) == len(claims.CLAIMS)


@pytest.mark.parametrize("beginning", SIDES)
def test_a_rule_decides_at_its_threshold(beginning: str) -> None:
    met, other = SIDES[beginning]
    assert row(beginning, met).verdict == "shown"
    assert row(beginning, met | other).verdict == "not shown"


@pytest.mark.parametrize("beginning", SIDES)
def test_without_an_input_a_claim_is_not_run_and_says_which_command_runs_it(beginning: str) -> None:
    found = row(beginning, {})
    assert (found.verdict, found.text) == ("not run", "")
    assert found.missing == tuple(SOURCES[name] for name in found.claim.needs) and set(SIDES[beginning][0]) == set(found.claim.needs)


def test_intervals_that_touch_are_not_apart() -> None:
    assert (
        claims.apart(around(0.5), around(0.521))
        and not claims.apart(around(0.5), around(0.51))
        and not claims.apart(around(0.5), around(0.4))
    )
    one = {"evaluate_base": evaluated(0.2), "evaluate_zero": evaluated(0.35)}
    wide = one | {"evaluate_zero": evaluated(0.35) | {"pass@1": around(0.35, 0.2)}}
    assert row("RL on the base", one).verdict == "shown" and row("RL on the base", wide).verdict == "not shown"


def test_memory_and_time_are_both_asked_of_ppo() -> None:
    one = {"ablation_grpo": ablation(0.9), "ablation_ppo_lambda_1": ablation(0.9, 0.9, 1.1, 2.0)}
    assert row("PPO costs", one).verdict == "not shown"
    assert row("PPO costs", one).text == "1.10 times the memory of weights, moments and gradients, 2.00 times the seconds"


def test_figures_come_with_their_intervals() -> None:
    assert row("RL on the base", SIDES["RL on the base"][0]).text == "20.0 % (19.0–21.0) → 31.0 % (30.0–32.0)"
    assert row("Answers grow", SIDES["Answers grow"][0]).text == "20.0 (19.0–21.0) → 31.0 (30.0–32.0)"
    assert row("Thinking adapts", SIDES["Thinking adapts"][0]).text.startswith("1.6 times")  # expr has one level: no ratio
    assert row("Preference RL", {"compare": preferred(0.51)}).text.endswith("; the base: 30.0 % (29.0–31.0)")
    assert "take-off at step" in row("“Wait” is absent", SIDES["“Wait” is absent"][0]).text


def test_what_the_prompts_do_not_give_is_not_run() -> None:
    silent = {"evaluate_dev3": evaluated(unsafe=None), "evaluate_r1": evaluated(unsafe=None)}
    assert row("Safety RL lowers", silent).verdict == "not run" and not row("Safety RL lowers", silent).missing
    assert row("Reflective words", {"evaluate_base": evaluated(words={"wait": 0}), "evaluate_zero": evaluated()}).verdict == "not run"
    assert row("Preference RL", {"compare": {"models": {}}}).verdict == "not run"
    flat = {"zero_steps": steps(30).assign(wait_share=0.1), "zero_summary": {"seed": 0}}
    assert row("“Wait” is absent", flat).verdict == "not shown" and "no take-off" in row("“Wait” is absent", flat).text
