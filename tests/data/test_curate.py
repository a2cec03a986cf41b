"""The stage `curate`: what it writes, that it writes the same bytes twice, that bad input costs no finished work."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from data import overlap
from data.contracts import ContractError
from tasks import curate, errors, records
from tasks.config import Curate, load_params
from tasks.errors import DataError
from tasks.world import problems

ROOT = Path(__file__).parents[2]
OUTPUTS = [*(curate.CURATED / f"{split}.parquet" for split in records.SPLITS), curate.METRICS, curate.TABLE]


def params(**changes: Any) -> Curate:
    return Curate(**{"problems": 600, "train": 0.8, "validation": 0.1, "test": 0.1, "ngram": 10} | changes)


def write_jsonl(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def quiz(text: str, truth: str = "A", **more: Any) -> dict[str, Any]:
    record = {"messages": [{"role": "user", "content": text}], "domain": "stem", "family": "quiz", "verifier": "choice"}
    return record | {"truth": truth} | more


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def curated() -> curate.Curated:
    return curate.curate(params(), seed=0)


# ---- what it makes


def test_outputs(curated: curate.Curated, tmp_path: Path) -> None:
    curate.publish(curated, tmp_path)
    assert set(snapshot(tmp_path)) == {str(path) for path in OUTPUTS}
    splits = {split: records.read(tmp_path / curate.CURATED / f"{split}.parquet") for split in records.SPLITS}
    assert all(row["split"] == split for split, rows in splits.items() for row in rows)
    removed = sum(n for reasons in curated.removed.values() for n in reasons.values())
    ids = [row["id"] for rows in splits.values() for row in rows]
    assert len(ids) == len(set(ids)) == 600 - removed
    metrics = json.loads((tmp_path / curate.METRICS).read_text())
    assert metrics["problems"] == len(ids) and metrics["dataset_hash"] == curated.fingerprint
    for split, rows in splits.items():
        counts = metrics["counts"][split]
        assert counts["problems"] == len(rows) == sum(counts["family"].values()) == sum(counts["level"].values())
        assert counts["language"]["zh"] == sum(row["language"] == "zh" for row in rows)
        assert metrics["shares"][split]["domain"]["math"] == pytest.approx(counts["domain"]["math"] / len(rows), abs=1e-4)
    assert metrics["contract"]["passed"] and len(metrics["contract"]["checks"]) == len(curated.report.checks)
    table = (tmp_path / curate.TABLE).read_text()
    assert "| calc |" in table and "every gold answer is verified" in table and "**broken**" not in table


def test_held_out_problems_are_those_that_the_base_never_saw(curated: curate.Curated) -> None:
    held_out = [row["id"] for split in ("validation", "test") for row in curated.splits[split]]
    assert held_out and all(problems.held_out(identifier) for identifier in held_out)


def test_open_questions_reach_the_splits_and_cost_no_other_problem(curated: curate.Curated) -> None:
    """ "Kind of dog is?" is neither held in "Kind of dog? A mammal, ..." nor the other way round, whichever is a test problem."""
    assert sum(row["verifier"] == "judge" for rows in curated.splits.values() for row in rows) == 4
    both = [problems.record(question, language) for question in problems.OPEN for language in ("en", "zh")]
    choices = [row for row in problems.generate(3000, 0) if row["family"] == "choice"]
    for test, train in ((both, choices), (choices, both)):
        rows = [row | {"split": "test"} for row in test] + [row | {"split": "train"} for row in train]
        assert overlap.find(rows, 10) == {}


def test_any_prefix_is_a_fair_sample(curated: curate.Curated) -> None:
    first = [row["domain"] for row in curated.splits["train"][:150]]
    assert set(first) == set(problems.DOMAIN_SHARES)
    assert first.count("general") / 150 == pytest.approx(66 / 158, abs=0.16)  # 4 standard errors


def test_two_runs_give_the_same_bytes(curated: curate.Curated, tmp_path: Path) -> None:
    curate.publish(curated, tmp_path / "first")
    curate.publish(curate.curate(params(), seed=0), tmp_path / "second")
    assert snapshot(tmp_path / "first") == snapshot(tmp_path / "second")
    assert curate.curate(params(), seed=1).fingerprint != curated.fingerprint


def test_more_data_moves_no_problem_to_another_split(curated: curate.Curated) -> None:
    more = curate.curate(params(problems=900), seed=0)
    before, after = ({row["id"]: row["split"] for rows in c.splits.values() for row in rows} for c in (curated, more))
    both = before.keys() & after.keys()
    assert len(both) > 100 and all(before[identifier] == after[identifier] for identifier in both)


# ---- the user's own problems


def test_sources_join_and_planted_leaks_are_removed(curated: curate.Curated, tmp_path: Path) -> None:
    fill, expr = (next(r for r in curated.splits["test"] if r["family"] == f) for f in ("fill", "expr"))
    said = {row["family"]: records.prompt_text(row) for row in (fill, expr)}
    in_train = "quiz-ffffffffffffff0{}"
    leaks = [
        quiz(said["fill"].upper(), id=in_train.format(1)),
        quiz(f"A riddle! {said['expr']} Is it A or B?", id=in_train.format(2)),
    ]
    kept = [quiz(f"Which is number {i}? A {i}, B {i + 1}.", id=in_train.format(i)) for i in (3, 4)]
    gsm8k = {"question": "Ann has 3 pens and buys 4. How many?", "answer": "3+4 = <<3+4=7>>7\n#### 7"}
    sources = (write_jsonl(tmp_path / "quiz.jsonl", *leaks, *kept), write_jsonl(tmp_path / "g.jsonl", gsm8k))
    both = curate.curate(params(sources=sources), seed=0)
    mine = {row["id"]: row["source"] for rows in both.splits.values() for row in rows if row["source"] != "world"}
    assert mine == {in_train.format(3): "quiz.jsonl", in_train.format(4): "quiz.jsonl"} | {
        records.problem_id("gsm8k", gsm8k["question"]): "g.jsonl"
    }
    for reason in ("is a test problem", "contains a test problem"):
        assert both.removed["train"][reason] == curated.removed["train"].get(reason, 0) + 1
    assert "- train: " in curate.markdown(both)


def test_a_gold_that_no_verifier_reads_stops_the_stage_and_names_the_line(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "mine.jsonl", quiz("Which one is it?"), quiz("And which now?", truth="neither"))
    with pytest.raises(ContractError) as caught:
        curate.curate(params(sources=(source,)), seed=0)
    message = str(caught.value)
    assert "mine.jsonl row 2 quiz-" in message and "UNSCORABLE" in message and "'neither'" in message
    assert "mine.jsonl row 1" not in message


def test_a_problem_that_comes_twice_is_named_in_both_files(tmp_path: Path) -> None:
    first = write_jsonl(tmp_path / "a.jsonl", quiz("Which one is it?"))
    second = write_jsonl(tmp_path / "b.jsonl", quiz("And which now?"), quiz("Which  one is it?"))
    with pytest.raises(ContractError) as caught:
        curate.curate(params(sources=(first, second)), seed=0)
    assert "a.jsonl row 1 " in str(caught.value) and "b.jsonl row 2 " in str(caught.value)


def test_removal_that_changes_a_template_is_followed_to_its_end(tmp_path: Path) -> None:
    """Twenty problems make a template; once a leak is removed nineteen are left, which have none."""
    words = "of all the numbers that a careful reader may ever meet on this page which one equals"
    rows = [quiz(f"{words} {i} {i * 7}", id=f"quiz-{i * 0x0C00000000000000:016x}") for i in range(20)]
    leak = quiz(f"Hint: {words} 0 0", id="quiz-fffffffffffffff0")
    found = curate.curate(params(sources=(write_jsonl(tmp_path / "mine.jsonl", *rows[:19], leak),)), seed=0)
    assert found.report.passed
    assert found.removed["train"]["contains a test problem"] >= 1


def test_too_much_held_out_and_too_small_a_world(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"curate.validation \+ curate.test is 0.3, at most 0.2"):
        curate.curate(params(train=0.7, validation=0.1, test=0.2), seed=0)

    def too_few(count: int, seed: int) -> None:
        raise ValueError(f"fewer than {count}: lower curate.problems")

    monkeypatch.setattr(problems, "generate", too_few)
    with pytest.raises(DataError, match=r"lower curate\.problems"):
        curate.curate(params(), seed=0)


# ---- faults


def test_a_full_disk_leaves_the_old_output_whole(
    curated: curate.Curated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    curate.publish(curated, tmp_path)
    before, write = snapshot(tmp_path), records.write

    def full(rows: Any, path: Path) -> None:
        write(rows, path)
        if path.name == "validation.parquet":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(records, "write", full)
    with pytest.raises(SystemExit) as caught:
        errors.main(lambda: curate.publish(curated, tmp_path))
    assert caught.value.code == 2 and snapshot(tmp_path) == before
    assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["curated"]


def test_a_kill_between_the_two_renames_is_mended(tmp_path: Path) -> None:
    """The old folder is set aside, the new one not yet in place: the next run must not start from nothing."""
    folder = tmp_path / "curated"
    with curate.atomic_folder(folder) as new:
        (new / "a").write_text("old")
    os.rename(folder, tmp_path / ".curated.old")
    with pytest.raises(RuntimeError), curate.atomic_folder(folder) as new:
        (new / "a").write_text("new")
        raise RuntimeError("stopped again")
    assert snapshot(tmp_path) == {"curated/a": b"old"}
    with curate.atomic_folder(folder) as new:
        (new / "b").write_text("new")
    assert snapshot(tmp_path) == {"curated/b": b"new"}


def test_an_error_of_ours_is_not_hidden() -> None:
    def bug() -> None:
        raise OSError(errno.EACCES, "Permission denied")

    with pytest.raises(OSError, match="Permission denied"):
        errors.main(bug)


# ---- the command


class FakeRun:
    """Stands in for MLflow, whose store takes seconds to make; tests of tracking use the real one."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.artifacts: list[Path] = []

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self.values |= values

    def artifact(self, path: Path) -> None:
        assert path.is_file()
        self.artifacts.append(path)


