"""Finds the step at which a series takes off, and stays silent on a flat or merely noisy one.

The series is fitted with every shape of one family: flat until some step, a straight rise, flat again. A step change
and a steady trend are members of it, and a sigmoid is close to one. The best upward fit is then compared with what the
same search finds in pure noise with the same autocorrelation (first-order, estimated from the residuals), so the
false-alarm rate is controlled for white and for autocorrelated noise, and for having searched.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

MIN_POINTS = 16  # a shorter series cannot show a baseline, a rise and noise at once
MARGIN = 4  # points on either side of the middle of the rise: the last few points alone are no take-off
MAX_BINS = 128  # 8,128 shapes; longer series are averaged into bins, which costs precision but no power
SIMULATIONS = 999  # noise series per autocorrelation: p-values down to 0.001
PHI_GRID = 0.05  # autocorrelations are rounded up to this grid, so that simulated noise can be reused


class TakeOff(NamedTuple):
    """Best-fitting rise of a series, heights in the series' unit."""

    step: int  # first one above the baseline
    rise: float  # height of the fitted rise
    lift: float  # median from ``step`` on minus median before: outliers near the end give a rise without a lift
    p_value: float  # chance that noise shows a rise as clear


@lru_cache(maxsize=8)
def _shapes(n: int) -> tuple[Array, Array, NDArray[np.int64]]:
    """Flat-rise-flat shapes on ``n`` points: unit vectors of mean 0 [shapes, n], norms and last flat index [shapes]."""
    start, end = np.triu_indices(n, k=1)
    middle = (start + end) / 2
    keep = (middle >= MARGIN - 0.5) & (middle <= n - MARGIN - 0.5)
    start, end = start[keep], end[keep]
    ramps = np.clip((np.arange(n) - start[:, None]) / (end - start)[:, None], 0.0, 1.0)
    ramps -= ramps.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(ramps, axis=1)
    return ramps / norms[:, None], norms, start


def _explained(series: Array, shapes: Array) -> tuple[Array, NDArray[np.int64]]:
    """Share of each row's variance that its best *upward* shape explains, and which shape. ``series``: [rows, n]."""
    centred = series - series.mean(axis=1, keepdims=True)
    projections = centred @ shapes.T
    best = projections.argmax(axis=1)
    top = np.maximum(projections[np.arange(len(series)), best], 0.0)
    total = (centred**2).sum(axis=1)
    return np.divide(top**2, total, out=np.zeros_like(top), where=total > 0), best


def _autocorrelation(residuals: Array) -> float:
    """Upper estimate of the lag-1 autocorrelation, in [0, 0.95]: corrected for bias, plus one standard error."""
    n, total = len(residuals), float(residuals @ residuals)
    if total == 0:
        return 0.0
    raw = float(residuals[1:] @ residuals[:-1]) / total
    # Kendall's bias is (1 + 3 phi) / n for a fitted mean; the shape (two knots, one height) costs about three times it.
    # Without the standard error, 24 points of noise with phi 0.5 raise 5 % false alarms at alpha 0.01.
    upper = raw + (1 + 3 * max(raw, 0.0)) * 3 / n + np.sqrt((1 - raw**2) / n)
    return float(np.clip(np.ceil(upper / PHI_GRID) * PHI_GRID, 0.0, 0.95))


@lru_cache(maxsize=256)
def _null(n: int, phi: float, seed: int) -> Array:
    """Explained shares of SIMULATIONS stationary AR(1) series of ``n`` points without any rise, sorted."""
    noise = np.random.default_rng(seed).standard_normal((SIMULATIONS, n))
    noise[:, 1:] *= np.sqrt(1 - phi**2)
    for t in range(1, n):
        noise[:, t] += phi * noise[:, t - 1]
    return np.sort(_explained(noise, _shapes(n)[0])[0])


def _binned(values: Array, steps: NDArray[np.int64]) -> tuple[Array, NDArray[np.int64]]:
    """Averages neighbouring points so that at most MAX_BINS remain; each bin keeps its first step."""
    width = -(-len(values) // MAX_BINS)
    first = np.arange(0, len(values), width)
    sizes = np.diff(np.append(first, len(values)))
    return np.add.reduceat(values, first) / sizes, steps[first]


def best_rise(series: ArrayLike, steps: ArrayLike | None = None, *, seed: int = 0) -> TakeOff | None:
    """The best-fitting rise of a series with the probability of one at least as clear in noise.

    Args:
        series: one value a step, in time order; missing values (NaN) are left out.
        steps: the step numbers; 0, 1, 2, ... if absent.
        seed: of the generator that draws the noise.

    Returns:
        None for a series that is too short (under MIN_POINTS values) or never rises.

    Raises:
        ValueError: if ``series`` and ``steps`` differ in length.
    """
    values = np.asarray(series, dtype=np.float64)
    numbers = np.arange(len(values)) if steps is None else np.asarray(steps, dtype=np.int64)
    if len(numbers) != len(values):
        raise ValueError(f"{len(values)} values but {len(numbers)} step numbers: give one step number a value")
    present = np.isfinite(values)
    if present.sum() < MIN_POINTS:
        return None
    values, numbers = _binned(values[present], numbers[present])
    shapes, norms, last_flat = _shapes(len(values))
    explained, best = _explained(values[None], shapes)
    centred, shape = values - values.mean(), shapes[best[0]]
    rise = float(centred @ shape / norms[best[0]])
    if explained[0] <= 0:
        return None
    null = _null(len(values), _autocorrelation(centred - (centred @ shape) * shape), seed)
    p_value = (1 + int((null >= explained[0]).sum())) / (SIMULATIONS + 1)
    first = int(last_flat[best[0]]) + 1
    lift = float(np.median(values[first:]) - np.median(values[:first]))
    return TakeOff(int(numbers[first]), rise, lift, p_value)


def takeoff(
    series: ArrayLike,
    steps: ArrayLike | None = None,
    *,
    min_rise: float = 0.05,
    alpha: float = 0.01,
    seed: int = 0,
) -> int | None:
    """The step at which ``series`` takes off for good, or None.

    Args:
        series: one value a step, in time order; NaN is left out.
        steps: the step numbers; 0, 1, 2, ... if absent.
        min_rise: smallest height of a rise that counts, in the unit of the series (0.05: five points of a share). The
            median must be lifted by at least half of it.
        alpha: share of series without a take-off that may raise a false alarm.
        seed: of the noise that the series is compared with; the answer is a pure function of the arguments.

    Raises:
        ValueError: if ``series`` and ``steps`` differ in length.
    """
    found = best_rise(series, steps, seed=seed)
    clear = found is not None and found.rise >= min_rise and found.lift >= min_rise / 2 and found.p_value <= alpha
    return found.step if found is not None and clear else None
