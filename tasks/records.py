"""The prompt record (docs/data.md): its Parquet schema, reading and writing it, and the mapping of users' files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.errors import DataError
from tasks.rewards import verify
from tasks.rewards.language import words
from tasks.world.problems import hash_share, problem_id

Record = dict[str, Any]

TURN = ("role", "content")
SPLITS = ("train", "validation", "test")
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("domain", pa.string()),
        ("family", pa.string()),
        ("level", pa.int32()),
        ("language", pa.string()),
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("verifier", pa.string()),
        ("truth", pa.string()),
        ("source", pa.string()),
        ("split", pa.string()),
    ]
)
# One row for each completion that an evaluation sampled (data/samples/<model>.parquet).
SAMPLE_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample", pa.int32()),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("finished", pa.bool_()),
        ("answer", pa.string()),
        ("correct", pa.bool_()),
        ("format", pa.bool_()),
        ("language_consistency", pa.float32()),
        ("domain", pa.string()),
        ("family", pa.string()),
        ("level", pa.int32()),
        ("language", pa.string()),
        ("model", pa.string()),
        ("temperature", pa.float32()),
        ("top_p", pa.float32()),
        ("max_new_tokens", pa.int32()),
    ]
)
# One row for each completion that a data stage sampled (tasks/generation/collect.py): it can be scored and filtered without a join.
ROLLOUT_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample", pa.int32()),
        ("domain", pa.string()),
        ("family", pa.string()),
        ("level", pa.int32()),
        ("language", pa.string()),
        ("messages", SCHEMA.field("messages").type),
        ("verifier", pa.string()),
        ("truth", pa.string()),
        ("text", pa.string()),  # the completion, tags included
        ("tokens", pa.int32()),
        ("finished", pa.bool_()),
        ("policy", pa.string()),  # fingerprint of the weights that sampled it
    ]
)
# One row for each sample of supervised fine-tuning.
SFT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # hash of prompt and response
        ("prompt_id", pa.string()),
        ("domain", pa.string()),
        ("family", pa.string()),
        ("language", pa.string()),
        ("messages", SCHEMA.field("messages").type),
        ("response", pa.string()),  # with tags: " <think> ... </think> <answer> ... </answer>"
        ("source", pa.string()),  # who wrote it: zero, dev2, judged (dev2, accepted by the judge) or annotators
        ("rounds", pa.int32()),  # turns of the user
        ("tokens", pa.int32()),  # of the response
    ]
)
# Preferences: pairs for the helpful reward model, labelled responses for the safety one.
PAIR_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("family", pa.string()),
        ("language", pa.string()),
        ("messages", SCHEMA.field("messages").type),
        ("chosen", pa.string()),  # whole responses, tags included
        ("rejected", pa.string()),
        ("preference", pa.float32()),  # mean of the judgements, in the judge's steps from -2 to 2, chosen minus rejected
        ("split", pa.string()),  # train or held_out
    ]
)
LABEL_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("family", pa.string()),
        ("language", pa.string()),
        ("messages", SCHEMA.field("messages").type),
        ("response", pa.string()),
        ("safe", pa.bool_()),
        ("split", pa.string()),
    ]
)
ID_PATTERN = r"^[a-z][a-z0-9_]*-[0-9a-f]{16}$"
FAMILY_PATTERN = r"^[a-z][a-z0-9_]*$"
NAMED_ROWS = 20  # malformed rows that an error names; the rest are counted
BATCH = 4096  # rows held in memory at a time, and rows in a Parquet row group


# ---- Parquet


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that is synced and takes its place once the block has ended without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def to_table(records: Iterable[Record], schema: pa.Schema = SCHEMA) -> pa.Table:
    """Records as an Arrow table.

    Raises:
        DataError: a record lacks a column, has one too many, or holds a value of another type.
    """
    rows = list(records)
    for number, row in enumerate(rows, 1):
        if row.keys() != set(schema.names):
            raise DataError(f"record {number}: {_difference(set(schema.names), set(row))}")
    try:
        return pa.Table.from_pylist(rows, schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise DataError(f"a record does not fit the schema of docs/data.md: {error}") from error


def write(records: Iterable[Record], path: Path, schema: pa.Schema = SCHEMA) -> None:
    """Stream records into a Parquet file; equal records give equal bytes, and `path` is never half-written.

    Raises:
        DataError: a record does not fit the schema.
    """
    rows = iter(records)
    with atomic(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        while batch := list(islice(rows, BATCH)):
            writer.write_table(to_table(batch, schema), row_group_size=BATCH)


def iter_batches(path: Path, schema: pa.Schema = SCHEMA) -> Iterator[list[Record]]:
    """Batches of at most `BATCH` records of a Parquet file that has exactly the columns of `schema`.

    Raises:
        DataError: no such file, no Parquet file, or other columns.
    """
    with _open_parquet(path) as file:
        check_schema(file.schema_arrow, schema, str(path))
        yield from _batches(file)


def _batches(file: pq.ParquetFile) -> Iterator[list[Record]]:
    # Group by group: over several row groups, iter_batches keeps the whole compressed file in memory (seen with pyarrow 25.0.1).
    for group in range(file.num_row_groups):
        for batch in file.iter_batches(BATCH, row_groups=[group]):
            yield batch.to_pylist()


def read(path: Path, schema: pa.Schema = SCHEMA) -> list[Record]:
    """All records of a Parquet file (`iter_batches` streams those of a large one).

    Raises:
        DataError: see `iter_batches`.
    """
    return [record for batch in iter_batches(path, schema) for record in batch]


def count(path: Path) -> int:
    """Number of rows of a Parquet file, from its footer.

    Raises:
        DataError: see `iter_batches`.
    """
    with _open_parquet(path) as file:
        return int(file.metadata.num_rows)


def check_schema(found: pa.Schema, expected: pa.Schema, what: str) -> None:
    """Compare columns by name and type.

    Raises:
        DataError: names the missing, the extra and the wrongly typed columns.
    """
    faults = _difference(set(expected.names), set(found.names))
    wrong = [
        f"column {name} is {found.field(name).type}, expected {expected.field(name).type}"
        for name in expected.names
        if name in found.names and found.field(name).type != expected.field(name).type
    ]
    if faults or wrong:
        raise DataError(f"{what}: {'; '.join([*filter(None, [faults]), *wrong])}; docs/data.md lists the columns")


def _difference(expected: set[str], found: set[str]) -> str:
    missing, extra = sorted(expected - found), sorted(found - expected)
    parts = [f"missing column {', '.join(missing)}"] if missing else []
    return "; ".join(parts + ([f"extra column {', '.join(extra)}"] if extra else []))


@contextmanager
def _open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from error


# ---- identity, split, text


def split_of(identifier: str, validation: float, test: float) -> str:
    """The split of a problem: its hash, never its position, so that more data moves no problem to another split.

    Test and validation take the lowest hashes, which the base's corpus leaves out (`tasks.world.problems.HELD_OUT`);
    for the same reason there is no salt.
    """
    share = hash_share(identifier)
    return "test" if share < test else "validation" if share < test + validation else "train"


def prompt_text(record: Record) -> str:
    """What the user says in a record's conversation."""
    return "\n".join(turn["content"] for turn in record["messages"] if turn["role"] == "user")