def prepare(root: Path, **changes: Any) -> None:
    """The project's own params.yaml but for `curate`."""
    given = load_params(ROOT / "params.yaml").model_dump(mode="json")
    given["curate"] |= params().model_dump(mode="json") | changes
    (root / "params.yaml").write_text(yaml.safe_dump(given))


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    runs: list[tuple[FakeRun, dict[str, Any]]] = []

    @contextmanager
    def fake(**arguments: Any) -> Iterator[FakeRun]:
        runs.append((FakeRun(), arguments))
        yield runs[-1][0]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(curate.tracking, "run", fake)
    prepare(tmp_path)
    errors.main(curate.run)
    before = snapshot(tmp_path)
    assert {str(path) for path in OUTPUTS} < set(before) and "checks hold" in capsys.readouterr().out
    tracked, arguments = runs[0]
    assert arguments["stage"] == "curate" and arguments["params"]["curate"]["problems"] == 600
    assert tracked.artifacts == [curate.METRICS, curate.TABLE]
    assert sum(tracked.values.values()) == 600

    source = write_jsonl(tmp_path / "mine.jsonl", quiz("Which one?", truth="maybe"))
    prepare(tmp_path, sources=[source])
    with pytest.raises(SystemExit) as caught:
        errors.main(curate.run)
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert "mine.jsonl row 1 " in error
    assert all(snapshot(tmp_path)[str(path)] == before[str(path)] for path in OUTPUTS)


def test_an_unknown_parameter_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    prepare(tmp_path, n_gram=3)
    line = [sys.executable, "-m", "tasks.curate"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "n_gram" in done.stderr
