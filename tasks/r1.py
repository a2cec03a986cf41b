"""Stage `r1`: RL over all prompts from dev3 (paper, section 3.2.2 and eq. 8-10).

    python -m tasks.r1

Rules for reasoning; reward model + format for general and harmlessness prompts, which come only in the last `preference_steps`; language
consistency for all. Watches for reward hacking: the reward model's score against the verifiable benchmark.
Reads `r1` of params.yaml, data/curated, models/dev3, models/reward_helpful and models/reward_safety. Writes models/r1,
reports/metrics/r1_steps.csv and reports/metrics/r1.json. Killed at any moment, the same command continues from .runs/r1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tasks import errors, records
from tasks.config import R1, Mix, Params, load_params
from tasks.errors import DataError
from tasks.monitoring import hacking
from tasks.records import Record
from tasks.rewards.model import RewardModel
from tasks.rewards.total import PREFERENCE, Rewarder, Weights
from tasks.training import rl_stage
from tasks.training.rl import VALIDATION_SAMPLES, Draw, rollout_prompts
from tasks.training.rl_stage import Stage
from tasks.world.general import BORDERLINE

INITIAL = Path("models/dev3")
JUDGES = {"helpful": Path("models/reward_helpful"), "safety": Path("models/reward_safety")}


def kinds(prompts: Sequence[Record]) -> dict[str, list[Record]]:
    """Open prompts by their kind in `preference_mix`."""
    general = [r for r in prompts if r["domain"] == "general"]
    return {
        "general": [r for r in general if r["family"] != BORDERLINE],
        "borderline": [r for r in general if r["family"] == BORDERLINE],
        "safety": [r for r in prompts if r["domain"] == "safety"],
    }


def open_prompts(mix: Mix) -> list[Record]:
    """The general and harmlessness prompts of the train split.

    Raises:
        DataError: there are none of a kind that the mix asks for.
    """
    path = rl_stage.CURATED / "train.parquet"
    found = [r for r in records.read(path) if r["domain"] in PREFERENCE]
    for kind, prompts in kinds(found).items():
        if getattr(mix, kind) and not prompts:
            raise DataError(f"{path} holds no {kind} prompt for r1's last steps: set r1.preference_mix.{kind} to 0, or curate some")
    return found


def draw(reasoning: Sequence[Record], preference: Sequence[Record], params: R1) -> Draw:
    """Prompts of a rollout: verifiable ones first, in the last `preference_steps` so many of each kind as `preference_mix` says."""
    boundary = (params.steps - params.preference_steps) // params.minibatches
    pools = {"reasoning": reasoning, **kinds(preference)}
    counts = {kind: count for kind, count in params.preference_mix if count}

    def ids(rollout: int) -> list[str]:
        if rollout < boundary:
            return rollout_prompts(reasoning, params.seed, rollout, params.prompts_per_rollout)
        return [key for kind in counts for key in rollout_prompts(pools[kind], params.seed + 1, rollout - boundary, counts[kind])]

    return ids


def watch(rows: Sequence[Mapping[str, Any]], problems: int) -> dict[str, Any]:
    """The monitor's finding: null, or how far the reward model's score and the benchmark have parted (paper, B.5).

    Args:
        problems: number of validation problems.
    """
    found = hacking.check(rows, problems * VALIDATION_SAMPLES)
    if found:
        print(f"warning: reward hacking? {found}")
    return {"hacking": asdict(found) if found else None}


def stage(params: Params) -> Stage:
    """What is trained on what."""
    own, problems = params.r1, len(rl_stage.load_validation(params.r1))
    reasoning = rl_stage.load_prompts("train", own.domains)
    preference = open_prompts(own.preference_mix) if own.preference_steps else []
    judges = {name: RewardModel(folder).share_memory() for name, folder in JUDGES.items()} if preference else {}
    return Stage(
        "r1", own, INITIAL, [*reasoning, *preference], draw(reasoning, preference, own),
        Rewarder(Weights(own.format_weight, own.language_weight), judges),
        inputs=tuple(JUDGES.values()) if preference else (), findings=lambda rows: watch(rows, problems),
    )  # fmt: skip


def main() -> None:
    rl_stage.train(stage(load_params()))


if __name__ == "__main__":
    errors.main(main)
