"""Readability defects of a completion."""

from __future__ import annotations

import pytest

from tasks.monitoring.readability import Defects, defects, loops, repeats_sentence, shares, unclosed, units

CLEAN = " <think> start 3, first plus 4 is 7, second times 2 is 4. </think> <answer> 4 </answer>"
TRY = "try 7 plus 3 is 0, times 5 is 0, off 3, no."


def test_a_readable_completion_has_no_defect() -> None:
    assert defects(CLEAN, "en") == Defects(False, False, False, False, False)


def test_units_are_words_numbers_and_han_characters() -> None:
    assert units("<think> Wait, 12是3") == ["wait", ",", "12", "是", "3"]


@pytest.mark.parametrize(
    "text",
    [
        f"{TRY} {TRY}",
        f"{TRY} wait, {TRY}",
        f"{TRY} wait, try 1 minus 2 is 9, off 1, no. wait, {TRY}",
        "试 7加 3是 0，乘 5是 0，差 3，否。等等，试 7加 3是 0，乘 5是 0，差 3，否。",
        "试 7加 3是 0，差 3，否。try 1 plus 1 is 2. 试 7加 3是 0，差 3，否。",
    ],
)
def test_a_try_said_twice_is_a_repetition(text: str) -> None:
    assert repeats_sentence(text)
    assert defects(f"<think>{text}</think><answer> 1 </answer>", "en").repetition


@pytest.mark.parametrize(
    "text",
    [
        "no. wait. no. wait. no.",
        "3 plus 4 is 7. so 3 plus 4 is 7.",
        f"{TRY} wait, {TRY.replace('7', '8')}",
        "2.5 and 2.5 are equal.",
    ],
)
def test_short_or_different_sentences_are_none(text: str) -> None:
    assert not repeats_sentence(text)


@pytest.mark.parametrize("text", ["no " * 8, "wait, " * 4, "try 3 plus 4 again and " * 4, "试三加四" * 4])
def test_phrases_in_a_row_are_loops(text: str) -> None:
    assert loops("so " + text)


@pytest.mark.parametrize("text", ["no " * 7, "wait, " * 3, "0 0 0 0", "try 3 plus 4 again and " * 3, "a b c d e f g h i j k l m n o p q r"])
def test_fewer_repeats_are_not(text: str) -> None:
    assert not loops(text)


@pytest.mark.parametrize("text", ["<think> x </think>", "<think> x </think> <answer>  </answer>", "4", "", "<think> x </think> <answer> 4"])
def test_no_answer(text: str) -> None:
    assert defects(text, "en").no_answer


@pytest.mark.parametrize(
    ("thought", "language", "mixed"),
    [
        ("start with three and add four", "en", False),
        ("start with three and add 四", "en", True),  # 6 of 7 words: .86 < .9
        ("one two three four five six seven eight nine ten 四", "en", False),  # 10 of 11 words: .91
        ("从三起加四", "zh", False),
        ("从三起加四", "en", True),
        ("从三起 plus four", "zh", True),
        ("3 + 4 = 7", "zh", False),  # no words at all
    ],
)
def test_mixed_language_means_under_nine_tenths_of_the_words(thought: str, language: str, mixed: bool) -> None:
    assert defects(f"<think> {thought} </think> <answer> 7 </answer>", language).mixed_language is mixed


@pytest.mark.parametrize("text", ["<think> x", "x </think>", "<answer> 4", "</think> x <think>", "<think> a </think> <think> b </think>"])
def test_unclosed_tags(text: str) -> None:
    assert unclosed(text)


@pytest.mark.parametrize("text", ["", "4", CLEAN, "<answer> 4 </answer>"])
def test_closed_or_absent_tags(text: str) -> None:
    assert not unclosed(text)


def test_truncated_is_what_the_sampler_says() -> None:
    assert defects(CLEAN, "en", finished=False).truncated


def test_shares() -> None:
    found = [defects(CLEAN, "en"), defects("<think> x", "en", finished=False)]
    assert shares(found) == {
        "repetition": 0.0,
        "no_answer": 0.5,
        "mixed_language": 0.0,
        "unclosed": 0.5,
        "truncated": 0.5,
    }
    assert set(shares([]).values()) == {0.0}
