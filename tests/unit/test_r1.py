"""What r1 draws when, and that dev2 and r1 are wired to the rewards and models that the paper says."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from tasks import dev2, r1, records
from tasks.config import Params
from tasks.errors import DataError
from tasks.rewards.total import UnscorableError
from tasks.world import problems

ROOT = Path(__file__).parents[2]
ROWS = problems.generate(400, 0)
REASONING = [r for r in ROWS if r["domain"] in problems.VERIFIABLE and r["verifier"] != "judge"]
OPEN = [r for r in ROWS if r["domain"] in ("general", "safety")]


def params(**own: object) -> Params:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["r1"] |= {"steps": 20, "preference_steps": 8, "minibatches": 4, "prompts_per_rollout": 16}
    content["r1"] |= {"preference_mix": {"reasoning": 7, "general": 4, "borderline": 2, "safety": 3}} | own
    return Params.model_validate(content)


def kinds(draw, rollout: int) -> set[bool]:
    preference = {r["id"] for r in OPEN}
    return {key in preference for key in draw(rollout)}


def test_preference_prompts_come_in_the_last_steps_and_not_one_step_sooner():
    draw = r1.draw(REASONING, OPEN, params().r1)  # 5 rollouts of 4 steps; the last 8 steps are rollouts 3 and 4
    assert [kinds(draw, rollout) for rollout in range(5)] == [{False}, {False}, {False}, {False, True}, {False, True}]


def test_the_last_part_mixes_the_kinds_as_the_parameters_say():
    draw = r1.draw(REASONING, OPEN, params().r1)
    kind = {r["id"]: "borderline" if r["family"] == "how" else r["domain"] if r in OPEN else "reasoning" for r in ROWS}
    for rollout in (3, 4):
        assert Counter(kind[key] for key in draw(rollout)) == {"reasoning": 7, "general": 4, "borderline": 2, "safety": 3}
    drawn = [key for rollout in (3, 4) for key in draw(rollout)]
    assert len(set(drawn)) == len(drawn)  # no prompt twice in an epoch of its kind


def test_a_mix_that_does_not_fill_a_rollout_shows_the_arithmetic():
    with pytest.raises(ValidationError, match=r"preference_mix has 7 \+ 5 \+ 0 \+ 3 = 15 prompts, prompts_per_rollout is 16"):
        params(preference_mix={"reasoning": 7, "general": 5, "borderline": 0, "safety": 3})


def test_without_preference_steps_no_open_prompt_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    curated(tmp_path, REASONING)
    stage = r1.stage(params(preference_steps=0))
    assert stage.inputs == () and not stage.rewarder.judges
    assert {kind for rollout in range(5) for kind in kinds(stage.draw, rollout)} == {False}


def test_a_train_split_without_open_prompts_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    curated(tmp_path, REASONING)
    with pytest.raises(DataError, match=r"holds no general prompt .* set r1\.preference_mix\.general to 0"):
        r1.stage(params())
    curated(tmp_path, [*REASONING, *(r for r in OPEN if r["family"] not in ("how", "harm"))])
    with pytest.raises(DataError, match="holds no borderline prompt"):
        r1.stage(params())
    with pytest.raises(DataError, match="holds no safety prompt"):
        r1.stage(params(preference_mix={"reasoning": 9, "general": 4, "borderline": 0, "safety": 3}))


def test_dev2_starts_from_dev1_with_rules_and_language_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    curated(tmp_path, ROWS)
    stage = dev2.stage(params())
    assert stage.initial == Path("models/dev1") and not stage.rewarder.judges
    assert stage.rewarder.weights.language == 1.0 and stage.params.clip_high == 10
    assert {r["domain"] for r in stage.prompts} <= set(problems.VERIFIABLE)
    stage.rewarder.check(stage.prompts)
    with pytest.raises(UnscorableError, match=re.escape(OPEN[0]["id"])):
        stage.rewarder.check([OPEN[0]])


def curated(folder: Path, rows: list[dict]) -> None:
    for split in records.SPLITS:
        records.write([row | {"split": split} for row in rows], folder / f"data/curated/{split}.parquet")
