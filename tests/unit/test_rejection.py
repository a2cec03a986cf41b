"""The filters of rejection sampling, the choice of prompts, the general data that join, and the table: each against hand-worked counts."""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import records, rejection
from tasks.config import load_params
from tasks.errors import DataError
from tasks.evaluation.correctness import JudgeError, Verdicts, judge
from tasks.evaluation.sieve import FILTERS, Sieve, fault
from tasks.generation import model_folder
from tasks.records import ROLLOUT_SCHEMA, SFT_SCHEMA
from tasks.rewards.format import parse
from tasks.rewards.readable import has_code_block, longest_paragraph
from tasks.rewards.total import UnscorableError
from tasks.world import general, problems

ROOT = Path(__file__).parents[2]
SETTINGS = load_params(ROOT / "params.yaml").rejection.model_copy(
    update={"min_language": 0.9, "max_paragraph": 12, "per_prompt": 2, "reasoning_ratio": 3.0, "seed": 0}
)
GOOD = " <think> start three, plus four is 7. </think> <answer> 7 </answer>"


def row(text=GOOD, prompt="calc-1", **changed):
    """A candidate of a math prompt whose truth is 7."""
    return {
        "prompt_id": prompt, "sample": 0, "domain": "math", "family": "calc", "level": 1, "language": "en",
        "messages": [{"role": "user", "content": "Mod ten: start 3, first plus 4. Result?"}], "verifier": "math", "truth": "7",
        "text": text, "tokens": 20, "finished": True, "policy": "p",
    } | changed  # fmt: skip


def asked(text, prompt="open-1", **changed):
    """A candidate of a prompt that only a judge can decide."""
    messages = [{"role": "user", "content": "Kind of dog is?"}]
    return row(text, prompt, domain="stem", family="open", verifier="judge", truth="mammal", messages=messages, **changed)


def answer(text, thought="so it is"):
    return f" <think> {thought} </think> <answer> {text} </answer>"


# ---- one candidate


@pytest.mark.parametrize(
    ("thought", "length"),
    [
        ("", 0),
        ("one two three", 3),
        ("试 3加 14", 4),
        ("3 + 4 = 7, wait!", 4),
        ("one\ntwo three", 3),  # a line break ends no paragraph
        ("one\n\ntwo three\n \t\nfour", 2),
        ("a b c\n\n\n\n一二三四五", 5),
        ("x_1 and café", 4),  # an underscore is a sign
    ],
)
def test_the_longest_paragraph_in_words_and_han_characters(thought, length):
    assert longest_paragraph(thought) == length


@pytest.mark.parametrize(
    ("thought", "found"),
    [
        ("first ```python\nprint(1)\n``` then", True),
        ("```", True),
        ("so\n  ~~~\nx = 1\n~~~", True),
        ("about `x` and ``y``", False),
        ("roughly ~~~ three", False),
        ("", False),
    ],
)
def test_a_fence_is_a_code_block(thought, found):
    assert has_code_block(thought) is found


@pytest.mark.parametrize(
    ("candidate", "found"),
    [
        (row(), ""),
        (row(finished=False), "unfinished"),
        (row(GOOD.replace("</think>", "")), "malformed"),
        (row("<answer> 7 </answer>"), "malformed"),
        (row(answer("8")), "wrong"),
        (row(answer("")), "wrong"),
        (row(answer("7", "三加四 it is")), "mixed_language"),
        (row(answer("7", "三加四")), "mixed_language"),
        (row(answer("7", "一二 one two three four five six seven eight nine ten")), "mixed_language"),  # 10 of 12 words
        (row(answer("7", "三加四"), language="zh"), ""),
        (row(answer("7", "3 + 4")), ""),  # no words, no language
        (row(answer("7", "")), ""),  # a trivial question needs no thought
        (row(answer("7", " ".join(["word"] * 12))), ""),
        (row(answer("7", " ".join(["word"] * 13))), "long_paragraph"),
        (row(answer("7", "\n\n".join(["word"] * 13))), ""),
        (row(answer("7", "it is ```7```")), "code_block"),
        (row(answer("```7```")), "wrong"),
        (asked(answer("```mammal```")), ""),  # what a judge may accept; code in the answer is no defect
        (asked(answer("bird")), ""),  # not a rule's business
        (asked(answer("mammal", "真的")), "mixed_language"),
    ],
)
def test_the_first_filter_that_applies(candidate, found):
    assert fault(candidate, parse(candidate["text"]), SETTINGS) == found


