"""The contracts: each expectation must let good data pass and must name what breaks it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data import contracts, overlap
from data.contracts import ContractError
from tasks import records
from tasks.rewards.verify import Outcome
from tasks.world import problems

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def world() -> Rows:
    rows = problems.generate(800, seed=0)
    for row in rows:
        row["split"] = records.split_of(row["id"], validation=0.05, test=0.10)
    found = overlap.find(rows, 10)
    return [row for i, row in enumerate(rows) if i not in found]


def broken(dataset: Rows, **options: Any) -> ContractError:
    with pytest.raises(ContractError) as caught:
        contracts.check("prompts", records.to_table(dataset), **options)
    return caught.value


def faults(error: ContractError) -> list[tuple[str, str]]:
    return [(check.expectation, check.column) for check in error.report.checks if not check.passed]


def index(rows: Rows, **wanted: Any) -> int:
    return next(i for i, row in enumerate(rows) if all(row[key] == value for key, value in wanted.items()))


# ---- the report


def test_a_good_dataset_holds(world: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report = contracts.check("prompts", records.to_table(world))
    assert report.passed and report.rows == len(world)
    assert list(tmp_path.iterdir()) == [], "a check leaves nothing on disk"
    read = json.loads(json.dumps(report.to_json()))
    checked = {(check["expectation"], check["column"]) for check in read["checks"]}
    assert ("expect_column_values_to_be_unique", "id") in checked
    assert {("expect_column_values_to_be_in_set", name) for name in ("gold", "overlap", "domain", "split")} <= checked
    gold = next(check for check in read["checks"] if check["column"] == "gold")
    assert gold["rows"] == len(world)
    table = report.to_markdown().splitlines()
    assert len(table) == len(report.checks) + 2 and all(line.count(" | ") == 4 for line in table[2:])
    assert all("holds" in line for line in table[2:])


def test_open_questions_are_in_the_dataset(world: Rows) -> None:
    assert [row["verifier"] for row in world].count("judge") == 5


def test_every_family_with_a_verifier_is_swapped(world: Rows) -> None:
    report = contracts.check("prompts", records.to_table(world))
    swapped = {check.column: float(check.observed) for check in report.checks if check.column.startswith("swapped")}
    assert set(swapped) == {f"swapped {kind}" for kind in ("calc", "fill", "expr", "choice", "order", "cipher")}
    assert swapped["swapped calc"] == 1.0 and 0.6 < swapped["swapped fill"] < 1.0


# ---- columns


def test_missing_extra_and_wrongly_typed_columns(world: Rows) -> None:
    table = records.to_table(world)
    renamed = table.rename_columns({"truth": "target"})
    level = table.schema.get_field_index("level")
    as_text = table.set_column(level, "level", pa.array([str(row["level"]) for row in world]))
    for bad, words in (
        (renamed, ["missing column truth", "extra column target"]),
        (as_text, ["column level is string, expected int32"]),
    ):
        with pytest.raises(ContractError) as caught:
            contracts.check("prompts", bad)
        assert faults(caught.value) == [("schema", "all")]
        assert all(word in str(caught.value) for word in words)


BAD_VALUES: list[tuple[dict[str, Any], str, str]] = [
    ({"truth": None}, "expect_column_values_to_not_be_null", "truth"),
    ({"id": None}, "expect_column_values_to_not_be_null", "id"),
    ({"id": "calc-12"}, "expect_column_values_to_match_regex", "id"),
    ({"domain": "history"}, "expect_column_values_to_be_in_set", "domain"),
    ({"language": "fr"}, "expect_column_values_to_be_in_set", "language"),
    ({"verifier": "oracle"}, "expect_column_values_to_be_in_set", "verifier"),
    ({"split": "dev"}, "expect_column_values_to_be_in_set", "split"),
    ({"family": "riddle"}, "expect_column_values_to_be_in_set", "world_family"),
    ({"family": "My riddles", "source": "mine"}, "expect_column_values_to_match_regex", "family"),
    ({"level": 6}, "expect_column_values_to_be_between", "level"),
    ({"messages": []}, "expect_column_values_to_not_be_null", "prompt"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "expect_column_values_to_not_be_null", "prompt"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "expect_column_values_to_not_be_null", "prompt"),
    ({"messages": [{"role": "user", "content": None}]}, "expect_column_values_to_not_be_null", "prompt"),
    ({"messages": [{"role": "user", "content": " \n"}]}, "expect_column_values_to_match_regex", "prompt"),
]


def test_every_bad_value_is_named_by_its_own_expectation(world: Rows) -> None:
    changed = [row | change for row, (change, _, _) in zip(world, BAD_VALUES, strict=False)]
    error = broken([*changed, *world[len(changed) :]])
    expected: dict[tuple[str, str], list[str]] = {}
    for number, (_, expectation, column) in enumerate(BAD_VALUES, 1):
        expected.setdefault((expectation, column), []).append(f"row {number}")
    named = {
        (check.expectation, check.column): [" ".join(offender.split()[:2]) for offender in check.offenders]
        for check in error.report.checks
        if not check.passed
    }
    assert named == expected
    assert f"row 4 {world[3]['id']} (domain: history)" in str(error)


def test_duplicate_ids_are_named_with_the_rows_of_the_file(world: Rows) -> None:
    names = [f"mine.jsonl row {i}" for i in range(100, 101 + len(world))]
    error = broken([*world, copy.deepcopy(world[3])], rows=names)
    assert faults(error) == [("expect_column_values_to_be_unique", "id")]
    assert f"mine.jsonl row 103 {world[3]['id']}" in str(error) and f"{names[-1]} {world[3]['id']}" in str(error)


def test_at_most_fifty_rows_are_named(world: Rows) -> None:
    rows = [row | {"domain": "history"} if i < 60 else row for i, row in enumerate(world)]
    (check,) = [check for check in broken(rows).report.checks if not check.passed]
    assert check.failures == 60 and len(check.offenders) == 50


def test_no_rows_and_an_empty_split(world: Rows) -> None:
    assert ("expect_table_row_count_to_be_between", "all") in faults(broken([]))
    error = broken([row for row in world if row["split"] != "validation"])
    assert faults(error) == [("expect_column_distinct_values_to_contain_set", "split")]
    assert "validation" in str(error)


# ---- golds


BAD_GOLDS = [
    ("choice", "Z", "UNSCORABLE"),
    ("fill", "not JSON", "UNSCORABLE"),
    ("fill", '{"numbers": ["a", "b"], "target": 1}', "UNSCORABLE"),
    ("fill", '{"numbers": [2, 2, 2], "target": 5}', "WRONG"),
    ("expr", '{"variable": "x", "tests": [], "gold": "x"}', "UNSCORABLE"),
    ("expr", '{"variable": "x", "tests": [[1, 3]], "gold": "x + 1"}', "WRONG"),
    ("order", "", "UNSCORABLE"),
    ("json", "{}", "verifier none, yet truth"),
    ("write", " ", "verifier none, yet truth"),
    ("open", "", "verifier judge, yet truth"),
    ("open", " \n", "verifier judge, yet truth"),
]


def test_every_gold_that_does_not_verify_is_named(world: Rows) -> None:
    rows, expected = list(world), []
    for family, truth, outcome in BAD_GOLDS:
        at = next(i for i, row in enumerate(rows) if row["family"] == family and row is world[i])
        rows[at] = rows[at] | {"truth": truth}
        expected.append((at, f"row {at + 1} {rows[at]['id']} (gold: {outcome}"))
    error = broken(rows)
    (check,) = [check for check in error.report.checks if not check.passed]
    assert (check.expectation, check.column) == ("expect_column_values_to_be_in_set", "gold")
    for offender, (_, start) in zip(check.offenders, sorted(expected), strict=True):
        assert offender.startswith(start) and offender in str(error)


def test_a_vacuous_verifier_is_found(world: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contracts, "verify", lambda verifier, truth, answer: Outcome.CORRECT)
    error = broken(world)
    assert {column for _, column in faults(error)} == {f"swapped {kind}" for kind in ("calc", "fill", "expr", "choice", "order", "cipher")}


# ---- proportions


def test_wrong_proportions_are_found(world: Rows) -> None:
    few_english = [r for i, r in enumerate(world) if not (r["split"] == "train" and r["language"] == "en" and i % 2)]
    assert {column for _, column in faults(broken(few_english))} >= {"language=en train", "language=zh train"}
    no_safety = [row for row in world if row["domain"] != "safety"]
    assert "domain=safety train" in {column for _, column in faults(broken(no_safety))}


def test_a_users_own_problems_have_the_shares_they_have(world: Rows) -> None:
    mine = [
        {
            "id": records.problem_id("quiz", str(i)),
            "domain": "math",
            "family": "quiz",
            "level": 1,
            "language": "zh",
            "messages": [{"role": "user", "content": f"第{i}题：{i}加{3 * i + 1}得几？"}],
            "verifier": "math",
            "truth": str(4 * i + 1),
            "source": "mine.jsonl",
            "split": "train",
        }
        for i in range(800)
    ]
    assert contracts.check("prompts", records.to_table(world + mine)).passed
    assert not {row["id"] for row in mine} & {row["id"] for row in world}
    as_world = [row | {"source": "world", "family": "calc"} for row in mine]
    assert "language=en train" in {column for _, column in faults(broken(world + as_world))}


# ---- overlap

LONG = (
    "A farmer keeps 12 brown hens and 7 white ducks behind the old barn. Every morning each hen lays one egg, and he "
    "sells half of them at the market for 3 dollars. How much money does he earn in a week?"
)
SHORT = "What is 37 times 21?"
CHINESE = "小明有十二个苹果，给了小红五个，又买了三个，现在有几个苹果？"


def problem(text: str, split: str, family: str = "quiz", language: str = "en") -> dict[str, Any]:
    message = {"role": "user", "content": text}
    return {"id": f"{split}: {text}", "family": family, "language": language, "messages": [message], "split": split}


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize(
    ("test", "leak", "reason"),
    [
        (SHORT, SHORT, "is a test problem"),
        (SHORT, "what is\n37  TIMES 21", "is a test problem"),
        (SHORT, "First warm up. What is 37 times 21? Then add 5 to it.", "contains a test problem"),
        (LONG, LONG.upper().replace(",", " ;").replace(".", "!"), "is a test problem"),
        (LONG, f"Read this: {LONG} Explain.", "contains a test problem"),
        (LONG, LONG.replace("12 brown", "15 black"), "shares 10 content words with a test problem"),
        (CHINESE, f"请看： {CHINESE.replace('，', ' ')}请回答。", "contains a test problem"),
        (CHINESE, CHINESE.replace("十二", "二十"), "shares 10 content words with a test problem"),
        ("Compute 3 × 4 − 5.", "Please compute ３ * 4 - 5 now", "contains a test problem"),
    ],
)
def test_a_planted_leak_is_found(split: str, test: str, leak: str, reason: str) -> None:
    rows = [problem("Name a prime number.", split), problem(leak, split), problem(test, "test")]
    assert overlap.find(rows, 10) == {1: overlap.Overlap(rows[2]["id"], reason)}


@pytest.mark.parametrize(
    ("test", "other"),
    [
        (SHORT, "What is 37 times 22?"),
        (SHORT, "What is 37 plus 21?"),
        ("7 + 3", "7 * 3"),
        ("Hi!", "Hi! How are you today?"),  # too short to be looked for inside others
        (SHORT, "What is 137 times 21?"),
        (LONG, "Each hen lays one egg and he sells it. How much does a hen earn?"),
    ],
)
def test_different_problems_do_not_overlap(test: str, other: str) -> None:
    assert overlap.find([problem(other, "train"), problem(test, "test")], 10) == {}


def test_the_words_of_a_template_do_not_count() -> None:
    """The paper's filter would remove all of these, for their template alone; a real copy is still found."""
    template = "You know the rules of this game by now so fill the gaps: {} _ {} _ {} = 7"
    rows = [problem(template.format(i, i + 1, i + 2), "test" if i < 5 else "train") for i in range(40)]
    assert overlap.find(rows, 10) == {}
    rows.append(problem("Hint! " + template.format(2, 3, 4), "train"))
    assert overlap.find(rows, 10) == {40: overlap.Overlap(rows[2]["id"], "contains a test problem")}


