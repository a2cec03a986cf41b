"""The cold start as a user runs it: from a model to sft.parquet, killed and resumed, reviewed by a person, with a model as refiner."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from tasks import cold_start, records
from tasks.config import Params
from tasks.errors import DataError
from tasks.generation import model_folder
from tasks.generation.endpoint import EndpointError
from tasks.records import SFT_SCHEMA
from tasks.rewards.format import parse
from tasks.rewards.language import consistency
from tasks.rewards.verify import Outcome, gold_answer, verify
from tasks.world import problems
from tests.servers import HangUp

ROOT = Path(__file__).parents[2]
OUTPUTS = ("data/cold_start/sft.parquet", "data/cold_start/review.jsonl", "reports/metrics/cold_start.json")
SMALL = {"prompts": 80, "samples": 4, "max_new_tokens": 48, "min_language": 0.0}  # 80 prompts are two parts: a kill falls between them


def project(folder: Path, **changed: object) -> Path:
    """A project folder with small data and the shipped base in Zero's place: every tenth of its samples is right."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["cold_start"] |= SMALL | changed
    (folder / "data").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "models/zero").symlink_to(ROOT / "models/base")
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / "data/cold_start_review.jsonl").touch()
    records.write([row | {"split": "train"} for row in problems.generate(300, 0)], folder / "data/curated/train.parquet")
    return folder


UNTRACKED = """
from tasks import cold_start, config, errors
params = config.load_params().cold_start
errors.main(lambda: cold_start.make(params, *cold_start.prepare(params)))
"""  # starting MLflow's sender takes longer than all the rest


def command(folder: Path, *arguments: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *arguments], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True)  # fmt: skip


def outputs(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, **changed: object) -> dict:
    """The stage in this process, untracked, with changed parameters."""
    monkeypatch.chdir(folder)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["cold_start"] |= changed
    settings = Params.model_validate(params).cold_start
    return cold_start.make(settings, *cold_start.prepare(settings))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = project(tmp_path_factory.mktemp("cold_start") / "p")
    process = command(folder, "-m", "tasks.cold_start")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert "samples kept" in out.strip().splitlines()[-1]
    return folder


def test_every_row_is_right_readable_and_complete(made):
    rows = records.read(made / OUTPUTS[0], SFT_SCHEMA)
    prompts = {r["id"]: r for r in records.read(made / "data/curated/train.parquet")}
    _, tokenizer = model_folder.load(ROOT / "models/base")
    assert rows and len({r["id"] for r in rows}) == len(rows)
    for row in rows:
        prompt, parsed = prompts[row["prompt_id"]], parse(row["response"])
        assert parsed.well_formed and verify(prompt["verifier"], prompt["truth"], parsed.answer) is Outcome.CORRECT
        assert consistency(parsed.thought, row["language"]) == 1.0
        assert row["tokens"] == len([*tokenizer.encode(row["response"]), tokenizer.eos_token_id])
        assert (row["source"], row["rounds"], row["messages"]) == ("zero", 1, prompt["messages"])
        assert all(row[key] == prompt[key] for key in ("domain", "family", "language"))
    assert max(Counter(r["prompt_id"] for r in rows).values()) <= 2


def test_the_counts_add_up_and_mixed_chains_came_out_clean(made):
    found = json.loads((made / OUTPUTS[2]).read_text())
    rows = records.read(made / OUTPUTS[0], SFT_SCHEMA)
    steps = found["filters"]
    assert steps[0] == {"filter": "sampled", "removed": 0, "left": 320} | {"by_family": steps[0]["by_family"]}
    for before, after in pairwise(steps):
        assert after["left"] == before["left"] - after["removed"] and sum(after["by_family"].values()) == after["left"]
    assert steps[-1]["left"] == found["samples"] == len(rows) and found["tokens"] == sum(r["tokens"] for r in rows)
    assert steps[-1]["by_family"] == dict(sorted(Counter(r["family"] for r in rows).items()))
    refusals = next(s["removed"] for s in steps if s["filter"] == "not refinable")
    assert found["refusals"] == ({"unreadable": refusals} if refusals else {})
    assert found["before"]["mixed"] > 0.1 and found["rewritten"] > 0
    assert found["after"] == {"language_consistency": 1.0, "mixed": 0.0, "repetition": 0.0}


def test_killed_and_resumed_ends_with_the_same_bytes(tmp_path, made):
    folder = project(tmp_path / "p")
    process = command(folder, "-c", UNTRACKED)
    deadline = time.time() + 60
    while not list(folder.glob(".runs/cold_start/*/parts/part-000000.parquet")):
        assert time.time() < deadline and process.poll() is None, "the run ended before the first part came"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not any((folder / name).exists() for name in OUTPUTS)
    process = command(folder, "-c", UNTRACKED)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert outputs(folder) == outputs(made)


