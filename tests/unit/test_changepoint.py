"""The take-off detector: finds planted rises, stays silent on noise."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.monitoring.changepoint import best_rise, takeoff

N, START, BASE, RISE = 80, 30, 0.05, 0.45


def noise(rng: np.random.Generator, n: int, phi: float, scale: float) -> np.ndarray:
    """Stationary AR(1) noise with standard deviation ``scale``."""
    drawn = rng.standard_normal(n)
    for t in range(1, n):
        drawn[t] = phi * drawn[t - 1] + np.sqrt(1 - phi**2) * drawn[t]
    return scale * drawn


def planted(shape: str) -> np.ndarray:
    """A share that leaves its baseline at step START."""
    t = np.arange(N)
    shapes = {
        "step": (t >= START).astype(float),
        "ramp": np.clip((t - START + 1) / 20, 0, 1),
        "trend": np.clip((t - START + 1) / (N - START), 0, 1),
        "sigmoid": 1 / (1 + np.exp(-(t - START - 10) / 3)),  # 3.5 % of its height at START
    }
    return BASE + RISE * shapes[shape]


@pytest.mark.parametrize("phi", [0.0, 0.5])
@pytest.mark.parametrize(("scale", "within"), [(0.0, 3), (0.02, 5), (0.05, 10)])
@pytest.mark.parametrize("shape", ["step", "ramp", "trend", "sigmoid"])
def test_finds_a_planted_take_off_within_a_few_steps(shape: str, scale: float, within: int, phi: float) -> None:
    rng = np.random.default_rng(1)
    for _ in range(10):
        found = takeoff(planted(shape) + noise(rng, N, phi, scale))
        assert found is not None and abs(found - START) <= within


def test_a_step_is_located_exactly() -> None:
    assert takeoff(planted("step") + noise(np.random.default_rng(2), N, 0.0, 0.05)) == START


@pytest.mark.parametrize("n", [24, 80])
@pytest.mark.parametrize("phi", [0.0, 0.5])
def test_false_alarms_on_flat_noise_are_rarer_than_one_in_twenty(phi: float, n: int) -> None:
    rng = np.random.default_rng(3)
    alarms = sum(takeoff(0.3 + noise(rng, n, phi, 0.1)) is not None for _ in range(200))
    assert alarms < 10


def test_false_alarms_do_not_depend_on_the_scale_or_the_level() -> None:
    series = 0.3 + noise(np.random.default_rng(4), N, 0.5, 0.1)
    first, second = best_rise(series), best_rise(1000 * series - 7)
    assert first is not None and second is not None
    assert (first.step, first.p_value) == (second.step, second.p_value)


@pytest.mark.parametrize(
    "series",
    [
        np.full(N, 0.07),
        np.zeros(N),
        planted("ramp")[::-1],
        planted("step")[::-1] + noise(np.random.default_rng(5), N, 0.0, 0.02),
        np.zeros(0),
        planted("step")[START - 5 : START + 5],  # ten points
        np.full(N, np.nan),
        np.append(np.full(N - 2, 0.05), [0.9, 0.9]),  # two points at the end are no take-off
        np.where(np.arange(N) == 60, 0.9, 0.05),
    ],
    ids=["constant", "zero", "falling", "noisy fall", "empty", "short", "missing", "last two points", "one spike"],
)
def test_stays_silent_without_a_take_off(series: np.ndarray) -> None:
    assert takeoff(series) is None


def test_a_rise_below_the_minimal_height_is_no_take_off() -> None:
    small = 0.05 + 0.03 * (np.arange(N) >= START)
    assert takeoff(small) is None
    assert takeoff(small, min_rise=0.02) == START


def test_step_numbers_missing_values_and_long_series() -> None:
    values, steps = planted("step"), np.arange(N) * 10 + 5
    values[3] = values[40] = np.nan
    assert takeoff(values, steps) == 10 * START + 5
    long = np.repeat(planted("step"), 130)  # 10,400 steps, as in the paper
    assert takeoff(long) == pytest.approx(130 * START, abs=82)  # exact to one bin of 82 steps


def test_the_answer_is_a_pure_function_of_the_arguments() -> None:
    series = planted("sigmoid") + noise(np.random.default_rng(6), N, 0.5, 0.1)
    assert best_rise(series, seed=7) == best_rise(list(series), seed=7)


def test_series_and_steps_must_match() -> None:
    with pytest.raises(ValueError, match="3 values but 2 step numbers"):
        takeoff([0.1, 0.2, 0.3], [1, 2])
