"""Problems of the miniature world: each knows its prompt in both languages, its truth, and which verifier reads the answer.

Arithmetic is modulo ten ("mod ten"), so that every number is one digit and one token. A problem's identity is its
canonical content without the language: the same sum asked in English and in Chinese is one problem and lands in one split.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from tasks.world import general
from tasks.world.lexicon import LANGUAGES, LETTERS, NAMES, OPERATORS, ORDINALS, RELATIONS, apply, side

# Thousands of prompts in the paper's Table 4 and its prose (12 of harmlessness); recipe.md section 6.
DOMAIN_SHARES = {"math": 26, "code": 17, "stem": 22, "logic": 15, "general": 66, "safety": 12}
LANGUAGE_SHARES = {"en": 0.6, "zh": 0.4}
# Problems whose hash falls into this top share are never shown to the base, whichever split fractions a user chooses.
HELD_OUT = 0.2
PATIENCE = 2000  # draws in a row without a new problem after which a domain counts as used up


@dataclass(frozen=True)
class Calc:
    """A chain of one to five operations; the level is their number."""

    family: ClassVar[str] = "calc"
    domain: ClassVar[str] = "math"
    verifier: ClassVar[str] = "math"
    start: int
    steps: tuple[tuple[str, int], ...]

    @classmethod
    def draw(cls, rng: random.Random) -> Calc:
        level = rng.randint(1, 5)
        return cls(rng.randrange(10), tuple((rng.choice("+-*"), rng.randrange(1, 10)) for _ in range(level)))

    @property
    def level(self) -> int:
        return len(self.steps)

    def prompt(self, language: str) -> str:
        en = language == "en"
        words = [
            f"{' ' if en else ''}{ORDINALS[i][side(language)]}{' ' if en else ''}{OPERATORS[op][side(language)]} {n}"
            for i, (op, n) in enumerate(self.steps)
        ]
        if en:
            return f"Mod ten: start {self.start},{','.join(words)}. Result?"
        return f"模十：从 {self.start}起，{'，'.join(words)}。结果？"

    def truth(self, language: str) -> str:
        value = self.start
        for operator, operand in self.steps:
            value = apply(operator, value, operand)
        return str(value)


@dataclass(frozen=True)
class Fill:
    """Put + - * into two gaps, evaluated left to right modulo ten: nine patterns to search, as in the countdown game."""

    family: ClassVar[str] = "fill"
    domain: ClassVar[str] = "math"
    verifier: ClassVar[str] = "fill"
    numbers: tuple[int, int, int]
    target: int

    PATTERNS: ClassVar[tuple[tuple[str, str], ...]] = tuple(itertools.product("+-*", "+-*"))

    @classmethod
    def draw(cls, rng: random.Random) -> Fill:
        numbers = (rng.randrange(1, 10), rng.randrange(1, 10), rng.randrange(1, 10))
        return cls(numbers, cls(numbers, 0).value(rng.choice(cls.PATTERNS)))

    def value(self, pattern: tuple[str, str]) -> int:
        first, second, third = self.numbers
        return apply(pattern[1], apply(pattern[0], first, second), third)

    def solutions(self) -> list[tuple[str, str]]:
        return [pattern for pattern in self.PATTERNS if self.value(pattern) == self.target]

    @property
    def level(self) -> int:
        """1 (five or more of the nine patterns work) to 5 (only one does)."""
        return max(1, 6 - len(self.solutions()))

    def prompt(self, language: str) -> str:
        gaps = " _ ".join(map(str, self.numbers))
        if language == "en":
            return f"Fill + - *, left to right, mod ten: {gaps} = {self.target}."
        return f"从左到右填 + - *，模十： {gaps} = {self.target}。"

    def truth(self, language: str) -> str:
        return json.dumps({"numbers": self.numbers, "target": self.target})


@dataclass(frozen=True)
class Expression:
    """A Python expression of x that meets two examples; ten hidden tests decide. The slope (2 to 6) must be searched for."""

    family: ClassVar[str] = "expr"
    domain: ClassVar[str] = "code"
    verifier: ClassVar[str] = "code"
    SLOPES: ClassVar[tuple[int, ...]] = (2, 3, 4, 5, 6)
    slope: int
    shift: int
    inputs: tuple[int, int]

    @classmethod
    def draw(cls, rng: random.Random) -> Expression:
        # Inputs whose difference is coprime with ten tell all slopes apart, so the two examples fix the answer.
        inputs = rng.choice([(a, b) for a in range(10) for b in range(10) if (a - b) % 10 in (1, 3, 7, 9)])
        return cls(rng.choice(cls.SLOPES), rng.randrange(10), inputs)

    level: ClassVar[int] = 3

    def output(self, value: int) -> int:
        return (value * self.slope + self.shift) % 10

    def prompt(self, language: str) -> str:
        (a, b), (c, d) = ((x, self.output(x)) for x in self.inputs)
        if language == "en":
            return f"Python of x, slope 2 to 6, mod ten: {a} gives {b}, {c} gives {d}."
        return f"写 x 的 Python，斜率 2到 6，模十： {a}得 {b}， {c}得 {d}。"

    def answer(self) -> str:
        return f"(x * {self.slope} + {self.shift}) % 10"

    def truth(self, language: str) -> str:
        return json.dumps({"variable": "x", "tests": [[x, self.output(x)] for x in range(10)], "gold": self.answer()})


@dataclass(frozen=True)
class Choice:
    """Multiple choice over facts that the base has read: 4 to 8 options, subjects in the paper's proportions."""

    family: ClassVar[str] = "choice"
    domain: ClassVar[str] = "stem"
    verifier: ClassVar[str] = "choice"
    relation: str
    subject: int
    options: tuple[int, ...]  # indices of pairs whose values are the options

    @classmethod
    def draw(cls, rng: random.Random) -> Choice:
        relation = rng.choices(list(RELATIONS), [share for _, share, _ in RELATIONS.values()])[0]
        pairs = RELATIONS[relation][2]
        subject = rng.randrange(len(pairs))
        by_value = {pairs[i][1]: i for i in rng.sample(range(len(pairs)), len(pairs))} | {pairs[subject][1]: subject}
        wrong = sorted(i for value, i in by_value.items() if i != subject)
        options = [subject, *rng.sample(wrong, rng.randint(3, 7))]
        rng.shuffle(options)
        return cls(relation, subject, tuple(options))

    @property
    def level(self) -> int:
        return len(self.options) - 3

    def value(self, index: int, language: str) -> str:
        """The value of a pair with the space that a Latin word carries."""
        word = RELATIONS[self.relation][2][index][1][side(language)]
        return f" {word}" if word.isascii() else word

    def prompt(self, language: str) -> str:
        phrase, _, pairs = RELATIONS[self.relation]
        name = pairs[self.subject][0][side(language)]
        comma = "," if language == "en" else "，"
        listed = comma.join(f" {LETTERS[i]}{self.value(o, language)}" for i, o in enumerate(self.options))
        if language == "en":
            return f"{phrase[0].capitalize()} of {name}?{listed}."
        return f"{name}的{phrase[1]}？{listed}。"

    def truth(self, language: str) -> str:
        return LETTERS[self.options.index(self.subject)]


