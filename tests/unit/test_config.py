"""params.yaml: what is there is valid, and every mistake is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tasks.config import ParamsError, load_params

ROOT = Path(__file__).parents[2]


def changed(tmp_path: Path, **sections: dict) -> Path:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    for name, values in sections.items():
        content[name] = content.get(name, {}) | values
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_shipped_file_is_valid_and_its_sizes_follow():
    zero = load_params(ROOT / "params.yaml").zero
    assert zero.outputs_per_step * zero.minibatches == zero.prompts_per_rollout * zero.group_size
    assert zero.rollouts * zero.minibatches == zero.steps


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("zero", {"learning_rat": 1}, "zero.learning_rat: unknown parameter"),
        ("zero", {"learning_rate": -1}, "zero.learning_rate: .*greater than 0"),
        (
            "zero",
            {"prompts_per_rollout": 3, "group_size": 5, "minibatches": 2},
            "3 x group_size 5 = 15 .* 15 / 2 = 7.5",
        ),
        ("zero", {"steps": 7, "minibatches": 2}, "steps 7 is no multiple of minibatches 2"),
        ("zero", {"limits": [{"step": 5, "tokens": 10}]}, "limits must start at step 0"),
        ("zero", {"ratio": "word"}, "zero.ratio"),
        ("curate", {"train": 0.5, "validation": 0.1, "test": 0.1}, "0.5 .* 0.1 .* 0.1 = 0.7, not 1"),
        ("rl", {"betta": 1}, "zero.betta: unknown parameter.*dev2.betta"),
        ("dev2", {"base": "models/base"}, "dev2.base: unknown parameter"),
        ("r1", {"preference_steps": 400}, "preference_steps 400 must be at most steps"),
        ("r1", {"preference_steps": 6}, "multiple of minibatches 4"),
        ("sft", {"epochs": 0}, "dev1.epochs: .*; dev3.epochs: .*; distill.students.small.epochs"),
        (
            "distill",
            {"students": {"a": {"preset": "gpt-2"}}},
            "distill.students.a.preset: students.yaml has no student 'gpt-2'; it has qwen",
        ),
        ("distill", {"epoch": 3}, "distill.students.small.epoch: unknown parameter"),
        ("distill", {"students": {"a": {"bass": "x"}}}, "distill.students.a.bass: unknown parameter"),
        ("distill", {"students": 3}, "distill.students"),
        ("distill_rl", {"base": "models/base"}, "distill_rl.base: unknown parameter"),
        ("rejection", {"judge": {"url": "ftp://x", "model": "m"}}, "rejection.judge.url"),
        ("compare", {"judge": {"url": "http://me:hunter2@x/v1", "model": "m"}}, "compare.judge.url: .*password.*key_variable"),
        ("compare", {"judge": {"url": "http://x/v1?api_key=hunter2", "model": "m"}}, "compare.judge.url: .*query.*key_variable"),
        ("cold_start", {"refiner": {"url": "http://x/v1", "model": "m", "key": "secret"}}, "cold_start.refiner.key: unknown parameter"),
        ("nonsense", {"a": 1}, "nonsense: unknown parameter"),
    ],
)
def test_mistakes_are_named(tmp_path, section, values, message):
    with pytest.raises(ParamsError, match=message) as raised:
        load_params(changed(tmp_path, **{section: values}))
    assert "hunter2" not in str(raised.value)


def test_a_missing_and_a_broken_file(tmp_path):
    with pytest.raises(ParamsError, match="does not exist"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [")
    with pytest.raises(ParamsError, match="is not YAML"):
        load_params(tmp_path / "params.yaml")


def test_the_length_limit_rises_at_its_step(tmp_path):
    zero = load_params(changed(tmp_path, zero={"limits": [{"step": 0, "tokens": 10}, {"step": 4, "tokens": 20}]})).zero
    assert [zero.max_new_tokens(step) for step in (0, 3, 4, 99)] == [10, 10, 20, 20]


def test_a_stage_overrides_what_its_kind_shares(tmp_path):
    params = load_params(
        changed(tmp_path, rl={"beta": 0.5, "clip_high": 0.3}, dev2={"clip_high": 10}, sft={"epochs": 7}, dev3={"epochs": 1})
    )
    assert (params.zero.beta, params.zero.clip_high, params.dev2.beta, params.dev2.clip_high) == (0.5, 0.3, 0.5, 10)
    assert (params.dev1.epochs, params.dev3.epochs) == (7, 1)


def test_a_student_takes_sft_then_distill_then_its_preset_then_its_own(tmp_path):
    students = {"plain": {"base": "models/a"}, "known": {"preset": "llama-3.1-8b", "epochs": 3, "base": "models/b"}}
    params = load_params(changed(tmp_path, sft={"epochs": 7, "rows": 5}, distill={"batch": 9, "learning_rate": 0.5, "students": students}))
    plain, known = params.distill.find("plain"), params.distill.find("known")
    assert (plain.base, plain.epochs, plain.rows, plain.batch, plain.learning_rate) == ("models/a", 7, 5, 9, 0.5)
    assert (known.base, known.epochs, known.batch, known.learning_rate, known.context) == ("models/b", 3, 64, 5e-5, 32768)
    assert known.seed == plain.seed == params.dev3.seed


def test_distill_rl_is_zero_on_another_base(tmp_path):
    params = load_params(changed(tmp_path, rl={"beta": 0.5}, zero={"group_size": 8}, distill_rl={"clip_high": 0.3}))
    same = params.zero.model_dump(exclude={"base", "steps", "clip_high"})
    assert params.distill_rl.model_dump(exclude={"steps", "clip_high"}) == same
    assert (params.distill_rl.beta, params.distill_rl.group_size, params.distill_rl.clip_high, params.zero.clip_high) == (0.5, 8, 0.3, 0.2)
