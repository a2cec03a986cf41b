"""The evaluation stage as a user runs it, on a few held-out problems."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tasks import evaluate, records
from tasks.monitoring import reflection
from tasks.world import problems

ROOT = Path(__file__).parents[2]


def project(folder: Path) -> Path:
    """A project folder whose test split is small; one problem needs a judge, and one general prompt is a user's own."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    base = {"folder": str(ROOT / "models/base")}
    params["evaluate"] |= {"problems": 12, "samples": 4, "temperature": 1.0, "top_p": 1.0, "open_problems": 6, "open_samples": 2}
    params["evaluate"]["models"] = [
        {"name": "base", **base}, {"name": "silent", **base, "forbid_reflection": True}, {"name": "gone", "folder": "models/gone"},
    ]  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    world = problems.generate(400, 0)
    rows = [r | {"split": "test"} for r in world if r["family"] in ("fill", "expr")]
    rows.append(rows[0] | {"id": "proof-0000000000000000", "verifier": "judge", "truth": "a proof"})
    rows += [r | {"split": "test"} for r in world if r["domain"] in ("general", "safety")]
    mine = next(r for r in rows if r["domain"] == "general")
    rows.append(mine | {"id": "mine-0000000000000000", "messages": [{"role": "user", "content": "Who was Ada Lovelace?"}]})
    records.write(rows, folder / "data/curated/test.parquet")
    return folder


def run(folder: Path, name: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tasks.evaluate", name]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Path:
    folder = project(tmp_path_factory.mktemp("evaluate") / "p")
    for name in ("base", "silent"):
        done = run(folder, name)
        assert done.returncode == 0, done.stderr
    return folder


def test_every_sample_is_kept_and_the_metrics_follow_from_the_file(evaluated, monkeypatch):
    frame = pd.read_parquet(evaluated / "data/samples/base.parquet")
    assert frame.groupby("prompt_id").size().tolist() == [4] * 12
    assert "proof-0000000000000000" not in set(frame["prompt_id"])
    monkeypatch.chdir(evaluated)
    told = json.loads(Path("reports/metrics/evaluate_base.json").read_text())
    again = evaluate.metrics("base", Path("data/samples/base.parquet"), Path("data/samples/base_open.parquet"), evaluate.held_out(12))
    assert json.loads(json.dumps(again)) == told
    assert told["pass@1"]["mean"] == pytest.approx(frame["correct"].mean())
    assert told["temperature"] == 1.0 and told["max_new_tokens"] == 208


def test_the_control_never_says_a_reflective_word(evaluated):
    said = {name: pd.read_parquet(evaluated / f"data/samples/{name}.parquet")["text"] for name in ("base", "silent")}
    assert said["base"].map(reflection.has_wait).any()
    assert not said["silent"].map(lambda text: bool(reflection.find(text))).any()


def test_open_prompts_are_sampled_by_id_and_measured(evaluated, monkeypatch):
    monkeypatch.chdir(evaluated)
    rows = records.read(Path("data/samples/base_open.parquet"), records.ROLLOUT_SCHEMA)
    test = [r for r in records.read(evaluate.TEST) if r["domain"] in ("general", "safety")]
    for domain in ("general", "safety"):
        first = sorted((r["id"] for r in test if r["domain"] == domain), key=lambda i: i.split("-")[1])[:6]
        assert [(r["prompt_id"], r["sample"]) for r in rows if r["domain"] == domain] == [(i, n) for i in first for n in range(2)]
    assert "mine-0000000000000000" in {r["prompt_id"] for r in rows}
    told = json.loads(Path("reports/metrics/evaluate_base.json").read_text())["open"]
    assert told["prompts"] == {"general": 6, "safety": 6} and told["samples_per_prompt"] == 2 and told["unread_prompts"] == 1
    assert 0 <= told["unsafe"]["low"] <= told["unsafe"]["mean"] <= told["unsafe"]["high"] <= 1
    assert told["format"]["mean"] > 0.5  # the base knows the form of a conversation
    assert {r["policy"] for r in rows} == set(pd.read_parquet("data/samples/base.parquet")["model"])


def test_the_same_evaluation_gives_the_same_bytes(evaluated, tmp_path):
    folder = project(tmp_path / "p")
    assert run(folder, "base").returncode == 0
    for name in ("data/samples/base.parquet", "data/samples/base_open.parquet", "reports/metrics/evaluate_base.json"):
        assert (folder / name).read_bytes() == (evaluated / name).read_bytes()


@pytest.mark.parametrize(
    ("name", "message"), [("unheard", "no model 'unheard' in evaluate.models"), ("gone", "there is no model folder models/gone")]
)
def test_bad_input_is_one_clear_line(evaluated, name, message):
    done = run(evaluated, name)
    assert done.returncode == 2 and message in done.stderr.strip().splitlines()[-1] and "Traceback" not in done.stderr
    assert not (evaluated / f"data/samples/{name}.parquet").exists()