def test_the_limits_are_the_parameters():
    loose = SETTINGS.model_copy(update={"min_language": 0.8, "max_paragraph": 13})
    mixed = answer("7", "一二 one two three four five six seven eight nine ten")
    assert fault(row(mixed), parse(mixed), loose) == ""
    long = answer("7", " ".join(["word"] * 13))
    assert fault(row(long), parse(long), loose) == ""


def test_a_truth_that_nobody_can_read_stops_the_stage():
    with pytest.raises(UnscorableError, match=r"calc-1: the choice verifier cannot read its truth 'AB'"):
        fault(row(verifier="choice", truth="AB"), parse(GOOD), SETTINGS)


# ---- a whole set


def sift(*batches, settings=SETTINGS, judged=None):
    sieve = Sieve(settings, Verdicts(judged or judge(None)))
    return sieve, [kept for batch in batches for kept in sieve.keep(list(batch))]


def test_every_candidate_is_kept_or_counted_at_exactly_one_filter():
    set_of_all = [
        row(), row(GOOD.replace("start", "begin")), row(answer("7", "thrice")), row(GOOD.replace(" 7. ", "  7. ")),
        row(answer("8"), "calc-2"), row(finished=False, prompt="calc-2"), row("", "calc-2"), row(answer("7", "三"), "calc-2"),
        row(answer("7", "a " * 20), "calc-3", domain="logic"), row(answer("7", "```"), "calc-3", domain="logic"),
        asked(answer("mammal")), asked(answer("a mammal")), asked(answer("bird")), asked(answer("bird", "sure")), asked(answer(" bird")),
    ]  # fmt: skip
    sieve, kept = sift(set_of_all)
    assert [(r["text"], judged) for r, judged in kept] == [
        (set_of_all[0]["text"], False), (set_of_all[1]["text"], False), (set_of_all[10]["text"], True), (set_of_all[11]["text"], True),
    ]  # fmt: skip
    counts = sieve.counts()
    assert list(counts) == ["candidates", *FILTERS, "kept"]
    assert {name: by["total"] for name, by in counts.items()} == {
        "candidates": 15, "unfinished": 1, "malformed": 1, "wrong": 1, "mixed_language": 1, "long_paragraph": 1, "code_block": 1,
        "repeated": 2, "judged_wrong": 2, "unparsed": 0, "unanswered": 0, "over_cap": 1, "kept": 4,
    }  # fmt: skip
    assert counts["candidates"] == {"math": 8, "code": 0, "stem": 5, "logic": 2, "total": 15}
    assert counts["judged_wrong"] == {"math": 0, "code": 0, "stem": 2, "logic": 0, "total": 2}
    assert counts["kept"] == {"math": 2, "code": 0, "stem": 2, "logic": 0, "total": 4}


def test_what_the_judge_does_not_say_is_counted_and_dropped():
    replies = iter(['{"correctness": "correct"}', "perhaps", '{"correctness": "incorrect"}'])
    sieve, kept = sift([asked(answer(f"mammal {i}")) for i in range(3)], judged=lambda items: [next(replies) for _ in items])
    assert [r["text"] for r, _ in kept] == [answer("mammal 0")]
    counts = sieve.counts()
    assert (counts["unparsed"]["total"], counts["judged_wrong"]["total"], counts["kept"]["stem"]) == (1, 1, 1)


