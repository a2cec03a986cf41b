"""Verifiers: is an answer right? Each says correct, wrong, or unscorable because of the data; an answer cannot cause the third.

An answer is never evaluated as code. Expressions go through simpleeval, an interpreter of a whitelist of syntax nodes.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Callable, Mapping
from enum import Enum
from fractions import Fraction
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import BaseModel, Field, StrictInt, ValidationError
from simpleeval import SimpleEval

Truth = TypeVar("Truth", bound=BaseModel)
MAX_ANSWER = 200  # characters; longer answers are wrong unread, so that no parser ever sees 100,000 digits


class Outcome(Enum):
    CORRECT = "correct"
    WRONG = "wrong"
    UNSCORABLE = "unscorable"


class GoldError(ValueError):
    """The ground truth itself cannot be read: an error of the data, caught by the contracts before training."""


_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?")  # only these commas separate thousands; "1,2" is two numbers
_NUMBER = re.compile(r"[+-]?(\d{1,50}(\.\d{1,50})?|\.\d{1,50})(/[1-9]\d{0,49})?")


def number(text: str) -> Fraction | None:
    """A plain integer, decimal or fraction of decimals ("1,200", "$7", "-3/4", "0.5"), else None. No exponents, so no huge values."""
    plain = text.strip().removeprefix("$").strip()
    if _THOUSANDS.fullmatch(plain):
        plain = plain.replace(",", "")
    if not plain.isascii() or not _NUMBER.fullmatch(plain):
        return None
    top, _, bottom = plain.partition("/")
    return Fraction(top) / Fraction(bottom or 1)


@lru_cache(maxsize=4096)
def _parse_latex(text: str) -> tuple:
    """The expressions that math-verify reads in a text; empty if it reads none (it then offers the bare string, which proves nothing)."""
    from math_verify import parse

    found = parse(text if "$" in text or "\\boxed" in text else f"${text}$")
    return tuple(found) if any(not isinstance(item, str) for item in found) else ()


def _math(truth: str, answer: str) -> bool:
    """Equality of numbers, else symbolic equality through math-verify (with its time limits)."""
    gold, value = number(truth), number(answer)
    if gold is not None and value is not None:
        return gold == value
    expected = _parse_latex(truth)
    if not truth.strip() or not expected:
        raise GoldError(f"the math ground truth {truth!r} holds no number or expression")
    from math_verify import verify as equal

    given = _parse_latex(answer) if answer.strip() and answer.count("$") <= 2 else ()  # two formulas are two answers
    return bool(given) and bool(equal(list(expected), list(given)))


_OPERATORS = {"+": "+", "-": "-", "*": "*", "plus": "+", "minus": "-", "times": "*", "加": "+", "减": "-", "乘": "*", "×": "*"}


def _evaluate_left_to_right(numbers: list[int], operators: tuple[str, ...]) -> int:
    value = numbers[0]
    for operator, n in zip(operators, numbers[1:], strict=True):
        value = {"+": value + n, "-": value - n, "*": value * n}[operator] % 10
    return value


class FillTruth(BaseModel):
    """Ground truth of a fill problem: numbers with a gap between neighbours, and what they must come to modulo ten."""

    numbers: list[StrictInt] = Field(min_length=2, max_length=9)
    target: StrictInt


class CodeTruth(BaseModel):
    """Ground truth of a code problem: hidden (input, output) tests, and one expression that passes them."""

    variable: str
    tests: list[tuple[StrictInt, StrictInt]] = Field(min_length=1)
    gold: str = ""


@lru_cache(maxsize=4096)
def _read(kind: type[Truth], truth: str) -> Truth:
    try:
        return kind.model_validate_json(truth)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "JSON"
        raise GoldError(f"the ground truth {truth[:80]!r} is not a {kind.__name__}: {where}: {first['msg']}") from error


def _fill(truth: str, answer: str) -> bool:
    """Operators for the gaps, as signs or words, evaluated left to right modulo ten."""
    gold = _read(FillTruth, truth)
    operators = tuple(_OPERATORS.get(word, "?") for word in re.findall(r"[A-Za-z]+|[^\sA-Za-z]", answer))
    if len(operators) != len(gold.numbers) - 1 or "?" in operators:
        return False
    return _evaluate_left_to_right(gold.numbers, operators) == gold.target


_LETTER = re.compile(r"\(?([A-H])\)?[.。:]?")


def _choice(truth: str, answer: str) -> bool:
    """One option letter, bare or as "(B)" or "B."; naming several options is wrong."""
    if not re.fullmatch(r"[A-H]", truth):
        raise GoldError(f"the choice ground truth {truth!r} is not one letter from A to H")
    given = _LETTER.fullmatch(answer.strip())
    return given is not None and given[1] == truth


def _power(base: Any, exponent: Any) -> Any:
    raise ArithmeticError("powers are not allowed in answers")


def _code(truth: str, answer: str) -> bool:
    """A one-line Python expression against hidden (input, output) tests; arithmetic and comparisons only."""
    gold = _read(CodeTruth, truth)
    evaluator = SimpleEval()
    for node in [node for node in evaluator.operators if node.__name__ in ("Pow", "LShift", "RShift")]:
        evaluator.operators[node] = _power
    evaluator.functions = {}
    try:
        tree = ast.parse(answer.strip(), mode="eval").body  # one expression; simpleeval itself would ignore what follows a semicolon
        if any(
            isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and type(node.value) is not int) for node in ast.walk(tree)
        ):
            return False  # text can be formatted to gigabytes, and no test needs it
        for given, expected in gold.tests:
            evaluator.names = {gold.variable: given}
            result = evaluator.eval(answer, previously_parsed=tree)
            if type(result) is not int or result != expected:
                return False
    except Exception:  # whatever an answer provokes in the interpreter is a wrong answer, never an error of the run
        return False
    return True


def _text(truth: str, answer: str) -> bool:
    """Equality of words, ignoring case and blanks."""
    if not truth.strip():
        raise GoldError("the ground truth is empty")
    return " ".join(truth.casefold().split()) == " ".join(answer.casefold().split())


_VERIFIERS: dict[str, Callable[[str, str], bool]] = {"math": _math, "fill": _fill, "choice": _choice, "code": _code, "text": _text}
VERIFIERS = tuple(_VERIFIERS)


def verify(verifier: str, truth: str, answer: str) -> Outcome:
    r"""Compares an answer with the ground truth; of an answer in prose, what stands in its one \boxed{} counts.

    Returns:
        CORRECT or WRONG; UNSCORABLE only if the ground truth (or the verifier's name) cannot be used.
    """
    check = _VERIFIERS.get(verifier)
    if check is None:
        return Outcome.UNSCORABLE
    if answer.count("\\boxed") == 1:  # a summary in prose; several boxes are several answers
        answer = boxed(answer) or answer
    try:
        if len(answer) > MAX_ANSWER:
            check(truth, "")  # still tells an unscorable truth from a wrong answer
            return Outcome.WRONG
        return Outcome.CORRECT if check(truth, answer) else Outcome.WRONG
    except GoldError:
        return Outcome.UNSCORABLE


def boxed(solution: str) -> str:
    r"""Content of the last \boxed{...}, \fbox{...} or `\boxed 5` of a LaTeX text, braces balanced; "" without one."""
    start = max(solution.rfind("\\boxed"), solution.rfind("\\fbox"))
    if start < 0:
        return ""
    rest = re.sub(r"^\\(?:boxed|fbox)\s*", "", solution[start:])
    if not rest.startswith("{"):
        return re.split(r"[\s$.]", rest, maxsplit=1)[0]
    depth = 0
    for position, character in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return rest[1:position].strip()
    return ""


def gold_answer(record: Mapping[str, Any]) -> str:
    """An answer that the record's own verifier must call correct; "" if the truth cannot be read or nothing satisfies it."""
    truth = record["truth"]
    try:
        if record["verifier"] == "fill":
            gold = _read(FillTruth, truth)
            patterns = itertools.product("+-*", repeat=len(gold.numbers) - 1)
            return next((" ".join(p) for p in patterns if _evaluate_left_to_right(gold.numbers, p) == gold.target), "")
        return _read(CodeTruth, truth).gold if record["verifier"] == "code" else truth
    except GoldError:
        return ""
