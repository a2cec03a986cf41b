"""Stage `dev2`: reasoning RL from dev1, GRPO with accuracy + format + language consistency (paper, section 3.2.1 and eq. 7).

    python -m tasks.dev2

Reads `dev2` of params.yaml, data/curated and models/dev1. Writes models/dev2, reports/metrics/dev2_steps.csv and
reports/metrics/dev2.json. Killed at any moment, the same command continues from .runs/dev2 and ends with the same bytes.
"""

from __future__ import annotations

from pathlib import Path

from tasks import errors
from tasks.config import Params, load_params
from tasks.rewards.total import Rewarder, Weights
from tasks.training import rl_stage
from tasks.training.rl_stage import Stage

INITIAL = Path("models/dev1")


def stage(params: Params) -> Stage:
    """What is trained on what: verifiable prompts, rules, and the share of the thought's words in the question's language."""
    own = params.dev2
    prompts = rl_stage.load_prompts("train", own.domains)
    rewarder = Rewarder(Weights(own.format_weight, own.language_weight))
    return Stage("dev2", own, INITIAL, prompts, rl_stage.in_order(prompts, own), rewarder)


def main() -> None:
    rl_stage.train(stage(load_params()))


if __name__ == "__main__":
    errors.main(main)
