"""What a rollout looks like in the step table."""

from __future__ import annotations

from dataclasses import dataclass, field

from tasks.monitoring.steps import consensus
from tasks.rewards.total import Reward

RECORDS = {"calc-1": {"verifier": "math"}, "calc-2": {"verifier": "math"}, "write-1": {"verifier": "none"}}


@dataclass(frozen=True)
class Scored:
    prompt_id: str
    reward: Reward
    text: str = ""
    completion: list[int] = field(default_factory=list)
    finished: bool = True
    language: str = "en"


def group(prompt: str, *answers: tuple[str, float | None]) -> list[Scored]:
    return [Scored(prompt, Reward(0.0, accuracy, 1.0, None, None, "", answer)) for answer, accuracy in answers]


def test_the_majority_of_each_group_votes_once() -> None:
    right = group("calc-1", ("0.5", 1.0), ("1/2", 1.0), ("3", 0.0), ("4", 0.0))  # equal by the verifier, so two votes of four
    wrong = group("calc-2", ("7", 0.0), ("7", 0.0), ("6", 1.0), ("", 0.0))
    silent = group("calc-2", *[("", 0.0)] * 4)
    assert consensus(right, 4, RECORDS) == 1.0
    assert consensus([*right, *wrong], 4, RECORDS) == 0.5
    assert consensus([*right, *wrong, *silent], 4, RECORDS) == 1 / 3
    assert consensus([*right, *right, *wrong, *wrong], 8, RECORDS) == 0.5  # a prompt drawn twice, in groups of eight


def test_prompts_without_a_rule_have_no_vote() -> None:
    judged = group("write-1", *[("a poem", None)] * 4)
    assert consensus(judged, 4, RECORDS) is None
    assert consensus([*judged, *group("calc-1", *[("2", 1.0)] * 4)], 4, RECORDS) == 1.0
