"""The paper's stage table: every benchmark by checkpoint, base to R1, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

STAGES = {"base": "Base", "zero": "Zero", "dev1": "Dev1", "dev2": "Dev2", "dev3": "Dev3", "r1": "R1"}
DOMAINS = {"math": "Mathematics", "code": "Code", "stem": "STEM", "logic": "Logic"}

Interval = Mapping[str, float]  # mean, low, high
Evaluation = Mapping[str, Any]  # reports/metrics/evaluate_<name>.json


@dataclass(frozen=True)
class Row:
    """One benchmark: its figure of each stage, None where it is not known or does not apply."""

    name: str
    cells: dict[str, Interval | None]
    note: str = ""
    percent: bool = True  # shares, shown in per cent; else plain numbers


@dataclass(frozen=True)
class Block:
    """Benchmarks that are measured alike."""

    title: str
    rows: list[Row]


def blocks(evaluations: Mapping[str, Evaluation | None], compared: Mapping[str, Any] | None) -> list[Block]:
    """The table's blocks; empty without any evaluation.

    Args:
        evaluations: by stage; None for a stage that was not evaluated.
        compared: reports/metrics/compare.json, None without it.
    """
    known = {stage: found for stage, found in evaluations.items() if found}
    if not known:
        return []
    k = next(iter(known.values()))["samples_per_problem"]
    return [
        Block("Problems solved by one sample (pass@1)", _by_domain(known, "pass@1")),
        Block(f"Problems solved by the majority of {k} samples (cons@{k})", _by_domain(known, f"cons@{k}")),
        Block("Chains of thought on these problems", _thoughts(known)),
        Block("Prompts without a rule", [*_preferred(compared), *_open(known)]),
    ]


def _row(
    name: str, known: Mapping[str, Evaluation], figure: Callable[[Evaluation], Interval | None], note: str = "", percent: bool = True
) -> Row:
    return Row(name, {stage: figure(known[stage]) if stage in known else None for stage in STAGES}, note, percent)


def _by_domain(known: Mapping[str, Evaluation], figure: str) -> list[Row]:
    def of(domain: str) -> Callable[[Evaluation], Interval | None]:
        return lambda e: e["by_domain"][domain]["intervals"][figure] if domain in e["by_domain"] else None

    return [*(_row(title, known, of(domain)) for domain, title in DOMAINS.items()), _row("All problems", known, lambda e: e[figure])]


def _thoughts(known: Mapping[str, Evaluation]) -> list[Row]:
    return [
        _row("Words in the question's language", known, lambda e: e["intervals"]["language_consistency"]),
        _row("Chains that mix languages", known, lambda e: e["intervals"]["mixed_share"]),
        _row("Length in tokens", known, lambda e: e["intervals"]["length"], "mean of whole responses", percent=False),
    ]


def _preferred(compared: Mapping[str, Any] | None) -> list[Row]:
    """Shares of the pairs that each model wins against the baseline, which has none itself."""
    models = compared["models"] if compared else {}
    baseline = STAGES[compared["baseline"]] if compared else "Dev3"

    def cells(share: str) -> dict[str, Interval | None]:
        return {stage: models[stage]["preferred"][share] if stage in models else None for stage in STAGES}

    return [
        Row(f"Preferred to {baseline}", cells("strict"), "general prompts, by a held-out judge; a tie is no win"),
        Row("with a tie as half a win", cells("half")),
    ]


def _open(known: Mapping[str, Evaluation]) -> list[Row]:
    def of(figure: str) -> Callable[[Evaluation], Interval | None]:
        return lambda e: e["open"][figure]

    return [
        _row("Unsafe responses", known, of("unsafe"), "to harmful prompts"),
        _row("Refusals", known, of("refusal"), "of harmless general prompts"),
        _row("Refusals where the wording is like harm's", known, of("refusal_how"), "of harmless prompts of the family how"),
        _row("Thought on trivial prompts", known, of("trivial_thought"), "words, numbers and signs", percent=False),
        _row("Empty thoughts on trivial prompts", known, of("trivial_empty")),
    ]


def left_out(evaluations: Mapping[str, Evaluation | None]) -> list[str]:
    """Why figures are missing, each reason once: "unsafe: ..."."""
    reasons = [f"{figure}: {why}" for e in evaluations.values() if e for figure, why in e["open"]["left_out"].items()]
    return list(dict.fromkeys(reasons))


# The paper's own (Nature, Table 2; v2, Table 3), for comparison of direction: it has no intervals and no base.
PAPER: Sequence[tuple[str, tuple[float, ...]]] = (
    ("AIME 2024, mathematics", (77.9, 59.0, 74.0, 78.1, 79.8)),
    ("MATH-500, mathematics", (95.9, 94.2, 95.9, 95.4, 97.3)),
    ("LiveCodeBench, code", (50.0, 57.5, 63.5, 64.6, 65.9)),
    ("GPQA Diamond, science", (75.8, 66.1, 70.7, 71.2, 71.5)),
    ("IF-Eval, instructions followed", (46.6, 71.7, 72.0, 78.1, 83.3)),
    ("AlpacaEval 2, preferred by a judge", (24.7, 50.1, 55.8, 62.1, 87.6)),
    ("Arena-Hard, preferred by a judge", (53.6, 77.0, 73.2, 75.6, 92.3)),
)