def test_the_judge_sees_only_what_passed_the_other_filters():
    seen = []

    def listen(items):
        seen.extend(items)
        return ['{"correctness": "correct"}' for _ in items]

    sift([asked(answer("x", "真的")), asked(answer("a mammal")), asked(answer("a mammal")), row()], judged=listen)
    assert [tuple(item) for item in seen] == [("Kind of dog is?", "mammal", "a mammal")]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_a_prompt_that_crosses_batches_keeps_its_cap_and_its_repetitions(size):
    texts = [answer("7", f"thought {word}") for word in ["a", "a", "bb", "a", "cc", "dd", "bb"]]
    rows = [row(text, prompt) for prompt in ("calc-1", "calc-2") for text in texts]
    sieve, kept = sift(*[rows[i : i + size] for i in range(0, len(rows), size)])
    assert [(r["prompt_id"], r["text"]) for r, _ in kept] == [(p, texts[i]) for p in ("calc-1", "calc-2") for i in (0, 2)]
    counts = sieve.counts()
    assert (counts["repeated"]["total"], counts["over_cap"]["total"]) == (6, 4)


def test_wrong_candidates_use_up_no_place():
    settings = SETTINGS.model_copy(update={"per_prompt": 1})
    _, kept = sift([asked(answer("bird")), asked(answer("mammal")), row(answer("8")), row()], settings=settings)
    assert [r["text"] for r, _ in kept] == [answer("mammal"), GOOD]


# ---- which prompts


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 50), min_size=1), st.integers(0, 200))
def test_shares_are_proportional_whole_and_add_up(sizes, wanted):
    found, total = rejection.shares(sizes, wanted), sum(sizes.values())
    assert sum(found.values()) == min(wanted, total)
    assert all(abs(found[name] - min(wanted, total) * size / total) < 1 and 0 <= found[name] <= size for name, size in sizes.items())


def test_shares_by_hand():
    assert rejection.shares({"a": 50, "b": 30, "c": 20}, 7) == {"a": 4, "b": 2, "c": 1}  # 3.5, 2.1, 1.4: the spare one goes to a
    assert rejection.shares({"a": 2, "b": 3}, 9) == {"a": 2, "b": 3}


def prompt(number, domain="math", family="calc", verifier="math", source="world", text="Hello, I am Ann.", **changed):
    return {
        "id": f"{family}-{number:016x}", "domain": domain, "family": family, "level": 1, "language": "en",
        "messages": [{"role": "user", "content": text}], "verifier": verifier, "truth": "", "source": source, "split": "train",
    } | changed  # fmt: skip


def greeting(number, **changed):
    return prompt(number, "general", "greeting", "none", **changed)


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        (prompt(1), "reasoning"),
        (prompt(1, "stem", "open", "judge"), "reasoning"),
        (prompt(1, "stem", "open", "judge", source="mine.jsonl"), "reasoning"),
        (prompt(1, verifier="none"), "no_reference"),
        (greeting(1), "general"),
        (greeting(1, source="mine.jsonl"), "no_response"),
        (prompt(1, "safety", "harm", "none", source="mine.jsonl"), "no_response"),
        (prompt(1, "safety", "harm", "none", source="world"), "general"),
    ],
)
def test_what_a_prompt_is_to_the_stage(record, kind):
    assert rejection.kind(record) == kind


@pytest.mark.parametrize("wanted", [0, 1, 7, 30, 59, 60, 100])
def test_prompts_are_chosen_once_each_and_evenly(tmp_path, wanted):
    rows = [prompt(i, family="calc" if i % 3 else "fill") for i in range(60)] + [greeting(99)]
    records.write(rows, tmp_path / "p.parquet")
    sizes = rejection.survey(tmp_path / "p.parquet")["reasoning"]
    assert sizes == {"calc": 40, "fill": 20}
    found = list(rejection.choose(tmp_path / "p.parquet", "reasoning", sizes, wanted, 0))
    assert Counter(r["family"] for r in found) == Counter(rejection.shares(sizes, wanted))
    assert [r for r in rows if r in found] == found  # in file order, none twice
    places = [int(r["id"].split("-")[1], 16) for r in found if r["family"] == "calc"]
    if wanted == 30:  # 20 of 40, which stand in 60 rows: every second one
        assert {b - a for a, b in pairwise(places)} == {3}


