"""What a made-up run has beside the recipe's stages: students, ablations, costs, the lock of DVC and the page on the paper."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
STUDENTS = {"small": 220_000, "tiny": 90_000}
SOLVED = {
    "student_small": 0.2, "student_tiny": 0.1, "distill_small": 0.88, "distill_tiny": 0.7, "rl_small": 0.5, "rl_tiny": 0.3,
}  # fmt: skip
# Name -> title, algorithm, settings, pass@1, share of words in the own language, memory and seconds in GRPO's
ABLATIONS: dict[str, tuple[str, str, dict[str, float | str], float, float, float]] = {
    "grpo": ("GRPO", "grpo", {}, 0.93, 0.8, 1.0),
    "ppo_lambda_1": ("PPO, lambda 1", "ppo", {"gae_lambda": 1.0}, 0.92, 0.82, 1.75),
    "ppo_lambda_095": ("PPO, lambda 0.95", "ppo", {"gae_lambda": 0.95}, 0.71, 0.86, 1.75),
    "sequence_level": ("Ratio of whole outputs", "grpo", {"ratio": "sequence"}, 0.9, 0.8, 1.0),
    "clip_02": ("Clip 0.2", "grpo", {"clip_low": 0.2, "clip_high": 0.2}, 0.9, 1.0, 1.0),
    "clip_10": ("Clip 10", "grpo", {"clip_low": 10.0, "clip_high": 10.0}, 0.94, 1.0, 1.0),
    "language_on": ("Language reward", "grpo", {"language_weight": 1.0}, 0.94, 0.99, 1.0),
    "language_off": ("No language reward", "grpo", {"language_weight": 0.0}, 0.95, 0.85, 1.0),
}
BASELINES = {"clip_02": "clip_10", "language_off": "language_on"}
CHAIN = {  # stage -> what it writes, and what it reads beside code
    "curate": (["data/curated", "reports/metrics/curate.json"], []),
    "zero": (["models/zero", "reports/metrics/zero.json"], ["data/curated", "models/base"]),
    "cold_start": (["data/cold_start"], ["data/curated", "data/cold_start_review.jsonl", "models/zero"]),
    "dev1": (["models/dev1"], ["data/cold_start", "models/base"]),
    "dev2": (["models/dev2"], ["data/curated", "models/dev1"]),
    "rejection": (["data/rejection"], ["data/curated", "models/dev2"]),
    "dev3": (["models/dev3"], ["data/rejection", "models/base"]),
    "reward_models": (["data/preferences", "models/reward_helpful", "models/reward_safety"], ["data/curated", "models/dev3"]),
    "r1": (["models/r1"], ["data/curated", "models/dev3", "models/reward_helpful", "models/reward_safety"]),
    **{
        f"distill@{s}": ([f"models/distill_{s}", f"reports/metrics/distill_{s}.json"], ["data/rejection", f"models/student_{s}"])
        for s in STUDENTS
    },
    **{
        f"distill_rl@{s}": ([f"models/rl_{s}"], ["data/curated", f"models/student_{s}", f"reports/metrics/distill_{s}.json"])
        for s in STUDENTS
    },
    **{f"evaluate@{m}": ([f"data/samples/{m}.parquet"], ["data/curated", f"models/{m}"]) for m in ("base", "zero", "r1", "distill_small")},
    "report": (["reports/report.html"], ["data/samples/zero.parquet"]),
}  # fmt: skip


def _json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def _md5(path: str) -> str:
    return hashlib.md5(path.encode()).hexdigest()


def lock() -> dict:
    """A dvc.lock of a run of CHAIN."""

    def files(paths: list[str]) -> list[dict]:
        return [{"path": path, "hash": "md5", "md5": _md5(path), "size": 1} for path in paths]

    stages = {
        name: {
            "cmd": f"python -m tasks.{name}",
            "deps": files([*read, "tasks/config.py"]),
            "params": {"params.yaml": {name.split("@")[0]: {"seed": 0}}},
            "outs": files(outs),
        }
        for name, (outs, read) in CHAIN.items()
    }
    return {"schema": "2.0", "stages": stages}


def _interval(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": max(mean - 0.02, 0.0), "high": min(mean + 0.02, 1.0)}


def ablation(name: str) -> dict:
    """reports/ablations/<name>.json."""
    title, algorithm, settings, solved, language, cost = ABLATIONS[name]
    return {
        "name": name, "title": title, "baseline": BASELINES.get(name, "grpo"), "algorithm": algorithm, "settings": settings,
        "samples": 15360, "seconds": 60.0 * cost, "peak_memory_bytes": int(4e8 * cost), "state_bytes": int(1e7 * cost), "seed": 0,
        "flops": {"sampling": 1e11, "training": 2e11 * cost, "reference": 1e11, "total": 2e11 + 2e11 * cost},
        **({"same_as": "clip_10", "peak_memory_bytes": None} if name == "language_on" else {}),  # no memory is told outside Linux
        "evaluation": {"pass@1": _interval(solved), "cons@16": _interval(solved + 0.03), "language_consistency": language,
                       "mixed_share": 0.1, "wait_share": 0.3, "length": 50.0, "format": 0.99},
    }  # fmt: skip


def _evaluations(folder: Path) -> None:
    """Evaluations of the students: R1's, but for what they solve."""
    of_r1 = json.loads((folder / "evaluate_r1.json").read_text())
    cons = f"cons@{of_r1['samples_per_problem']}"
    for model, solved in SOLVED.items():
        own = {"model": model, "fingerprint": f"{model}-fingerprint", "pass@1": _interval(solved), cons: _interval(solved + 0.05)}
        _json(folder / f"evaluate_{model}.json", of_r1 | own)


