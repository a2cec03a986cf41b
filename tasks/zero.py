"""Stage `zero`: R1-Zero, GRPO straight on a base model with R1's template and the rule reward, accuracy + format.

    python -m tasks.zero

Reads `zero` of params.yaml, data/curated and the base. Writes models/zero, reports/metrics/zero_steps.csv and
reports/metrics/zero.json. Killed at any moment, the same command continues from .runs/zero and ends with the same bytes.
"""

from __future__ import annotations

from pathlib import Path

from tasks import errors
from tasks.config import Params, load_params
from tasks.rewards.total import Rewarder, Weights
from tasks.training import rl_stage
from tasks.training.rl_stage import Stage


def stage(params: Params) -> Stage:
    """What is trained on what: verifiable prompts, rules alone."""
    own = params.zero
    prompts = rl_stage.load_prompts("train", own.domains)
    rewarder = Rewarder(Weights(own.format_weight, own.language_weight))
    return Stage("zero", own, Path(own.base), prompts, rl_stage.in_order(prompts, own), rewarder)


def main() -> None:
    rl_stage.train(stage(load_params()))


if __name__ == "__main__":
    errors.main(main)
