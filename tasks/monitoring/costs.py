"""The cost ledger: what each stage took in seconds, tokens, floating point operations and, where a price is given, money."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tasks.config import Price
from tasks.monitoring.sources import EVALUATED

Inputs = Mapping[str, Any]  # see sources.load

# The paper's own (v2, Table 7): thousands of H800 hours and of USD, at 2 USD an hour; DeepSeek-V3-Base is not in it.
PAPER: tuple[tuple[str, int, int], ...] = (("R1-Zero", 101, 202), ("SFT data", 5, 10), ("R1", 41, 82), ("total", 147, 294))
ORDER = (
    "curate", "zero", "cold_start", "dev1", "dev2", "rejection", "dev3", "reward_models", "r1",
    "distill_small", "distill_tiny", "rl_small", "rl_tiny",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One stage. None where nothing is known; `trained` counts tokens that carry a loss, once for each time that they are trained on."""

    stage: str
    seconds: float | None = None
    resumed: int = 0
    sampled: int | None = None
    trained: int | None = None
    flops: float | None = None
    money: float | None = None


def _sampled(inputs: Inputs, stage: str) -> int | None:
    if stage == "rejection":
        return ((inputs["rejection"] or {}).get("sampling") or {}).get("tokens")
    return (inputs.get(f"{stage}_summary") or {}).get("tokens_sampled")


def _trained(inputs: Inputs, stage: str) -> int | None:
    """RL trains on each sampled token once (one inner epoch), SFT on each response token once an epoch."""
    summary = inputs.get(f"{stage}_summary") or {}
    if "response_tokens" in summary:
        return summary["response_tokens"] * summary["epochs"]
    return summary.get("tokens_sampled")


def _flops(inputs: Inputs, stage: str) -> float | None:
    if stage == "rejection":
        return ((inputs["rejection"] or {}).get("sampling") or {}).get("flops")
    found = (inputs.get(f"{stage}_summary") or inputs.get(stage) or {}).get("flops") or {}
    return found.get("training" if stage.startswith("distill") else "total")  # the teacher's sampling stands with rejection


def _evaluated(inputs: Inputs, model: str) -> int | None:
    """Tokens sampled on held-out problems; those of open prompts, a few per cent, are not counted."""
    found = inputs[f"evaluate_{model}"]
    return found and round(found["length"]["mean"] * found["problems"] * found["samples_per_problem"])


def _row(inputs: Inputs, stage: str) -> Row:
    cost = (inputs["costs"] or {}).get(stage) or {}
    spent = cost.get("seconds"), cost.get("resumed", 0)
    return Row(stage, *spent, _sampled(inputs, stage), _trained(inputs, stage), _flops(inputs, stage))


def _sum(values: Iterable[Any]) -> Any:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _together(name: str, rows: Iterable[Row]) -> Row:
    made = list(rows)

    def total(of: Callable[[Row], Any]) -> Any:
        return _sum(of(row) for row in made)

    figures = (total(lambda r: r.sampled), total(lambda r: r.trained), total(lambda r: r.flops))
    return Row(name, total(lambda r: r.seconds), sum(r.resumed for r in made), *figures)


def _evaluations(inputs: Inputs) -> Row:
    costs = inputs["costs"] or {}
    rows = [
        Row(m, (costs.get(f"evaluate_{m}") or {}).get("seconds"), 0, _evaluated(inputs, m)) for m in EVALUATED if inputs[f"evaluate_{m}"]
    ]
    return _together(f"evaluate ({len(rows)} models)", rows)


def _ablations(inputs: Inputs) -> list[Row]:
    """What an ablation's own file says of it, wherever it was run; one that takes over another's result (`same_as`) cost nothing."""
    told_of = {name: told for name, told in inputs.items() if name.startswith("ablation_") and not name.endswith("_steps") and told}
    found = {name: told for name, told in told_of.items() if not told.get("same_as")}
    return [Row(name, told["seconds"], flops=(told.get("flops") or {}).get("total")) for name, told in found.items()]


def _priced(row: Row, price: Price | None) -> Row:
    if price is None or row.seconds is None:
        return row
    return replace(row, money=row.seconds / 3600 * price.amount)


def ledger(inputs: Inputs, price: Price | None) -> list[Row]:
    """Rows of the stages in the order of the graph, the total of all last; stages of which nothing is known are left out.

    Args:
        price: of an hour of the machine; None gives no money.
    """
    rows = [*(_row(inputs, stage) for stage in ORDER), _evaluations(inputs), _row(inputs, "compare"), *_ablations(inputs)]
    known = [row for row in rows if any(v is not None for v in (row.seconds, row.sampled, row.trained, row.flops))]
    return [_priced(row, price) for row in [*known, _together("total", known)]] if known else []


def unclocked(rows: Iterable[Row]) -> list[str]:
    """Stages whose seconds are not known, so that the total lacks them."""
    return [row.stage for row in rows if row.seconds is None]


def machines(inputs: Inputs) -> list[str]:
    """The machines on which the stages ran, in words."""
    found = [cost["machine"] for cost in (inputs["costs"] or {}).values()]
    return sorted({f"{m['cores']} cores, {m['platform']}, Python {m['python']}" for m in found})
