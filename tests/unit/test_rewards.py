"""Format, language consistency, and how the rewards of R1-Zero add up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.rewards.format import parse
from tasks.rewards.language import consistency
from tasks.rewards.total import Rewarder, UnscorableError, Weights, score

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
    assert score(RECORD, GOOD, finished=True, weights=Weights(format=0.2)).total == pytest.approx(1.2)


def test_a_completion_cut_off_earns_no_format():
    assert score(RECORD, GOOD, finished=False).format == 0.0


def test_language_is_read_from_the_thought_alone_and_not_rewarded():
    mixed = score(RECORD, "<think> 三加四 </think> <answer> 7 </answer>", finished=True)
    assert mixed.language == 0.0 and mixed.total == 2.0


def test_an_unscorable_record_stops_training_with_its_id():
    with pytest.raises(UnscorableError, match="calc-0"):
        score(RECORD | {"truth": ""}, GOOD, finished=True)


ZH = "<think> 三加 four </think> <answer> 7 </answer>"


def test_the_language_term_is_added_with_its_weight_and_a_thought_without_words_is_whole():
    weights = Weights(language=1.0)
    assert score(RECORD, GOOD, True, weights).total == 3.0
    assert score(RECORD, ZH, True, weights).total == pytest.approx(2 + 1 / 3)
    assert score(RECORD, "<think> 3 + 4 </think> <answer> 7 </answer>", True, weights).total == 3.0
    assert score(RECORD, ZH, True, Weights(language=0.5)).total == pytest.approx(2 + 1 / 6)


class Fixed:
    """A reward model that gives the length of the question, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def score(self, questions, completions):
        self.asked += zip(questions, completions, strict=True)
        return [len(q) / 10 for q in questions]


def _record(domain: str, verifier: str, question: str) -> dict:
    truth = "7" if verifier == "math" else ""
    messages = [{"role": "user", "content": question}]
    return {"id": f"{domain}-0", "domain": domain, "verifier": verifier, "truth": truth, "language": "en", "messages": messages}


def test_each_prompt_gets_the_reward_of_its_kind():
    helpful, safety = Fixed(), Fixed()
    rewarder = Rewarder(Weights(1.0, 1.0), {"helpful": helpful, "safety": safety})
    records = [
        _record("general", "none", "aa"),
        _record("math", "math", "bbb"),
        _record("safety", "none", "cccc"),
        _record("general", "math", "d"),
    ]
    rewarder.check(records)
    rewards = rewarder(records, [GOOD] * 4, [True] * 4)
    assert [r.preference for r in rewards] == [0.2, None, 0.4, None]  # a rule, where there is one, comes first
    assert [r.accuracy for r in rewards] == [None, 1.0, None, 1.0]
    assert [r.total for r in rewards] == pytest.approx([2.2, 3.0, 2.4, 3.0])
    assert helpful.asked == [("aa", GOOD)] and safety.asked == [("cccc", GOOD)]


@pytest.mark.parametrize("lost", [_record("math", "none", "a"), _record("stem", "judge", "a"), _record("general", "none", "a")])
def test_a_prompt_to_which_no_reward_applies_is_named(lost):
    rewarder = Rewarder(judges={"safety": Fixed()})
    with pytest.raises(UnscorableError, match=f"no reward applies to 1 prompts: {lost['id']} .*verifier {lost['verifier']}"):
        rewarder.check([_record("safety", "none", "b"), lost])
    with pytest.raises(UnscorableError, match=lost["id"]):
        rewarder([lost], [GOOD], [True])