def test_the_world_barely_overlaps() -> None:
    rows = problems.generate(3000, seed=1)
    for row in rows:
        row["split"] = records.split_of(row["id"], validation=0.05, test=0.10)
    assert len(overlap.find(rows, 10)) < 0.002 * len(rows)


def test_overlap_breaks_the_contract(world: Rows) -> None:
    at, test = index(world, split="train", family="self"), world[index(world, split="test", family="fill")]
    text = f"My friend asked me this. {test['messages'][0]['content']} Who are you?"
    rows = [*world[:at], world[at] | {"messages": [{"role": "user", "content": text}]}, *world[at + 1 :]]
    error = broken(rows)
    assert faults(error) == [("expect_column_values_to_be_in_set", "overlap")]
    assert f"row {at + 1} {world[at]['id']}" in str(error) and f"contains a test problem: {test['id']}" in str(error)


# ---- samples


def samples(prompts: int = 3, k: int = 4) -> Rows:
    return [
        {
            "prompt_id": f"calc-{prompt:016x}",
            "sample": sample,
            "text": " 7",
            "token_ids": [5, 6, 7],
            "finished": True,
            "answer": "7",
            "correct": sample % 2 == 0,
            "format": True,
            "language_consistency": 0.5 if sample else None,
            "domain": "math",
            "family": "calc",
            "level": 1,
            "language": "en",
            "model": "0123456789abcdef",
            "temperature": 0.6,
            "top_p": 0.95,
            "max_new_tokens": 8,
        }
        for prompt in range(prompts)
        for sample in range(k)
    ]


