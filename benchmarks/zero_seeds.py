"""Repeats R1-Zero and its evaluation over RL seeds on the same data and base: the figures of the README.

    make seeds            # python -m benchmarks.zero_seeds --seeds 0 1 2

Each seed runs the very stages in a folder of its own under .runs/seeds and is continued if it was interrupted. Needs
data/curated and reports/metrics/evaluate_base.json (`dvc repro evaluate@base`). Prints a table and writes docs/zero_seeds.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tasks.config import fingerprint
from tasks.zero import code, file_hash

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs/zero_seeds.md"


def prepare(seed: int) -> Path:
    """A folder in which the stages see this project's data and base, and params.yaml with another zero.seed.

    Its name holds a hash of parameters, data and base: figures of another set-up are never mixed in.
    """
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["zero"]["seed"] = seed
    inputs = [file_hash(path) for path in code()]
    inputs += [
        file_hash(ROOT / path) for path in ("data/curated/train.parquet", "data/curated/test.parquet", "models/base/model.safetensors")
    ]
    folder = ROOT / ".runs/seeds" / f"{seed}-{fingerprint(params, inputs)}"
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "models").mkdir(exist_ok=True)
    for shared in ("data/curated", "models/base"):
        link = folder / shared
        if not link.exists():
            link.symlink_to(ROOT / shared)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    return folder


def stage(folder: Path, *command: str) -> float:
    """Runs a stage there; returns its seconds."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", *command], cwd=folder, env=environment, check=True)
    return time.perf_counter() - began


def figures(base: dict[str, Any], zero: dict[str, Any], forbidden: dict[str, Any]) -> dict[str, float]:
    """The figures that the README quotes, of one seed."""
    return {
        "pass@1": zero["pass@1"]["mean"],
        "cons@16": zero["cons@16"]["mean"],
        "wait share": zero["wait_share"],
        "wait share / base's": zero["wait_share"] / max(base["wait_share"], 1e-9),
        "pass@1 without reflection": forbidden["pass@1"]["mean"],
        "cost of forbidding reflection": zero["pass@1"]["mean"] - forbidden["pass@1"]["mean"],
        "language consistency": zero["language_consistency"],
        "fall of language consistency": base["language_consistency"] - zero["language_consistency"],
        "mean length (tokens)": zero["length"]["mean"],
        "format": zero["format"],
    }


def table(base: dict[str, Any], by_seed: dict[int, dict[str, float]], seconds: dict[int, float]) -> str:
    """A Markdown table: a row a figure, a column a seed, then mean and standard deviation over seeds."""
    seeds = list(by_seed)
    lines = ["| figure | base | " + " | ".join(f"seed {s}" for s in seeds) + " | mean ± sd |", "|---" * (len(seeds) + 3) + "|"]
    of_base = {
        "pass@1": base["pass@1"]["mean"],
        "cons@16": base["cons@16"]["mean"],
        "wait share": base["wait_share"],
        "language consistency": base["language_consistency"],
        "mean length (tokens)": base["length"]["mean"],
        "format": base["format"],
    }
    for name in by_seed[seeds[0]]:
        values = np.array([by_seed[s][name] for s in seeds])
        first = f"{of_base[name]:.3f}" if name in of_base else ""
        spread = f" ± {values.std(ddof=1):.3f}" if len(seeds) > 1 else ""
        lines.append(f"| {name} | {first} | " + " | ".join(f"{v:.3f}" for v in values) + f" | {values.mean():.3f}{spread} |")
    lines.append("| seconds of training | | " + " | ".join(f"{seconds[s]:.0f}" for s in seeds) + " | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    base = json.loads((ROOT / "reports/metrics/evaluate_base.json").read_text())
    by_seed, seconds = {}, {}
    for seed in seeds:
        folder = prepare(seed)
        done = folder / "seconds.json"
        if not done.exists():
            done.write_text(json.dumps(stage(folder, "tasks.zero")))
        seconds[seed] = json.loads(done.read_text())
        found = []
        for name in ("zero", "zero_no_reflection"):
            metrics = folder / f"reports/metrics/evaluate_{name}.json"
            if not metrics.exists():
                stage(folder, "tasks.evaluate", name)
            found.append(json.loads(metrics.read_text()))
        by_seed[seed] = figures(base, *found)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    text = (
        f"{base['problems']} held-out problems, {base['samples_per_problem']} samples each, "
        f"temperature {base['temperature']}, top-p {base['top_p']}; {machine}."
    )
    made = f"# R1-Zero over RL seeds\n\n`make seeds` wrote this page. {text}\n\n{table(base, by_seed, seconds)}\n"
    TABLE.write_text(made)
    print(made)


if __name__ == "__main__":
    main()
