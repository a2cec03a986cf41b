"""The judge of correctness: what it is shown, how strictly its replies are read, and when it is given up."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.config import Service
from tasks.errors import SecondThoughtError
from tasks.evaluation import correctness
from tasks.evaluation.correctness import CALL, Item, JudgeError, Verdicts, judge, messages, verdict
from tasks.generation.endpoint import EndpointError
from tests.servers import Status

GOOD = '{"analysis": "same animal", "correctness": "correct"}'
BAD = '{"analysis": "another animal", "correctness": "incorrect"}'
ITEM = Item("Kind of dog is?", "mammal", "a mammal")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (GOOD, True),
        (BAD, False),
        (f"```json\n{GOOD}\n```", True),
        (f"The reference says mammal, \\frac{{1}}{{2}} aside. My verdict:\n{BAD}\nThat is all {{really}}.", False),
        ('{"correctness" : " Correct "}', True),
        (f"{GOOD} and again {GOOD}", True),
        ('{"analysis": "I was told to say {\\"correctness\\": \\"correct\\"}", "correctness": "incorrect"}', False),
        # no verdict
        ("", None),
        ("correct", None),
        ("The answer is correct.", None),
        ('"correctness": "correct"', None),
        ('{"analysis": "fine"}', None),
        ('{"correctness": true}', None),
        ('{"correctness": "correct|incorrect"}', None),
        ('{"correctness": "not incorrect"}', None),
        ('{"correctness": null}', None),
        ('{"correctness": ["correct"]}', None),
        ('{"verdict": {"correctness": "correct"}}', None),
        ("{'correctness': 'correct'}", None),
        (f"{GOOD} or rather {BAD}", None),
        ('{"correctness": "correct", "correctness": "incorrect"}', None),
        (f'{GOOD} {{"correctness": "unsure"}}', None),
        ('{"analysis": "cut off', None),
        ('{"analysis": "x", {"correctness": "correct"}', None),  # the outer object is broken: its inside proves nothing
        (f'{{"analysis": "a first try that breaks off\n{GOOD}', None),
        ('{"a":' * 100_000, None),
        ('{"a": 1' + "0" * 5000 + "}", None),  # a number that Python refuses to read
    ],
)
def test_a_verdict_is_read_or_not_at_all(raw, expected):
    assert verdict(raw) is expected


@given(st.text(alphabet=st.sampled_from('{}[]":,\\` \ncorretins'), max_size=80))
def test_reading_never_fails(raw):
    assert verdict(raw) in (True, False, None)


@given(st.text(), st.text(), st.booleans(), st.text(st.characters(exclude_characters="{}")))
def test_a_verdict_survives_any_analysis_and_any_text_around_it(analysis, key, right, around):
    reply = {"analysis": analysis, f"x{key}": 1, "correctness": "correct" if right else "incorrect"}
    assert verdict(around + json.dumps(reply) + around) is right


@given(st.text(), st.text(), st.text())
def test_the_three_texts_cannot_break_out_of_their_places(question, reference, answer):
    system, user = messages(Item(question, reference, answer))
    assert (system["role"], user["role"]) == ("system", "user")
    assert json.loads(user["content"]) == {"question": question, "reference": reference, "answer": answer}
    assert '"analysis"' in system["content"] and '"correctness"' in system["content"]


# ---- counting and giving up


def said(*replies):
    """A judge that gives these replies in turn."""
    left = list(replies)
    return lambda items: [left.pop(0) for _ in items]


LATE = EndpointError("the endpoint http://x (model m): no whole answer within 1 s")


def test_every_reply_is_counted_once():
    verdicts = Verdicts(said(GOOD, "hm", BAD, LATE, GOOD))
    assert list(verdicts.of([ITEM] * 5)) == ["correct", "unparsed", "incorrect", "unanswered", "correct"]
    verdicts.check()
    assert verdicts.counts == {"correct": 2, "incorrect": 1, "unparsed": 1, "unanswered": 1}


def test_nothing_asked_is_no_error():
    verdicts = Verdicts(said())
    assert list(verdicts.of([])) == []
    verdicts.check()
    assert verdicts.counts == {"correct": 0, "incorrect": 0, "unparsed": 0, "unanswered": 0}


def test_only_nonsense_is_a_named_error_with_the_counts_and_a_reply():
    verdicts = Verdicts(said(LATE, "Bananas are yellow.", "no"))
    list(verdicts.of([ITEM] * 3))
    message = r"no verdict on any of 3 items \(0 correct, 0 incorrect, 2 unparsed, 1 unanswered\).*'Bananas are yellow\.'.*rejection\.judge"
    with pytest.raises(JudgeError, match=message):
        verdicts.check()


def test_nonsense_from_the_start_is_given_up_after_one_call():
    asked: list[Item] = []

    def nonsense(items):
        asked.extend(items)
        return ["?"] * len(items)

    with pytest.raises(JudgeError, match=f"{CALL} unparsed"):
        list(Verdicts(nonsense).of([ITEM] * (10 * CALL)))
    assert len(asked) == CALL


def test_a_judge_that_falls_silent_is_given_up_and_names_the_cause():
    verdicts = Verdicts(lambda items: [LATE] * len(items) if verdicts.counts["correct"] else [GOOD] * len(items))
    with pytest.raises(JudgeError, match=rf"left {CALL} items in a row unanswered \({CALL} correct.*no whole answer within 1 s"):
        list(verdicts.of([ITEM] * (3 * CALL)))


def test_a_few_late_answers_are_no_reason_to_give_up():
    verdicts = Verdicts(lambda items: [GOOD if i % 4 == 0 else LATE for i, _ in enumerate(items)])
    assert len(list(verdicts.of([ITEM] * (2 * CALL)))) == 2 * CALL
    assert verdicts.counts["unanswered"] == 3 * 2 * CALL // 4


# ---- the memory


def items(count):
    return [Item(f"question {i}", "a", "b") for i in range(count)]


def test_a_resumed_stage_asks_for_what_it_has_not_heard_yet(tmp_path):
    path = tmp_path / "state/replies.jsonl"
    asked: list[str] = []

    def scripted(call):
        asked.extend(item.question for item in call)
        return [(GOOD, BAD, "hm", LATE)[int(item.question.split()[1]) % 4] for item in call]

    total = items(3 * CALL + 2)
    straight = list(Verdicts(scripted).of(total))
    asked.clear()
    first = Verdicts(scripted, path)
    for _ in zip(range(CALL + 1), first.of(total), strict=False):  # killed within the second call
        pass
    with path.open("ab") as file:
        file.write(b'{"key": "half a li')
    again = Verdicts(scripted, path)
    assert list(again.of(total)) == straight
    assert asked == [item.question for item in total]  # nothing twice
    assert again.counts == {"correct": 25, "incorrect": 25, "unparsed": 24, "unanswered": 24}
    asked.clear()
    assert list(Verdicts(scripted, path).of(total)) == straight and asked == []


def test_other_items_are_not_answered_from_memory(tmp_path):
    path = tmp_path / "replies.jsonl"
    list(Verdicts(lambda call: [GOOD] * len(call), path).of(items(2 * CALL)))
    changed = [*items(CALL), *[ITEM] * CALL]
    assert list(Verdicts(lambda call: [BAD] * len(call), path).of(changed)) == ["correct"] * CALL + ["incorrect"] * CALL
    assert len(path.read_text().splitlines()) == 2


def test_nonsense_is_forgotten_and_an_outage_costs_no_verdict(tmp_path):
    path = tmp_path / "replies.jsonl"
    verdicts = Verdicts(said("no", "no"), path)
    list(verdicts.of(items(2)))
    with pytest.raises(JudgeError):
        verdicts.check()
    assert list(Verdicts(said(GOOD, BAD), path).of(items(2))) == ["correct", "incorrect"]
    path.unlink()
    down = Verdicts(lambda call: [LATE] * len(call) if down.counts["correct"] else [GOOD] * len(call), path)
    with pytest.raises(JudgeError):
        list(down.of(items(2 * CALL)))
    up = Verdicts(lambda call: [BAD] * len(call), path)
    assert list(up.of(items(2 * CALL))) == ["correct"] * CALL + ["incorrect"] * CALL


# ---- the two judges


def test_the_miniature_judges_its_own_questions():
    told = judge(None)([Item("Kind of dog is?", "mammal", "mammal"), Item("Kind of dog is?", "mammal", "bird")])
    assert [verdict(str(reply)) for reply in told] == [True, False]
    with pytest.raises(SecondThoughtError, match=r"did not write the open question.*configure `judge:`"):
        judge(None)([Item("Who was Ada?", "a mathematician", "a mathematician")])


def served(url, **settings):
    return Service.model_validate({"url": url, "model": "grader", "timeout": 5, "retries": 0} | settings)


def test_an_endpoint_judges_every_item_in_its_place(chat_server):
    def grade(chat):
        shown = json.loads(chat[1]["content"])
        if shown["answer"] == "crash":
            return Status(500)
        return GOOD if shown["answer"] == shown["reference"] else "I cannot say." if shown["answer"] == "?" else f"```\n{BAD}\n```"

    chat_server.replies = grade
    verdicts = Verdicts(judge(served(chat_server.url)))
    answers = ["a", "b", "?", "crash", "a"] * 8
    found = list(verdicts.of([Item("q", "a", answer) for answer in answers]))
    assert found == ["correct", "incorrect", "unparsed", "unanswered", "correct"] * 8
    assert len(chat_server.requests) == 40 and all(request["model"] == "grader" for request in chat_server.requests)
    assert all(chat["messages"][0]["content"] == correctness.INSTRUCTIONS for chat in chat_server.requests)


def test_an_endpoint_that_is_not_there_is_named(chat_server):
    nowhere = chat_server.url.replace("/v1", "/nothing")
    verdicts = Verdicts(judge(served(nowhere)))
    list(verdicts.of([ITEM] * 3))
    with pytest.raises(JudgeError, match=r"0 unparsed, 3 unanswered.*no such model or path"):
        verdicts.check()
