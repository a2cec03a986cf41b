"""Verifiers: tables of right, wrong and unscorable, and properties."""

from __future__ import annotations

import json
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.rewards.verify import VERIFIERS, Outcome, gold_answer, number, verify
from tasks.world import problems

FILL = json.dumps({"numbers": [7, 3, 5], "target": 6})  # (7 * 3) + 5 = 26 -> 6
CODE = json.dumps({"variable": "x", "tests": [[x, (x * 3 + 1) % 10] for x in range(10)], "gold": "(x * 3 + 1) % 10"})


@pytest.mark.parametrize(
    ("verifier", "truth", "answer"),
    [
        ("math", "7", " 7 "),
        ("math", "1200", "1,200"),
        ("math", "1/2", "0.5"),
        ("math", "\\frac{1}{2}", "0.5"),
        ("math", "x^2+2x+1", "(x+1)^2"),
        ("math", "42", "\\boxed{42}"),
        ("fill", FILL, "* +"),
        ("fill", FILL, "times plus"),
        ("fill", FILL, "乘加"),
        ("choice", "C", "C"),
        ("choice", "C", "(C)"),
        ("choice", "C", "C."),
        ("code", CODE, "(x * 3 + 1) % 10"),
        ("code", CODE, "(1 + 3 * x) % 10"),
        ("text", "Ann", "ann"),
    ],
)
def test_correct(verifier, truth, answer):
    assert verify(verifier, truth, answer) is Outcome.CORRECT


@pytest.mark.parametrize(
    ("verifier", "truth", "answer"),
    [
        ("math", "7", ""),
        ("math", "7", "8"),
        ("math", "7", "7 8"),
        ("math", "7", "1 2 3 4 5 6 7 8 9"),
        ("math", "7", "7" * 100_000),
        ("math", "7", "9**9**9**9"),
        ("math", "12", "1,2"),
        ("math", "12", "1,,2"),
        ("math", "3,5", "35"),
        ("math", "7", "$8$ $7$"),
        ("math", "7", "٧"),
        ("fill", FILL, ""),
        ("fill", FILL, "*"),
        ("fill", FILL, "* + -"),
        ("fill", FILL, "* ^"),
        ("fill", FILL, "+ +"),
        ("choice", "C", "A B C D"),
        ("choice", "C", "CD"),
        ("choice", "C", ""),
        ("code", CODE, ""),
        ("code", CODE, "x"),
        ("code", CODE, "(x * 3 + 1) % 10; 1"),
        ("code", CODE, "x ** 9 ** 9 ** 9"),
        ("code", CODE, "1 << 99999999999"),
        ("code", CODE, "__import__('os').system('true')"),
        ("code", CODE, "x.__class__"),
        ("code", CODE, "[x for x in range(10**9)]"),
        ("code", CODE, "1 / 0"),
        ("code", CODE, "'%9999999999d' % 1"),
        ("code", CODE, "f'{1:9999999999}'"),
        ("code", CODE, "'a' * 99999999999"),
        ("code", CODE, "(" * 150 + "x" + ")" * 40),
        ("text", "Ann", "Ann Bob"),
        ("text", "Ann", ""),
    ],
)
def test_wrong_and_quick(verifier, truth, answer):
    began = time.perf_counter()
    assert verify(verifier, truth, answer) is Outcome.WRONG
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize(
    ("verifier", "truth"),
    [("math", ""), ("fill", "{"), ("fill", "{}"), ("choice", "CD"), ("choice", ""), ("code", "nothing"),
     ("code", '{"variable": "x", "tests": []}'), ("code", '{"variable": "x", "tests": [[1, "2"]]}'),
     ("fill", '{"numbers": "735", "target": 6}'), ("fill", '{"numbers": [7, 3, 5], "target": "6"}'),
     ("math", "???"), ("text", " "), ("none", ""), ("unheard-of", "7")],
)  # fmt: skip
@pytest.mark.parametrize("answer", ["", "7", "C", "x" * 1000])
def test_an_unreadable_truth_is_unscorable_whatever_the_answer(verifier, truth, answer):
    assert verify(verifier, truth, answer) is Outcome.UNSCORABLE


@given(st.sampled_from([v for v in VERIFIERS if v != "math"]), st.text(max_size=60))
def test_no_answer_can_make_good_data_unscorable(verifier, answer):
    truth = {"fill": FILL, "choice": "C", "code": CODE, "text": "Ann"}[verifier]
    assert verify(verifier, truth, answer) in (Outcome.CORRECT, Outcome.WRONG)


@given(st.fractions(max_denominator=1000), st.fractions(max_denominator=1000))
def test_math_on_fractions_is_equality(a, b):
    assert (verify("math", str(a), str(b)) is Outcome.CORRECT) == (a == b)


def test_number_refuses_exponents_words_and_unicode_digits():
    assert [number(x) for x in ("1e9", "seven", "٧", "", "1/0", "--1")] == [None] * 6
    assert number("-3/4") == -3 / 4 and number("$1,200.50") == 1200.5


def test_every_gold_of_the_world_verifies_and_shuffled_golds_mostly_do_not():
    records = [r for r in problems.generate(1500, 3) if r["verifier"] in VERIFIERS]
    assert all(verify(r["verifier"], r["truth"], gold_answer(r)) is Outcome.CORRECT for r in records)
    for family in {r["family"] for r in records}:
        own = [r for r in records if r["family"] == family]
        golds = [gold_answer(r) for r in own]
        random.Random(0).shuffle(golds)
        right = sum(verify(r["verifier"], r["truth"], g) is Outcome.CORRECT for r, g in zip(own, golds, strict=True))
        assert right < 0.4 * len(own), family  # one in four at most by chance (choice, order)


@pytest.mark.parametrize(
    ("verifier", "truth", "answer", "right"),
    [
        ("math", "7", r"I add 3 and 4, so it is \boxed{7}.", True),
        ("math", "7", r"It is 7, or \boxed{8}.", False),
        ("choice", "B", r"The bird is B. \boxed{B}", True),
        ("text", "Ann", r"\boxed{Ann}", True),
        ("fill", '{"numbers": [7, 3, 5], "target": 6}', r"so \boxed{- +}", None),
        ("choice", "B", r"\boxed{A} or \boxed{B}", False),  # two boxes are two answers
    ],
)
def test_the_one_boxed_answer_of_a_summary_counts(verifier, truth, answer, right):
    inner = answer[answer.rindex("{") + 1 : answer.rindex("}")]
    expected = verify(verifier, truth, inner) if right is None else Outcome.CORRECT if right else Outcome.WRONG
    assert verify(verifier, truth, answer) is expected