def test_a_persons_verdicts_are_used_and_nothing_is_sampled_anew(made, monkeypatch):
    lines = [json.loads(line) for line in (made / OUTPUTS[1]).read_text().splitlines()]
    used = [line for line in lines if line["used"]]
    assert set(lines[0]) == {"id", "family", "language", "question", "before", "after", "answer", "verdict", "used"}
    verdicts = [{"id": used[0]["id"], "verdict": "reject", "reviewer": "Ann", "note": "dull"}, {"id": used[1]["id"], "verdict": "accept"},
                {"id": "0000000000000000", "verdict": "reject"}]  # fmt: skip
    review = made / "data/verdicts.jsonl"
    review.write_text("".join(json.dumps(v) + "\n" for v in verdicts))
    monkeypatch.setattr(cold_start, "collect", lambda *_: pytest.fail("sampled again"))
    try:
        found = run(made, monkeypatch, review="data/verdicts.jsonl")
        assert found["verdicts"] == {"accept": 1, "reject": 1, "stale": 1}
        left = {r["id"] for r in records.read(made / OUTPUTS[0], SFT_SCHEMA)}
        assert used[0]["id"] not in left and used[1]["id"] in left
        assert run(made, monkeypatch, review="data/verdicts.jsonl", require_review=True)["samples"] == 1
        assert [r["id"] for r in records.read(made / OUTPUTS[0], SFT_SCHEMA)] == [used[1]["id"]]
    finally:
        run(made, monkeypatch)  # as it was, for the tests beside this one
    assert {r["id"] for r in records.read(made / OUTPUTS[0], SFT_SCHEMA)} == {line["id"] for line in used}


def test_with_nothing_accepted_yet_the_review_file_waits_and_nothing_else_is_written(tmp_path, monkeypatch):
    folder = project(tmp_path / "p", prompts=16, require_review=True)
    with pytest.raises(DataError, match=r"no sample for the cold start is left: 64 sampled, .*not accepted -\d+.*wait for a verdict in"):
        run(folder, monkeypatch)
    assert [(folder / name).exists() for name in OUTPUTS] == [False, True, False]


def test_an_empty_set_names_the_count_at_every_filter_and_writes_nothing(tmp_path, monkeypatch):
    folder = project(tmp_path / "p", prompts=4, samples=1, max_new_tokens=2)
    with pytest.raises(DataError, match=r"is left: 4 sampled, unfinished -4, malformed -0, .*beyond per_prompt -0; loosen"):
        run(folder, monkeypatch)
    assert not (folder / "data/cold_start").exists() and not (folder / "reports").exists()


def test_a_model_behind_an_endpoint_refines(tmp_path, monkeypatch, chat_server):
    """The server knows the truth, so its summaries pass; it thinks in English whatever it is told, which the check finds."""
    folder = project(tmp_path / "p", prompts=24)
    truths = {r["messages"][0]["content"]: r for r in records.read(folder / "data/curated/train.parquet")}

    def reply(messages: list[dict[str, str]]) -> str:
        record = truths[messages[-1]["content"].split("\n")[1]]
        return f"It is \\boxed{{{gold_answer(record)}}}" if "solution" in messages[0]["content"] else "I look at it step by step."

    chat_server.replies = reply
    found = run(folder, monkeypatch, refiner={"url": chat_server.url, "model": "m", "retries": 0})
    rows = records.read(folder / OUTPUTS[0], SFT_SCHEMA)
    removed = {s["filter"]: s["removed"] for s in found["filters"]}
    assert removed["refined: language"] >= 1
    assert removed["not refinable"] == removed["refined: wrong answer"] == removed["refined: repetition"] == 0
    assert rows and all(r["language"] == "en" and "It is \\boxed{" in parse(r["response"]).answer for r in rows)
    assert found["refiner"] == f"m at {chat_server.url}"


def test_an_endpoint_that_is_down_is_one_error_and_nothing_is_written(tmp_path, monkeypatch, chat_server):
    folder = project(tmp_path / "p", prompts=16)
    chat_server.replies = lambda messages: HangUp()
    with pytest.raises(EndpointError, match=r"no connection"):
        run(folder, monkeypatch, refiner={"url": chat_server.url, "model": "m", "retries": 0})
    assert not any((folder / name).exists() for name in OUTPUTS)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "models/zero").unlink(), "there is no model folder models/zero"),
        (lambda f: (f / "data/curated/train.parquet").unlink(), "train.parquet does not exist"),
        (lambda f: (f / "data/cold_start_review.jsonl").unlink(), "cold_start_review.jsonl does not exist"),
        (lambda f: (f / "data/cold_start_review.jsonl").write_text("yes\n"), "line 1: JSON"),
    ],
)
def test_bad_input_is_found_before_anything_is_sampled(tmp_path, monkeypatch, spoil, message):
    folder = project(tmp_path / "p")
    spoil(folder)
    monkeypatch.setattr(cold_start, "collect", lambda *_: pytest.fail("sampled"))
    with pytest.raises(Exception, match=message):
        run(folder, monkeypatch)
    assert not any((folder / name).exists() for name in OUTPUTS)
