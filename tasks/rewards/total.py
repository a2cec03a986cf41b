"""R1-Zero's reward of one completion: R_rule = R_accuracy + R_format (paper, eq. 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.errors import SecondThoughtError
from tasks.rewards.format import parse
from tasks.rewards.language import consistency
from tasks.rewards.verify import Outcome, verify


@dataclass(frozen=True)
class Reward:
    """What one completion earned, with what was read out of it. `language` is measured, not rewarded, for R1-Zero."""

    total: float
    accuracy: float
    format: float
    language: float | None
    thought: str
    answer: str


class UnscorableError(SecondThoughtError):
    """A record whose ground truth no verifier can read reached training."""


def score(record: Mapping[str, Any], completion: str, finished: bool, format_weight: float = 1.0) -> Reward:
    """Scores the complete text of a completion against its prompt record.

    A completion cut off at the length limit has no well-formed end, so it earns neither reward unless its answer came first.

    Raises:
        UnscorableError: the record's ground truth cannot be read (the contracts of curate should have stopped it).
    """
    parsed = parse(completion)
    outcome = verify(record["verifier"], record["truth"], parsed.answer)
    if outcome is Outcome.UNSCORABLE:
        raise UnscorableError(
            f"prompt {record['id']}: the {record['verifier']} verifier cannot read its truth {record['truth']!r}; "
            "run `python -m tasks.curate`"
        )
    accuracy, form = float(outcome is Outcome.CORRECT), float(parsed.well_formed and finished)
    language = consistency(parsed.thought, record["language"])
    return Reward(accuracy + format_weight * form, accuracy, form, language, parsed.thought, parsed.answer)
