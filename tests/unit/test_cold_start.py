"""The cold start's filters, counts, review and refiners on hand-written samples; the model's refiner asks a real local server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tasks import cold_start, records, refine
from tasks.cold_start import Candidate, Funnel, admit, check_again, is_right, read_verdicts, select
from tasks.config import ColdStart, Service
from tasks.errors import DataError
from tasks.generation.endpoint import EndpointError
from tasks.refine import EndpointRefiner, Refined, Refused, Rewriter
from tasks.rewards.format import parse
from tests.servers import Silence, Status, in_turn

TRY_2 = " try 2, 1 times 2 is 2, 5 minus 2 is 3, 4 times 2 is 8, plus 3 is 1, off 4, no."
TRY_4 = " try 4, 1 times 4 is 4, 5 minus 4 is 1, 4 times 4 is 6, plus 1 is 7, off 0, yes."


def row(thought: str = " start 3, first plus 4 is 7.", answer: str = "7", **changed: object) -> dict:
    return {
        "prompt_id": "calc-00000000000000aa", "sample": 0, "domain": "math", "family": "calc", "level": 2, "language": "en",
        "messages": [{"role": "user", "content": "Mod ten: start 3, first plus 4. Result?"}], "verifier": "math", "truth": "7",
        "text": f" <think>{thought} </think> <answer> {answer} </answer>", "tokens": 12, "finished": True, "policy": "p",
    } | changed  # fmt: skip


def params(**changed: object) -> ColdStart:
    defaults = {
        "seed": 0, "prompts": 4, "samples": 2, "temperature": 1.0, "max_new_tokens": 64, "min_language": 0.2, "per_prompt": 2,
        "review": "review.jsonl",
    }  # fmt: skip
    return ColdStart.model_validate(defaults | changed)


def candidate(thought: str, answer: str = "7", **changed: Any) -> Candidate:
    return Candidate(row(**changed), Refined(thought, answer))


# ---- filters


def test_each_filter_takes_its_own_and_is_counted_by_family():
    loop = " no" * 12
    chinese, fifth = "从 3起，一加 4是 7。", "从 3起，一加 4是 7， first plus"
    rows = [
        row(),
        row(finished=False),
        row(text="<answer> 7 </answer>"),
        row(answer="8"),
        row(loop),
        row(chinese),
        row(" 7"),  # no words at all: nothing is mixed
        row(fifth),  # 2 of 6 words are English
        row(family="order", verifier="text", truth="Ann", answer="ann"),
    ]
    funnel = Funnel()
    kept = select(rows, params(), funnel)
    assert [r["text"] for r in kept] == [rows[i]["text"] for i in (0, 6, 7, 8)]
    assert [(s["filter"], s["removed"], s["left"]) for s in funnel.steps] == [
        ("sampled", 0, 9), ("unfinished", 1, 8), ("malformed", 1, 7), ("wrong answer", 1, 6), ("loop", 1, 5), ("language", 1, 4),
    ]  # fmt: skip
    assert funnel.steps[0]["by_family"] == {"calc": 8, "order": 1} and funnel.steps[-1]["by_family"] == {"calc": 3, "order": 1}
    assert str(funnel) == "9 sampled, unfinished -1, malformed -1, wrong answer -1, loop -1, language -1"
    assert len(select(rows, params(min_language=0.0), Funnel())) == 5  # a chain wholly in the other language is translated, too
    assert len(select(rows, params(min_language=0.4), Funnel())) == 3


def test_a_try_that_is_said_twice_is_left_to_the_refiner():
    twice = row(f"{TRY_2} wait,{TRY_2} wait,{TRY_4}")
    funnel = Funnel()
    assert select([twice], params(), funnel) == [twice]
    made, refused = cold_start.refine([twice], Rewriter(), funnel)
    assert not refused and made[0].refined == Refined(f"{TRY_2} wait,{TRY_4}", "7")
    assert check_again(made, 1.0, funnel) == made
    assert check_again([Candidate(twice, Refined(f"{TRY_2} wait,{TRY_2} wait,{TRY_4}", "7"))], 1.0, funnel) == []
    assert funnel.steps[-2]["filter"] == "refined: repetition" and funnel.steps[-2]["removed"] == 1
    again = candidate(" Then I add 4 and get 7.", "Then I add 4 and get 7. \\boxed{7}")
    assert check_again([again], 1.0, Funnel()) == [again]  # a summary may repeat a sentence of the chain


def test_refined_samples_are_checked_again():
    good = candidate(" start 3, first plus 4 is 7.")
    spoilt = [
        candidate(" start 3 <think> again."),
        candidate(""),
        candidate(" start 3.", "8"),
        candidate(" start 3，从."),
    ]
    funnel = Funnel()
    assert check_again([good, *spoilt, good], 1.0, funnel) == [good]
    assert [(s["filter"], s["removed"]) for s in funnel.steps[1:]] == [
        ("refined: wrong answer", 1), ("refined: language", 1), ("refined: repetition", 0), ("duplicate", 1),
    ]  # fmt: skip
    assert funnel.steps[0]["left"] == 4  # both malformed ones went first
    assert check_again([spoilt[-1]], 0.5, Funnel()) == [spoilt[-1]]


def test_of_a_summary_the_boxed_answer_counts_whatever_the_verifier():
    choice = row(verifier="choice", truth="B")
    assert is_right(choice, "Gold is Au, which is option \\boxed{B}.")
    assert not is_right(choice, "It is not \\boxed{B} but \\boxed{C}.")
    assert is_right(row(truth="\\frac{1}{2}"), "Half of it: $\\boxed{\\frac{1}{2}}$.")
    assert is_right(choice, "B")


def test_a_truth_that_cannot_be_read_is_named():
    with pytest.raises(DataError, match="calc-00000000000000aa cannot be scored: verifier choice, truth 'seven'"):
        is_right(row(verifier="choice", truth="seven"), "B")


# ---- review


def variants(*numbers: int, prompt: str = "calc-00000000000000aa") -> list[Candidate]:
    return [candidate(f" start {n}.", prompt_id=prompt) for n in numbers]


def test_rejected_samples_go_and_make_room_under_the_cap():
    first, second, third = variants(1, 2, 3)
    other = variants(1, prompt="calc-00000000000000bb")
    everything = [first, second, third, *other]
    assert admit(everything, {}, params(), funnel := Funnel()) == [first, second, *other]
    assert [(s["filter"], s["left"]) for s in funnel.steps] == [("rejected", 4), ("beyond per_prompt", 3)]
    assert admit(everything, {first.id: "reject"}, params(), Funnel()) == [second, third, *other]
    assert admit(everything, {third.id: "accept"}, params(), Funnel()) == [first, third, *other]  # accepted before unseen
    assert admit(everything, {third.id: "accept"}, params(per_prompt=1), Funnel()) == [third, *other]


def test_with_require_review_only_accepted_samples_are_used():
    first, second, third = variants(1, 2, 3)
    verdicts = {second.id: "accept", third.id: "reject", "0000000000000000": "accept"}
    funnel = Funnel()
    assert admit([first, second, third], verdicts, params(require_review=True), funnel) == [second]
    assert funnel.steps[0]["filter"] == "not accepted"


def test_an_id_changes_with_prompt_and_wording_and_with_nothing_else():
    one = candidate(" start 3.")
    assert one.id == candidate(" start 3.", sample=3, policy="q", text="else").id
    assert len({one.id, candidate(" start 4.").id, candidate(" start 3.", "8").id, candidate(" start 3.", prompt_id="calc-1").id}) == 4


def test_verdicts_are_read_and_the_last_one_counts(tmp_path):
    path = tmp_path / "verdicts.jsonl"
    lines = [
        '{"id": "a", "verdict": "accept", "reviewer": "Ann", "note": "清楚"}',
        "",
        '{"id": "b", "verdict": "accept"}',
        '{"id": "b", "verdict": "reject"}',
    ]
    path.write_text("\n".join(lines))
    assert read_verdicts(path) == {"a": "accept", "b": "reject"}
    path.write_text("")
    assert read_verdicts(path) == {}


def test_malformed_verdicts_are_one_error_with_line_numbers(tmp_path):
    path = tmp_path / "verdicts.jsonl"
    good = '{"id": "a", "verdict": "accept"}'
    bad = [
        "no json",
        '{"id": "a"}',
        '{"id": "a", "verdict": "maybe"}',
        '{"id": "", "verdict": "accept"}',
        '["a"]',
        '{"id": "a", "verdict": "accept", "mood": "good"}',
    ]
    path.write_text("\n".join([good, *bad]))
    with pytest.raises(DataError) as caught:
        read_verdicts(path)
    message = str(caught.value)
    assert all(f"line {n}: " in message for n in range(2, 8)) and "line 1: " not in message
    assert "line 3: verdict: Field required" in message and "line 7: mood:" in message and "accept" in message
    path.write_text("\n".join(["x"] * 30))
    with pytest.raises(DataError, match=r"line 10: .*; and 20 more$"):
        read_verdicts(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8"):
        read_verdicts(path)
    with pytest.raises(DataError, match="does not exist: create it"):
        read_verdicts(tmp_path / "none.jsonl")


# ---- refiners


def test_the_rewriter_translates_the_chain_and_spells_the_answer():
    mixed = row("从 3起， first plus 4 is 7。", "7.0")
    odd = row(" maybe")
    found = Rewriter().refine([mixed, odd])
    assert found == [Refined(" start 3, first plus 4 is 7.", "7"), Refused("unreadable", "no step of the world: 'maybe'")]


def model(url: str, tmp_path: Path, **changed: object) -> EndpointRefiner:
    service = Service.model_validate({"url": url, "model": "m", "timeout": 5, "retries": 0} | changed)
    return EndpointRefiner(service, tmp_path / "kept/answers.jsonl")


def refining(messages: list[dict[str, str]]) -> str:
    return "so $3 + 4 = 7$, \\boxed{7}" if "You write the solution" in messages[0]["content"] else "I start at 3 and add 4."


def test_a_model_is_asked_for_the_chain_and_then_for_the_summary_of_that_chain(chat_server, tmp_path):
    chat_server.replies = refining
    refiner = model(chat_server.url, tmp_path)
    assert refiner.refine([row("从 3起， first plus 4 is 7.")]) == [Refined(" I start at 3 and add 4.", "so $3 + 4 = 7$, \\boxed{7}")]
    first, second = (request["messages"] for request in chat_server.requests)
    assert "Write English" in first[0]["content"] and "translate" in first[0]["content"] and "first person" in first[0]["content"]
    assert first[-1]["content"] == "Question:\nMod ten: start 3, first plus 4. Result?\n\nThinking:\n从 3起， first plus 4 is 7."
    assert "\\boxed{}" in second[0]["content"] and "Write English" in second[0]["content"]
    assert second[-1]["content"].endswith("Thinking:\nI start at 3 and add 4.") and "Mod ten" in second[-1]["content"]
    assert refiner.name == f"m at {chat_server.url}"


def test_the_summary_goes_through_the_checks_of_the_stage(chat_server, tmp_path):
    chat_server.replies = refining
    made, _ = cold_start.refine([row()], model(chat_server.url, tmp_path), Funnel())
    assert check_again(made, EndpointRefiner.language, Funnel()) == made
    assert parse(made[0].response).well_formed and parse(made[0].response).thought == "I start at 3 and add 4."


def test_simple_sums_get_examples_in_the_language_of_the_question():
    simple = row(level=1, language="zh", messages=[{"role": "user", "content": "2 加 2？"}])
    conversation = refine.refine_messages(simple)
    assert [turn["role"] for turn in conversation] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert "Write Chinese" in conversation[0]["content"] and refine.SHORT in conversation[0]["content"]
    assert conversation[2]["content"] == "我把 5 和 4 相加，得 9。"
    for other in (row(level=2), row(level=1, domain="stem")):
        assert len(refine.refine_messages(other)) == 2 and refine.SHORT not in refine.refine_messages(other)[0]["content"]


def numbered(count: int) -> list[dict]:
    return [row(f" start {n}.", messages=[{"role": "user", "content": f"question {n}"}]) for n in range(count)]


def test_a_failed_call_drops_its_sample_alone(chat_server, tmp_path):
    def reply(messages: list[dict[str, str]]) -> str | Status:
        refused = (
            "question 1\n" in messages[-1]["content"],
            "question 3\n" in messages[-1]["content"] and "solution" in messages[0]["content"],
        )
        return Status(400, "content filter") if any(refused) else "fine"

    chat_server.replies = reply
    found = model(chat_server.url, tmp_path).refine(numbered(5))
    assert [type(f) for f in found] == [Refined, Refused, Refined, Refused, Refined]
    assert all(f.reason == "endpoint" and "content filter" in f.detail for f in found if isinstance(f, Refused))


@pytest.mark.parametrize("reply", [Status(500, "broken"), Status(401, "bad key"), Silence(), "\n"])
def test_an_endpoint_that_fails_every_call_stops_the_stage_with_its_error(chat_server, tmp_path, reply):
    chat_server.replies = lambda messages: reply
    with pytest.raises(EndpointError, match=chat_server.url):
        model(chat_server.url, tmp_path, timeout=0.1).refine(numbered(3))


def test_an_endpoint_that_breaks_down_midway_stops_the_stage_and_what_it_said_is_kept(chat_server, tmp_path, monkeypatch):
    monkeypatch.setattr(refine, "BATCH", 4)
    samples = numbered(10)
    chat_server.replies = in_turn(*["good"] * 4, Status(500, "out of memory"))
    with pytest.raises(EndpointError, match="out of memory"):
        model(chat_server.url, tmp_path).refine(samples)
    assert len(chat_server.requests) == 8  # the third batch was not asked any more
    chat_server.requests.clear()
    chat_server.replies = refining
    found = model(chat_server.url, tmp_path).refine(samples)
    assert len(chat_server.requests) == 6 + 10  # four chains were kept
    assert all(isinstance(f, Refined) for f in found)


def refusing(*numbers: int):
    """A content filter that refuses these questions, whenever it is asked."""
    refused = [f"question {n}\n" for n in numbers]
    return lambda messages: Status(400, "filter") if any(q in messages[-1]["content"] for q in refused) else refining(messages)


def test_what_is_refused_for_good_does_not_stop_a_later_run(chat_server, tmp_path, monkeypatch):
    monkeypatch.setattr(refine, "BATCH", 4)
    chat_server.replies = refusing(2, 5, 6, 7, 8, 11)  # of 12: the later run has a whole batch of nothing but refusals
    first = model(chat_server.url, tmp_path).refine(numbered(12))
    assert sum(isinstance(f, Refused) for f in first) == 6 and len(chat_server.requests) == 12 + 6
    chat_server.requests.clear()
    assert model(chat_server.url, tmp_path).refine(numbered(12)) == first and len(chat_server.requests) == 6
    lines = (tmp_path / "kept/answers.jsonl").read_text().split("\n")[1:]
    assert len(lines) == 12 + 6  # a refusal is noted once
    chat_server.replies = refining
    assert all(isinstance(f, Refined) for f in model(chat_server.url, tmp_path).refine(numbered(12)))


def test_a_new_sample_that_is_refused_does_not_stop_the_run(chat_server, tmp_path):
    chat_server.replies = refusing(4)
    model(chat_server.url, tmp_path).refine(numbered(4))
    found = model(chat_server.url, tmp_path).refine(numbered(5))
    assert [type(f) for f in found] == [Refined] * 4 + [Refused]


def test_earlier_refusals_do_not_hide_that_the_endpoint_is_gone(chat_server, tmp_path, monkeypatch):
    monkeypatch.setattr(refine, "BATCH", 4)
    chat_server.replies = refusing(0, 1, 2)
    model(chat_server.url, tmp_path).refine(numbered(4))
    chat_server.replies = lambda messages: Status(500, "out of memory")
    with pytest.raises(EndpointError, match="out of memory"):  # four new ones, asked before the three old ones
        model(chat_server.url, tmp_path).refine(numbered(8))


def test_nothing_is_asked_twice_and_a_torn_line_costs_one_question(chat_server, tmp_path):
    chat_server.replies = refining
    samples = numbered(3)
    first = model(chat_server.url, tmp_path).refine(samples)
    assert len(chat_server.requests) == 6
    assert model(chat_server.url, tmp_path).refine(samples) == first and len(chat_server.requests) == 6
    kept = tmp_path / "kept/answers.jsonl"
    kept.write_bytes(kept.read_bytes()[:-9])  # killed while writing
    assert model(chat_server.url, tmp_path).refine(samples) == first and len(chat_server.requests) == 7
    assert model(chat_server.url, tmp_path).refine(samples) == first and len(chat_server.requests) == 7
    model(chat_server.url, tmp_path, temperature=0.5).refine(samples)
    assert len(chat_server.requests) == 13  # other settings are another question
    assert all(set(json.loads(line)) == {"key", "answer"} for line in kept.read_text().split("\n")[1:3])


def test_a_chain_with_tags_in_it_does_not_pass(chat_server, tmp_path):
    chat_server.replies = lambda messages: "<think>I start at 3.</think>"
    made, _ = cold_start.refine([row()], model(chat_server.url, tmp_path), Funnel())
    assert check_again(made, 0.9, Funnel()) == []


# ---- prompts


def test_prompts_are_verifiable_and_spread_over_families(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from tasks.world import problems

    everything = [r | {"split": "train"} for r in problems.generate(400, 0)]
    records.write(everything, cold_start.TRAIN)
    chosen = cold_start.choose_prompts(60)
    assert len({r["id"] for r in chosen}) == 60 and {r["verifier"] for r in chosen} == {"math", "fill", "choice", "code", "text"}
    assert cold_start.choose_prompts(60) == chosen and cold_start.choose_prompts(10) == chosen[:10]
    records.write([r for r in everything if r["verifier"] in ("none", "judge")], cold_start.TRAIN)
    with pytest.raises(DataError, match="no problem that a rule can check"):
        cold_start.choose_prompts(60)