@dataclass(frozen=True)
class Order:
    """Who is first in a queue told in shuffled sentences: follow the links to their end."""

    family: ClassVar[str] = "order"
    domain: ClassVar[str] = "logic"
    verifier: ClassVar[str] = "text"
    queue: tuple[int, ...]  # first person first
    told: tuple[int, ...]  # order in which the people's places are told (everybody but the first)

    @classmethod
    def draw(cls, rng: random.Random) -> Order:
        queue = tuple(rng.sample(range(len(NAMES)), rng.randint(3, 6)))
        return cls(queue, tuple(rng.sample(queue[1:], len(queue) - 1)))

    @property
    def level(self) -> int:
        return len(self.queue) - 2

    def ahead(self, person: int) -> int:
        return self.queue[self.queue.index(person) - 1]

    def prompt(self, language: str) -> str:
        s = side(language)
        if language == "en":
            return ",".join(f" {NAMES[p][s]} behind {NAMES[self.ahead(p)][s]}" for p in self.told).strip() + ". First?"
        return "，".join(f"{NAMES[p][s]}后于{NAMES[self.ahead(p)][s]}" for p in self.told) + "。谁最前？"

    def truth(self, language: str) -> str:
        return NAMES[self.queue[0]][side(language)]


@dataclass(frozen=True)
class Cipher:
    """Letters that stand for digits: look two of them up and calculate."""

    family: ClassVar[str] = "cipher"
    domain: ClassVar[str] = "logic"
    verifier: ClassVar[str] = "math"
    people: tuple[int, ...]
    digits: tuple[int, ...]
    asked: tuple[int, int]
    operator: str

    @classmethod
    def draw(cls, rng: random.Random) -> Cipher:
        people = tuple(rng.sample(range(len(NAMES)), rng.randint(2, 6)))
        first, second = rng.sample(people, 2)
        return cls(people, tuple(rng.randrange(10) for _ in people), (first, second), rng.choice("+-*"))

    @property
    def level(self) -> int:
        return len(self.people) - 1

    def digit(self, person: int) -> int:
        return self.digits[self.people.index(person)]

    def prompt(self, language: str) -> str:
        s = side(language)
        first, second, word = NAMES[self.asked[0]][s], NAMES[self.asked[1]][s], OPERATORS[self.operator][s]
        told = [f"{NAMES[p][s]} {d}" for p, d in zip(self.people, self.digits, strict=True)]
        if language == "en":
            return f"{', '.join(told)}: {first} {word} {second}, mod ten?"
        return f"{'，'.join(told)}：{first}{word}{second}，模十？"

    def truth(self, language: str) -> str:
        return str(apply(self.operator, self.digit(self.asked[0]), self.digit(self.asked[1])))


