"""dev1 and dev3 as a user runs them, on a tiny base: killed and resumed, on bad input, and that they learn."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from tasks import dev1, dev3, records
from tasks.config import SFT
from tasks.errors import DataError, SecondThoughtError
from tasks.generation import model_folder
from tasks.training import sft
from tasks.training.actor import policy_fingerprint
from tasks.world import problems
from tasks.world.corpus import completion

ROOT = Path(__file__).parents[2]
SMALL = {
    "epochs": 2, "batch": 16, "context": 160, "rows": 2, "warmup_steps": 2, "learning_rate": 1e-2, "checkpoint_every": 2, "workers": 1,
}  # fmt: skip
SAMPLES = 70  # 5 updates an epoch, the last of 6 samples


def dataset() -> list[dict]:
    rows = []
    for i, problem in enumerate(problems.generate(1000, 0)):
        if problem["verifier"] == "math":
            response = completion(f" it is {problem['truth']}.", problem["truth"])
            rows.append(
                {"id": f"s-{i}", "prompt_id": problem["id"], "response": response, "source": "zero", "rounds": 1, "tokens": 9}
                | {key: problem[key] for key in ("domain", "family", "language", "messages")}
            )
    return rows[:SAMPLES]


def base(folder: Path) -> None:
    """A random model with a tied head, as Llama 3.2 has it."""
    torch.manual_seed(0)
    _, tokenizer = model_folder.load(ROOT / "models/base")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, intermediate_size=16,
        max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model_folder.save(LlamaForCausalLM(config), tokenizer, folder)


def project(folder: Path, **changed: object) -> Path:
    """A project folder with a tiny base, one dataset for both stages, and small parameters."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["sft"] |= SMALL | changed
    params["dev1"] = params["dev3"] = {}
    base(folder / "models/base")
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    for stage in (dev1, dev3):
        records.write(dataset(), folder / stage.DATA, records.SFT_SCHEMA)
    return folder


KILLED = """
import os, signal
from tasks import dev1
from tasks.training import sft

update = sft.Trainer.update

def last(trainer):
    row = update(trainer)
    if trainer.state.step == 5:  # one update after a checkpoint: it is lost
        os.kill(os.getpid(), signal.SIGKILL)
    return row

sft.Trainer.update = last
dev1.main()
"""


