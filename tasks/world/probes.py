"""Probes of a base: the atomic skills without which RL from it teaches only the format (measured in the feasibility study).

Floors: facts and knowledge .98, the verdict after a check .95 both ways, a forced careful chain .85 for every family.
"""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tasks.template import render
from tasks.world import problems
from tasks.world.corpus import join
from tasks.world.lexicon import LANGUAGES, OPERATORS, RELATIONS, apply, side
from tasks.world.problems import Expression, Fill, Problem
from tasks.world.thoughts import WAIT, attempt, attempts, reason, slipping

FLOORS = {"facts": 0.98, "knowledge": 0.98, "verdict": 0.95, "careful": 0.85, "search": 0.85}


@torch.no_grad()
def continue_greedily(model: PreTrainedModel, tok: PreTrainedTokenizerBase, prompts: list[str], length: int) -> list[str]:
    """Greedy continuations of at most `length` tokens, one prompt length at a time so that no padding is needed."""
    ids, groups = tok(prompts)["input_ids"], defaultdict(list)
    for i, row in enumerate(ids):
        groups[len(row)].append(i)
    out = [""] * len(prompts)
    for rows in groups.values():
        given = torch.tensor([ids[i] for i in rows])
        made = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=length, do_sample=False)
        for i, row in zip(rows, made, strict=True):
            out[i] = tok.decode(row[given.shape[1] :], skip_special_tokens=True)
    return out


def _share(model: PreTrainedModel, tok: PreTrainedTokenizerBase, cases: list[tuple[str, str]], length: int = 1) -> float:
    """Share of (prompt, expected beginning of the continuation) that come out."""
    made = continue_greedily(model, tok, [prompt for prompt, _ in cases], length)
    return sum(m.startswith(expected) for m, (_, expected) in zip(made, cases, strict=True)) / len(cases)


def facts(model: PreTrainedModel, tok: PreTrainedTokenizerBase) -> dict[str, float]:
    """Arithmetic by language and operator, all 100 pairs of digits each."""
    shares = {}
    for language in LANGUAGES:
        gap, equals = (" ", " is") if language == "en" else ("", "是")
        for op in "+-*":
            word = OPERATORS[op][side(language)]
            cases = [(f" {a}{gap}{word} {b}{equals}", f" {apply(op, a, b)}") for a in range(10) for b in range(10)]
            shares[f"{language}{op}"] = _share(model, tok, cases)
    return shares


def knowledge(model: PreTrainedModel, tok: PreTrainedTokenizerBase) -> float:
    """The world's facts, asked as the textbooks tell them."""
    cases = []
    for phrase, _, pairs in RELATIONS.values():
        for subject, value in pairs:
            cases.append((f" {phrase[0]} of {subject[0]} is", f" {value[0]}"))
            cases.append((f"{subject[1]}的{phrase[1]}是", f" {value[1]}" if value[1].isascii() else value[1]))
    return _share(model, tok, cases)


def _unseen(kind: type[Problem], count: int, seed: int) -> list[Any]:
    """Held-out problems of one family."""
    rng = random.Random(f"probe-{kind.__name__}-{seed}")
    found: list[Any] = []
    while len(found) < count:
        problem = kind.draw(rng)
        if problems.held_out(problems.identify(problem)):
            found.append(problem)
    return found


def verdict(model: PreTrainedModel, tok: PreTrainedTokenizerBase, count: int = 100) -> dict[str, float]:
    """P(yes | equal) and P(no | unequal) after a tried chain, by family."""
    cases: dict[str, list[tuple[str, str]]] = defaultdict(list)
    rng = random.Random("verdict")
    for kind in (Fill, Expression):
        for problem in _unseen(kind, count, 1):
            for candidate in attempts(problem, rng):
                segments, good, _ = attempt(problem, candidate, slipping(rng, 0.0))
                text = join([segments[:-1]], rng, "en", False)[:-1] + ","
                cases[f"{problem.family}_{'yes' if good else 'no'}"].append((_thinking(problem) + text, segments[-1][0]))
    return {name: _share(model, tok, rows[:200]) for name, rows in cases.items()}


def _thinking(problem: Problem) -> str:
    return render(problem.prompt("en")) + " <think>"


def careful(model: PreTrainedModel, tok: PreTrainedTokenizerBase, count: int = 100) -> dict[str, float]:
    """Held-out problems without search, solved greedily once the chain's first token is given."""
    shares = {}
    for kind in (problems.Calc, problems.Choice, problems.Order, problems.Cipher):
        for language in LANGUAGES:
            cases = []
            for problem in _unseen(kind, count, 2):
                segments, answer = reason(problem, random.Random(0), slipping(random.Random(0), 0.0))
                first = tok.decode(tok(segments[0][side(language)])["input_ids"][:1])
                cases.append((render(problem.prompt(language)) + " <think>" + first, f"<answer> {answer(language)} <"))
            made = continue_greedily(model, tok, [prompt for prompt, _ in cases], 60)
            shares[f"{kind.family}_{language}"] = sum(a in m for m, (_, a) in zip(made, cases, strict=True)) / count
    return shares


def search(model: PreTrainedModel, tok: PreTrainedTokenizerBase, count: int = 60) -> dict[str, float]:
    """Held-out search problems, greedy after a first wrong try and "wait": does the base know how to go on searching?"""
    shares, rng = {}, random.Random("search")
    for kind in (Fill, Expression):
        rows = []
        for problem in _unseen(kind, count, 3):
            order = attempts(problem, rng)
            tried = [attempt(problem, c, slipping(rng, 0.0)) for c in order]
            wrong = next(i for i, (_, good, _) in enumerate(tried) if not good)
            text = join([tried[wrong][0]], rng, "en", False) + WAIT[0] + ","
            right = [answer for _, good, answer in tried if good]
            rows.append((_thinking(problem) + text, right))
        made = continue_greedily(model, tok, [prompt for prompt, _ in rows], 220)
        shares[kind.family] = sum(any(f"<answer> {a} <" in m for a in right) for m, (_, right) in zip(made, rows, strict=True)) / count
    return shares


def run(model: PreTrainedModel, tok: PreTrainedTokenizerBase) -> dict:
    """All probes with the verdict `passed`: whether every figure reaches its floor."""
    found = {"facts": facts(model, tok), "knowledge": {"all": knowledge(model, tok)}, "verdict": verdict(model, tok)}
    found |= {"careful": careful(model, tok), "search": search(model, tok)}
    failed = [f"{probe}.{name}" for probe, shares in found.items() for name, value in shares.items() if value < FLOORS[probe]]
    return {**found, "failed": failed, "passed": not failed}
