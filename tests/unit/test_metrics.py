"""pass@k, cons@k and intervals against brute force and by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.evaluation.metrics import SamplesError, clustered, equal_answers, interval, pass_at_k, summarize, vote


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(case):
    n, c, k = case
    right = [i < c for i in range(n)]
    subsets = list(itertools.combinations(right, k))
    assert pass_at_k(c, n, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="pass@16 needs at least 16"):
        pass_at_k(3, 8, 16)


def test_equal_values_are_one_vote():
    same = equal_answers("math")
    assert vote(["1/2", "3", "0.5", "3", "0.50"], same) == "1/2"
    assert vote(["", "", "", "3"], same) == "3"
    assert vote(["", ""], same) == ""
    assert vote(["2", "3"], same) == "2"  # a tie goes to the class that was opened first


def test_interval_covers_the_mean_about_as_often_as_it_says():
    rng, hits = np.random.default_rng(0), 0
    for trial in range(200):
        found = interval((rng.random(60) < 0.3).tolist(), seed=trial, resamples=300)
        hits += found["low"] <= 0.3 <= found["high"]
    assert 0.88 <= hits / 200 <= 0.99


def test_samples_of_one_prompt_are_not_independent():
    values, prompts = pd.Series([1.0, 1, 1, 1, 0, 0, 0, 0]), pd.Series(list("aaaabbbb"))
    assert clustered(values, prompts) == {"mean": 0.5, "low": 0.0, "high": 1.0}
    by_problem = interval([0.2, 0.6, 0.4])
    assert clustered(pd.Series([0.1, 0.3, 0.6, 0.6, 0.4, 0.4]), pd.Series(list("aabbcc"))) == pytest.approx(by_problem)
    gap = clustered(pd.Series([np.nan, 1.0, 0.0, 0.0]), pd.Series(list("abcc")))
    assert gap is not None and gap["mean"] == pytest.approx(1 / 3)  # a has no value
    assert clustered(pd.Series([np.nan]), pd.Series(["a"])) is None


RECORD = {"domain": "math", "family": "calc", "level": 2, "language": "en", "verifier": "math", "truth": "7"}
PROBLEMS = {"a": RECORD, "b": RECORD | {"level": 3, "truth": "1"}}


def samples() -> pd.DataFrame:
    rows = [
        ("a", "7", True),
        ("a", "7", True),
        ("a", "8", False),
        ("a", "9", False),
        ("b", "1", True),
        ("b", "2", False),
        ("b", "2", False),
        ("b", "", False),
    ]
    return pd.DataFrame([
        {"prompt_id": p, "sample": i % 4,
         "text": f"<think> wait, but </think> <answer> {a} </answer>" if a == "8" else "x",
         "token_ids": [1] * (i + 1), "finished": i != 7, "answer": a, "correct": c, "format": c,
         "language_consistency": None if i == 7 else 0.5 + 0.5 * c}
        for i, (p, a, c) in enumerate(rows)
    ])  # fmt: skip


def test_summary_by_hand():
    found = summarize(samples(), PROBLEMS)
    assert found["problems"] == 2 and found["samples_per_problem"] == 4
    assert found["pass@1"]["mean"] == pytest.approx((0.5 + 0.25) / 2)
    assert found["pass@k"] == {"1": pytest.approx(0.375), "2": pytest.approx((5 / 6 + 1 / 2) / 2), "4": 1.0}
    assert found["cons@4"]["mean"] == 0.5  # a votes 7 (right), b votes 2 (wrong)
    assert found["wait_share"] == 1 / 8 and found["reflection_share"] == 1 / 8
    assert found["words_per_1000_samples"]["wait"] == 125 and found["words_per_1000_samples"]["but"] == 125
    assert found["truncated"] == 1 / 8
    assert found["language_consistency"] == pytest.approx((3 * 1.0 + 4 * 0.5) / 7)
    assert found["mixed_share"] == pytest.approx(4 / 7)
    assert found["length"]["mean"] == 4.5
    assert found["by_level"]["calc-3"]["pass@1"] == 0.25
    assert found["by_level"]["calc-3"]["intervals"] == {"pass@1": None, "cons@4": None, "length": None}  # one problem has no spread
    lengths = {"mean": 4.5, "low": 2.5, "high": 6.5}  # problem a has 2.5 tokens a sample, b 6.5
    assert found["by_domain"]["math"]["intervals"] == {"pass@1": found["pass@1"], "cons@4": found["cons@4"], "length": lengths}
    assert {name: found["intervals"][name]["mean"] for name in ("format", "wait_share", "language_consistency", "mixed_share")} == {
        name: pytest.approx(found[name]) for name in ("format", "wait_share", "language_consistency", "mixed_share")
    }
    assert found["intervals"]["length"] == lengths


@given(st.permutations(range(8)))
@settings(max_examples=20)
def test_the_order_of_the_file_does_not_matter(order):
    assert summarize(samples().iloc[list(order)], PROBLEMS) == summarize(samples(), PROBLEMS)


def test_uneven_samples_are_refused_by_name():
    with pytest.raises(SamplesError, match="problem b has 3 samples"):
        summarize(pd.concat([samples().iloc[:7], samples().iloc[:4].assign(prompt_id="c")]), PROBLEMS | {"c": RECORD})
