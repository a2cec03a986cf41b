"""The base's corpus: textbooks, and conversations in R1-Zero's template in which nobody is trained to think.

No document knows a reward. Conversations mostly answer at once or think sloppily; careful ones are rare, and ones that say
"wait" and try again are at most REFLECTIVE of all documents. No held-out problem appears (problems.held_out).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from tasks.template import render
from tasks.world import general, problems
from tasks.world.lexicon import LANGUAGES, LETTERS, NAMES, OPERATORS, ORDINALS, RELATIONS, apply, side
from tasks.world.problems import Expression, Fill, Order, Problem
from tasks.world.thoughts import Segment, drills, reason, search, slipping

REFLECTIVE = 0.05  # ceiling on the share of documents with "wait"; the mix below gives about 0.045
MIXED = 0.6  # share of chains in conversations that change language from step to step
SLOPPY_RATE = 0.3  # a sloppy chain's chance of a slip at each step

# Documents: kind -> share. Textbook kinds show the skills without the template; conversations are what RL will sample from.
KINDS = {"facts": 0.10, "copy": 0.04, "drill": 0.22, "book": 0.26, "book_search": 0.035, "talk": 0.31, "general": 0.035}
# Conversations about a verifiable problem: style -> share. "reflect" exists for search problems only.
STYLES = {"bare": 0.06, "direct": 0.50, "sloppy": 0.18, "careful": 0.16, "reflect": 0.10}


@dataclass(frozen=True)
class Document:
    """A text; the base is trained on what follows its first `given` characters (the random part that nobody could predict)."""

    text: str
    kind: str
    given: int = 0


def join(sentences: list[list[Segment]], rng: random.Random, language: str, mixed: bool) -> str:
    """Writes sentences out: a comma after each segment and a full stop after a sentence's last, in the segment's own language.

    Args:
        rng: picks the language anew at each segment of a mixed chain; untouched otherwise.
        language: of the whole text, "en" or "zh"; a mixed chain ignores it.
        mixed: whether the chain changes language from segment to segment.
    """
    written = []
    for sentence in sentences:
        for i, segment in enumerate(sentence):
            s = rng.randrange(2) if mixed else side(language)
            last = i == len(sentence) - 1
            written.append(segment[s] + ((".", "。")[s] if last else (",", "，")[s]))
    return "".join(written)


def _draw(rng: random.Random) -> Problem:
    while True:
        problem = problems.draw(rng)
        if not problems.held_out(problems.identify(problem)):
            return problem


def _draw_search(rng: random.Random) -> Fill | Expression:
    while True:
        problem = _draw(rng)
        if isinstance(problem, Fill | Expression):
            return problem


def _language(rng: random.Random) -> str:
    return "en" if rng.random() < problems.LANGUAGE_SHARES["en"] else "zh"


def blind_answer(problem: Problem, rng: random.Random, language: str) -> str:
    """An answer of the right kind without thinking: what a direct conversation gives."""
    match problem:
        case Fill():
            return " ".join(rng.choice(problem.PATTERNS))
        case Expression():
            return f"(x * {rng.choice(problem.SLOPES)} + {rng.randrange(10)}) % 10"
        case Order():
            return NAMES[rng.choice(problem.queue)][side(language)]
        case problems.Choice():
            return problems.LETTERS[rng.randrange(len(problem.options))]
    return str(rng.randrange(10))


def facts(rng: random.Random) -> Document:
    """Arithmetic tables and the world's knowledge, a handful of facts a document."""
    language = rng.choice(LANGUAGES)
    s = side(language)

    def sum_fact() -> str:
        op, a, b = rng.choice("+-*"), rng.randrange(10), rng.randrange(10)
        return f" {a}{(' ' if s == 0 else '')}{OPERATORS[op][s]} {b}{(' is', '是')[s]} {apply(op, a, b)}"

    def knowledge() -> str:
        phrase, _, pairs = RELATIONS[rng.choice(list(RELATIONS))]
        subject, value = (x[s] for x in rng.choice(pairs))
        told = f" {value}" if value.isascii() else value
        return f" {phrase[0]} of {subject} is{told}" if s == 0 else f"{subject}的{phrase[1]}是{told}"

    make = sum_fact if rng.random() < 0.65 else knowledge
    return Document((",", "，")[s].join(make() for _ in range(6)) + (".", "。")[s], "facts")


