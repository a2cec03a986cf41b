"""What a policy update's outputs look like: the columns of zero_steps.csv that are computed from text and rewards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from tasks.evaluation.metrics import equal_answers, mean_or_zero, vote
from tasks.monitoring import readability, reflection
from tasks.rewards.total import Reward

COLUMNS = (
    "step", "reward", "reward_accuracy", "reward_format", "reward_preference", "accuracy", "length", "entropy", "kl",
    "clip_share", "informative_groups",
    "grad_norm", "learning_rate", "max_new_tokens", "truncated", "language_consistency", "wait_share", *reflection.WORDS,
    "repetition", "no_answer", "mixed_language", "sampler_gap", "reference_age", "validation_pass1",
    "cons",
)  # fmt: skip


class Scored(Protocol):
    """A scored completion, as training.actor.Output is."""

    @property
    def prompt_id(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def completion(self) -> list[int]: ...
    @property
    def finished(self) -> bool: ...
    @property
    def language(self) -> str: ...
    @property
    def reward(self) -> Reward: ...


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean_or_zero(known) if known else None


def describe(outputs: Sequence[Scored]) -> dict[str, Any]:
    """Means and shares over the outputs of one update; the ten words are counts per 1,000 outputs.

    A term of the reward is averaged over the outputs that it applies to, None if there are none; `accuracy` is the term of the rules.
    """
    rewards = [o.reward for o in outputs]
    defects = readability.shares(readability.defects(o.text, o.language, o.finished) for o in outputs)
    spoken = [r.language for r in rewards if r.language is not None]
    counted = [reflection.counts(o.text) for o in outputs]
    return {
        "reward": mean_or_zero([r.total for r in rewards]),
        "reward_accuracy": _mean([r.accuracy for r in rewards]),
        "reward_format": mean_or_zero([r.format for r in rewards]),
        "reward_preference": _mean([r.preference for r in rewards]),
        "accuracy": _mean([r.accuracy for r in rewards]),
        "length": mean_or_zero([len(o.completion) for o in outputs]),
        "truncated": mean_or_zero([not o.finished for o in outputs]),
        "language_consistency": mean_or_zero(spoken),
        "wait_share": mean_or_zero([c["wait"] > 0 for c in counted]),
        **{word: 1000 * mean_or_zero([c[word] for c in counted]) for word in reflection.WORDS},
        "repetition": defects["repetition"],
        "no_answer": defects["no_answer"],
        "mixed_language": defects["mixed_language"],
    }


def consensus(outputs: Sequence[Scored], size: int, records: Mapping[str, Mapping[str, Any]]) -> float | None:
    """cons@k of a rollout: share of its groups whose majority answer is right (paper, Fig. 1: cons@16); None if no rule reads any.

    Args:
        outputs: whole groups, one after the other.
        size: k, outputs of a group.
        records: prompt records by id; their verifier decides which answers are equal.
    """
    groups = [outputs[i : i + size] for i in range(0, len(outputs), size)]
    ruled = [group for group in groups if group[0].reward.accuracy is not None]
    voted = [_vote_is_right(group, equal_answers(records[group[0].prompt_id]["verifier"])) for group in ruled]
    return mean_or_zero(voted) if voted else None


def _vote_is_right(group: Sequence[Scored], same: Callable[[str, str], bool]) -> bool:
    voted = vote([o.reward.answer for o in group], same)
    return any(o.reward.answer == voted and o.reward.accuracy == 1 for o in group)