def killed(folder: Path) -> None:
    """dev1 in a process that is killed in the middle, without a chance to tidy up."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert done.returncode == -signal.SIGKILL


def here(folder: Path, stage: ModuleType) -> str:
    """Runs a stage in this process, which spares 5 s of imports; returns what it printed."""
    printed = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        stage.main()
    return printed.getvalue()


def outputs(folder: Path, stage: str = "dev1") -> dict[str, bytes]:
    names = ("models/{}/model.safetensors", "models/{}/config.json", "reports/metrics/{}_steps.csv", "reports/metrics/{}.json")
    return {name: (folder / name.format(stage)).read_bytes() for name in names}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Path, str]:
    folder = project(tmp_path_factory.mktemp("undisturbed"))
    return folder, here(folder, dev1)


def test_killed_and_resumed_it_ends_with_the_same_bytes(tmp_path, undisturbed):
    folder = project(tmp_path / "p")
    killed(folder)
    assert [path.name for path in sorted(folder.glob(".runs/dev1/*/checkpoints/*"))] == ["step-00000002", "step-00000004"]
    assert not (folder / "models/dev1").exists()
    assert "| 4/10 [" in here(folder, dev1)  # the bar starts where the checkpoint stands
    assert outputs(folder) == outputs(undisturbed[0])


def test_it_learns_and_reports_what_it_did(undisturbed):
    folder, out = undisturbed
    rows = list(csv.DictReader((folder / "reports/metrics/dev1_steps.csv").open()))
    assert [int(r["step"]) for r in rows] == list(range(10))
    assert [int(r["epoch"]) for r in rows] == [1] * 5 + [2] * 5
    assert float(rows[-1]["learning_rate"]) == pytest.approx(1e-3) and float(rows[2]["learning_rate"]) == pytest.approx(1e-2)
    assert float(rows[-1]["loss"]) < 0.8 * float(rows[0]["loss"])
    summary = json.loads((folder / "reports/metrics/dev1.json").read_text())
    trained, tokenizer = model_folder.load(folder / "models/dev1")
    assert summary["policy_fingerprint"] == policy_fingerprint(trained)
    assert (summary["samples"], summary["epochs"], summary["updates"]) == (SAMPLES, 2, 10)
    seen = sft.encode(dataset(), tokenizer)
    assert summary["tokens"] == sum(len(s.ids) for s in seen) and summary["response_tokens"] == sum(s.response for s in seen)
    assert sum(int(r["response_tokens"]) for r in rows) == 2 * summary["response_tokens"]
    assert summary["first_loss"] == pytest.approx(float(rows[0]["loss"]), rel=1e-5) and summary["last_loss"] < summary["first_loss"]
    assert 0 < summary["padding"] < summary["padding_unpacked"] < 1
    assert (
        "dev1: 70 samples of " in out and "10 updates of 16 samples = 2 epochs" in out and out.index("70 samples") < out.index("update/s")
    )
    assert out.strip().splitlines()[-1].startswith("dev1: loss ")
    assert not list(folder.glob(".runs/dev1/*/checkpoints"))


def test_dev3_starts_from_the_base_though_dev1_is_there(undisturbed):
    folder, _ = undisturbed
    here(folder, dev3)
    assert outputs(folder, "dev3") == outputs(folder) and dev1.DATA != dev3.DATA  # the same base and data: the same bytes


def trainer(folder: Path, workers: int = 0) -> sft.Trainer:
    base(folder / "base")
    policy, tokenizer = model_folder.load(folder / "base")
    params = SFT.model_validate({"base": "base", "seed": 0, "final_rate": 0.1, "weight_decay": 0.0, "gradient_norm": 1.0} | SMALL)
    return sft.Trainer(policy, sft.encode(dataset(), tokenizer), params, "dev1", workers)


def test_a_run_that_was_saved_but_not_published_publishes_all_rows_on_resume(tmp_path):
    first = trainer(tmp_path)
    first.update()
    first.save(tmp_path / "c")
    first.update()  # lost
    seen: list[int] = []
    resumed = trainer(tmp_path)
    resumed.resume(tmp_path / "c")
    assert resumed.state.step == 1
    state = resumed.run(tmp_path / "c", lambda rows: seen.extend(row["step"] for row in rows))
    assert seen == list(range(10)) == [row["step"] for row in state.rows]
    straight = trainer(tmp_path)
    straight.run(tmp_path / "d", lambda rows: None)
    assert all(torch.equal(a, b) for a, b in zip(resumed.weights, straight.weights, strict=True))
    assert resumed.state == straight.state


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / dev3.DATA).unlink(), "data/rejection/sft.parquet does not exist"),
        (lambda f: records.write([], f / dev3.DATA, records.SFT_SCHEMA), "data/rejection/sft.parquet holds no sample"),
        (lambda f: records.write(problems_of_a_split(), f / dev3.DATA), "missing column prompt_id"),
        (lambda f: (f / "models/base/config.json").unlink(), "config.json is missing in models/base"),
        (lambda f: shrink(f, 40), r"samples have more tokens than fit, 40 \(context 40, positions of the model 256\): s-"),
    ],
)
def test_bad_input_is_one_named_error_and_nothing_is_written(tmp_path, spoil, message):
    folder = project(tmp_path / "p")
    spoil(folder)
    with pytest.raises(SecondThoughtError, match=message) as caught:
        here(folder, dev3)
    assert isinstance(caught.value, DataError) or "models/base" in str(caught.value)
    assert not (folder / "models/dev3").exists() and not (folder / "reports").exists() and not (folder / ".runs").exists()


def problems_of_a_split() -> list[dict]:
    return [row | {"split": "train"} for row in problems.generate(60, 0)]


def shrink(folder: Path, context: int) -> None:
    text = yaml.safe_load((folder / "params.yaml").read_text())
    text["dev3"] = {"context": context}
    (folder / "params.yaml").write_text(yaml.safe_dump(text))
