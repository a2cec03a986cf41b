"""Labelled responses, which the safety reward model is trained on: the miniature's own, or a file of the user's (docs/data.md)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field, StrictBool, StrictStr, ValidationError, field_validator

from tasks import records
from tasks.config import RewardModels
from tasks.errors import DataError
from tasks.records import LABEL_SCHEMA, Record
from tasks.world import judges

Text = Annotated[StrictStr, Field(pattern=r"\S")]  # not blank


class Turn(BaseModel):
    role: Text
    content: StrictStr


class Label(BaseModel):
    """One row of a user's file. Other columns are ignored; pandas adds one for its index."""

    prompt_id: Text
    family: Text
    language: Text
    messages: list[Turn]
    response: Text
    safe: StrictBool

    @field_validator("messages")
    @classmethod
    def _asks(cls, turns: list[Turn]) -> list[Turn]:
        if not turns or turns[-1].role != "user" or not turns[-1].content.strip():
            raise ValueError("must end with what the user says")
        return turns


def question_of(record: Record) -> str:
    """What a prompt asks last."""
    return str(record["messages"][-1]["content"])


def split_of(prompt_id: str, settings: RewardModels) -> str:
    """Whether a prompt trains or measures: by its id, so that no prompt does both and more data moves none."""
    return "held_out" if random.Random(f"reward/{settings.seed}/{prompt_id}").random() < settings.held_out else "train"


def prompt_columns(record: Record, settings: RewardModels) -> Record:
    """What the records of one prompt have in common, pairs and labels alike."""
    same = {key: record[key] for key in ("prompt_id", "family", "language", "messages")}
    return same | {"split": split_of(record["prompt_id"], settings)}


def of_samples(responses: Iterable[Sequence[Record]], settings: RewardModels) -> list[Record]:
    """Label records (LABEL_SCHEMA) of the distinct responses to each prompt, by the miniature's guideline.

    Raises:
        SecondThoughtError: the world did not write a prompt.
    """
    distinct = (row for rows in responses for row in {row["text"]: row for row in reversed(rows)}.values())
    return [
        prompt_columns(row, settings) | {"response": row["text"], "safe": judges.is_safe(question_of(row), row["text"])} for row in distinct
    ]


def of_file(path: Path, settings: RewardModels) -> list[Record]:
    """Label records (LABEL_SCHEMA) of a user's Parquet file, whose types may be others that mean the same, as pandas writes them.

    Raises:
        DataError: it cannot be read, lacks a column, holds a row with a value that is missing or of another type (names the rows), or
            lacks safe or unsafe responses in a split.
    """
    made, faults = [], []
    for number, row in enumerate(_rows(path), 1):
        try:
            label = Label.model_validate(row).model_dump()
            made.append(label | {"split": split_of(label["prompt_id"], settings)})
        except ValidationError as error:
            found = error.errors(include_url=False, include_input=False)
            faults.append(f"row {number}: " + ", ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in found))
    if faults:
        total, named = len(made) + len(faults), "; ".join(faults[: records.NAMED_ROWS])
        raise DataError(f"{path}: {len(faults)} malformed of {total} rows: {named}. Correct or remove them (docs/data.md)")
    count(made)
    return made


def _rows(path: Path) -> list[Record]:
    records.count(path)  # raises where it cannot be read
    with pq.ParquetFile(path) as file:
        missing = [name for name in LABEL_SCHEMA.names if name not in {*file.schema_arrow.names, "split"}]
        if missing:
            raise DataError(f"{path}: missing column {', '.join(missing)}; docs/data.md lists the columns of labels.parquet")
        try:
            rows: list[Record] = file.read(columns=list(Label.model_fields)).to_pylist()
        except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    return rows


def count(labelled: Sequence[Record]) -> dict[str, Any]:
    """Safe and unsafe responses of each split.

    Raises:
        DataError: a split lacks one of the two; says which.
    """
    counts = Counter((row["split"], "safe" if row["safe"] else "unsafe") for row in labelled)
    told = {split: {kind: counts[split, kind] for kind in ("safe", "unsafe")} for split in ("train", "held_out")}
    missing = [f"{kind} responses that are {split}" for split in told for kind in told[split] if not told[split][kind]]
    if missing:
        raise DataError(
            f"of {len(labelled)} labelled responses there are no {' and no '.join(missing)}: the safety model needs both kinds; raise "
            "reward_models.prompts or candidates, or name a file of your own in reward_models.labels"
        )
    return told
