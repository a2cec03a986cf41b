"""The miniature's refiner: rewrites a sampled chain of thought into one language, step by step, and invents nothing.

It reads each segment of tasks/world/thoughts.py in either language, even where words of both stand in one segment; it translates,
drops a try that was said before, and repairs punctuation. What it cannot read it refuses, as an honest editor would.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterable, Sequence

from tasks.rewards.verify import boxed
from tasks.world.corpus import join
from tasks.world.lexicon import LETTERS, NAMES, OPERATORS, ORDINALS, RELATIONS, side
from tasks.world.thoughts import Segment

# Every kind of segment, in the order of English and of Chinese words. A slot's final digit tells two of the same kind apart.
KINDS: tuple[Segment, ...] = (
    ("wait", "等等"),
    ("try {digit1} {operator} {digit2} is {digit3}", "试 {digit1} {operator} {digit2} 是 {digit3}"),
    ("try {digit1}", "试 {digit1}"),
    ("start {digit1}", "从 {digit1} 起"),
    ("{ordinal} {operator} {digit1} is {digit2}", "{ordinal} {operator} {digit1} 是 {digit2}"),
    ("{operator} {digit1} is {digit2}", "{operator} {digit1} 是 {digit2}"),
    ("{digit1} {operator} {digit2} is {digit3}", "{digit1} {operator} {digit2} 是 {digit3}"),
    ("{name1} {digit1}", "{name1} {digit1}"),
    ("{relation} of {subject} is {value}", "{subject} 的 {relation} 是 {value}"),
    ("{value} is {letter}", "{value} 是 {letter}"),
    ("{name1} behind {name2}", "{name1} 后于 {name2}"),
    ("{name1} is first", "{name1} 最前"),
    ("off {digit1}", "差 {digit1}"),
    ("yes", "成"),
    ("no", "否"),
)
WAIT, TRIES = 0, (1, 2)  # places in KINDS
# What a slot may hold, in both languages.
SLOTS: dict[str, tuple[Segment, ...]] = {
    "digit": tuple((d, d) for d in "0123456789"),
    "letter": tuple((x, x) for x in LETTERS),
    "operator": tuple(OPERATORS.values()),
    "ordinal": ORDINALS,
    "name": NAMES,
    "relation": tuple(phrase for phrase, _, _ in RELATIONS.values()),
    "subject": tuple(subject for _, _, pairs in RELATIONS.values() for subject, _ in pairs),
    "value": tuple(dict.fromkeys(value for _, _, pairs in RELATIONS.values() for _, value in pairs)),
}
SAME = {"is": "是", "try": "试", "off": "差", "behind": "后于"}  # words that stand in one place in both languages, so may be mixed
_MARK = re.compile(r"[,，.。、;；\n]+")
_SIGNS = {form: sign for sign, forms in OPERATORS.items() for form in (sign, *forms)} | {"×": "*"}

Step = tuple[int, tuple[tuple[str, int], ...]]  # kind, and the place in SLOTS of what each of its slots holds: no language any more


class UnreadableError(ValueError):
    """A chain with something that is no step of the miniature world."""


def _slot(word: str) -> str | None:
    return word[1:-1].rstrip("0123456789") if word.startswith("{") else None


def _pattern(template: str) -> re.Pattern[str]:
    parts = []
    for word in template.split():
        slot = _slot(word)
        either = {form for pair in SLOTS[slot] for form in pair} if slot else {word, SAME.get(word, word)}
        choice = "|".join(sorted(map(re.escape, either), key=len, reverse=True))
        parts.append(f"(?P<{word[1:-1]}>{choice})" if slot else f"(?:{choice})")
    return re.compile(r"\s*" + r"\s*".join(parts) + r"\s*")


_PATTERNS = [(kind, _pattern(template)) for kind, pair in enumerate(KINDS) for template in dict.fromkeys(pair)]
_PLACES = {slot: {form: i for i, pair in enumerate(pairs) for form in pair} for slot, pairs in SLOTS.items()}


def read(segment: str) -> Step:
    """What a segment says, whatever its language.

    Raises:
        UnreadableError: it is no step of the world.
    """
    for kind, pattern in _PATTERNS:
        if found := pattern.fullmatch(segment):
            return kind, tuple(sorted((slot, _PLACES[slot.rstrip("0123456789")][word]) for slot, word in found.groupdict().items()))
    raise UnreadableError(f"no step of the world: {segment.strip()!r:.60}")


def write(step: Step) -> Segment:
    """A step in English and in Chinese. Only a Latin word or a digit has a blank before it, as in tasks/world/thoughts.py."""
    kind, held = step
    places = dict(held)
    en, zh = ("".join(f" {w}" if w.isascii() else w for w in (_word(word, places, s) for word in KINDS[kind][s].split())) for s in (0, 1))
    return en, zh


def _word(word: str, places: dict[str, int], s: int) -> str:
    slot = _slot(word)
    return SLOTS[slot][places[word[1:-1]]][s] if slot else word


def _sentences(steps: Iterable[Step]) -> list[list[Step]]:
    """Sentences as the world writes them: one for each try, the "wait" before it included; everything else is one sentence."""
    made: list[list[Step]] = [[]]
    for step in steps:
        begins = step[0] == WAIT or (step[0] in TRIES and [kind for kind, _ in made[-1]] != [WAIT])
        if begins and made[-1]:
            made.append([])
        made[-1].append(step)
    return made


def _once(sentences: Sequence[list[Step]]) -> list[list[Step]]:
    """Without a try that says nothing but what an earlier one said, and without a "wait" that nothing follows."""
    kept, said = [], set()
    for sentence in sentences:
        content = tuple(step for step in sentence if step[0] != WAIT)
        repeated = content in said and content[0][0] in TRIES
        if content and not repeated:
            kept.append(sentence)
            said.add(content)
    return kept


def rewrite(thought: str, language: str) -> str:
    """A chain of thought wholly in `language` ("en" or "zh"), with the world's punctuation, each try once.

    Raises:
        UnreadableError: it has no step, or something in it is none.
    """
    sentences = _once(_sentences(read(part) for part in _MARK.split(thought) if part.strip()))
    if not sentences:
        raise UnreadableError("no step at all")
    side(language)  # an unknown language fails here
    return join([[write(step) for step in sentence] for sentence in sentences], random.Random(0), language, mixed=False)


def canonical(verifier: str, truth: str, answer: str) -> str:
    r"""The one spelling of an answer that was verified as correct: "-*" becomes "- *", "(x*3+1)%10" becomes "(x * 3 + 1) % 10".

    Of an answer in prose, what stands in its \boxed{} counts, as it did for the verifier.
    """
    answer = boxed(answer) or answer
    if verifier == "fill":
        return " ".join(_SIGNS[word] for word in re.findall(r"[A-Za-z]+|[^\sA-Za-z]", answer))
    return ast.unparse(ast.parse(answer.strip(), mode="eval")) if verifier == "code" else truth