def test_good_samples_hold() -> None:
    report = contracts.check("samples", records.to_table(samples(), records.SAMPLE_SCHEMA), samples_per_prompt=4)
    assert report.passed and report.rows == 12


BAD_SAMPLES: list[tuple[dict[str, Any], str]] = [
    ({"sample": 4}, "sample"),
    ({"token_ids": []}, "tokens"),
    ({"token_ids": None}, "tokens"),
    ({"token_ids": [1] * 9}, "tokens_left"),
    ({"answer": " ", "correct": True}, "correct_answer"),
    ({"language_consistency": 1.5}, "language_consistency"),
    ({"correct": None}, "correct"),
    ({"language": "fr"}, "language"),
    ({"level": 0}, "level"),
    ({"model": "another"}, "model"),
    ({"temperature": 1.0}, "temperature"),
]


def broken_samples(rows: Rows) -> dict[str, tuple[str, ...]]:
    with pytest.raises(ContractError) as caught:
        contracts.check("samples", records.to_table(rows, records.SAMPLE_SCHEMA), samples_per_prompt=4)
    found: dict[str, tuple[str, ...]] = {}
    for check in caught.value.report.checks:
        if not check.passed:
            found[check.column] = found.get(check.column, ()) + check.offenders
    return found


def test_every_bad_sample_is_named() -> None:
    rows = samples()
    found = broken_samples([row | change for row, (change, _) in zip(rows, BAD_SAMPLES, strict=False)] + rows[11:])
    assert set(found) == {column for _, column in BAD_SAMPLES}
    for number, (_, column) in enumerate(BAD_SAMPLES, 1):
        if column not in ("model", "temperature"):  # these count values, and name no row
            assert any(offender.startswith(f"row {number} ") for offender in found[column])


def test_missing_and_repeated_samples() -> None:
    rows = samples()
    missing = broken_samples(rows[:-1])
    assert set(missing) == {"samples_of_prompt"} and len(missing["samples_of_prompt"]) == 3
    repeated = broken_samples([*rows[:5], rows[4], *rows[6:]])
    assert set(repeated) == {"prompt_id+sample"} and len(repeated["prompt_id+sample"]) == 2
    assert "all" in broken_samples([])
