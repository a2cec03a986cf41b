"""Format, language consistency, and how the rewards of R1-Zero add up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.rewards.format import parse
from tasks.rewards.language import consistency
from tasks.rewards.total import UnscorableError, score

GOOD = " <think> so it is </think> <answer> 7 </answer>"
RECORD = {"id": "calc-0", "verifier": "math", "truth": "7", "language": "en"}


def test_the_strict_grammar():
    parsed = parse(GOOD)
    assert (parsed.thought, parsed.answer, parsed.well_formed) == ("so it is", "7", True)
    assert parse(GOOD.strip() + "\n").well_formed
    assert parse("<think></think><answer></answer>").well_formed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "<answer> 7 </answer>",
        "<think> a </think> 7",
        "<think> a <answer> 7 </answer>",
        "x <think> a </think> <answer> 7 </answer>",
        "<think> a </think> x <answer> 7 </answer>",
        "<think> a </think> <answer> 7 </answer> x",
        "<think> <think> a </think> </think> <answer> 7 </answer>",
        "<think> a </think> <answer> 7 </answer> <answer> 8 </answer>",
        "<answer> 7 </answer> <think> a </think>",
        "<think> a </think> <answer> <answer> 7 </answer> </answer>",
        "<THINK> a </THINK> <answer> 7 </answer>",
    ],
)
def test_malformed(text):
    assert not parse(text).well_formed


def test_an_answer_counts_without_the_format_only_if_there_is_one():
    assert parse("<answer> 7 </answer>").answer == "7"
    assert parse("<answer> 7 </answer> <answer> 8 </answer>").answer == ""
    assert parse("7").answer == ""
    assert parse("<answer> <answer> 7 </answer>").answer == ""


@given(st.text())
def test_parse_never_fails(text):
    parsed = parse(text)
    assert isinstance(parsed.answer, str) and isinstance(parsed.thought, str)


@pytest.mark.parametrize(
    ("thought", "language", "expected"),
    [
        ("three and four", "en", 1.0),
        ("三加四", "zh", 1.0),
        ("三加四", "en", 0.0),
        ("one 二 three 四", "en", 0.5),
        ("one 二 three 四", "zh", 0.5),
        ("Au is gold 是", "en", 2 / 3),  # the symbol Au belongs to no language
        ("x B 7 + 8", "en", None),
        ("", "zh", None),
    ],
)
def test_consistency_is_the_share_of_words_in_the_target_language(thought, language, expected):
    assert consistency(thought, language) == (None if expected is None else pytest.approx(expected))


def test_an_unsupported_language_is_named():
    with pytest.raises(ValueError, match="'fr'"):
        consistency("bonjour", "fr")


def test_accuracy_and_format_add_up_with_equal_weight():
    assert score(RECORD, GOOD, finished=True).total == 2.0
    assert score(RECORD, GOOD.replace("7", "8"), finished=True).total == 1.0
    assert score(RECORD, "<answer> 7 </answer>", finished=True).total == 1.0
    assert score(RECORD, "7", finished=True).total == 0.0
    assert score(RECORD, GOOD, finished=True, format_weight=0.2).total == pytest.approx(1.2)


def test_a_completion_cut_off_earns_no_format():
    assert score(RECORD, GOOD, finished=False).format == 0.0


def test_language_is_read_from_the_thought_alone_and_not_rewarded():
    mixed = score(RECORD, "<think> 三加四 </think> <answer> 7 </answer>", finished=True)
    assert mixed.language == 0.0 and mixed.total == 2.0


def test_an_unscorable_record_stops_training_with_its_id():
    with pytest.raises(UnscorableError, match="calc-0"):
        score(RECORD | {"truth": ""}, GOOD, finished=True)
