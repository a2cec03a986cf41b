"""Readability defects of a completion: what the paper names as R1-Zero's weakness (unreadable, mixed languages).

Every defect is a pure function of the text (and of whether sampling ended by itself), so that each can be recomputed
from the stored samples.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields

from tasks.monitoring import reflection
from tasks.rewards.format import parse
from tasks.rewards.language import consistency

MIXED_BELOW = 0.9  # a thought with less than 90 % of its words in the prompt's language counts as mixed
MIN_SENTENCE = 6  # units; "no." or "3 plus 4 is 7." may well be said twice, a whole try may not
MAX_PERIOD = 16  # longest phrase, in units, whose immediate repetition counts as a loop
MIN_REPEATS = 4  # a phrase said four times in a row is a loop ...
MIN_LOOP = 8  # ... if it covers at least this many units ("0 0 0 0" is a number, eight equal units are not)

_TAG = re.compile(r"</?(think|answer)>")
# A full stop ends a sentence unless an ASCII character follows ("3.5"); a Chinese sentence may follow without a blank.
_SENTENCE_END = re.compile(r"[.!?](?=\s|<|$|[^\x00-\x7f])|[。！？\n]|</?(?:think|answer)>")
_UNIT = re.compile(r"[A-Za-z]+|[0-9]+|[^\sA-Za-z0-9]")  # a Latin word, a number, or one other sign (a Han character)


@dataclass(frozen=True)
class Defects:
    """Which readability defects a completion has."""

    repetition: bool  # a sentence of at least MIN_SENTENCE units said twice, or a phrase in a loop
    no_answer: bool  # nothing between the answer tags, or no answer tags
    mixed_language: bool  # under MIXED_BELOW of the thought's words are in the prompt's language
    unclosed: bool  # a tag that is missing its partner, or that occurs twice
    truncated: bool  # sampling hit the length limit


def units(text: str) -> list[str]:
    """Words, numbers and single other signs (one Han character is one unit), lower case, without tags."""
    return _UNIT.findall(_TAG.sub(" ", text).lower())


def _without_reflection(text: str) -> str:
    """The text with reflective words blanked: "wait, try 3" and "try 3" are the same try."""
    for match in reversed(reflection.find(text)):
        text = text[: match.start] + " " + text[match.end :]
    return text


def repeats_sentence(text: str) -> bool:
    """Whether a sentence of at least MIN_SENTENCE units occurs twice, whatever reflective words stand around it.

    Sentences are compared as written: the same try in another language is not recognised.
    """
    sentences = (tuple(units(part)) for part in _SENTENCE_END.split(_without_reflection(text)))
    long = Counter(s for s in (_trimmed(sentence) for sentence in sentences) if len(s) >= MIN_SENTENCE)
    return any(times > 1 for times in long.values())


def _trimmed(sentence: tuple[str, ...]) -> tuple[str, ...]:
    """The sentence from its first word, number or Han character on: no comma left over from "wait,"."""
    first = next((i for i, unit in enumerate(sentence) if unit.isalnum()), len(sentence))
    return sentence[first:]


def loops(text: str) -> bool:
    """Whether a phrase of up to MAX_PERIOD units is said MIN_REPEATS times in a row over at least MIN_LOOP units."""
    said = units(text)
    for period in range(1, MAX_PERIOD + 1):
        enough = max(MIN_REPEATS * period, MIN_LOOP) - period  # equal neighbours at distance `period`, in a row
        run = 0
        for earlier, later in zip(said, said[period:], strict=False):
            run = run + 1 if earlier == later else 0
            if run >= enough:
                return True
    return False


def unclosed(text: str) -> bool:
    """Whether a think or answer tag lacks its partner, stands before it, or occurs more than once."""
    for tag in ("think", "answer"):
        opened, closed = text.count(f"<{tag}>"), text.count(f"</{tag}>")
        if opened != closed or opened > 1 or text.find(f"</{tag}>") < text.find(f"<{tag}>"):
            return True
    return False


def defects(completion: str, language: str, finished: bool = True) -> Defects:
    """The readability defects of one completion.

    Args:
        completion: the sampled text, tags included, prompt excluded.
        language: of the prompt, "en" or "zh".
        finished: False if sampling hit the length limit.
    """
    parsed = parse(completion)
    share = consistency(parsed.thought, language)
    return Defects(
        repetition=repeats_sentence(completion) or loops(completion),
        no_answer=not parsed.answer.strip(),
        mixed_language=share is not None and share < MIXED_BELOW,
        unclosed=unclosed(completion),
        truncated=not finished,
    )


def shares(found: Iterable[Defects]) -> dict[str, float]:
    """Share of completions with each defect, by its name; zeros for no completions at all."""
    all_of_them = list(found)
    total = max(len(all_of_them), 1)
    return {f.name: sum(getattr(d, f.name) for d in all_of_them) / total for f in fields(Defects)}
