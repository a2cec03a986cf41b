"""Stage `distill_rl`: a student by RL alone, GRPO straight on its base as R1-Zero, with the compute that its distillation took.

    python -m tasks.distill_rl small

Paper: Table 6 of v1, "distillation v.s. reinforcement learning". The run ends at the first rollout's end at which sampling, training and
reference passes have taken as many FLOPs as the distillation of the same student (reports/metrics/distill_<student>.json).
Reads `rl`, `zero`, `distill` and `distill_rl` of params.yaml, data/curated and the student's base. Writes models/rl_<student>,
reports/metrics/rl_<student>_steps.csv and reports/metrics/rl_<student>.json. Killed at any moment, the same command continues from
.runs/rl_<student> and ends with the same bytes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from tasks import errors
from tasks.config import DistillRL, Params, load_params
from tasks.errors import DataError
from tasks.generation import model_folder
from tasks.rewards.total import Rewarder, Weights
from tasks.template import render
from tasks.training import flops, rl_stage
from tasks.training.rl_stage import Stage


def spent(name: str) -> dict[str, int]:
    """FLOPs of the student's distillation: "training", "teacher_sampling", "total".

    Raises:
        DataError: there is no such distillation.
    """
    path = Path(f"reports/metrics/distill_{name}.json")
    try:
        return json.loads(path.read_text())["flops"]
    except (FileNotFoundError, json.JSONDecodeError, KeyError) as error:
        raise DataError(f"{path} does not tell what the distillation cost: run `python -m tasks.distill {name}` first") from error


def arithmetic(name: str, budget: dict[str, int], cost: flops.Cost, params: DistillRL, prompt: int) -> str:
    """Where the budget comes from and how far it goes at least, printed before the start; `prompt`: tokens of the longest one."""
    limit = params.max_new_tokens(0)
    sampling = params.prompts_per_rollout * cost.sampling(prompt, [limit] * params.group_size)
    training = params.outputs_per_rollout * cost.training(prompt + limit)
    reference = training // 3 if params.beta > 0 else 0
    rollout = sampling + training + reference
    return (
        f"rl_{name}: budget = SFT of the student {budget['training']:.4g} + sampling of the teacher {budget['teacher_sampling']:.4g} = "
        f"{budget['total']:.4g} FLOPs; a rollout of {params.outputs_per_rollout} outputs of {limit} tokens, the limit, takes "
        f"sampling {sampling:.3g} + training {training:.3g} + reference {reference:.3g} = {rollout:.3g}: at least "
        f"{budget['total'] / rollout:.0f} rollouts, {budget['total'] / rollout * params.minibatches:.0f} updates"
    )


def stage(params: Params, name: str) -> Stage:
    """What is trained on what: verifiable prompts, rules alone, until the budget is spent."""
    own, student = params.distill_rl, params.distill.find(name)
    prompts, base, budget = rl_stage.load_prompts("train", own.domains), model_folder.find(student.base), spent(name)
    tokenizer = AutoTokenizer.from_pretrained(base)
    longest = max(len(tokenizer.encode(render(r["messages"][-1]["content"]))) for r in prompts)
    print(arithmetic(name, budget, flops.cost(AutoConfig.from_pretrained(base)), own, longest))

    def findings(rows: Any) -> dict[str, Any]:
        if len(rows) >= own.steps:
            print(f"warning: rl_{name} ended at distill_rl.steps {own.steps} before its budget was spent: raise steps")
        return {"student": name, "base": student.base}

    return Stage(
        f"rl_{name}", own, base, prompts, rl_stage.in_order(prompts, own), Rewarder(Weights(own.format_weight, own.language_weight)),
        findings=findings, budget=budget["total"], module="distill_rl",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", help="a name of distill.students in params.yaml")
    name = parser.parse_args().student
    rl_stage.train(stage(load_params(), name))


if __name__ == "__main__":
    errors.main(main)
