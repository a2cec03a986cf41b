"""pass@1, pass@k, cons@k and intervals: pure functions of a sample file and the problems it answers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tasks.errors import SecondThoughtError
from tasks.monitoring import reflection
from tasks.monitoring.readability import MIXED_BELOW
from tasks.rewards.verify import Outcome, verify

KS = (1, 2, 4, 8, 16)
RESAMPLES = 2000


class SamplesError(SecondThoughtError):
    """A sample file does not hold the same number of samples for every problem."""


def mean_or_zero(values: Sequence[float]) -> float:
    """Mean of a sequence, 0.0 for an empty one."""
    return float(np.mean(values)) if len(values) else 0.0


def pass_at_k(correct: int, samples: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is right: 1 - C(n - c, k) / C(n, k).

    Raises:
        ValueError: fewer samples than k (an estimate would silently be too low).
    """
    if samples < k:
        raise ValueError(f"pass@{k} needs at least {k} samples a problem, there are {samples}")
    if samples - correct < k:
        return 1.0
    return 1.0 - float(np.prod(1.0 - k / np.arange(samples - correct + 1, samples + 1)))


def vote(answers: Sequence[str], same: Callable[[str, str], bool]) -> str:
    """The answer of the largest class of equal answers, "" if nobody answered; the class that was opened first wins a tie.

    `same` decides equality (verified: 1/2 and 0.5 are one vote). Empty answers have no vote.
    """
    classes: list[list[str]] = []
    for answer in answers:
        if not answer:
            continue
        home = next((c for c in classes if c[0] == answer or same(c[0], answer)), None)
        if home is None:
            classes.append([answer])
        else:
            home.append(answer)
    return max(classes, key=len)[0] if classes else ""


def equal_answers(verifier: str) -> Callable[[str, str], bool]:
    """Verified equality of two answers, where a verifier compares values; the search families compare texts without blanks."""
    if verifier in ("math", "choice", "text"):
        return lambda a, b: verify(verifier, a, b) is Outcome.CORRECT
    return lambda a, b: "".join(a.split()) == "".join(b.split())


def interval(values: Sequence[float], seed: int = 0, resamples: int = RESAMPLES) -> dict[str, float]:
    """Mean of a per-problem figure with its 95 % bootstrap interval over problems (samples of one problem are not independent)."""
    data, rng = np.asarray(values, dtype=float), np.random.default_rng(seed)
    means = data[rng.integers(0, len(data), (resamples, len(data)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"mean": float(data.mean()), "low": float(low), "high": float(high)}


def clustered(values: pd.Series, prompts: pd.Series, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, float] | None:
    """Mean of a per-sample figure with its 95 % bootstrap interval over prompts; None without a value.

    Missing values (a thought without words has no language) are left out, so prompts may weigh differently.
    """
    found = values.astype(float).dropna().groupby(prompts, sort=True)
    sums, counts = found.sum().to_numpy(), found.count().to_numpy()
    if not len(counts):
        return None
    drawn = np.random.default_rng(seed).integers(0, len(counts), (resamples, len(counts)))
    low, high = np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), [0.025, 0.975])
    return {"mean": float(sums.sum() / counts.sum()), "low": float(low), "high": float(high)}


