"""The cost ledger by hand."""

from __future__ import annotations

from typing import Any

from tasks.config import Price
from tasks.monitoring import costs
from tasks.monitoring.sources import SOURCES

MACHINE = {"cores": 2, "python": "3.11.7", "platform": "Linux x86_64"}


def inputs() -> dict[str, Any]:
    spent = {"zero": 1800.0, "dev1": 20.0, "rejection": 30.0, "evaluate_base": 5.0, "evaluate_r1": 6.0, "report": 99.0}
    evaluation = {"length": {"mean": 10.5}, "problems": 20, "samples_per_problem": 4}
    return dict.fromkeys(SOURCES) | {
        "costs": {stage: {"stage": stage, "seconds": s, "resumed": stage == "zero", "machine": MACHINE} for stage, s in spent.items()},
        "zero_summary": {"tokens_sampled": 1000, "flops": {"sampling": 1e9, "training": 3e9, "reference": 1e9, "total": 5e9}},
        "dev1_summary": {"response_tokens": 300, "epochs": 2, "flops": {"training": 2e9, "total": 2e9}},
        "rejection": {"sampling": {"tokens": 400, "flops": 1e9}},
        "distill_small_summary": {"response_tokens": 50, "epochs": 3, "flops": {"training": 1e8, "teacher_sampling": 1e9, "total": 1.1e9}},
        "evaluate_base": evaluation, "evaluate_r1": evaluation,
        "ablation_grpo": {"seconds": 40.0, "flops": {"total": 7e9}},
        "ablation_language_on": {"seconds": 50.0, "flops": {"total": 7e9}, "same_as": "clip_10"},  # the same run: it cost nothing
    }  # fmt: skip


def test_a_row_a_stage_with_what_is_known() -> None:
    rows = {row.stage: row for row in costs.ledger(inputs(), None)}
    assert list(rows) == ["zero", "dev1", "rejection", "distill_small", "evaluate (2 models)", "ablation_grpo", "total"]
    assert rows["zero"] == costs.Row("zero", 1800.0, True, 1000, 1000, 5e9)
    assert rows["dev1"] == costs.Row("dev1", 20.0, False, None, 600, 2e9)
    assert rows["rejection"] == costs.Row("rejection", 30.0, False, 400, None, 1e9)
    assert rows["distill_small"] == costs.Row("distill_small", None, 0, None, 150, 1e8)  # the teacher's sampling is rejection's
    assert rows["evaluate (2 models)"] == costs.Row("evaluate (2 models)", 11.0, 0, 1680, None, None)
    assert rows["total"] == costs.Row("total", 1901.0, 1, 3080, 1750, 5e9 + 2e9 + 1e9 + 1e8 + 7e9)
    assert costs.unclocked(list(rows.values())) == ["distill_small"]
    assert costs.machines(inputs()) == ["2 cores, Linux x86_64, Python 3.11.7"]


def test_money_is_seconds_times_the_price_of_an_hour() -> None:
    rows = {row.stage: row for row in costs.ledger(inputs(), Price(amount=2.0, currency="USD"))}
    assert rows["zero"].money == 1.0 and rows["distill_small"].money is None
    assert rows["total"].money == 1901.0 / 1800


def test_nothing_known_is_no_table() -> None:
    assert costs.ledger(dict.fromkeys(SOURCES), None) == [] and costs.machines(dict.fromkeys(SOURCES)) == []