def drill(rng: random.Random) -> Document:
    """An exercise in looking things up: what a problem states, then the same statements again in another order, or its table of values.

    Without these a base of this size learned all facts but not to copy from the prompt (docs/log.md).
    """
    problem, language = _draw(rng), _language(rng)
    given, asked = drills(problem, rng)
    stated = join([given], rng, language, False)[:-1] + (":", "：")[side(language)]
    return Document(stated + join([asked], rng, language, False), "drill", len(stated))


def copy(rng: random.Random) -> Document:
    """Words, names and digits in no order, said twice: the plainest exercise in copying."""
    language = rng.choice(LANGUAGES)
    s = side(language)
    words = [pair[s] for pairs in (NAMES, ORDINALS, OPERATORS.values()) for pair in pairs] + list(LETTERS) + list("0123456789") * 2
    row = "".join(f" {w}" if w.isascii() else w for w in rng.choices(words, k=rng.randint(6, 16)))
    return Document(f"{row}.{row}.", "copy", len(row) + 1)


def book(rng: random.Random) -> Document:
    """A worked example in one language, always right; a search problem is shown with the try that works."""
    problem, language = _draw(rng), _language(rng)
    if isinstance(problem, Fill | Expression):
        while True:
            sentences, answer = search(problem, rng, 1)
            if sentences[-1][-1][0] == " yes" or rng.random() < 0.3:  # some shown tries fail, so that "no" is learnt too
                break
    else:
        segments, answer = reason(problem, rng, slipping(rng, 0.0))
        sentences = [segments]
    return _worked("book", problem, language, join(sentences, rng, language, False), answer(language))


def book_search(rng: random.Random) -> Document:
    """A worked search with all its tries; one of the two reflective kinds."""
    problem, language = _draw_search(rng), _language(rng)
    sentences, answer = search(problem, rng, 9)
    return _worked("book_search", problem, language, join(sentences, rng, language, False), answer(language))


def _worked(kind: str, problem: Problem, language: str, thought: str, answer: str) -> Document:
    task, solution, result = (" Task:", " Solution:", " Answer:") if language == "en" else ("题：", "解：", "答：")
    gap = " " if problem.prompt(language)[0].isascii() else ""
    stated = f"{task}{gap}{problem.prompt(language)}{solution}"
    return Document(f"{stated}{thought}{result} {answer}", kind, len(stated))


def talk(rng: random.Random) -> Document:
    """A conversation in the template about a verifiable problem, in one of STYLES."""
    problem, language = _draw(rng), _language(rng)
    style = rng.choices(list(STYLES), list(STYLES.values()))[0]
    mixed = rng.random() < MIXED
    answer = blind_answer(problem, rng, language)
    if style in ("bare", "direct"):
        thought = "" if style == "bare" else (" maybe", "也许")[side(language)]
    elif isinstance(problem, Fill | Expression) and style in ("careful", "reflect"):
        sentences, told = search(problem, rng, 9 if style == "reflect" else 1)
        thought, answer = join(sentences, rng, language, mixed), told(language)
    else:
        segments, told = reason(problem, rng, slipping(rng, SLOPPY_RATE if style == "sloppy" else 0.0))
        thought, answer = join([segments], rng, language, mixed), told(language)
    stated = render(problem.prompt(language))
    return Document(stated + completion(thought, answer, tags=style != "bare"), f"talk_{style}", len(stated))


def completion(thought: str, answer: str, tags: bool = True) -> str:
    """What the assistant says: thought and answer in R1's tags, or the bare answer."""
    gap = "" if answer.startswith(" ") else " "
    return f" <think>{thought} </think> <answer>{gap}{answer} </answer>" if tags else f"{gap}{answer}"


def chat(rng: random.Random) -> Document:
    """A general prompt with a good answer, or a harmful one that is followed half the time."""
    domain, language = ("general" if rng.random() < 0.8 else "safety"), _language(rng)
    _, prompt, answer = general.draw(domain, rng, language)
    if domain == "safety" and rng.random() < 0.5:
        answer = general.comply(language)
    return Document(render(prompt) + completion("", answer), "general", len(render(prompt)))


def is_reflective(text: str) -> bool:
    """Whether a document says "wait" in either language."""
    return " wait" in text or "等等" in text


MAKERS = {"facts": facts, "copy": copy, "drill": drill, "book": book, "book_search": book_search, "talk": talk, "general": chat}


def documents(count: int, seed: int) -> Iterator[Document]:
    """`count` documents of the corpus in the shares of KINDS."""
    rng = random.Random(f"corpus-{seed}")
    kinds, shares = list(KINDS), list(KINDS.values())
    for _ in range(count):
        yield MAKERS[rng.choices(kinds, shares)[0]](rng)
