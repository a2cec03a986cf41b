"""A student by RL alone: it ends with its budget, counts what it spends, and a kill changes nothing."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks import distill_rl, records
from tasks.config import Params
from tasks.errors import DataError
from tasks.generation import model_folder
from tasks.monitoring import tracking
from tasks.rewards.total import Rewarder
from tasks.training import flops
from tasks.training.actor import Output
from tasks.training.rl import Trainer
from tasks.training.rl_stage import in_order
from tasks.world import problems
from tests.model.test_sft import here

ROOT = Path(__file__).parents[2]
SMALL = {
    "prompts_per_rollout": 4, "group_size": 4, "minibatches": 2, "limits": [{"step": 0, "tokens": 16}, {"step": 4, "tokens": 24}],
    "reference_every": 3, "validation_every": 4, "validation_problems": 4, "workers": 1, "warmup_steps": 1,
}  # fmt: skip
OUTPUTS = ("models/rl_s/model.safetensors", "models/rl_s/config.json", "reports/metrics/rl_s_steps.csv", "reports/metrics/rl_s.json")
BUDGET = {"training": 3_000_000_000, "teacher_sampling": 1_000_000_000, "total": 4_000_000_000}  # about four rollouts


@pytest.fixture(autouse=True)
def untracked(monkeypatch):
    """Spares each run the seconds of MLflow's import; tests/pipeline/test_tracking.py has tracking."""
    monkeypatch.setattr(tracking, "_start_sender", lambda state: None)


def settings(**own: Any) -> dict[str, Any]:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["distill"] = {"students": {"s": {"base": "models/student_tiny"}}}
    params["distill_rl"] |= SMALL | own
    return params


def project(folder: Path, **own: Any) -> Path:
    """A project folder with few prompts and a student, the smallest base that ships, whose distillation is done."""
    (folder / "models").mkdir(parents=True)
    (folder / "models/student_tiny").symlink_to(ROOT / "models/student_tiny")
    (folder / "params.yaml").write_text(yaml.safe_dump(settings(**own)))
    for split in records.SPLITS:
        records.write([row | {"split": split} for row in problems.generate(100, 0)], folder / f"data/curated/{split}.parquet")
    (folder / "reports/metrics").mkdir(parents=True)
    (folder / "reports/metrics/distill_s.json").write_text(json.dumps({"flops": BUDGET}))
    return folder


def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "argv", ["distill_rl", "s"])
    return here(folder, distill_rl)