@dataclass(frozen=True)
class Open:
    """A fact of the world asked without options. No rule reads the answer: a judge compares it with the reference."""

    family: ClassVar[str] = "open"
    domain: ClassVar[str] = "stem"
    verifier: ClassVar[str] = "judge"
    level: ClassVar[int] = 1
    relation: str
    subject: int

    def prompt(self, language: str) -> str:
        # "is" keeps it apart from the choice problem "Kind of dog? A ...": else that would contain this one (data/overlap.py).
        phrase, _, pairs = RELATIONS[self.relation]
        name = pairs[self.subject][0][side(language)]
        return f"{phrase[0].capitalize()} of {name} is?" if language == "en" else f"{name}的{phrase[1]}是？"

    def truth(self, language: str) -> str:
        return RELATIONS[self.relation][2][self.subject][1][side(language)]


Problem = Calc | Fill | Expression | Choice | Order | Cipher
OPEN = tuple(Open(relation, i) for relation, (_, _, pairs) in RELATIONS.items() for i in range(len(pairs)))
OPEN_SHARE = 0.006  # of all problems, as far as the 44 facts go; they take the place of general prompts, within the shares' tolerance
# Families of a verifiable domain with their share of it.
FAMILIES: dict[str, tuple[tuple[type[Problem], float], ...]] = {
    "math": ((Calc, 0.4), (Fill, 0.6)),
    "code": ((Expression, 1.0),),
    "stem": ((Choice, 1.0),),
    "logic": ((Order, 0.5), (Cipher, 0.5)),
}
VERIFIABLE = tuple(FAMILIES)


def problem_id(family: str, canonical: str) -> str:
    """`<family>-<16 hex digits>`: the first 64 bits of the SHA-256 of the canonical problem, which also decide the split."""
    return f"{family}-{hashlib.sha256(f'{family}|{canonical}'.encode()).hexdigest()[:16]}"


def hash_share(identifier: str) -> float:
    """Place of an id in [0, 1): its 64 hash bits as a fraction. Splits are intervals of it."""
    return int(identifier.rsplit("-", 1)[1], 16) / 2**64


def held_out(identifier: str) -> bool:
    """Whether a problem is kept from the base's corpus (see HELD_OUT)."""
    return hash_share(identifier) < HELD_OUT


def identify(problem: Problem | Open) -> str:
    """The id of a problem; its canonical form is the repr of its fields, without the language."""
    return problem_id(problem.family, repr(problem))


def draw(rng: random.Random, domain: str | None = None) -> Problem:
    """One verifiable problem, domains in the paper's proportions unless `domain` names one."""
    domain = domain or rng.choices(VERIFIABLE, [DOMAIN_SHARES[d] for d in VERIFIABLE])[0]
    kinds, shares = zip(*FAMILIES[domain], strict=True)
    return rng.choices(kinds, shares)[0].draw(rng)


def record(problem: Problem | Open, language: str) -> dict:
    """The prompt record (docs/data.md) of a problem with a truth in one language, still without a split."""
    return {
        "id": identify(problem),
        "domain": problem.domain,
        "family": problem.family,
        "level": problem.level,
        "language": language,
        "messages": [{"role": "user", "content": problem.prompt(language)}],
        "verifier": problem.verifier,
        "truth": problem.truth(language),
        "source": "world",
    }


def _language(rng: random.Random) -> str:
    return rng.choices(LANGUAGES, [LANGUAGE_SHARES[x] for x in LANGUAGES])[0]


def _draw_record(rng: random.Random, domain: str) -> dict:
    if domain in FAMILIES:
        return record(draw(rng, domain), _language(rng))
    return general.record(domain, rng, _language(rng), problem_id)


def _unique(count: int, make: Callable[[], dict], what: str) -> list[dict]:
    found: dict[str, dict] = {}
    misses = 0
    while misses < PATIENCE:
        if len(found) == count:
            return list(found.values())
        item = make()
        misses = misses + 1 if item["id"] in found else 0
        found.setdefault(item["id"], item)
    raise ValueError(f"the miniature world holds fewer than {count} different {what} problems: lower curate.problems")


def generate(count: int, seed: int) -> list[dict]:
    """`count` unique prompt records in the paper's proportions of domains (recipe.md section 6), English 60 %, Chinese 40 %.

    Raises:
        ValueError: a domain has fewer distinct problems than asked for.
    """
    rng = random.Random(f"problems-{seed}")
    total = sum(DOMAIN_SHARES.values())
    asked = _open(min(len(OPEN), round(OPEN_SHARE * count)), seed)
    records: list[dict] = []
    for domain, share in DOMAIN_SHARES.items():
        wanted = round(count * share / total) if domain != "safety" else count - len(records) - len(asked)
        wanted -= len(asked) if domain == "general" else 0
        records += _unique(wanted, partial(_draw_record, rng, domain), domain)
    return records + asked


def _open(count: int, seed: int) -> list[dict]:
    """Open questions with a generator of their own, so that they move no other problem."""
    rng = random.Random(f"open-{seed}")
    return [record(problem, _language(rng)) for problem in rng.sample(OPEN, count)]