def language_of(text: str) -> str:
    """`zh` when a text has at least as many Han characters as English words (LaTeX commands apart), otherwise `en`."""
    english, han = words(re.sub(r"\\[A-Za-z]+", " ", text))
    return "zh" if han and han >= english else "en"


# ---- users' files


class _Malformed(Exception):
    """What is wrong with one row of a user's file."""


def from_user_file(path: Path) -> Iterator[Record]:
    """Records, still without a split, of a `.jsonl` or `.parquet` file in the layout of GSM8K, of MATH or of ours.

    Raises:
        DataError: unknown layout or kind of file, an empty file, or malformed rows, numbered after the last row.
    """
    return (record for _, record in numbered(path))


def numbered(path: Path) -> Iterator[tuple[int, Record]]:
    """As `from_user_file`, with the row of each record (a JSONL file's line), counted from 1.

    Raises:
        DataError: see `from_user_file`.
    """
    faults: list[str] = []
    adapter: Callable[[Record], Record] | None = None
    rows = 0
    for number, row in _rows(path):
        rows += 1
        try:
            if isinstance(row, str):
                raise _Malformed(row)
            adapter = adapter or _adapter(path, row)
            record = adapter(row) | {"source": path.name}
        except _Malformed as error:
            faults.append(f"row {number}: {error}")
            continue
        yield number, record
    if not rows:
        raise DataError(f"{path} is empty: it must hold at least one problem (docs/data.md shows the layouts)")
    if faults:
        more = f"; and {len(faults) - NAMED_ROWS} more" if len(faults) > NAMED_ROWS else ""
        raise DataError(
            f"{path}: {len(faults)} malformed of {rows} rows: {'; '.join(faults[:NAMED_ROWS])}{more}. "
            "Correct or remove them (docs/data.md shows the layouts)"
        )


def _rows(path: Path) -> Iterator[tuple[int, Record | str]]:
    """(row number, row, or what is wrong with it)."""
    if path.suffix == ".parquet":
        with _open_parquet(path) as file:
            yield from enumerate((row for batch in _batches(file) for row in batch), 1)
    elif path.suffix == ".jsonl":
        try:
            with path.open("rb") as lines:
                yield from ((number, _parse(line)) for number, line in enumerate(lines, 1) if line.strip())
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}): check curate.sources in params.yaml") from error
    else:
        raise DataError(f"{path}: expected a .jsonl or .parquet file, found '{path.suffix}'")


def _parse(line: bytes) -> Record | str:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, not JSON, or a number of over 4300 digits
        return f"not a line of JSON in UTF-8 ({error})"
    return row if isinstance(row, dict) else f"a {type(row).__name__}, expected a JSON object"


