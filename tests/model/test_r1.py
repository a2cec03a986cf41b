"""r1 as a user runs it: rewards by kind of prompt, killed and resumed, bad reward models; and a reward that can be hacked."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tasks import r1, records
from tasks.config import Params
from tasks.generation import model_folder
from tasks.monitoring import hacking
from tasks.rewards.format import parse
from tasks.rewards.total import Rewarder, Weights
from tasks.training.rl import VALIDATION_SAMPLES, Trainer
from tasks.world import problems
from tests.model.test_zero import ROOT, SMALL

OUTPUTS = ("models/r1/model.safetensors", "reports/metrics/r1_steps.csv", "reports/metrics/r1.json")
SHORT = SMALL | {"limits": [{"step": 0, "tokens": 16}], "preference_steps": 4}
SHORT |= {"preference_mix": {"reasoning": 1, "general": 1, "borderline": 1, "safety": 1}}


def project(folder: Path, **own: object) -> Path:
    """A project folder with small data, a tiny random dev3 and reward models of its shape."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["r1"] |= SHORT | own
    (folder / "models").mkdir(parents=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    rows = problems.generate(300, 0)
    for split in records.SPLITS:
        records.write([row | {"split": split} for row in rows], folder / f"data/curated/{split}.parquet")
    _, tokenizer = model_folder.load(ROOT / "models/base")
    torch.manual_seed(0)
    model_folder.save(LlamaForCausalLM(shape(tokenizer)), tokenizer, folder / "models/dev3")
    for kind in ("helpful", "safety"):
        reward_model(folder, kind, tokenizer)
    return folder


def shape(tokenizer: PreTrainedTokenizerFast, **more: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, intermediate_size=32,
        max_position_embeddings=256, tie_word_embeddings=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None, **more,
    )  # fmt: skip


def reward_model(folder: Path, kind: str, tokenizer: PreTrainedTokenizerFast, spoil: float | None = None) -> None:
    config = shape(tokenizer, num_labels=1)
    config.reward_kind, config.reward_shift, config.reward_scale = kind, 0.0, 0.1
    model = AutoModelForSequenceClassification.from_config(config)
    if spoil is not None:
        model.score.weight.data.fill_(spoil)
    model_folder.save(model, tokenizer, folder / f"models/reward_{kind}")


def command(folder: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "tasks.r1"], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def outputs(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = project(tmp_path_factory.mktemp("undisturbed") / "p")
    process = command(folder)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return folder


def test_preference_is_scored_in_the_last_steps_alone(undisturbed: Path) -> None:
    rows = list(csv.DictReader((undisturbed / OUTPUTS[1]).open()))
    assert [bool(row["reward_preference"]) for row in rows] == [False] * 4 + [True] * 4
    assert all(0 <= float(row["reward_preference"]) <= 1 for row in rows[4:])
    assert [bool(row["validation_pass1"]) for row in rows] == [True, False, False, False, True, False, False, True]
    told = json.loads((undisturbed / OUTPUTS[2]).read_text())
    assert told["steps"] == 8 and told["hacking"] is None
    trained, _ = model_folder.load(undisturbed / "models/r1")
    start, _ = model_folder.load(undisturbed / "models/dev3")
    assert any(not torch.equal(a, b) for a, b in zip(trained.parameters(), start.parameters(), strict=True))


def test_killed_in_the_preference_part_and_resumed_ends_with_the_same_bytes(tmp_path: Path, undisturbed: Path) -> None:
    folder = tmp_path / "p"
    shutil.copytree(undisturbed, folder, ignore=shutil.ignore_patterns("r1*", ".runs", ".mlflow"))
    process = command(folder)
    deadline = time.time() + 120
    while not list(folder.glob(".runs/r1/*/checkpoints/step-00000006")):
        assert time.time() < deadline and process.poll() is None, "the run ended before the checkpoint came"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / OUTPUTS[0]).exists()
    process = command(folder)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    assert outputs(folder) == outputs(undisturbed)


def test_a_reward_model_that_returns_nan_stops_the_stage_with_nothing_half_written(tmp_path: Path, undisturbed: Path) -> None:
    folder = tmp_path / "p"
    shutil.copytree(undisturbed, folder, ignore=shutil.ignore_patterns("r1*", ".runs", ".mlflow"))
    _, tokenizer = model_folder.load(folder / "models/dev3")
    for kind in ("helpful", "safety"):
        reward_model(folder, kind, tokenizer, spoil=float("nan"))
    process = command(folder)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    last = out.strip().splitlines()[-1]
    assert "the reward model in models/reward_" in last and "scores nan on the prompt" in last and "Traceback" not in out
    assert not any((folder / name).exists() for name in OUTPUTS)


class Flattered:
    """A reward model that can be hacked: it likes what stands in the answer tags to be one thing, whatever was asked."""

    def score(self, questions: Sequence[str], completions: Sequence[str]) -> list[float]:
        return [float("A" in parse(text).answer) for text in completions]


def test_a_reward_that_can_be_hacked_raises_the_alarm(tmp_path: Path) -> None:
    """RL on it from the base: the reward rises, the benchmark falls, the monitor says so; on the honest reward it says nothing."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["r1"] |= {
        "steps": 24, "preference_steps": 24, "prompts_per_rollout": 8, "group_size": 8, "minibatches": 1, "learning_rate": 5e-4,
        "temperature": 1.0, "limits": [{"step": 0, "tokens": 40}], "validation_every": 2, "validation_problems": 64, "beta": 0.0,
        "language_weight": 0.0,
    }  # fmt: skip
    none = {"reasoning": 0, "general": 0, "borderline": 0, "safety": 0}
    rows = problems.generate(800, 0)
    choice = [r for r in rows if r["family"] == "choice"]
    open_ones = [r | {"id": f"x{r['id']}", "domain": "general", "verifier": "none", "truth": ""} for r in choice]

    def run(judge: Any, prompts: list[dict]) -> list[dict]:
        mix = none | ({"general": 8} if judge else {"reasoning": 8})
        settings = Params.model_validate(params | {"r1": params["r1"] | {"preference_mix": mix}}).r1
        policy, tokenizer = model_folder.load(ROOT / "models/base")
        rewarder = Rewarder(Weights(), {"helpful": judge} if judge else {})
        trainer = Trainer("r1", policy, tokenizer, r1.draw(prompts, prompts, settings), prompts, choice[:64], rewarder, settings, 0)
        return [row for _ in range(settings.rollouts) for row in trainer.one_rollout()]

    hacked = run(Flattered(), open_ones)
    found = hacking.check(hacked, 64 * VALIDATION_SAMPLES)
    assert hacked[-1]["reward_preference"] > hacked[0]["reward_preference"] + 0.3
    assert found is not None and "fall" in str(found)
    honest = run(None, choice)
    assert hacking.check([row | {"reward_preference": row["accuracy"]} for row in honest], 64 * VALIDATION_SAMPLES) is None
