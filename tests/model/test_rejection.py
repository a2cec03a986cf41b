"""The rejection-sampling stage as a user runs it: its set and tables, killed and resumed, with a judge that fails, on bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tasks import records, rejection
from tasks.config import Params, load_params
from tasks.errors import DataError
from tasks.evaluation.correctness import JudgeError
from tasks.generation.model_folder import ModelFolderError
from tasks.records import SFT_SCHEMA
from tasks.rewards.format import parse
from tasks.rewards.verify import Outcome, verify
from tasks.world import problems

ROOT = Path(__file__).parents[2]
OUTPUTS = ("data/rejection/sft.parquet", "reports/rejection.md", "reports/metrics/rejection.json")
# 150 prompts are three parts, so that a kill can come between two. The base guesses multiple choice without thinking: quick, often right.
SMALL = {"prompts": 150, "samples": 2, "max_new_tokens": 24, "min_language": 0.5, "per_prompt": 1}


def project(folder: Path, **own: object) -> Path:
    """A project folder with multiple-choice, open, general and harmful prompts; its dev2 is the shipped base."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["rejection"] |= SMALL | own
    (folder / "models").mkdir(parents=True)
    (folder / "models/dev2").symlink_to(ROOT / "models/base")
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    world = [r | {"split": "train"} for r in problems.generate(1200, 0)]
    records.write([r for r in world if r["family"] in ("choice", "open", "json", "harm")], folder / rejection.PROMPTS)
    return folder


def settings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.chdir(folder)
    return load_params()


def command(folder: Path) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, "-m", "tasks.rejection"]
    return subprocess.Popen(argv, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def outputs(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


def leftovers(folder: Path) -> list[Path]:
    return [path for pattern in ("candidates.parquet", "parts", "replies-*") for path in folder.glob(f".runs/rejection/*/{pattern}")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = project(tmp_path_factory.mktemp("undisturbed") / "p")
    process = command(folder)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert "of 300 candidates kept" in out.strip().splitlines()[-1]
    return folder


def test_the_set_holds_right_answers_and_general_ones_and_the_figures_are_its_own(undisturbed):
    prompts = {r["id"]: r for r in records.read(undisturbed / rejection.PROMPTS)}
    made = records.read(undisturbed / rejection.SFT, SFT_SCHEMA)
    told = json.loads((undisturbed / rejection.METRICS).read_text())
    by_source = {source: [r for r in made if r["source"] == source] for source in ("dev2", "judged", "annotators")}
    assert len(by_source["dev2"]) > 20 and len(by_source["annotators"]) == round(told["filters"]["kept"]["total"] / 3)
    for row in by_source["dev2"]:
        record, parsed = prompts[row["prompt_id"]], parse(row["response"])
        assert parsed.well_formed and verify(record["verifier"], record["truth"], parsed.answer) is Outcome.CORRECT
        assert row["messages"] == record["messages"]
    assert all(prompts[r["prompt_id"]]["verifier"] == "judge" for r in by_source["judged"])
    assert {prompts[r["prompt_id"]]["family"] for r in by_source["annotators"]} == {"json", "harm"}
    assert {r["domain"] for r in by_source["annotators"]} == {"general"}
    assert len({r["prompt_id"] for r in made}) == len(made)  # one of each prompt
    assert told["table"]["total"]["samples"] == len(made)
    assert told["table"]["total"]["tokens"] == pytest.approx(sum(r["tokens"] for r in made) / len(made), abs=1e-4)
    assert told["filters"]["candidates"]["total"] == 300 and told["filters"]["kept"]["total"] == len(made) - len(by_source["annotators"])
    assert 300 <= told["sampling"]["tokens"] <= 300 * SMALL["max_new_tokens"] and told["sampling"]["flops"] > 0
    assert told["judge"]["asked"] == told["judge"]["correct"] + told["judge"]["incorrect"] > 0
    assert leftovers(undisturbed) == []


def test_killed_and_resumed_ends_with_the_same_bytes(tmp_path, undisturbed):
    folder = project(tmp_path / "p")
    process, deadline = command(folder), time.time() + 120
    while not list(folder.glob(".runs/rejection/*/parts/part-000000.parquet")):
        assert time.time() < deadline and process.poll() is None, "the stage ended before its first part came"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (part,) = folder.glob(".runs/rejection/*/parts/part-000000.parquet")
    sampled = part.stat().st_mtime_ns
    assert not (folder / "data/rejection").exists()
    process = command(folder)
    while part.exists():  # until the end of sampling, which removes it
        assert part.stat().st_mtime_ns == sampled, "a finished part was sampled again"
        time.sleep(0.01)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert outputs(folder) == outputs(undisturbed)


def test_a_judge_that_failed_is_asked_again_without_sampling_again(tmp_path, monkeypatch, chat_server):
    service = {"url": chat_server.url, "model": "grader", "timeout": 5, "retries": 0}
    params = settings(project(tmp_path / "p", judge=service), monkeypatch)
    chat_server.replies = lambda messages: "No idea."
    with pytest.raises(JudgeError, match=r"no verdict on any of \d+ items.*'No idea\.'"):
        rejection.reject(params)
    assert not rejection.SFT.exists() and not rejection.TABLE.exists() and not rejection.METRICS.exists()
    asked = len(chat_server.requests)
    monkeypatch.delattr(rejection, "collect")  # the candidates are there: whoever samples again fails
    chat_server.replies = lambda messages: '{"analysis": "generous", "correctness": "correct"}'
    found = rejection.reject(params)
    assert found["judge"] == {"asked": asked, "correct": asked, "incorrect": 0, "unparsed": 0, "unanswered": 0} and asked > 0
    assert {r["source"] for r in records.read(rejection.SFT, SFT_SCHEMA)} == {"dev2", "judged", "annotators"}
    assert leftovers(Path()) == []


def test_what_cannot_work_stops_before_sampling(tmp_path, monkeypatch):
    params = settings(project(tmp_path / "p", prompts=1000), monkeypatch)
    rows = records.read(rejection.PROMPTS)
    mine = next(r for r in rows if r["family"] == "open") | {"id": f"mine-{0:016x}", "family": "mine", "source": "mine.jsonl"}
    records.write([*rows, mine], rejection.PROMPTS)
    with pytest.raises(DataError, match=r"1 prompts of mine\.jsonl need a judge of correctness.*rejection\.judge is null"):
        rejection.reject(params)
    long = next(r for r in rows if r["family"] == "choice")
    long |= {"id": f"long-{0:016x}", "messages": [{"role": "user", "content": "Kind of dog? " * 200}]}
    records.write([*rows, long], rejection.PROMPTS)
    with pytest.raises(DataError, match=r"1 prompts are too long.*24 new tokens.*long-0000000000000000"):
        rejection.reject(params)
    Path("models/dev2").unlink()
    with pytest.raises(ModelFolderError, match="there is no model folder models/dev2"):
        rejection.reject(params)
    assert leftovers(Path()) == []
