"""Stage `ablate`: trains one ablation, evaluates it at once, and writes its figures beside what it took.

    python -m tasks.ablate ppo_lambda_1

Reads `ablations` of params.yaml: the settings of zero or dev2 but for what is under test; data/curated; the base or models/dev1. Writes
models/ablations/<name>, data/samples/ablations/<name>.parquet, reports/ablations/<name>.json and reports/ablations/<name>_steps.csv.
Killed at any moment, the same command continues from .runs/ablations/<name>. A run that is `same_as` another takes over its result.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from tasks import dev2, errors, evaluate, records, zero
from tasks.config import Evaluated, Params, load_params
from tasks.evaluation.metrics import summarize
from tasks.monitoring.meter import Meter
from tasks.training import rl_stage
from tasks.training.rl import Trainer
from tasks.training.rl_stage import Stage

REPORTS = Path("reports")
STAGES = {"zero": zero.stage, "dev2": dev2.stage}
FIGURES = ("pass@1", "language_consistency", "mixed_share", "wait_share", "format")


def stage(params: Params, name: str) -> Stage:
    """The stage that the ablation changes, under a name and settings of its own."""
    own = params.ablations.find(name)
    made = STAGES[own.like](params.model_copy(update={own.like: own.settings}))
    return replace(
        made,
        name=f"ablations/{name}",
        module=own.like,
        reports=REPORTS,
        measured=lambda trainer, meter: figures(params, name, trainer, meter),
    )


def figures(params: Params, name: str, trainer: Trainer, meter: Meter) -> dict[str, Any]:
    """What reports/ablations/<name>.json tells beside the summary of the training: how good the model is, and what it took."""
    own = params.ablations.find(name)
    return {
        **labels(params, name), "algorithm": own.settings.algorithm,
        "samples": trainer.state.rollout * own.settings.outputs_per_rollout, "evaluation": evaluation(params, name),
        "seconds": round(meter.seconds, 1), "peak_memory_bytes": meter.peak_memory_bytes, "state_bytes": trainer.state_bytes(),
    }  # fmt: skip


def labels(params: Params, name: str) -> dict[str, Any]:
    """What the run is, what it is compared with, and where its settings differ from the stage that it changes."""
    own = params.ablations.find(name)
    usual, given = (settings.model_dump(mode="json") for settings in (getattr(params, own.like), own.settings))
    changed = {key: value for key, value in given.items() if value != usual[key] and key != "seed"}
    return {"name": name, "title": own.title, "baseline": own.baseline, "settings": changed}


def evaluation(params: Params, name: str) -> dict[str, Any]:
    """Samples the held-out problems as `evaluate` does, keeps the samples, and measures."""
    problems, path = evaluate.held_out(params.evaluate.problems), evaluate.SAMPLES / f"ablations/{name}.parquet"
    entry = Evaluated(name=f"ablations/{name}", folder=f"models/ablations/{name}")
    evaluate.sample_problems(evaluate.Model(entry, params.evaluate, problems), problems, params, path)
    found = summarize(pd.read_parquet(path), {r["id"]: r for r in problems})
    votes = f"cons@{params.evaluate.samples}"
    return {key: found[key] for key in (*FIGURES, votes)} | {"length": found["length"]["mean"]}


def repeat(params: Params, name: str, twin: str) -> None:
    """Writes the result of `twin` under this name too."""
    source, target = REPORTS / "ablations" / twin, REPORTS / "ablations" / name
    with records.atomic(target.with_name(f"{name}_steps.csv")) as temporary:
        shutil.copyfile(source.with_name(f"{twin}_steps.csv"), temporary)
    told = json.loads(source.with_name(f"{twin}.json").read_text()) | labels(params, name) | {"same_as": twin}
    with records.atomic(target.with_name(f"{name}.json")) as temporary:
        temporary.write_text(json.dumps(told, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="a name of ablations.runs in params.yaml")
    name, params = parser.parse_args().name, load_params()
    twin = params.ablations.find(name).same_as
    if twin:
        repeat(params, name, twin)
    else:
        rl_stage.train(stage(params, name))
    told = json.loads((REPORTS / "ablations" / f"{name}.json").read_text())
    one, spoken = told["evaluation"]["pass@1"], told["evaluation"]["language_consistency"]
    print(f"{name}: pass@1 {one['mean']:.3f} [{one['low']:.3f}, {one['high']:.3f}], consistency {spoken:.3f}, {told['seconds']:.0f} s")


if __name__ == "__main__":
    errors.main(main)