def test_another_seed_chooses_others(tmp_path):
    records.write([prompt(i) for i in range(100)], tmp_path / "p.parquet")
    chosen = [[r["id"] for r in rejection.choose(tmp_path / "p.parquet", "reasoning", {"calc": 100}, 10, seed)] for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


# ---- the set


@pytest.fixture(scope="module")
def tokenizer():
    return model_folder.load(ROOT / "models/base")[1]


def make(tmp_path, tokenizer, candidates, prompts, judged=None, **settings):
    records.write(candidates, tmp_path / "c.parquet", ROLLOUT_SCHEMA)
    records.write(prompts, tmp_path / "p.parquet")
    verdicts = Verdicts(judged or judge(None))
    out = tmp_path / "out/sft.parquet"
    found = rejection.make(tmp_path / "c.parquet", tmp_path / "p.parquet", out, SETTINGS.model_copy(update=settings), verdicts, tokenizer)
    return found, records.read(out, SFT_SCHEMA)


def test_reasoning_and_general_data_join_at_the_ratio(tmp_path, tokenizer):
    rounds = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Sum?"}]
    candidates = [row(answer("7", f"so {'it ' * i}"), f"calc-{n}", tokens=10 * n) for n in range(1, 6) for i in range(3)]
    candidates += [row(answer("7"), "cipher-1", domain="logic", messages=rounds, tokens=5), asked(answer("mammal"), tokens=7)]
    world = general.record("general", random.Random(0), "en", problems.problem_id) | {"split": "train"}
    prompts = [prompt(1), world, *map(greeting, range(20)), greeting(30, source="mine.jsonl")]
    prompts.append(prompt(2, "safety", "harm", "none", source="mine.jsonl"))
    found, made = make(tmp_path, tokenizer, candidates, prompts)
    assert [r["source"] for r in made] == ["dev2"] * 11 + ["judged"] + ["annotators"] * 4  # 5 x 2 + 1 + 1 reasoning, a third of it
    assert len({r["id"] for r in made}) == len({(r["prompt_id"], r["response"]) for r in made}) == 16
    annotated = made[12:]
    assert {r["domain"] for r in annotated} == {"general"} and len({r["prompt_id"] for r in annotated}) == 4
    by_id = {r["id"]: r for r in prompts}
    for r in annotated:
        rng = random.Random(f"rejection/0/{r['prompt_id']}")
        assert r["response"] == general.annotate(by_id[r["prompt_id"]], rng)
        assert r["tokens"] == len(tokenizer.encode(r["response"])) + 1 and parse(r["response"]).well_formed
    assert found["table"]["math"] == {"samples": 10, "rounds": 1.0, "tokens": 30.0}
    assert found["table"]["logic"] == {"samples": 1, "rounds": 2.0, "tokens": 5.0}
    assert found["table"]["stem"] == {"samples": 1, "rounds": 1.0, "tokens": 7.0}
    assert found["table"]["code"] == {"samples": 0, "rounds": None, "tokens": None}
    total = 300 + 5 + 7 + sum(r["tokens"] for r in annotated)
    assert found["table"]["total"] == {"samples": 16, "rounds": 1.0625, "tokens": total / 16}
    assert found["general"] == {"wanted": 4, "taken": 4, "ratio_wanted": 3.0, "ratio": 3.0, "harmful": 0}
    assert found["prompts"] == {"reasoning": 1, "general": 21, "no_reference": 0, "no_response": 2}
    assert found["judge"] == {"asked": 1, "correct": 1, "incorrect": 0, "unparsed": 0, "unanswered": 0}


def test_too_few_general_prompts_are_taken_once_each_and_the_ratio_is_told(tmp_path, tokenizer):
    candidates = [row(prompt=f"calc-{n}") for n in range(12)]
    found, made = make(tmp_path, tokenizer, candidates, [prompt(1), greeting(1)])
    assert [r["source"] for r in made].count("annotators") == 1
    assert found["general"] == {"wanted": 4, "taken": 1, "ratio_wanted": 3.0, "ratio": 12.0, "harmful": 0}
    found, made = make(tmp_path, tokenizer, candidates, [prompt(1), greeting(2, source="mine.jsonl")])
    assert len(made) == 12 and found["general"]["ratio"] is None
    assert "none, wanted 3 : 1. 0 of 4 wanted" in rejection.markdown(found)


def test_an_empty_set_names_every_filter_that_took_something_and_writes_nothing(tmp_path, tokenizer):
    candidates = [row(answer("8")), row(answer("9")), row(finished=False), row("")]
    with pytest.raises(DataError, match=r"no sample is left of 4 candidates \(unfinished 1, malformed 1, wrong 2\): nothing was written"):
        make(tmp_path, tokenizer, candidates, [prompt(1), greeting(1)])
    with pytest.raises(DataError, match="of 0 candidates"):
        make(tmp_path, tokenizer, [], [prompt(1)])
    assert list((tmp_path / "out").iterdir()) == []


def test_a_judge_that_answers_nonsense_stops_the_stage_although_rules_kept_something(tmp_path, tokenizer):
    with pytest.raises(JudgeError, match=r"any of 1 items.*'forty-two'"):
        make(tmp_path, tokenizer, [row(), asked(answer("mammal"))], [prompt(1)], judged=lambda items: ["forty-two"] * len(items))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_train_split_without_reasoning_prompts_is_named(tmp_path):
    records.write([greeting(1), prompt(2, verifier="none")], tmp_path / "p.parquet")
    with pytest.raises(DataError, match=r"p\.parquet holds no reasoning prompt"):
        rejection.survey(tmp_path / "p.parquet")


def test_the_tables_as_a_person_reads_them(tmp_path, tokenizer):
    found, _ = make(tmp_path, tokenizer, [row(tokens=1234), row(answer("8"))], [prompt(1), greeting(1)])
    lines = rejection.markdown(found).splitlines()
    assert "| Math | 1 | 1.0 | 1,234.0 |" in lines
    assert "| Code | 0 |  |  |" in lines
    assert lines[4:10][0].startswith("| Math") and [line.split(" | ")[0][2:] for line in lines[4:10]] == [
        "Math", "Code", "STEM", "Logic", "General", "Total"
    ]  # fmt: skip
    assert "| wrong by rule | 1 | 0 | 0 | 0 | 1 |" in lines
    assert "| kept | 1 | 0 | 0 | 0 | 1 |" in lines


def incompressible(prompts, rng):
    """Four candidates a prompt, with texts that hardly compress, as real ones do not."""
    return (row(answer("7", f"thought {rng.randbytes(200).hex()}"), f"calc-{n}") for n in range(prompts) for _ in range(4))


def test_memory_does_not_grow_with_the_set(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(records, "BATCH", 128)

    def peak(prompts):
        records.write(incompressible(prompts, random.Random(0)), tmp_path / "c.parquet", ROLLOUT_SCHEMA)
        records.write((make(n) for n in range(prompts) for make in (prompt, greeting)), tmp_path / "p.parquet")
        tracemalloc.start()
        verdicts = Verdicts(judge(None))
        rejection.make(tmp_path / "c.parquet", tmp_path / "p.parquet", tmp_path / "sft.parquet", SETTINGS, verdicts, tokenizer)
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    peak(100)  # what is built once: caches, patterns
    small, large = peak(150), peak(1500)
    assert records.count(tmp_path / "sft.parquet") == 3000 + 1000
    assert large < 1.5 * small, f"{small:,} bytes for 600 candidates, {large:,} for 6,000"


def test_reading_candidates_holds_no_more_than_a_row_group_of_the_file(tmp_path, monkeypatch):
    """Arrow's buffers, which tracemalloc does not see: over several row groups its iter_batches would keep the whole file."""
    monkeypatch.setattr(records, "BATCH", 128)

    def peak(prompts):
        records.write(incompressible(prompts, random.Random(0)), tmp_path / "c.parquet", ROLLOUT_SCHEMA)
        before = pa.total_allocated_bytes()
        return max(pa.total_allocated_bytes() - before for _ in records.iter_batches(tmp_path / "c.parquet", ROLLOUT_SCHEMA))

    small, large = peak(150), peak(3000)
    assert large < 1.5 * small, f"{small:,} bytes for 600 candidates, {large:,} for 12,000"
