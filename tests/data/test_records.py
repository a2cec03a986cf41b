"""The prompt record: reading and writing it, its split, and the mapping of users' files in published layouts."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import records
from tasks.errors import DataError
from tasks.rewards.verify import Outcome, boxed, verify

GSM8K = {
    "question": "Natalia sold clips to 48 friends in April, and half as many in May. How many did she sell altogether?",
    "answer": "In May she sold 48/2 = <<48/2=24>>24 clips.\nAltogether 48+24 = <<48+24=72>>72 clips.\n#### 72",
}
MATH = {
    "problem": "What is the smallest value of $\\frac{x^2}{2}$ for $x \\ge 1$?",
    "level": "Level 3",
    "type": "Intermediate Algebra",
    "solution": "First \\boxed{7} is a guess. It is at $x = 1$: $\\boxed{\\frac{1}{2}}$.",
}
OWN: dict[str, Any] = {
    "messages": [{"role": "user", "content": "水的化学式？ A H2O， B CO2。"}],
    "domain": "stem",
    "family": "quiz",
    "verifier": "choice",
    "truth": "A",
}


def write_jsonl(path: Path, *rows: object) -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def load(path: Path) -> list[dict]:
    return list(records.from_user_file(path))


# ---- published layouts


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_gsm8k(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"gsm8k.{kind}"
    rows = [GSM8K, {"question": "A car costs?", "answer": "It costs 1,200 - 2,450.\n#### -1,250"}]
    if kind == "jsonl":
        write_jsonl(path, *rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    first, second = load(path)
    assert first == {
        "id": records.problem_id("gsm8k", GSM8K["question"]),
        "domain": "math",
        "family": "gsm8k",
        "level": 2,
        "language": "en",
        "messages": [{"role": "user", "content": GSM8K["question"]}],
        "verifier": "math",
        "truth": "72",
        "source": path.name,
    }
    assert (second["truth"], second["level"]) == ("-1250", 1)


def test_math(tmp_path: Path) -> None:
    (record,) = load(write_jsonl(tmp_path / "math.jsonl", MATH))
    assert (record["domain"], record["family"], record["level"]) == ("math", "math_intermediate_algebra", 3)
    assert (record["verifier"], record["truth"], record["language"]) == ("math", "\\frac{1}{2}", "en")
    assert verify("math", record["truth"], "0.5") is Outcome.CORRECT
    assert verify("math", record["truth"], "7") is Outcome.WRONG


def test_math_500_and_its_oddities(tmp_path: Path) -> None:
    """MATH-500 says `subject` and writes levels as numbers; some answers are words, some levels unknown."""
    spare = {"answer": "7", "unique_id": "test/1.json"}
    five = {
        "problem": "Which way?",
        "subject": "Counting & Probability",
        "level": 5,
        "solution": "\\boxed{\\text{east}}",
    }
    unknown = MATH | {"problem": "Another", "level": "Level ?", "solution": "So \\boxed 5$."}
    first, second = load(write_jsonl(tmp_path / "math.jsonl", five | spare, unknown))
    assert (first["family"], first["level"], first["verifier"], first["truth"]) == (
        "math_counting_and_probability",
        5,
        "text",
        "east",
    )
    assert (second["level"], second["truth"]) == (3, "5")


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\fbox{3}", "3"),
        ("\\boxed{1} then $\\boxed{\\sqrt{2}+\\frac{1}{3}}$.", "\\sqrt{2}+\\frac{1}{3}"),
        ("$\\boxed 12$", "12"),
        ("none", ""),
        ("\\boxed{never closed", ""),
    ],
)
def test_boxed(solution: str, answer: str) -> None:
    assert boxed(solution) == answer


def test_own_layout(tmp_path: Path) -> None:
    kept = OWN | {"id": "quiz-0123456789abcdef", "level": 4, "language": "en", "split": "test", "source": "elsewhere"}
    made, given_id = load(write_jsonl(tmp_path / "mine.jsonl", OWN, "", kept))
    assert (made["language"], made["level"], made["source"]) == ("zh", 1, "mine.jsonl")
    assert made["id"] == records.problem_id("quiz", OWN["messages"][0]["content"])
    assert (given_id["id"], given_id["level"], given_id["language"]) == ("quiz-0123456789abcdef", 4, "en")
    assert "split" not in made and "split" not in given_id


def test_own_layout_keeps_the_reference_of_a_judge(tmp_path: Path) -> None:
    judged, unjudged, *_ = load(write_jsonl(tmp_path / "mine.jsonl", OWN | {"verifier": "judge"}, OWN | {"verifier": "none"}))
    assert (judged["verifier"], judged["truth"]) == ("judge", OWN["truth"])
    assert (unjudged["verifier"], unjudged["truth"]) == ("none", "")
    for truth in ("", " ", None):
        path = write_jsonl(tmp_path / "blank.jsonl", OWN | {"verifier": "judge", "truth": truth})
        with pytest.raises(DataError, match="row 1: truth is"):
            load(path)


def test_own_layout_reads_what_the_project_writes(tmp_path: Path) -> None:
    (record,) = load(write_jsonl(tmp_path / "mine.jsonl", OWN))
    records.write([record | {"split": "train"}], tmp_path / "again.parquet")
    assert load(tmp_path / "again.parquet") == [record | {"source": "again.parquet"}]


def test_rows_are_numbered_by_line(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "mine.jsonl", OWN, "", "", OWN)
    assert [number for number, _ in records.numbered(path)] == [1, 4]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Two plus two?", "en"),
        ("二加二？", "zh"),
        ("1 + 1 = ?", "en"),
        ("求 $\\frac{\\sqrt{2}}{\\sin x \\cos x}$ 的值", "zh"),
        ("What does 你好 mean in plain English?", "en"),
    ],
)
def test_language_by_script(text: str, language: str) -> None:
    assert records.language_of(text) == language


# ---- bad files


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("{not json", "not a line of JSON"),
        ("[1, 2]", "a list, expected a JSON object"),
        (GSM8K | {"question": 7}, "question is 7, expected text"),
        (GSM8K | {"question": "  "}, "question is blank"),
        (GSM8K | {"answer": "It is 72."}, "no final '#### number'"),
        (GSM8K | {"answer": "#### many"}, "no final '#### number'"),
        ({"question": "Why?"}, "answer is missing"),
        (GSM8K | {"question": "half \ud800"}, "surrogate"),
    ],
)
def test_malformed_rows_are_numbered(tmp_path: Path, row: object, fault: str) -> None:
    raw = json.dumps(row) if isinstance(row, dict) else row
    path = write_jsonl(tmp_path / "gsm8k.jsonl", GSM8K, raw, GSM8K)
    with pytest.raises(DataError) as caught:
        load(path)
    message = str(caught.value)
    assert str(path) in message and "1 malformed of 3 rows" in message and "docs/data.md" in message
    assert "row 2: " in message and fault in message


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"solution": "Left to the reader."}, "\\boxed"),
        ({"level": "Level 6"}, "level is 'Level 6'"),
        ({"type": None}, "type is missing"),
    ],
)
def test_malformed_math(tmp_path: Path, change: dict, fault: str) -> None:
    with pytest.raises(DataError, match="row 2: ") as caught:
        load(write_jsonl(tmp_path / "math.jsonl", MATH, MATH | change))
    assert fault in str(caught.value)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"messages": []}, "messages must be"),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, "messages must be"),
        ({"messages": [{"role": "user", "content": None}]}, "messages must be"),
        ({"level": True}, "level is True"),
        ({"level": 10**30}, "level is 1000"),
        ({"family": "My Quiz"}, "family is 'My Quiz'"),
        ({"id": "7"}, "id is '7'"),
        ({"truth": ["A"]}, "truth is ['A']"),
        ({"domain": None}, "domain is missing"),
        ({"language": 1}, "language is 1"),
    ],
)
def test_malformed_own(tmp_path: Path, change: dict, fault: str) -> None:
    with pytest.raises(DataError, match="row 2: ") as caught:
        load(write_jsonl(tmp_path / "mine.jsonl", OWN, OWN | change))
    assert fault in str(caught.value)


def test_at_most_twenty_malformed_rows_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(write_jsonl(tmp_path / "gsm8k.jsonl", GSM8K, *["{"] * 25))
    message = str(caught.value)
    assert "row 21:" in message and "row 22:" not in message and "and 5 more" in message


def test_empty_files(tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("\n \n")
    pq.write_table(pa.table({"question": pa.array([], pa.string()), "answer": []}), tmp_path / "none.parquet")
    for name in ("none.jsonl", "none.parquet"):
        with pytest.raises(DataError, match=f"{name} is empty"):
            load(tmp_path / name)


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("no Parquet")
    (tmp_path / "table.csv").write_text("question,answer\n")
    expected = {
        "absent.jsonl": "No such file",
        "absent.parquet": "does not exist",
        "text.parquet": "cannot be read as Parquet",
        "table.csv": "expected a .jsonl or .parquet file, found '.csv'",
    }
    for name, fault in expected.items():
        with pytest.raises(DataError) as caught:
            load(tmp_path / name)
        assert name in str(caught.value) and fault in str(caught.value)


def test_unknown_layout_shows_its_columns_and_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\(input, output\).*problem, solution.*answer, question"):
        load(write_jsonl(tmp_path / "mine.jsonl", {"input": "a", "output": "b"}))


# ---- identity and split


def test_white_space_does_not_change_an_id(tmp_path: Path) -> None:
    spaced = GSM8K | {"question": GSM8K["question"].replace(" ", "  ") + "\n"}
    other = GSM8K | {"question": GSM8K["question"].replace("48", "49")}
    first, second, third = (r["id"] for r in load(write_jsonl(tmp_path / "g.jsonl", GSM8K, spaced, other)))
    assert first == second != third


def test_splits_are_intervals_of_the_hash() -> None:
    def split(share: float) -> str:
        return records.split_of(f"calc-{int(share * 2**64):016x}", validation=0.05, test=0.10)

    assert [split(x) for x in (0.0, 0.099, 0.101, 0.149, 0.151, 0.999)] == ["test"] * 2 + ["validation"] * 2 + ["train"] * 2


def test_split_shares_are_met() -> None:
    splits = [records.split_of(records.problem_id("calc", str(i)), 0.05, 0.10) for i in range(20_000)]
    for split, share in {"train": 0.85, "validation": 0.05, "test": 0.10}.items():
        assert splits.count(split) / len(splits) == pytest.approx(share, abs=0.01)  # 4 standard errors


# ---- Parquet

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
messages = st.lists(st.fixed_dictionaries({"role": text, "content": text}), max_size=3)
levels = st.integers(-(2**31), 2**31 - 1)
record = st.fixed_dictionaries(
    {name: messages if name == "messages" else levels if name == "level" else text for name in records.SCHEMA.names}
)


@settings(max_examples=50, deadline=None)
@given(st.lists(record, max_size=5))
def test_round_trip_and_equal_bytes(rows: list[dict]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder, "a.parquet"), Path(folder, "b.parquet")
        records.write(rows, first)
        assert records.read(first) == rows
        records.write(iter(rows), second)
        assert first.read_bytes() == second.read_bytes()


def a_record(i: int) -> dict:
    texts = {name: f"{name} {i}" for name in records.SCHEMA.names}
    return texts | {"level": i, "messages": [{"role": "user", "content": str(i)}]}


def test_batches_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "BATCH", 4)
    records.write(map(a_record, range(10)), tmp_path / "a.parquet")
    batches = list(records.iter_batches(tmp_path / "a.parquet"))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert [row["level"] for batch in batches for row in batch] == list(range(10))


def test_a_failed_write_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    records.write([a_record(1)], path)
    before = path.read_bytes()
    for bad in ({"level": "three"}, {"level": 2**31}):
        with pytest.raises(DataError):
            records.write([a_record(2), a_record(3) | bad], path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.parquet"]


def test_a_reader_of_the_old_file_never_sees_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    records.write([a_record(1)], path)
    before = path.read_bytes()
    with path.open("rb") as old:
        records.write([a_record(2)], path)
        assert old.read() == before != path.read_bytes()


def test_write_names_missing_and_extra_columns(tmp_path: Path) -> None:
    row = a_record(1) | {"note": "x"}
    del row["truth"]
    with pytest.raises(DataError, match="record 1: missing column truth; extra column note"):
        records.write([row], tmp_path / "a.parquet")


def test_read_names_wrong_columns(tmp_path: Path) -> None:
    table = records.to_table([a_record(1)]).drop_columns(["truth"])
    level = table.schema.get_field_index("level")
    pq.write_table(table.set_column(level, "level", pa.array(["1"])), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="missing column truth; column level is string, expected int32"):
        records.read(tmp_path / "a.parquet")
