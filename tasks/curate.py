"""Stage `curate`: the world's problems and the user's own, split by hash, cleared of overlap with the test, checked.

    python -m tasks.curate

Reads `curate` and `seed` of params.yaml. Writes data/curated/{train,validation,test}.parquet (all three or none),
reports/metrics/curate.json and reports/curate.md. A broken contract stops it before anything is written.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import contracts, overlap
from tasks import errors, records
from tasks.config import Curate, load_params
from tasks.errors import DataError
from tasks.monitoring import tracking
from tasks.records import SPLITS, Record
from tasks.world import problems

CURATED = Path("data/curated")
METRICS = Path("reports/metrics/curate.json")
TABLE = Path("reports/curate.md")
COUNTED = ("domain", "family", "language", "level", "verifier", "source")

Named = tuple[str, Record]  # what to call a row in an error, and the row


@dataclass(frozen=True)
class Curated:
    """The curated dataset and what is known of it."""

    splits: dict[str, list[Record]]
    removed: dict[str, dict[str, int]]  # split -> reason -> problems
    report: contracts.Report

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all records, independent of the file format."""
        digest = hashlib.sha256()
        for split in SPLITS:
            for record in self.splits[split]:
                digest.update(json.dumps(record, sort_keys=True, ensure_ascii=False).encode() + b"\n")
        return digest.hexdigest()


def curate(params: Curate, seed: int) -> Curated:
    """Make the dataset in memory.

    Raises:
        DataError: a source cannot be read, the world is too small, or too much is held out.
        ContractError: the dataset breaks its contract.
    """
    _check_held_out(params)
    named = [
        (name, record | {"split": records.split_of(record["id"], params.validation, params.test)})
        for name, record in _collect(params, seed)
    ]
    # The hash, not the family, orders the rows: any prefix of a split is a fair sample of it.
    named.sort(key=lambda pair: (problems.hash_share(pair[1]["id"]), pair[1]["id"]))
    kept, removed = _decontaminate(named, params.ngram)
    table = records.to_table(record for _, record in kept)
    report = contracts.check("prompts", table, rows=[name for name, _ in kept], ngram=params.ngram)
    return Curated(
        {split: [record for _, record in kept if record["split"] == split] for split in SPLITS},
        {split: {reason: n for (where, reason), n in sorted(removed.items()) if where == split} for split in SPLITS[:2]},
        report,
    )


def _decontaminate(named: list[Named], ngram: int) -> tuple[list[Named], Counter[tuple[str, str]]]:
    """(rows without overlap with the test split, removed rows by split and reason)."""
    removed: Counter[tuple[str, str]] = Counter()
    # Removing rows can change which words count as a family's template, hence until nothing is found any more.
    while found := overlap.find([record for _, record in named], ngram):
        removed.update((named[i][1]["split"], match.reason) for i, match in found.items())
        named = [pair for i, pair in enumerate(named) if i not in found]
    return named, removed


def _check_held_out(params: Curate) -> None:
    if params.validation + params.test > problems.HELD_OUT:
        raise DataError(
            f"curate.validation + curate.test is {params.validation + params.test:g}, at most {problems.HELD_OUT:g}: "
            "the base was trained on problems like the world's, and only that share was kept from it"
        )


def _collect(params: Curate, seed: int) -> Iterator[Named]:
    """Records without a split."""
    try:
        world = problems.generate(params.problems, seed)
    except ValueError as error:
        raise DataError(str(error)) from error
    yield from ((f"world row {i}", record) for i, record in enumerate(world, 1))
    for source in params.sources:
        path = Path(source)
        yield from ((f"{path.name} row {number}", record) for number, record in records.numbered(path))


# ---- writing


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path` that takes its place once the block has ended without an error."""
    temporary, old = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    if old.exists() and not path.exists():  # killed between the two renames below
        os.rename(old, path)
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.exists():
            os.rename(path, old)
        os.rename(temporary, path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(curated: Curated, root: Path = Path()) -> None:
    """Write the dataset, its metrics and the table of what was checked."""
    with atomic_folder(root / CURATED) as folder:
        for split, rows in curated.splits.items():
            records.write(rows, folder / f"{split}.parquet")
    with records.atomic(root / METRICS) as temporary:
        text = json.dumps(summary(curated), indent=2, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8")
    with records.atomic(root / TABLE) as temporary:
        temporary.write_text(markdown(curated), encoding="utf-8")


def summary(curated: Curated) -> dict[str, Any]:
    """Counts and shares of each split, what was removed, the contract's results, and the dataset's hash."""
    counts = {split: _counts(rows) for split, rows in curated.splits.items()}
    return {
        "problems": sum(len(rows) for rows in curated.splits.values()),
        "dataset_hash": curated.fingerprint,
        "removed": curated.removed,
        "counts": counts,
        "shares": {split: {column: _shares(counts[split][column]) for column in ("domain", "language")} for split in SPLITS},
        "contract": curated.report.to_json(),
    }


def _counts(rows: Sequence[Record]) -> dict[str, Any]:
    counts: dict[str, Any] = {"problems": len(rows)}
    for column in COUNTED:
        counts[column] = dict(sorted(Counter(str(row[column]) for row in rows).items()))
    return counts


def _shares(counts: dict[str, int]) -> dict[str, float]:
    return {value: round(count / sum(counts.values()), 4) for value, count in counts.items()}


def markdown(curated: Curated) -> str:
    """The readable report: problems by split, what was removed, what was checked."""
    lines = ["# The curated problems", "", f"Dataset hash `{curated.fingerprint}`.", ""]
    for column in ("domain", "family", "language", "source"):
        values = sorted({row[column] for rows in curated.splits.values() for row in rows})
        lines += [f"| {column} | {' | '.join(SPLITS)} |", "|---|" + "---:|" * len(SPLITS)]
        for value in values:
            counts = (sum(row[column] == value for row in curated.splits[split]) for split in SPLITS)
            lines.append(f"| {value} | {' | '.join(f'{count:,}' for count in counts)} |")
        lines.append("")
    lines += ["## Removed because of overlap with the test split", ""]
    lines += [f"- {split}: {n:,}, {reason}" for split, reasons in curated.removed.items() for reason, n in reasons.items()]
    lines += ["" if any(curated.removed.values()) else "Nothing.\n", "## What was checked", ""]
    return "\n".join(lines) + "\n" + curated.report.to_markdown()


def run() -> None:
    """The stage as a command."""
    params = load_params()
    settings = {"seed": params.seed, "curate": params.curate.model_dump(mode="json")}
    sources = {Path(source).name: Path(source) for source in params.curate.sources}
    with tracking.run(stage="curate", params=settings, inputs=sources, state=Path(".runs/curate")) as tracked:
        curated = curate(params.curate, params.seed)
        publish(curated)
        sizes = {split: len(rows) for split, rows in curated.splits.items()}
        removed = sum(n for reasons in curated.removed.values() for n in reasons.values())
        tracked.metrics(0, {**sizes, "removed": removed})
        tracked.artifact(METRICS)
        tracked.artifact(TABLE)
    print(f"curate: {sizes}, {removed} removed for overlap, {len(curated.report.checks)} checks hold ({TABLE})")


if __name__ == "__main__":
    errors.main(run)
