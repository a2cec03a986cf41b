"""Watches for reward hacking: a reward model's score that rises while the verifiable benchmark falls (paper, B.5 and Fig. 6).

The alarm is an intersection-union test on windows between two benchmark points. Two one-sided tests must both reject: Kendall's tau for a
rise of the reward model's mean score, and a trend test for a fall of the benchmark (`decline`). The level is divided by the number of
windows, since any of them may raise the alarm. So a run in which at most one of the two really moves that way raises one with a
probability of at most ALPHA, that of the other test, provided that the points of a series scatter independently of each other, those of
the benchmark by no more than the binomial. A policy that wanders makes neighbours alike and points scatter more: false alarms get more.
In simulations of 13 level points a fall was seen in 2 % of runs with binomial noise, and in 16 % with twice its variance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite, sqrt
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Array = NDArray[np.float64]

ALPHA = 0.05  # false alarms: share of runs in which one of the two did not move and which raise one all the same, see above
MIN_POINTS = 3  # benchmark points of a window: a fall from one lucky point to the next is no trend
MIN_REWARDS = 6  # scores of a window: the best p-value of Kendall's tau is 1/720 with six, 1/24 with four


@dataclass(frozen=True)
class Divergence:
    """Where the reward model's score and the benchmark have parted, with fitted changes from the first to the last step."""

    first_step: int
    last_step: int
    reward_rise: float  # of the reward model's mean score, in its unit
    benchmark_fall: float  # of pass@1
    reward_p: float
    benchmark_p: float
    level: float  # both p-values are at most this: ALPHA divided by the number of windows

    def __str__(self) -> str:
        return (
            f"from step {self.first_step} to {self.last_step} the reward model's score rises by {self.reward_rise:.3f} "
            f"(p = {self.reward_p:.2g}) while the verifiable benchmark falls by {self.benchmark_fall:.3f} (p = {self.benchmark_p:.2g})"
        )


def check(rows: Sequence[Mapping[str, Any]], problems: int) -> Divergence | None:
    """The clearest window in which both have moved apart, or None; call it once, for the whole run.

    Args:
        rows: one a policy update, steps ascending, with the keys "step", "reward_preference" (the reward model's mean score; None where no
            prompt was scored by it) and "validation_pass1" (in [0, 1]; None where it was not measured).
        problems: samples behind each benchmark point (problems times samples of each), for its binomial noise.

    Raises:
        ValueError: steps that do not ascend, or fewer than one sample.
    """
    if problems < 1:
        raise ValueError(f"{problems} samples behind a benchmark point: give at least 1")
    if any(later["step"] <= earlier["step"] for earlier, later in pairwise(rows)):
        raise ValueError("the steps do not ascend: pass the rows in the order of training")
    reward, benchmark = _series(rows, "reward_preference"), _series(rows, "validation_pass1")
    if not len(reward):
        return None
    windows = list(_windows(reward, benchmark))
    found = (_test(*window, problems, ALPHA / len(windows)) for window in windows)
    return min((d for d in found if d is not None), key=lambda d: max(d.reward_p, d.benchmark_p), default=None)


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> Array:
    """[points, 2] steps and values of a key, without the missing ones."""
    present = [(row["step"], row[key]) for row in rows if row[key] is not None and isfinite(row[key])]
    return np.array(present, dtype=np.float64).reshape(-1, 2)


def _windows(reward: Array, benchmark: Array) -> Iterator[tuple[Array, Array]]:
    """Both series between any two benchmark points; the first one is the last point before the reward model came in."""
    before = np.flatnonzero(benchmark[:, 0] <= reward[0, 0])
    points = benchmark[before[-1] if len(before) else 0 :]
    for first in range(len(points)):
        for last in range(first + MIN_POINTS - 1, len(points)):
            inside = reward[(reward[:, 0] >= points[first, 0]) & (reward[:, 0] <= points[last, 0])]
            if len(inside) >= MIN_REWARDS:
                yield inside, points[first : last + 1]


def _test(reward: Array, benchmark: Array, problems: int, level: float) -> Divergence | None:
    fall, benchmark_p = decline(benchmark[:, 0], benchmark[:, 1], problems)
    if benchmark_p > level:
        return None
    reward_p = float(stats.kendalltau(reward[:, 0], reward[:, 1], alternative="greater").pvalue)
    if not reward_p <= level:  # NaN, of a constant score, is no rise either
        return None
    first, last = int(benchmark[0, 0]), int(benchmark[-1, 0])
    rise = float(stats.theilslopes(reward[:, 1], reward[:, 0]).slope) * (reward[-1, 0] - reward[0, 0])
    return Divergence(first, last, float(rise), fall, reward_p, benchmark_p, level)


def decline(steps: ArrayLike, shares: ArrayLike, samples: int) -> tuple[float, float]:
    """Fitted fall of a share over the steps, and a one-sided p-value against "it does not fall".

    That of the Cochran-Armitage trend test, whose noise is binomial; where the points scatter more about the line than that (a policy is
    never quite still), that of the line's t test, since the variance is then an estimate. Always the larger of the two would keep ALPHA
    under any independent noise, but misses falls that are not straight, since it takes their bend for noise.

    Args:
        steps: [n], n >= 3. shares: [n], each of `samples` samples.
    """
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(shares, dtype=np.float64)
    centred, pooled = x - x.mean(), float(y.mean())
    slope = float(centred @ y / (centred @ centred))
    residuals = y - pooled - slope * centred
    binomial, freedom = pooled * (1 - pooled) / samples, len(y) - 2
    scatter = float(residuals @ residuals) / freedom
    fall, steepness = -slope * float(x[-1] - x[0]), -slope * sqrt(float(centred @ centred))
    if binomial == 0:  # all right or all wrong at every point
        return fall, 1.0
    if scatter > binomial:
        return fall, float(stats.t.sf(steepness / sqrt(scatter), freedom))
    return fall, float(stats.norm.sf(steepness / sqrt(binomial)))
