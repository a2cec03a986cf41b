"""Chains of thought of the miniature world, as segments in both languages so that a chain can stay in one or mix them.

Every comparison is written as a subtraction ("off 3, no"): a tiny model computes that at once, and never learned to compare two digits.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import singledispatch
from typing import Any

from tasks.world.lexicon import LETTERS, NAMES, OPERATORS, ORDINALS, RELATIONS, apply
from tasks.world.problems import Calc, Choice, Cipher, Expression, Fill, Order, Problem

Segment = tuple[str, str]  # the same step in English and in Chinese
Slip = Callable[[int], int]  # returns the digit, or now and then a wrong one


def slipping(rng: random.Random, rate: float) -> Slip:
    """Replaces a digit by a random one with probability `rate`: how a careless chain goes wrong."""
    return lambda digit: rng.randrange(10) if rng.random() < rate else digit


@singledispatch
def reason(problem: Problem, rng: random.Random, slip: Slip) -> tuple[list[Segment], Callable[[str], str]]:
    """One pass over a problem without search: its segments, and the answer (a function of the language) that they lead to."""
    raise TypeError(f"no chain of thought is written for {type(problem).__name__}")


@reason.register
def _(problem: Calc, rng: random.Random, slip: Slip) -> tuple[list[Segment], Callable[[str], str]]:
    value, segments = problem.start, [(f" start {problem.start}", f"从 {problem.start}起")]
    for i, (op, n) in enumerate(problem.steps):
        value = slip(apply(op, value, n))
        (en, zh), (word, character) = ORDINALS[i], OPERATORS[op]
        segments.append((f" {en} {word} {n} is {value}", f"{zh}{character} {n}是 {value}"))
    return segments, lambda _: str(value)


@reason.register
def _(problem: Cipher, rng: random.Random, slip: Slip) -> tuple[list[Segment], Callable[[str], str]]:
    (word, character), values = OPERATORS[problem.operator], [slip(problem.digit(p)) for p in problem.asked]
    result = slip(apply(problem.operator, *values))
    segments = [(f" {NAMES[p][0]} {v}", f"{NAMES[p][1]} {v}") for p, v in zip(problem.asked, values, strict=True)]
    segments.append((f" {values[0]} {word} {values[1]} is {result}", f" {values[0]}{character} {values[1]}是 {result}"))
    return segments, lambda _: str(result)


@reason.register
def _(problem: Choice, rng: random.Random, slip: Slip) -> tuple[list[Segment], Callable[[str], str]]:
    (en, zh), _, pairs = RELATIONS[problem.relation]
    chosen = problem.subject if slip(10) == 10 else rng.choice(problem.options)
    subject, letter = pairs[problem.subject][0], LETTERS[problem.options.index(chosen)]
    told = [problem.value(chosen, language) for language in ("en", "zh")]
    segments = [
        (f" {en} of {subject[0]} is{told[0]}", f"{subject[1]}的{zh}是{told[1]}"),
        (f"{told[0]} is {letter}", f"{told[1]}是 {letter}"),
    ]
    return segments, lambda _: letter


@reason.register
def _(problem: Order, rng: random.Random, slip: Slip) -> tuple[list[Segment], Callable[[str], str]]:
    person, segments = problem.told[0], []
    while person != problem.queue[0] and slip(10) == 10:
        ahead = problem.ahead(person)
        segments.append((f" {NAMES[person][0]} behind {NAMES[ahead][0]}", f"{NAMES[person][1]}后于{NAMES[ahead][1]}"))
        person = ahead
    en, zh = NAMES[person]
    segments.append((f" {en} is first", f"{zh}最前"))
    return segments, lambda language: en if language == "en" else zh


@reason.register
def _(problem: Fill, rng: random.Random, slip: Slip) -> tuple[list[Segment], Callable[[str], str]]:
    pattern = rng.choice(problem.PATTERNS)
    segments, _ = try_fill(problem, pattern, slip)
    return segments, lambda _: " ".join(pattern)


@reason.register
def _(problem: Expression, rng: random.Random, slip: Slip) -> tuple[list[Segment], Callable[[str], str]]:
    segments, shift, _ = try_slope(problem, slope := rng.choice(problem.SLOPES), slip)
    return segments, lambda _: f"(x * {slope} + {shift}) % 10"


def try_fill(problem: Fill, pattern: tuple[str, str], slip: Slip) -> tuple[list[Segment], int]:
    """One try of a pattern and its result: "try 7 plus 3 is 0, times 5 is 0"."""
    a, b, c = problem.numbers
    (p_en, p_zh), (q_en, q_zh) = (OPERATORS[op] for op in pattern)
    first = slip(apply(pattern[0], a, b))
    second = slip(apply(pattern[1], first, c))
    return [
        (f" try {a} {p_en} {b} is {first}", f"试 {a}{p_zh} {b}是 {first}"),
        (f" {q_en} {c} is {second}", f"{q_zh} {c}是 {second}"),
    ], second


def try_slope(problem: Expression, slope: int, slip: Slip) -> tuple[list[Segment], int, int]:
    """One try of a slope: the shift that the first example gives, and what the second example then comes to."""
    (a, c), (b, _) = problem.inputs, (problem.output(x) for x in problem.inputs)
    product = slip(apply("*", a, slope))
    shift = slip(apply("-", b, product))
    again = slip(apply("*", c, slope))
    result = slip(apply("+", again, shift))
    segments = [
        (f" try {slope}", f"试 {slope}"),
        (f" {a} times {slope} is {product}", f" {a}乘 {slope}是 {product}"),
        (f" {b} minus {product} is {shift}", f" {b}减 {product}是 {shift}"),
        (f" {c} times {slope} is {again}", f" {c}乘 {slope}是 {again}"),
        (f" plus {shift} is {result}", f"加 {shift}是 {result}"),
    ]
    return segments, shift, result


def verdict(target: int, result: int, slip: Slip) -> tuple[list[Segment], bool]:
    """The check of a try, written as a subtraction: "off 3, no" or "off 0, yes"."""
    off = slip(apply("-", target, result))
    return [(f" off {off}", f"差 {off}"), (" yes", "成") if off == 0 else (" no", "否")], off == 0


WAIT: Segment = (" wait", "等等")


def attempts(problem: Fill | Expression, rng: random.Random) -> list[Any]:
    """All candidates (patterns or slopes) in a fixed cyclic order from a random start: the next try is then a function of the last one."""
    order = list(problem.PATTERNS if isinstance(problem, Fill) else problem.SLOPES)
    start = rng.randrange(len(order))
    return order[start:] + order[:start]


def attempt(problem: Fill | Expression, candidate: Any, slip: Slip) -> tuple[list[Segment], bool, str]:
    """One checked try of a search problem: segments with the check, whether the check says yes, and the answer it would give."""
    if isinstance(problem, Fill):
        segments, result = try_fill(problem, candidate, slip)
        answer, target = " ".join(candidate), problem.target
    else:
        segments, shift, result = try_slope(problem, candidate, slip)
        answer, target = f"(x * {candidate} + {shift}) % 10", problem.output(problem.inputs[1])
    check, good = verdict(target, result, slip)
    return segments + check, good, answer


def search(problem: Fill | Expression, rng: random.Random, tries: int) -> tuple[list[list[Segment]], Callable[[str], str]]:
    """Honest checked tries until one works or `tries` are used up; the sentences after the first begin with "wait".

    With `tries` 1 this is the careful chain that notices its mistake and answers all the same.
    """
    exact = slipping(rng, 0.0)
    sentences: list[list[Segment]] = []
    answer = ""
    for candidate in attempts(problem, rng)[:tries]:
        segments, good, answer = attempt(problem, candidate, exact)
        sentences.append(([WAIT] if sentences else []) + segments)
        if good:
            break
    return sentences, lambda _: answer


@singledispatch
def drills(problem: Problem, rng: random.Random) -> tuple[list[Segment], list[Segment]]:
    """What a problem states, and an exercise on it: the statements shuffled, or a table of what its candidates come to."""
    raise TypeError(f"no drill is written for {type(problem).__name__}")


def _shuffled(segments: list[Segment], rng: random.Random) -> tuple[list[Segment], list[Segment]]:
    return segments, rng.sample(segments, len(segments))


@drills.register
def _(problem: Calc, rng: random.Random) -> tuple[list[Segment], list[Segment]]:
    words = [(ORDINALS[i], OPERATORS[op], n) for i, (op, n) in enumerate(problem.steps)]
    return _shuffled([(f" {o[0]} {w[0]} {n}", f"{o[1]}{w[1]} {n}") for o, w, n in words], rng)


@drills.register
def _(problem: Cipher, rng: random.Random) -> tuple[list[Segment], list[Segment]]:
    told = zip(problem.people, problem.digits, strict=True)
    return _shuffled([(f" {NAMES[p][0]} {d}", f"{NAMES[p][1]} {d}") for p, d in told], rng)


@drills.register
def _(problem: Order, rng: random.Random) -> tuple[list[Segment], list[Segment]]:
    links = [(NAMES[p], NAMES[problem.ahead(p)]) for p in problem.told]
    return _shuffled([(f" {p[0]} behind {q[0]}", f"{p[1]}后于{q[1]}") for p, q in links], rng)


@drills.register
def _(problem: Choice, rng: random.Random) -> tuple[list[Segment], list[Segment]]:
    values = [(problem.value(o, "en"), problem.value(o, "zh")) for o in problem.options]
    options = [(f" {LETTERS[i]}{en}", f" {LETTERS[i]}{zh}") for i, (en, zh) in enumerate(values)]
    letters = [(f"{en} is {LETTERS[i]}", f"{zh}是 {LETTERS[i]}") for i, (en, zh) in enumerate(values)]
    return options, rng.sample(letters, len(letters))


@drills.register
def _(problem: Fill, rng: random.Random) -> tuple[list[Segment], list[Segment]]:
    exact, rows = slipping(rng, 0.0), []
    for pattern in attempts(problem, rng)[:3]:
        (first, second), _ = try_fill(problem, pattern, exact)
        rows += [(first[0].removeprefix(" try"), first[1].removeprefix("试")), second]
    gaps = " _ ".join(map(str, problem.numbers))
    return [(f" {gaps}", f" {gaps}")], rows


@drills.register
def _(problem: Expression, rng: random.Random) -> tuple[list[Segment], list[Segment]]:
    exact, rows = slipping(rng, 0.0), []
    for slope in attempts(problem, rng)[:2]:
        rows += try_slope(problem, slope, exact)[0][1:]
    (a, c), (b, d) = problem.inputs, (problem.output(x) for x in problem.inputs)
    return [(f" {a} gives {b}", f" {a}得 {b}"), (f" {c} gives {d}", f" {c}得 {d}")], rows
