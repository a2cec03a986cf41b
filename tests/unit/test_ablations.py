"""The ablations' settings, the meter, and the page over seeds."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import ablations
from tasks import ablate
from tasks.config import ParamsError, load_params
from tasks.monitoring.meter import Meter

ROOT = Path(__file__).parents[2]


def changed(tmp_path: Path, section: str, values: dict[str, Any], run: str = "") -> Path:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    part = content["ablations"]["runs"] if run else content
    part[run or section] = part.get(run or section, {}) | values
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_run_has_the_settings_of_its_stage_but_for_what_it_changes(tmp_path):
    params = load_params(changed(tmp_path, "rl", {"beta": 0.25, "seed": 9}))
    base, runs = params.zero, params.ablations.runs
    common = {"seed": params.ablations.seed, "steps": params.ablations.steps.zero}
    assert runs["grpo"].settings == base.model_copy(update=common)
    assert runs["ppo_lambda_095"].settings == base.model_copy(update=common | {"algorithm": "ppo", "gae_lambda": 0.95})
    assert runs["ppo_lambda_1"].settings.outputs_per_rollout * runs["ppo_lambda_1"].settings.rollouts == 30 * 512
    assert runs["clip_02"].like == "dev2" and runs["clip_02"].settings.clip_high == 0.2 and runs["clip_02"].settings.beta == 0.25


@pytest.mark.parametrize("changes", [{"ratio": "sequence"}, {"algorithm": "ppo"}])
def test_the_ablations_stay_what_they_are_when_zero_changes(tmp_path, changes):
    """Else another loss or algorithm in zero would make params.yaml invalid, or two runs the same."""
    before, after = (load_params(path).ablations.runs for path in (ROOT / "params.yaml", changed(tmp_path, "zero", changes)))
    assert {name: run.zero for name, run in after.items()} == {name: run.zero for name, run in before.items()}


@pytest.mark.parametrize(
    ("run", "values", "message"),
    [
        ("grpo", {"zero": {"betta": 1}}, "ablations.runs.grpo.zero.betta: unknown parameter"),
        ("grpo", {"zero": None}, "either zero or dev2"),
        ("grpo", {"dev2": {}}, "either zero or dev2"),
        ("grpo", {"baseline": "gone"}, "grpo names 'gone'"),
        ("ppo_lambda_1", {"zero": {"algorithm": "ppo", "ratio": "sequence"}}, "ratio must be token, not sequence"),
        ("ppo_lambda_1", {"zero": {"gae_lambda": 1.5}}, "gae_lambda: .*less than or equal to 1"),
        ("ppo_lambda_1", {"zero": {"value_clip": 0}}, "value_clip: .*greater than 0"),
        ("language_on", {"dev2": {"language_weight": 0.5}}, "language_on is not the same as clip_10"),
        ("language_on", {"same_as": "gone"}, "language_on names 'gone'"),
    ],
)
def test_mistakes_are_named(tmp_path, run, values, message):
    with pytest.raises(ParamsError, match=message):
        load_params(changed(tmp_path, "ablations", values, run))


def test_an_unknown_run_is_named():
    with pytest.raises(ParamsError, match=r"no run 'ppo' in ablations.runs .* it has grpo, ppo_lambda_1"):
        load_params(ROOT / "params.yaml").ablations.find("ppo")


def test_settings_told_are_those_that_differ_from_the_stage(tmp_path):
    params = load_params(changed(tmp_path, "ablations", {"zero": {"algorithm": "ppo", "value_clip": None}}, "ppo_lambda_1"))
    assert ablate.labels(params, "ppo_lambda_1")["settings"] == {"algorithm": "ppo", "value_clip": None}
    assert ablate.labels(params, "clip_10")["settings"] == {}  # dev2 has it already


def test_a_meter_goes_on_from_its_file(tmp_path):
    first = Meter(tmp_path / "meter.json")
    time.sleep(0.02)
    first.lap()
    assert first.seconds >= 0.02
    stored = json.loads((tmp_path / "meter.json").read_text())
    assert stored["seconds"] == first.seconds
    (tmp_path / "meter.json").write_text(json.dumps({"seconds": 100.0, "peak_memory_bytes": 2**60}))
    second = Meter(tmp_path / "meter.json")
    second.lap()
    assert 100 < second.seconds < 101 and second.peak_memory_bytes == 2**60  # the peak of the killed run stands


def test_memory_is_of_this_process_and_its_workers(monkeypatch):
    from multiprocessing import get_context

    from tasks.monitoring import meter

    alone = meter.peak_memory()
    if alone is None:
        pytest.skip("no /proc here")
    child = get_context("fork").Process(target=time.sleep, args=(30,), daemon=True)
    child.start()
    try:
        both = meter.peak_memory()
    finally:
        child.terminate()
        child.join()
    assert alone > 2**20 and both is not None and both > alone + 2**20


def told(one: float, spoken: float, seconds: float, state: int) -> dict[str, Any]:
    evaluation = {"pass@1": {"mean": one}, "language_consistency": spoken, "mixed_share": 0.0, "wait_share": 0.3, "length": 50.0}
    return {"evaluation": evaluation, "seconds": seconds, "peak_memory_bytes": 4 * state, "state_bytes": state}


def test_claims_by_hand_and_the_page_over_seeds():
    found = {name: told(0.5, 0.5, 1.0, 2**20) for name in load_params(ROOT / "params.yaml").ablations.runs}
    found |= {"grpo": told(0.9, 0.8, 100.0, 2**20), "ppo_lambda_1": told(0.875, 0.8, 150.0, 2 * 2**20)}
    found |= {"language_on": told(0.9, 1.0, 1.0, 1), "language_off": told(0.95, 0.75, 1.0, 1)}
    first = ablations.figures(found)
    made = ablations.claims(first)
    assert made["PPO, lambda 1.0 - GRPO: pass@1"] == pytest.approx(-0.025)
    assert made["PPO, lambda 1.0 / GRPO: seconds"] == 1.5
    assert made["PPO, lambda 1.0 / GRPO: weights, moments and gradients (MiB)"] == 2
    assert made["with - without the language reward: language consistency"] == 0.25
    assert made["with - without the language reward: pass@1"] == pytest.approx(-0.05)
    second = ablations.figures(found | {"ppo_lambda_1": told(0.775, 0.8, 250.0, 2 * 2**20)})
    text = ablations.page(load_params(ROOT / "params.yaml"), {0: first, 1: second})
    assert "| PPO, lambda 1.0 - GRPO: pass@1 | -0.025 | -0.125 | -0.075 ± 0.071 |" in text
    assert "| 0.900 ± 0.000 | 0.825 ± 0.071 |" in text  # pass@1 of grpo and ppo_lambda_1
    assert "seeds 0, 1 of RL" in text


def test_the_own_seed_must_have_been_run(tmp_path, monkeypatch):
    monkeypatch.setattr(ablations, "ROOT", tmp_path)
    with pytest.raises(ablations.SecondThoughtError, match=r"lacks grpo, .*make ablations"):
        ablations.collect(load_params(ROOT / "params.yaml"), 0)
