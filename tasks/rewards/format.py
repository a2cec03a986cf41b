"""The tags of R1-Zero's template: `<think> ... </think> <answer> ... </answer>` and nothing else."""

from __future__ import annotations

import re
from dataclasses import dataclass

_STRICT = re.compile(r"\s*<think>(?P<thought>.*)</think>\s*<answer>(?P<answer>.*)</answer>\s*", re.DOTALL)
_TAG = re.compile(r"</?(?:think|answer)>")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


@dataclass(frozen=True)
class Parsed:
    """A completion taken apart. `well_formed` is the format reward; `answer` is empty unless exactly one answer was given."""

    thought: str
    answer: str
    well_formed: bool


def parse(completion: str) -> Parsed:
    """Splits a completion by the strict grammar: each of the four tags once, in order, with nothing before, between or after.

    Outside the grammar the answer still counts when there is exactly one answer block (format and accuracy are separate
    rewards, recipe.md section 1), and the thought is what stands before it, without tags.
    """
    tags = _TAG.findall(completion)
    strict = _STRICT.fullmatch(completion)
    if strict and tags == ["<think>", "</think>", "<answer>", "</answer>"]:
        return Parsed(strict["thought"].strip(), strict["answer"].strip(), True)
    answers = _ANSWER.findall(completion)
    one = len(answers) == 1 and completion.count("<answer>") == 1
    before = completion.split("<answer>")[0]
    return Parsed(_TAG.sub(" ", before).strip(), answers[0].strip() if one else "", False)
