"""R1-Zero's stage as a user runs it: killed and resumed, with more or fewer workers, on bad input; and that it learns."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from tasks import records
from tasks.config import RL, Params
from tasks.errors import DataError
from tasks.generation import model_folder
from tasks.generation.sampler import TorchSampler
from tasks.rewards.total import Rewarder
from tasks.training import rl_stage
from tasks.training.actor import check_lengths
from tasks.training.rl import DivergedError, StaleWeightsError, Trainer
from tasks.world import problems

ROOT = Path(__file__).parents[2]
OUTPUTS = (
    "models/zero/model.safetensors",
    "models/zero/config.json",
    "reports/metrics/zero_steps.csv",
    "reports/metrics/zero.json",
)
SMALL = {
    "steps": 8, "prompts_per_rollout": 4, "group_size": 4, "minibatches": 2,
    "limits": [{"step": 0, "tokens": 24}, {"step": 4, "tokens": 32}],
    "reference_every": 3, "validation_every": 4, "validation_problems": 4, "workers": 1,
}  # fmt: skip


def project(folder: Path, **zero: object) -> Path:
    """A project folder with small data, the shipped base and small parameters."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["zero"] |= SMALL | zero
    (folder / "data/curated").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "models/base").symlink_to(ROOT / "models/base")
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    rows = problems.generate(300, 0)
    for split in records.SPLITS:
        records.write([row | {"split": split} for row in rows], folder / f"data/curated/{split}.parquet")
    return folder


def command(folder: Path) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "tasks.zero"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(folder: Path) -> str:
    process = command(folder)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return out


def outputs(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    folder = project(tmp_path_factory.mktemp("undisturbed"))
    finish(folder)
    assert not list(folder.glob(".runs/zero/*/checkpoints"))
    return outputs(folder)


def kill_once_a_checkpoint_is_there(folder: Path, step: int, delay: float) -> None:
    process = command(folder)
    deadline = time.time() + 120
    while not list(folder.glob(f".runs/zero/*/checkpoints/step-{step:08d}")):
        assert time.time() < deadline and process.poll() is None, "the run ended before the checkpoint came"
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("kills", [((2, 0.0), (4, 0.05)), ((6, 0.0),)])
def test_killed_and_resumed_ends_with_the_same_bytes(tmp_path, undisturbed, kills):
    folder = project(tmp_path / "p")
    for step, delay in kills:
        kill_once_a_checkpoint_is_there(folder, step, delay)
        assert not (folder / OUTPUTS[0]).exists()
    finish(folder)
    assert outputs(folder) == undisturbed


def test_two_workers_give_the_same_bytes_as_one(tmp_path, undisturbed):
    folder = project(tmp_path / "p", workers=2)
    finish(folder)
    assert outputs(folder) == undisturbed


def test_what_it_writes_transformers_loads_and_the_steps_are_complete(tmp_path, undisturbed):
    for name, content in undisturbed.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "models/base" / name, tmp_path / "models/zero")
    trained, _ = model_folder.load(tmp_path / "models/zero")
    base, _ = model_folder.load(ROOT / "models/base")
    assert any(not torch.equal(a, b) for a, b in zip(trained.parameters(), base.parameters(), strict=True))
    rows = list(csv.DictReader((tmp_path / "reports/metrics/zero_steps.csv").open()))
    assert [int(r["step"]) for r in rows] == list(range(8))
    assert [int(r["max_new_tokens"]) for r in rows] == [24] * 4 + [32] * 4
    assert [int(r["reference_age"]) for r in rows] == [0, 1, 2, 0, 1, 2, 0, 1]  # replaced after steps 3 and 6
    assert [bool(r["validation_pass1"]) for r in rows] == [True, False, False, False, True, False, False, True]
    assert all(float(r["sampler_gap"]) < 1e-3 for r in rows[::2])
    assert float(rows[0]["kl"]) == pytest.approx(0, abs=1e-6) and float(rows[2]["kl"]) > 0


def trainer(tmp_path: Path, **zero: object) -> Trainer:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["zero"] |= SMALL | zero
    rows = [r for r in problems.generate(400, 0) if r["family"] in ("choice", "cipher")]
    policy, tokenizer = model_folder.load(ROOT / "models/base")
    return of(policy, tokenizer, rows, Params.model_validate(params).zero)


def of(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[dict], settings: RL) -> Trainer:
    return Trainer("zero", policy, tokenizer, rl_stage.in_order(rows, settings), rows, rows[:4], Rewarder(), settings, 0)


def test_a_dozen_rollouts_raise_the_reward(tmp_path):
    run = trainer(
        tmp_path, steps=24, prompts_per_rollout=8, group_size=16, limits=[{"step": 0, "tokens": 40}], validation_every=100, beta=0.0
    )
    rows = [row for _ in range(12) for row in run.one_rollout()]
    first, last = (sum(r["accuracy"] for r in part) / 6 for part in (rows[:6], rows[-6:]))
    assert last > first + 0.1