def _adapter(path: Path, row: Record) -> Callable[[Record], Record]:
    for columns, adapter in LAYOUTS:
        if columns <= row.keys():
            return adapter
    known = " or ".join("(" + ", ".join(sorted(columns)) + ")" for columns, _ in LAYOUTS)
    raise DataError(f"{path}: unknown layout with columns ({', '.join(map(str, row))}); expected {known}; see docs/data.md")


def _text(row: Record, name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise _Malformed(f"{name} is {'missing' if value is None else f'{value!r:.40}, expected text'}")
    if not value.strip():
        raise _Malformed(f"{name} is blank")
    if not _is_unicode(value):
        raise _Malformed(f"{name} holds half a surrogate pair, which is no Unicode text")
    return value


def _is_unicode(text: str) -> bool:
    return not re.search("[\ud800-\udfff]", text)  # JSON can spell them, UTF-8 and Parquet cannot


def _problem(family: str, level: int, prompt: str, verifier: str, truth: str) -> Record:
    return {
        "id": problem_id(family, " ".join(prompt.split())),
        "domain": "math",
        "family": family,
        "level": level,
        "language": language_of(prompt),
        "messages": [{"role": "user", "content": prompt.strip()}],
        "verifier": verifier,
        "truth": truth,
    }


def _gsm8k(row: Record) -> Record:
    answer = _text(row, "answer")
    truth = answer.rpartition("####")[2].strip().replace(",", "") if "####" in answer else ""
    if verify.number(truth) is None:
        raise _Malformed("answer has no final '#### number'")
    steps = answer.count("<<")  # one calculator annotation a step
    return _problem("gsm8k", min(max(steps, 1), 5), _text(row, "question"), "math", truth)


def _math(row: Record) -> Record:
    truth = verify.boxed(_text(row, "solution"))
    if not truth:
        raise _Malformed("solution has no \\boxed{answer} (proofs have no answer that a rule can check)")
    subject = _text(row, "type" if "type" in row else "subject")
    family = re.sub(r"\W+", "_", subject.replace("&", "and").strip().lower()).strip("_")
    prose = re.fullmatch(r"\\text(?:bf|rm|it)?\{\s*([^{}]*[^\W\d_]{2}[^{}]*)\}", truth)
    verifier, truth = ("text", prose[1].strip()) if prose else ("math", truth)
    return _problem(f"math_{family}", _math_level(row.get("level")), _text(row, "problem"), verifier, truth)


def _math_level(value: object) -> int:
    """MATH writes "Level 3", MATH-500 writes 3; the few "Level ?" count as the middle one."""
    found = re.fullmatch(r"(?:Level )?([1-5?])", str(value))
    if not found:
        raise _Malformed(f"level is {value!r:.40}, expected 'Level 1' to 'Level 5'")
    return 3 if found[1] == "?" else int(found[1])


def _own(row: Record) -> Record:
    prompt = "\n".join(turn["content"] for turn in _messages(row) if turn["role"] == "user")
    family, verifier = _text(row, "family"), _text(row, "verifier")
    level = row.get("level", 1)
    if type(level) is not int or not 1 <= level <= 5:
        raise _Malformed(f"level is {level!r:.40}, expected a whole number from 1 to 5")
    if not re.fullmatch(FAMILY_PATTERN, family):
        raise _Malformed(f"family is {family!r:.40}, expected lower-case letters, digits and _")
    identifier = _text(row, "id") if row.get("id") is not None else problem_id(family, " ".join(prompt.split()))
    if not re.fullmatch(ID_PATTERN, identifier):
        raise _Malformed(f"id is {identifier!r:.40}, expected '<family>-<16 hex digits>' (leave it out to have it made)")
    return {
        "id": identifier,
        "domain": _text(row, "domain"),
        "family": family,
        "level": level,
        "language": language_of(prompt) if row.get("language") is None else _text(row, "language"),
        "messages": [{"role": turn["role"], "content": turn["content"]} for turn in row["messages"]],
        "verifier": verifier,
        "truth": "" if verifier == "none" else _text(row, "truth"),
    }


def _messages(row: Record) -> list[dict[str, str]]:
    messages = row.get("messages")
    well_formed = isinstance(messages, list) and all(
        isinstance(turn, dict) and all(isinstance(turn.get(key), str) and _is_unicode(turn[key]) for key in TURN) for turn in messages
    )
    if not well_formed or not messages or messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
        raise _Malformed("messages must be a list of {role, content} that ends with what the user says")
    return messages


# Columns that tell a layout, and what reads it. MATH-500 also has an `answer`, but no `question`.
LAYOUTS: tuple[tuple[set[str], Callable[[Record], Record]], ...] = (
    ({"messages", "verifier"}, _own),
    ({"problem", "solution"}, _math),
    ({"question", "answer"}, _gsm8k),
)
