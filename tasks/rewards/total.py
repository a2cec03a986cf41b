"""What one completion earns: rules for reasoning, a reward model for the rest, and the language of its chain of thought.

R1-Zero: accuracy + format (paper, eq. 4). Dev2 adds language consistency with weight 1 (eq. 7). R1: the same for reasoning prompts; reward
model + format + language for general and harmlessness prompts (eq. 8-10; each prompt belongs to one kind).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tasks.errors import SecondThoughtError
from tasks.rewards.format import parse
from tasks.rewards.language import consistency
from tasks.rewards.verify import VERIFIERS, Outcome, verify

PREFERENCE = {"general": "helpful", "safety": "safety"}  # domain -> the reward model that scores it


@dataclass(frozen=True)
class Weights:
    """Weights of the terms beside accuracy or preference. `language` 0 leaves the term out: R1-Zero measures it only."""

    format: float = 1.0
    language: float = 0.0


@dataclass(frozen=True)
class Reward:
    """What one completion earned, term by term, with what was read out of it.

    `accuracy` is None where no rule applies, `preference` where no reward model does, `language` where the thought has no words.
    """

    total: float
    accuracy: float | None
    format: float
    language: float | None
    preference: float | None
    thought: str
    answer: str


class UnscorableError(SecondThoughtError):
    """A record that no reward can score reached training."""


class Judge(Protocol):
    """A reward model: scores in [0, 1] for completions of questions."""

    def score(self, questions: Sequence[str], completions: Sequence[str]) -> list[float]: ...


def score(
    record: Mapping[str, Any], completion: str, finished: bool, weights: Weights = Weights(), preference: float | None = None
) -> Reward:
    """Scores the complete text of a completion against its prompt record.

    A completion cut off at the length limit has no well-formed end, so it earns no format reward. A thought without words (empty, or
    digits alone) mixes nothing: its language term is whole.

    Args:
        preference: what a reward model gave this completion; then no rule is asked.

    Raises:
        UnscorableError: no rule reads the record and no reward model scored it, or its ground truth cannot be read (the contracts
            of curate should have stopped it).
    """
    parsed = parse(completion)
    accuracy = _accuracy(record, parsed.answer) if preference is None else None
    form, language = float(parsed.well_formed and finished), consistency(parsed.thought, record["language"])
    merit = preference if preference is not None else accuracy
    assert merit is not None
    total = merit + weights.format * form
    total += weights.language * (1.0 if language is None else language) if weights.language else 0.0
    return Reward(total, accuracy, form, language, preference, parsed.thought, parsed.answer)


def _accuracy(record: Mapping[str, Any], answer: str) -> float:
    if record["verifier"] not in VERIFIERS:
        raise UnscorableError(_no_reward([record]))
    outcome = verify(record["verifier"], record["truth"], answer)
    if outcome is Outcome.UNSCORABLE:
        raise UnscorableError(
            f"prompt {record['id']}: the {record['verifier']} verifier cannot read its truth {record['truth']!r}; "
            "run `python -m tasks.curate`"
        )
    return float(outcome is Outcome.CORRECT)


def _no_reward(records: Sequence[Mapping[str, Any]]) -> str:
    named = ", ".join(f"{r['id']} (domain {r['domain']}, verifier {r['verifier']})" for r in records[:10])
    return (
        f"no reward applies to {len(records)} prompts: {named}; a prompt needs a verifier of {', '.join(VERIFIERS)}, or a domain with a "
        f"reward model ({', '.join(PREFERENCE)})"
    )


class Rewarder:
    """Scores completions of prompt records, whichever reward applies to each."""

    def __init__(self, weights: Weights = Weights(), judges: Mapping[str, Judge] | None = None) -> None:
        """`judges`: reward models by the names in PREFERENCE ("helpful", "safety"); none for stages that use rules alone."""
        self.weights, self.judges = weights, dict(judges or {})

    def _judge(self, record: Mapping[str, Any]) -> str | None:
        """The reward model that scores a record; a rule, where there is one, comes first (no neural reward on reasoning prompts)."""
        name = None if record["verifier"] in VERIFIERS else PREFERENCE.get(record["domain"])
        return name if name in self.judges else None

    def check(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Whether every record can be rewarded; called before the first step.

        Raises:
            UnscorableError: names the records to which no reward applies.
        """
        lost = [r for r in records if r["verifier"] not in VERIFIERS and self._judge(r) is None]
        if lost:
            raise UnscorableError(_no_reward(lost))

    def __call__(self, records: Sequence[Mapping[str, Any]], completions: Sequence[str], finished: Sequence[bool]) -> list[Reward]:
        """Rewards in the order of the completions.

        Raises:
            UnscorableError: see `score`.
            SecondThoughtError: a reward model gave a number that is not finite.
        """
        preferences: list[float | None] = [None] * len(records)
        for name, judge in self.judges.items():
            chosen = [i for i, record in enumerate(records) if self._judge(record) == name]
            if chosen:
                questions = [records[i]["messages"][-1]["content"] for i in chosen]
                for i, value in zip(chosen, judge.score(questions, [completions[i] for i in chosen]), strict=True):
                    preferences[i] = value
        parts = zip(records, completions, finished, preferences, strict=True)
        return [score(r, text, done, self.weights, preference) for r, text, done, preference in parts]