def test_a_sampler_that_was_not_updated_stops_the_run(tmp_path, monkeypatch):
    run = trainer(tmp_path)
    run.one_rollout()
    stale = run.actor._fingerprint
    monkeypatch.setattr(TorchSampler, "load", lambda self, weights: stale)
    with pytest.raises(StaleWeightsError, match="the sampler was not updated"):
        run.one_rollout()


def test_a_sampler_that_lies_about_its_weights_is_caught_by_the_log_probs(tmp_path, monkeypatch):
    run = trainer(tmp_path)
    run.one_rollout()
    from tasks.training.actor import policy_fingerprint

    monkeypatch.setattr(TorchSampler, "load", lambda self, weights: policy_fingerprint(run.policy))
    with pytest.raises(StaleWeightsError, match="differ by"):
        run.one_rollout()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "models/base").unlink(), "there is no model folder models/base"),
        (
            lambda f: (f / "params.yaml").write_text((f / "params.yaml").read_text().replace("  beta:", "  betta:")),
            "zero.betta: unknown parameter",
        ),
        (lambda f: (f / "data/curated/train.parquet").unlink(), "train.parquet"),
        (lambda f: (f / "data/curated/train.parquet").write_bytes(b"no parquet"), "train.parquet"),
        (lambda f: records.write([], f / "data/curated/train.parquet"), "holds no verifiable prompt"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, spoil, message):
    folder = project(tmp_path / "p")
    spoil(folder)
    process = command(folder)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert message in out.strip().splitlines()[-1] and "Traceback" not in out
    assert not (folder / "models/zero").exists()


def test_a_tied_llama_without_a_pad_token_trains_and_resumes(tmp_path):
    """What Llama 3.2 looks like: the head is the embedding under another name, and there is no pad token."""
    run = trainer(tmp_path)
    config = LlamaConfig(
        vocab_size=run.policy.config.vocab_size, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=32, max_position_embeddings=256, tie_word_embeddings=True, eos_token_id=0, bos_token_id=None,
    )  # fmt: skip
    tokenizer = run.actor.tokenizer
    tokenizer.pad_token = None

    def fresh() -> Trainer:
        torch.manual_seed(0)
        return of(LlamaForCausalLM(config).eval(), tokenizer, [dict(record) for record in run.actor.records.values()], run.params)

    straight = fresh()
    straight.one_rollout()
    straight.save(tmp_path / "c")
    straight.one_rollout()
    resumed = fresh()
    resumed.resume(tmp_path / "c")
    resumed.one_rollout()
    assert resumed.state == straight.state
    assert all(torch.equal(a, b) for a, b in zip(resumed.weights, straight.weights, strict=True))


def test_rows_that_were_saved_but_not_published_are_published_on_resume(tmp_path):
    first = trainer(tmp_path)
    first.one_rollout()
    first.save(tmp_path / "c")  # killed here, before publication
    seen: list[int] = []
    trainer(tmp_path).run(tmp_path / "c", lambda rows: seen.extend(row["step"] for row in rows))
    assert seen == list(range(8))


def test_informative_groups_is_the_share_of_groups_with_unequal_rewards(tmp_path, monkeypatch):
    run = trainer(tmp_path, prompts_per_rollout=2, group_size=4, minibatches=1)
    outputs = run.roll_out()
    totals = iter([2.0, 0.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0])
    scored = [replace(o, reward=replace(o.reward, total=next(totals))) for o in outputs]
    monkeypatch.setattr(run, "roll_out", lambda: scored)
    assert run.one_rollout()[0]["informative_groups"] == 0.5


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(tmp_path):
    run = trainer(tmp_path)
    before = [weight.clone() for weight in run.weights]
    run.gradients[0, 0] = float("nan")
    with pytest.raises(DivergedError, match=r"nan; nothing was updated.*zero.learning_rate"):
        run._step()
    assert all(torch.equal(a, b) for a, b in zip(run.weights, before, strict=True))


def test_a_prompt_that_is_too_long_is_named_before_the_first_step():
    _, tokenizer = model_folder.load(ROOT / "models/base")
    record = problems.generate(60, 0)[0]
    long = record | {"id": "calc-too-long", "messages": [{"role": "user", "content": "start 7 " * 300}]}
    check_lengths([record], tokenizer, 512, 208)
    with pytest.raises(
        DataError, match=r"1 prompts are too long.*208 new tokens.*512 positions.*at most 304: calc-too-long \(\d+ tokens\)"
    ):
        check_lengths([record, long], tokenizer, 512, 208)
