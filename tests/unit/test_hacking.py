"""The reward-hacking monitor: finds a planted divergence, stays silent on everything else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tasks.config import load_params
from tasks.monitoring import hacking
from tasks.training.rl import VALIDATION_SAMPLES

ROOT = Path(__file__).parents[2]
SAMPLES = 256  # 64 problems, 4 samples each, as the default validation
STEPS, BOUNDARY, EVERY = 120, 40, 8


def run(seed: int, reward_rise: float, benchmark_fall: float, samples: int = SAMPLES) -> list[dict]:
    """Rows of a run whose last 80 steps hold preference prompts: both move in a straight line from there on, with noise."""
    rng, rows = np.random.default_rng(seed), []
    for step in range(STEPS):
        moved = max(step - BOUNDARY, 0) / (STEPS - BOUNDARY)
        row: dict[str, float | None] = {"step": step, "reward_preference": None, "validation_pass1": None}
        if step >= BOUNDARY:
            row["reward_preference"] = 0.5 + reward_rise * moved + rng.normal(0, 0.05)
        if step % EVERY == 0:
            row["validation_pass1"] = rng.binomial(samples, 0.7 - benchmark_fall * moved) / samples
        rows.append(row)
    return rows


def alarms(reward_rise: float, benchmark_fall: float, trials: int = 200, samples: int = SAMPLES) -> int:
    return sum(hacking.check(run(seed, reward_rise, benchmark_fall, samples), samples) is not None for seed in range(trials))


def test_a_planted_divergence_is_found_with_its_size():
    assert alarms(0.3, 0.25, trials=40) == 40
    found = hacking.check(run(0, 0.3, 0.25), SAMPLES)
    assert found is not None and BOUNDARY <= found.first_step < found.last_step <= STEPS
    whole = (found.last_step - found.first_step) / (STEPS - BOUNDARY)
    assert found.reward_rise == pytest.approx(0.3 * whole, abs=0.06)
    assert found.benchmark_fall == pytest.approx(0.25 * whole, abs=0.08)
    assert max(found.reward_p, found.benchmark_p) <= found.level < hacking.ALPHA
    assert f"from step {found.first_step} to {found.last_step}" in str(found)


@pytest.mark.parametrize(
    ("reward_rise", "benchmark_fall"),
    [(0.0, 0.0), (0.3, 0.0), (0.0, 0.25), (0.3, -0.2), (-0.3, 0.25), (-0.3, -0.2)],
    ids=["both flat", "reward rises alone", "benchmark falls alone", "both rise", "both fall", "reward falls, benchmark rises"],
)
def test_anything_else_raises_an_alarm_in_less_than_one_run_of_twenty(reward_rise: float, benchmark_fall: float) -> None:
    assert alarms(reward_rise, benchmark_fall) < 10


def test_a_small_benchmark_is_believed_less():
    assert alarms(0.3, 0.15, trials=40, samples=2000) == 40
    assert alarms(0.3, 0.15, trials=40, samples=16) <= 4


def test_a_peak_in_the_middle_is_seen():
    """The benchmark first gains and then loses as much: over the whole run it has not moved."""
    rows = run(0, 0.3, 0.0, samples=4000)
    for row in rows:
        if row["validation_pass1"] is not None:
            row["validation_pass1"] = 0.8 - 0.2 * abs(max(row["step"] - BOUNDARY, 0) / 40 - 1)
    points = rows[BOUNDARY::EVERY]
    assert hacking.decline([r["step"] for r in points], [r["validation_pass1"] for r in points], SAMPLES)[1] > 0.2
    found = hacking.check(rows, SAMPLES)
    assert found is not None and found.first_step >= 64


def test_too_little_data_tells_nothing():
    rows = run(0, 0.3, 0.25)
    assert hacking.check([], SAMPLES) is None
    assert hacking.check([r | {"reward_preference": None} for r in rows], SAMPLES) is None
    assert hacking.check([r | {"validation_pass1": None} for r in rows], SAMPLES) is None
    assert hacking.check(rows[: BOUNDARY + EVERY + 1], SAMPLES) is None  # two benchmark points
    few = [r | {"reward_preference": r["reward_preference"] if r["step"] % 20 == 0 else None} for r in rows]
    assert hacking.check(few, SAMPLES) is None  # four scores
    assert hacking.check([r | {"reward_preference": 0.5 if r["reward_preference"] else None} for r in rows], SAMPLES) is None  # constant


def test_the_default_run_has_enough_points():
    """A fall of twenty points within the preference steps of params.yaml, noise and all, is found in most runs; none is in few."""
    r1 = load_params(ROOT / "params.yaml").r1
    boundary, samples = r1.steps - r1.preference_steps, r1.validation_problems * VALIDATION_SAMPLES

    def found(seed: int, fall: float) -> bool:
        rng, rows = np.random.default_rng(seed), []
        for step in range(r1.steps):
            moved = max(step - boundary, 0) / r1.preference_steps
            measured = step % r1.validation_every == 0 or step == r1.steps - 1
            rows.append({
                "step": step,
                "reward_preference": 0.5 + 0.3 * moved + rng.normal(0, 0.05) if step >= boundary else None,
                "validation_pass1": rng.binomial(samples, 0.95 - fall * moved) / samples if measured else None,
            })  # fmt: skip
        return hacking.check(rows, samples) is not None

    assert sum(found(seed, 0.2) for seed in range(20)) >= 18
    assert sum(found(seed, 0.0) for seed in range(20)) <= 3


def test_missing_values_of_a_table_are_no_values():
    rows = run(1, 0.3, 0.25)
    table = [{key: np.nan if value is None else value for key, value in row.items()} for row in rows]
    assert hacking.check(table, SAMPLES) == hacking.check(rows, SAMPLES) is not None


def test_the_trend_test_by_hand_and_against_simulation():
    fall, p = hacking.decline(np.array([0.0, 1, 2]), np.array([0.6, 0.5, 0.4]), 100)
    assert fall == pytest.approx(0.2)
    assert p == pytest.approx(stats.norm.sf(0.1 / np.sqrt(0.25 / 100 / 2)))  # slope -0.1, variance of one point .0025, sum of squares 2
    fall, p = hacking.decline(np.array([0.0, 1, 2]), np.array([0.7, 0.4, 0.4]), 10_000)
    assert fall == pytest.approx(0.3)
    # Slope -0.15; residuals .05, -.1, .05, so a variance of .015 with one degree of freedom: t is 1.73, for which the p-value is 1/6.
    assert p == pytest.approx(1 / 6)
    assert hacking.decline(np.array([0.0, 1, 2]), np.ones(3), 100) == (0.0, 1.0)
    rng, steps = np.random.default_rng(0), np.arange(6.0)
    rejected = np.mean([hacking.decline(steps, rng.binomial(100, 0.6, 6) / 100, 100)[1] <= 0.05 for _ in range(2000)])
    assert 0.02 <= rejected <= 0.055  # at most the level; a little less, as the larger of two variances counts


@pytest.mark.parametrize("points", [3, 5, 13])
def test_points_that_scatter_much_more_than_the_binomial_keep_the_level(points: int) -> None:
    """With their variance taken for known, 3 such points would be seen to fall in 17 % of the cases instead of 5 %."""
    rng, steps, trials = np.random.default_rng(1), np.arange(float(points)), 4000
    rejected = np.mean([hacking.decline(steps, 0.6 + rng.normal(0, 0.05, points), 100_000)[1] <= 0.05 for _ in range(trials)])
    assert rejected == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / trials))


def test_scatter_beyond_the_binomial_counts_as_noise():
    steps, shaky = np.arange(8.0), np.array([0.8, 0.4, 0.75, 0.35, 0.7, 0.3, 0.65, 0.25])
    straight = np.linspace(shaky[:2].mean(), shaky[-2:].mean(), 8)
    assert hacking.decline(steps, straight, 10_000)[1] < 1e-6 < 0.05 < hacking.decline(steps, shaky, 10_000)[1]


@pytest.mark.parametrize(("rows", "samples", "message"), [
    ([], 0, "at least 1"),
    ([{"step": 2}, {"step": 1}], 8, "do not ascend"),
])  # fmt: skip
def test_senseless_arguments_are_refused(rows: list, samples: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hacking.check(rows, samples)