def per_problem(samples: pd.DataFrame, problems: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """One row a problem: number of samples, of correct ones, whether the vote is right, and means of the other columns.

    Raises:
        SamplesError: problems have different numbers of samples (names the first odd one).
    """
    sizes = samples.groupby("prompt_id", sort=True).size()
    if sizes.nunique() != 1:
        odd = sizes[sizes != sizes.mode()[0]].index[0]
        raise SamplesError(f"problem {odd} has {sizes[odd]} samples, most have {sizes.mode()[0]}: evaluate again")
    rows = []
    for key, group in samples.groupby("prompt_id", sort=True):
        record = problems[str(key)]
        voted = vote(list(group.sort_values("sample")["answer"]), equal_answers(record["verifier"]))
        rows.append({
            "prompt_id": key, "domain": record["domain"], "family": record["family"], "language": record["language"],
            "level": f"{record['family']}-{record['level']}", "samples": len(group), "correct": int(group["correct"].sum()),
            "cons": float(verify(record["verifier"], record["truth"], voted) is Outcome.CORRECT),
            "pass@1": float(group["correct"].mean()), "format": float(group["format"].mean()),
            "wait": float(group["text"].map(reflection.has_wait).mean()), "length": float(group["token_ids"].map(len).mean()),
            "consistency": float(group["language_consistency"].mean()),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _slice(rows: pd.DataFrame, k: int) -> dict[str, Any]:
    return {
        "problems": len(rows), "pass@1": float(rows["pass@1"].mean()), f"cons@{k}": float(rows["cons"].mean()),
        "wait_share": float(rows["wait"].mean()), "length": float(rows["length"].mean()),
        "language_consistency": _finite_mean(rows["consistency"]),
        "intervals": {"pass@1": spread(rows["pass@1"]), f"cons@{k}": spread(rows["cons"]), "length": spread(rows["length"])},
    }  # fmt: skip


def spread(values: pd.Series) -> dict[str, float] | None:
    """`interval` of a per-problem figure; None for fewer than two problems, which have no spread."""
    return interval(values.to_numpy()) if len(values) > 1 else None


def _finite_mean(values: pd.Series) -> float:
    return mean_or_zero(values.dropna().tolist())


def _intervals(samples: pd.DataFrame) -> dict[str, Any]:
    """The figures over samples that the stage table shows, with their intervals."""
    spoken = samples["language_consistency"]
    figures = {
        "format": samples["format"], "wait_share": samples["text"].map(reflection.has_wait), "language_consistency": spoken,
        "mixed_share": (spoken < MIXED_BELOW).where(spoken.notna()), "length": samples["token_ids"].map(len),
    }  # fmt: skip
    return {name: clustered(values, samples["prompt_id"]) for name, values in figures.items()}


def _by(rows: pd.DataFrame, column: Hashable, k: int) -> dict[str, Any]:
    return {str(name): _slice(group, k) for name, group in rows.groupby(column, sort=True)}


def summarize(samples: pd.DataFrame, problems: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Every figure of reports/metrics/evaluate_<name>.json that follows from the samples.

    Args:
        samples: the sample records of one model (docs/data.md).
        problems: prompt records by id.
    """
    rows = per_problem(samples, problems)
    k = int(rows["samples"].iloc[0])
    counted = pd.DataFrame([reflection.counts(text) for text in samples["text"]])
    lengths, spoken = samples["token_ids"].map(len), samples["language_consistency"].dropna()
    return {
        "problems": len(rows),
        "samples_per_problem": k,
        "pass@1": interval(rows["pass@1"]),
        "pass@k": {str(j): mean_or_zero([pass_at_k(c, k, j) for c in rows["correct"]]) for j in KS if j <= k},
        f"cons@{k}": interval(rows["cons"]),
        "format": float(samples["format"].mean()),
        "wait_share": float((counted["wait"] > 0).mean()),
        "reflection_share": float((counted.sum(axis=1) > 0).mean()),
        "words_per_1000_samples": {word: 1000 * float(counted[word].mean()) for word in reflection.WORDS},
        "language_consistency": mean_or_zero(spoken.tolist()),
        "mixed_share": float((spoken < MIXED_BELOW).mean()) if len(spoken) else 0.0,
        "length": {"mean": float(lengths.mean()), "p95": float(np.quantile(lengths, 0.95))},
        "truncated": float((~samples["finished"]).mean()),
        "intervals": _intervals(samples),
        "by_domain": _by(rows, "domain", k),
        "by_family": _by(rows, "family", k),
        "by_language": _by(rows, "language", k),
        "by_level": _by(rows, "level", k),
    }