def outputs(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


KILLED = """
import os, signal, sys
from tasks import distill_rl
from tasks.monitoring import tracking
from tasks.training import rl

update = rl.Trainer.update

def last(trainer, *arguments):
    found = update(trainer, *arguments)
    if trainer.state.step == 5:  # in the third rollout, whose sampling is counted already: all of it is lost
        os.kill(os.getpid(), signal.SIGKILL)
    return found

rl.Trainer.update, tracking._start_sender, sys.argv = last, lambda state: None, ["distill_rl", "s"]
distill_rl.main()
"""


def test_it_ends_with_its_budget_and_a_kill_changes_no_byte(tmp_path, monkeypatch):
    folder, killed = project(tmp_path / "a"), project(tmp_path / "b")
    out = run(folder, monkeypatch)
    assert "budget = SFT of the student 3e+09 + sampling of the teacher 1e+09 = 4e+09 FLOPs" in out
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=killed, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert done.returncode == -signal.SIGKILL and not (killed / OUTPUTS[0]).exists()
    assert [path.name for path in sorted(killed.glob(".runs/rl_s/*/checkpoints/step-*"))] == ["step-00000002", "step-00000004"]
    run(killed, monkeypatch)
    assert outputs(killed) == outputs(folder)

    told = json.loads((folder / "reports/metrics/rl_s.json").read_text())
    assert (told["student"], told["base"], told["parameters"]) == ("s", "models/student_tiny", 173_298 + 2 * 66)  # Llama's o_proj bias
    spent = told["flops"]
    assert spent["total"] == spent["sampling"] + spent["training"] + spent["reference"] >= spent["budget"] == BUDGET["total"]
    assert spent["training"] == 3 * spent["reference"] > spent["sampling"] > 0
    rows = list(csv.DictReader((folder / "reports/metrics/rl_s_steps.csv").open()))
    assert len(rows) == told["steps"] and len(rows) > 4
    assert [int(r["max_new_tokens"]) for r in rows] == [16] * 4 + [24] * (len(rows) - 4)
    assert rows[-1]["validation_pass1"]  # of what is published


def test_the_bound_on_steps_ends_it_with_a_warning(tmp_path, monkeypatch):
    folder = project(tmp_path / "p", steps=2)
    assert "warning: rl_s ended at distill_rl.steps 2 before its budget was spent" in run(folder, monkeypatch)
    told = json.loads((folder / "reports/metrics/rl_s.json").read_text())
    assert told["steps"] == 2 and told["flops"]["total"] < told["flops"]["budget"]


def test_without_a_distillation_it_does_not_start(tmp_path, monkeypatch):
    folder = project(tmp_path / "p")
    (folder / "reports/metrics/distill_s.json").unlink()
    with pytest.raises(DataError, match=r"distill_s.json does not tell what the distillation cost: run `python -m tasks.distill s` first"):
        run(folder, monkeypatch)
    assert not (folder / ".runs").exists()


def trainer(budget: int, seen: list[Output], **own: Any) -> Trainer:
    """A trainer that also hands out what it samples for training."""
    params = Params.model_validate(settings(**own)).distill_rl
    rows = [r for r in problems.generate(400, 0) if r["family"] in ("choice", "cipher")]
    policy, tokenizer = model_folder.load(ROOT / "models/student_tiny")
    made = Trainer("rl_s", policy, tokenizer, in_order(rows, params), rows, rows[:4], Rewarder(), params, 0, budget)
    roll_out = made.roll_out

    def watched() -> list[Output]:
        outputs = roll_out()
        seen.extend(outputs)
        return outputs

    made.roll_out = watched  # type: ignore[method-assign]
    return made


@pytest.mark.parametrize("beta", [0.001, 0.0])
def test_what_is_counted_is_what_was_sampled_and_trained(tmp_path, beta):
    seen: list[Output] = []
    totals, sampled, rates = [0], [0], list[list[float]]()
    made = trainer(BUDGET["total"], seen, beta=beta)

    def publish(rows: list[dict[str, Any]]) -> None:
        if rows:
            totals.append(sum(made.state.flops.values()))
            sampled.append(made.state.flops["sampling"])
            rates.append([row["learning_rate"] for row in rows])

    state = made.run(tmp_path / "c", publish)
    cost = flops.cost(made.policy.config)
    groups = [seen[i : i + 4] for i in range(0, len(seen), 4)]
    forward = sum(cost.forward(len(o.prompt) + len(o.completion)) for o in seen)
    assert state.flops == {
        "sampling": sum(cost.sampling(len(group[0].prompt), [len(o.completion) for o in group]) for group in groups),  # no validation
        "training": 3 * forward,
        "reference": forward if beta else 0,
    }
    assert all(total < BUDGET["total"] for total in totals[:-1]) and totals[-1] >= BUDGET["total"]
    # The rate follows what is spent when an update begins: at a rollout's first, all that was and this rollout's sampling.
    peak, final = made.params.learning_rate, made.params.final_rate
    for number, found in enumerate(rates[1:], start=1):
        done = totals[number] + sampled[number + 1] - sampled[number]
        assert found[0] == pytest.approx(peak * (1 - (1 - final) * min(done / BUDGET["total"], 1)))
        assert found[1] < found[0] or done >= BUDGET["total"]


def test_the_longest_prompt_sets_the_estimate():
    params = Params.model_validate(settings()).distill_rl
    cost = flops.Cost(position=10, pair=1, logits=2)
    told = distill_rl.arithmetic("s", BUDGET, cost, params, 5)
    # 16 outputs of 5 + 16 positions: forward 21 x 12 + 231 pairs; a prompt is read once for 4 outputs of 16 tokens.
    assert "training 2.32e+04 + reference 7.73e+03" in told and 16 * 3 * (21 * 12 + 231) == 23184
    assert f"sampling {4 * (5 * 10 + 15 + 4 * (16 * 2 + 15 * 10 + 210 - 15)):.3g}" in told
