"""An ablation as a user runs it, killed and resumed; PPO resumes and shares its work as GRPO does, and costs what it must."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tasks import ablate, records
from tasks.config import Params, load_params
from tasks.generation import model_folder
from tasks.monitoring.steps import COLUMNS
from tasks.rewards.total import Rewarder
from tasks.training import rl_stage
from tasks.training.grpo import GRPO
from tasks.training.ppo import PPO
from tasks.training.rl import LANES, Trainer
from tasks.world import problems

ROOT = Path(__file__).parents[2]
SMALL = {
    "prompts_per_rollout": 4, "group_size": 4, "minibatches": 2, "limits": [{"step": 0, "tokens": 24}], "reference_every": 3,
    "validation_every": 4, "validation_problems": 4, "workers": 1,
}  # fmt: skip
NAME = "ppo_lambda_095"
MODEL, SAMPLES = f"models/ablations/{NAME}/model.safetensors", f"data/samples/ablations/{NAME}.parquet"
STEPS, SUMMARY = f"reports/ablations/{NAME}_steps.csv", f"reports/ablations/{NAME}.json"


def settings() -> dict[str, Any]:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["zero"] |= SMALL | {"steps": 98}
    params["evaluate"] |= {"problems": 6, "samples": 2, "max_new_tokens": 24}
    params["ablations"]["steps"]["zero"] = 6
    return params


def project(folder: Path) -> Path:
    (folder / "models").mkdir(parents=True)
    (folder / "models/base").symlink_to(ROOT / "models/base")
    (folder / "params.yaml").write_text(yaml.safe_dump(settings()))
    rows = problems.generate(300, 0)
    for split in records.SPLITS:
        records.write([row | {"split": split} for row in rows], folder / f"data/curated/{split}.parquet")
    return folder


def command(folder: Path) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "tasks.ablate", NAME],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(folder: Path) -> None:
    process = command(folder)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    assert f"{NAME}: pass@1 0." in out


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = project(tmp_path_factory.mktemp("ablate") / "p")
    finish(folder)
    return folder


def test_killed_and_resumed_ends_with_the_same_bytes_and_counts_the_time_of_both(tmp_path, undisturbed):
    folder, process = project(tmp_path / "p"), None
    process = command(folder)
    deadline = time.time() + 120
    while not (found := list(folder.glob(f".runs/ablations/{NAME}/*/checkpoints/meter.json"))):
        assert time.time() < deadline and process.poll() is None, "the run ended before the checkpoint came"
        time.sleep(0.002)
    while not list(found[0].parent.glob("step-*")):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    told = json.loads(found[0].read_text())
    found[0].write_text(json.dumps(told | {"seconds": 1000.0}))
    finish(folder)
    assert all((folder / name).read_bytes() == (undisturbed / name).read_bytes() for name in (MODEL, STEPS))
    resumed, whole = (json.loads((f / SUMMARY).read_text()) for f in (folder, undisturbed))
    assert resumed.pop("seconds") > 1000 > whole.pop("seconds") > 0
    assert resumed.pop("peak_memory_bytes") and whole.pop("peak_memory_bytes")
    assert resumed == whole


def test_what_the_summary_tells(undisturbed):
    told = json.loads((undisturbed / SUMMARY).read_text())
    # 3 rollouts of 4 prompts x 4 samples; steps and the algorithm are what differs from zero
    assert told["samples"] == 48 and told["steps"] == 6 and told["seed"] == 0
    assert told["settings"] == {"algorithm": "ppo", "gae_lambda": 0.95, "steps": 6}
    assert (told["name"], told["baseline"], told["algorithm"]) == (NAME, "grpo", "ppo")
    assert set(told["evaluation"]) == {
        "pass@1", "cons@2", "language_consistency", "mixed_share", "wait_share", "format", "length",
    }  # fmt: skip
    assert len(records.pq.read_table(undisturbed / SAMPLES)) == 12
    assert told["peak_memory_bytes"] is None or told["peak_memory_bytes"] > told["state_bytes"]
    with (undisturbed / STEPS).open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[: len(COLUMNS)] == list(COLUMNS)
    assert set(rows[0]) - set(COLUMNS) == {"value_loss", "value_clip_share", "explained_variance", "value_grad_norm"}
    assert all(float(row["value_loss"]) > 0 for row in rows)
    assert not list(undisturbed.glob(".runs/ablations/*/*/checkpoints"))
    model_folder.check(undisturbed / f"models/ablations/{NAME}")


def test_a_run_with_the_settings_of_another_takes_over_its_result(tmp_path, undisturbed, monkeypatch):
    shutil.copytree(undisturbed / "reports", tmp_path / "reports")
    for kind in (".json", "_steps.csv"):
        (tmp_path / f"reports/ablations/{NAME}{kind}").rename(tmp_path / f"reports/ablations/clip_10{kind}")
    monkeypatch.chdir(tmp_path)
    ablate.repeat(load_params(ROOT / "params.yaml"), "language_on", "clip_10")
    told, twin = (json.loads(Path(f"reports/ablations/{name}.json").read_text()) for name in ("language_on", "clip_10"))
    assert told["name"] == told["baseline"] == "language_on" and told["same_as"] == "clip_10"
    assert {key: told[key] for key in ("evaluation", "seconds", "samples")} == {
        key: twin[key] for key in ("evaluation", "seconds", "samples")
    }
    assert Path("reports/ablations/language_on_steps.csv").read_bytes() == (undisturbed / STEPS).read_bytes()


# ---- the trainer with either algorithm


def trainer(workers: int = 0, **changes: Any) -> Trainer:
    params = Params.model_validate(settings() | {"zero": settings()["zero"] | {"algorithm": "ppo"} | changes}).zero
    rows = [r for r in problems.generate(400, 0) if r["family"] in ("choice", "cipher")]
    policy, tokenizer = model_folder.load(ROOT / "models/base")
    return Trainer("zero", policy, tokenizer, rl_stage.in_order(rows, params), rows, rows[:4], Rewarder(), params, workers)


def same(a: Trainer, b: Trainer) -> bool:
    """Whether weights of policy and value model, and both moments of each, are the same bits."""
    moments = [[t.optimizer.state[w][name] for w in t.weights for name in ("exp_avg", "exp_avg_sq")] for t in (a, b)]
    pairs = zip([*a.weights, *moments[0]], [*b.weights, *moments[1]], strict=True)
    return a.state == b.state and all(torch.equal(x, y) for x, y in pairs)


@pytest.fixture(scope="module")
def straight() -> Trainer:
    run = trainer()
    run.one_rollout()
    run.one_rollout()
    return run


def test_ppo_resumes_with_its_value_model_and_all_moments(tmp_path, straight):
    first = trainer()
    first.one_rollout()
    first.save(tmp_path)
    resumed = trainer()
    resumed.resume(tmp_path)
    assert resumed.networks["value"].score.weight.any()  # not the fresh head
    resumed.one_rollout()
    assert same(resumed, straight)


def test_two_workers_give_the_same_bits_as_none(straight):
    run = trainer(workers=2)
    try:
        run.one_rollout()
        run.one_rollout()
    finally:
        run.workers.close()
    assert same(run, straight)


def test_grpo_has_no_network_beside_policy_and_reference():
    grpo, ppo = trainer(algorithm="grpo"), trainer()
    policy = sum(p.numel() for p in grpo.policy.parameters())
    head = grpo.policy.lm_head.weight.numel()
    assert isinstance(grpo.algorithm, GRPO) and isinstance(ppo.algorithm, PPO)
    assert sum(p.numel() for p in grpo.weights) == policy == grpo.gradients.shape[1]
    value = policy - head + grpo.policy.config.hidden_size + 1  # a scalar head with its bias in place of the vocabulary's
    assert sum(p.numel() for p in ppo.weights) == policy + value == ppo.gradients.shape[1]
    # weights of policy and reference, two moments and LANES gradients of what is trained; four bytes each
    assert grpo.state_bytes() == 4 * policy * (2 + 2 + LANES)
    assert ppo.state_bytes() == grpo.state_bytes() + 4 * value * (1 + 2 + LANES)


def test_policy_and_value_model_learn_at_rates_of_their_own(straight):
    run = trainer(value_learning_rate=0.02, learning_rate=0.01)
    run.one_rollout()
    rates = [group["lr"] for group in run.optimizer.param_groups]
    assert rates[1] == pytest.approx(2 * rates[0]) and rates[0] > 0
    assert [sum(p.numel() for p in group["params"]) for group in run.optimizer.param_groups] == [
        sum(p.numel() for p in network.parameters()) for network in run.networks.values()
    ]