def _students(root: Path, steps: pd.DataFrame) -> None:
    fit = {"samples": 900, "response_tokens": 44000, "epochs": 2, "updates": 60, "seed": 0, "first_loss": 0.2, "last_loss": 0.05}
    folder, update = root / "reports/metrics", np.arange(30)
    for name, parameters in STUDENTS.items():
        own = {"student": name, "base": f"models/student_{name}", "parameters": parameters}
        spent = {"training": 1.5e11, "teacher_sampling": 2.5e11, "total": 4e11}
        _json(folder / f"distill_{name}.json", fit | own | {"flops": spent})
        spent = {"sampling": 1e11, "training": 2e11, "reference": 0.98e11, "total": 3.98e11, "budget": 4e11}
        _json(folder / f"rl_{name}.json", {"steps": 40, "seed": 0, "tokens_sampled": 54321} | own | {"flops": spent})
        steps.to_csv(folder / f"rl_{name}_steps.csv", index=False)
        loss = pd.DataFrame({"step": update, "epoch": 1 + update // 15, "loss": 0.2 * np.exp(-update / 10), "learning_rate": 1e-3})
        loss.to_csv(folder / f"distill_{name}_steps.csv", index=False)


def write(root: Path, steps: pd.DataFrame) -> None:
    """Writes all of it under ``root``, where R1's evaluation is.

    Args:
        steps: a per-step table of RL, which every run here has.
    """
    _evaluations(root / "reports/metrics")
    _students(root, steps)
    for name in ABLATIONS:
        _json(root / f"reports/ablations/{name}.json", ablation(name))
        steps.assign(accuracy=steps["accuracy"] * ABLATIONS[name][3]).to_csv(root / f"reports/ablations/{name}_steps.csv", index=False)
    machine = {"cores": 2, "python": "3.11.7", "platform": "Linux x86_64"}
    for number, stage in enumerate(["curate", "zero", "dev1", "evaluate_zero", "evaluate_base", "r1"], 1):
        cost = {"stage": stage, "seconds": 10.5 * number, "resumed": number % 2, "machine": machine}
        _json(root / f"reports/costs/{stage}.json", cost)
    _json(root / "dvc.lock", lock())  # JSON is YAML
    (root / "docs").mkdir(exist_ok=True)
    shutil.copy(ROOT / "docs/paper-map.md", root / "docs/paper-map.md")
