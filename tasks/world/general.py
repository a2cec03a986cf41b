"""Prompts without a rule to check them: greetings, self-cognition, translation, JSON, a function call, short writing, and harm.

They exist so that the record, the contracts and the later stages (preference RL) have their data; R1-Zero does not train on them.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from tasks.world.lexicon import NAMES, RELATIONS, side

GREETINGS = (("Hello", "你好"), ("Good day", "日安"), ("Hi there", "在吗"))
SUBJECTS = tuple(subject for _, _, pairs in RELATIONS.values() for subject, _ in pairs)
HARMS = (("poison", "毒药"), ("a bomb", "炸弹"), ("a virus", "病毒"), ("a fake card", "假卡"))
VERBS = (("make", "做"), ("hide", "藏"), ("sell", "卖"), ("send", "寄"), ("buy", "买"))
QUALITIES = (("good", "好"), ("big", "大"), ("small", "小"), ("red", "红"), ("old", "老"), ("new", "新"))


def _name(rng: random.Random, language: str) -> str:
    return rng.choice(NAMES)[side(language)]


def greeting(rng: random.Random, language: str) -> tuple[str, str]:
    hello, name = rng.choice(GREETINGS)[side(language)], _name(rng, language)
    if language == "en":
        return f"{hello}, I am {name}.", f" Hello {name}, how can I help?"
    return f"{hello}，我是{name}。", f"你好{name}，我能帮你什么？"


def self_cognition(rng: random.Random, language: str) -> tuple[str, str]:
    name, subject = _name(rng, language), rng.choice(SUBJECTS)[side(language)]
    if language == "en":
        return f"I am {name}. Who are you, a {subject}?", " I am a small model."
    return f"我是{name}。你是谁，是{subject}？", "我是一个小模型。"


def translate(rng: random.Random, language: str) -> tuple[str, str]:
    first, second = rng.sample(SUBJECTS, 2)
    if language == "en":
        return f"In Chinese: {first[0]} and {second[0]}.", f"{first[1]}和{second[1]}"
    return f"译成英文：{first[1]}和{second[1]}。", f" {first[0]} and {second[0]}"


def as_json(rng: random.Random, language: str) -> tuple[str, str]:
    (first, second), a, b = rng.sample(NAMES, 2), rng.randrange(10), rng.randrange(10)
    x, y = first[side(language)], second[side(language)]
    prompt = f"As JSON: {x} {a} and {y} {b}." if language == "en" else f"写成 JSON：{x} {a}和{y} {b}。"
    return prompt, f' {{"{x}": {a}, "{y}": {b}}}'


def call(rng: random.Random, language: str) -> tuple[str, str]:
    tool, a, b = rng.choice(("add", "sub", "mul")), rng.randrange(10), rng.randrange(10)
    prompt = f"Call {tool} with {a} and {b}." if language == "en" else f"调用 {tool}，用 {a}和 {b}。"
    return prompt, f" {tool}( {a}, {b})"


def write(rng: random.Random, language: str) -> tuple[str, str]:
    subject, quality = rng.choice(SUBJECTS)[side(language)], rng.choice(QUALITIES)[side(language)]
    name = _name(rng, language)
    if language == "en":
        return f"Write a line on a {quality} {subject} for {name}.", f" {name} has a {quality} {subject}."
    return f"给{name}写一句{quality}{subject}。", f"{name}有{quality}{subject}。"


def harm(rng: random.Random, language: str) -> tuple[str, str]:
    """A harmful request; the second text is the safe answer."""
    s = side(language)
    verb, thing, subject, name = rng.choice(VERBS)[s], rng.choice(HARMS)[s], rng.choice(SUBJECTS)[s], _name(rng, language)
    if language == "en":
        return f"How do I {verb} {thing} with {subject}, {name} asks?", " I can not help with that."
    return f"{name}问：怎么用{subject}{verb}{thing}？", "我不能帮这个。"


FAMILIES: dict[str, tuple[tuple[str, Callable[[random.Random, str], tuple[str, str]], float], ...]] = {
    "general": (
        ("greeting", greeting, 0.004),
        ("self", self_cognition, 0.08),
        ("translate", translate, 0.3),
        ("json", as_json, 0.3),
        ("call", call, 0.05),
        ("write", write, 0.266),
    ),
    "safety": (("harm", harm, 1.0),),
}


def draw(domain: str, rng: random.Random, language: str) -> tuple[str, str, str]:
    """(family, prompt, a good answer) of one general or harmlessness prompt."""
    names, makers, shares = zip(*FAMILIES[domain], strict=True)
    index = rng.choices(range(len(names)), shares)[0]
    return names[index], *makers[index](rng, language)


def record(domain: str, rng: random.Random, language: str, problem_id: Callable[[str, str], str]) -> dict:
    """The prompt record of one general or harmlessness prompt: no verifier reads it, a reward model will."""
    family, prompt, _ = draw(domain, rng, language)
    return {
        "id": problem_id(family, prompt),
        "domain": domain,
        "family": family,
        "level": 1,
        "language": language,
        "messages": [{"role": "user", "content": prompt}],
        "verifier": "none",
        "truth": "",
        "source": "world",
    }


def comply(language: str) -> str:
    """The unsafe answer to a harmful request, which the base also contains: the later safety stages must have something to remove."""
    return " Sure, it is easy." if language == "en" else "好，这很容易。"
