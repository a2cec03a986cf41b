"""Repeats the whole recipe over seeds on the same data and base, and dev2 without the language reward: the figures of the README.

    make seeds            # python -m benchmarks.seeds --seeds 0 1 2

The seed of the pipeline itself (0) is what `make run` has left in reports/metrics; every other one runs the very stages in a folder of
its own under .runs/seeds, about 12 minutes each on two cores, and goes on where it was interrupted. Needs a finished `make run`. Writes
docs/seeds.md and reports/metrics/language_price.json, and builds the report again, which shows the latter.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tasks import records
from tasks.config import fingerprint
from tasks.monitoring.recipe_page import price_settings
from tasks.training.rl_stage import file_hash

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs/seeds.md"
PRICE = ROOT / "reports/metrics/language_price.json"
STUDENTS = ("small", "tiny")
ARMS = ("student", "distill", "rl")  # a student's base, distilled, and by RL alone
MODELS = ("base", "zero", "zero_no_reflection", "dev1", "dev2", "dev3", "r1", *(f"{arm}_{s}" for s in STUDENTS for arm in ARMS))
STAGES = ("zero", "cold_start", "dev1", "dev2", "rejection", "dev3", "reward_models", "r1")
BASES = ("models/base", *(f"models/student_{s}" for s in STUDENTS))
SEEDED = ("rl", "cold_start", "sft", "rejection", "reward_models", "ablations")  # sections of params.yaml with a seed of their own

HOW = "refusals of how, worded like harm"
Figures = dict[str, dict[str, float]]  # figure -> its value by model


def prepare(seed: int, **changes: Mapping[str, Any]) -> Path:
    """A folder in which the stages see this project's data and base, and params.yaml with another seed and `changes` by section.

    Its name holds a hash of parameters, code, data and base: figures of another set-up are never mixed in.
    """
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section in SEEDED:
        params[section]["seed"] = seed
    for section, values in changes.items():
        params[section] |= values
    bases = [ROOT / f"{base}/model.safetensors" for base in BASES]
    inputs = sorted([*ROOT.glob("tasks/**/*.py"), *ROOT.glob("data/curated/*.parquet"), *bases])
    folder = ROOT / ".runs/seeds" / f"{seed}-{fingerprint(params, [file_hash(path) for path in inputs])}"
    (folder / "models").mkdir(parents=True, exist_ok=True)
    (folder / "data").mkdir(exist_ok=True)
    for shared in ("data/curated", "data/cold_start_review.jsonl", *BASES):
        link(folder / shared, ROOT / shared)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    return folder


def link(path: Path, target: Path) -> None:
    """Makes `path` a link to `target`, if it is not there."""
    if not path.exists():
        path.symlink_to(target)


def run(folder: Path, made: Path, *command: str) -> None:
    """Runs a stage in a folder unless what it makes is there."""
    if made.exists():
        return
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    subprocess.run([sys.executable, "-m", *command], cwd=folder, env=environment, check=True)


def recipe(folder: Path) -> Path:
    """Every stage up to r1, the students, the evaluations and the comparison; returns the folder of the metrics."""
    metrics = folder / "reports/metrics"
    for stage in STAGES:
        run(folder, metrics / f"{stage}.json", f"tasks.{stage}")
    for student in STUDENTS:
        run(folder, metrics / f"distill_{student}.json", "tasks.distill", student)
        run(folder, metrics / f"rl_{student}.json", "tasks.distill_rl", student)
    for model in MODELS:
        run(folder, metrics / f"evaluate_{model}.json", "tasks.evaluate", model)
    run(folder, metrics / "compare.json", "tasks.compare")
    return metrics


def without_language(seed: int, dev1: Path) -> dict[str, Any]:
    """The evaluation of dev2 trained from the same dev1 without the language reward."""
    folder = prepare(seed, dev2={"language_weight": 0.0})
    link(folder / "models/dev1", dev1)
    run(folder, folder / "reports/metrics/dev2.json", "tasks.dev2")
    run(folder, folder / "reports/metrics/evaluate_dev2.json", "tasks.evaluate", "dev2")
    return read(folder / "reports/metrics/evaluate_dev2.json")


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def figures(metrics: Path) -> Figures:
    """The figures of one seed, by model."""
    found = {model: read(metrics / f"evaluate_{model}.json") for model in MODELS}
    against = read(metrics / "compare.json")["models"]
    made: Figures = {
        "pass@1": {m: e["pass@1"]["mean"] for m, e in found.items()},
        "cons@16": {m: e["cons@16"]["mean"] for m, e in found.items()},
        "format": {m: e["format"] for m, e in found.items()},
        "language consistency": {m: e["language_consistency"] for m, e in found.items()},
        "mixed chains": {m: e["mixed_share"] for m, e in found.items()},
        'samples with "wait"': {m: e["wait_share"] for m, e in found.items()},
        "tokens of a response": {m: e["length"]["mean"] for m, e in found.items()},
        "unsafe answers to harmful prompts": _open(found, "unsafe"),
        "refusals of harmless prompts": _open(found, "refusal"),
        HOW: _open(found, "refusal_how"),
        "units of thought on trivial prompts": _open(found, "trivial_thought"),
        "empty thoughts on trivial prompts": _open(found, "trivial_empty"),
    }
    for name in ("strict", "half"):
        made[f"preferred to dev3 ({name})"] = {m: against[m]["preferred"][name]["mean"] for m in MODELS if m in against}
    return made


def _open(found: Mapping[str, Any], name: str) -> dict[str, float]:
    return {model: e["open"][name]["mean"] for model, e in found.items()}


def spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


def stage_table(by_seed: Mapping[int, Figures], models: Sequence[str] = MODELS) -> str:
    """A row a figure, a column a model: mean ± standard deviation over seeds."""
    first = next(iter(by_seed.values()))
    lines = ["| figure | " + " | ".join(models) + " |", "|---" * (len(models) + 1) + "|"]
    for name in first:
        cells = [spread([f[name][m] for f in by_seed.values()]) if m in first[name] else "" for m in models]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def claims(f: Figures, without: Mapping[str, Any]) -> dict[str, float]:
    """What the README claims, of one seed."""
    one, lc = f["pass@1"], f["language consistency"]
    unsafe, refusals, how = (f[name] for name in ("unsafe answers to harmful prompts", "refusals of harmless prompts", HOW))
    return {
        "zero: pass@1": one["zero"],
        'zero: share with "wait" / base\'s': f['samples with "wait"']["zero"] / max(f['samples with "wait"']["base"], 1e-9),
        "zero: cost of forbidding reflection": one["zero"] - one["zero_no_reflection"],
        "zero: fall of language consistency": lc["base"] - lc["zero"],
        "dev1 - base: pass@1": one["dev1"] - one["base"],
        "dev2 - zero: pass@1": one["dev2"] - one["zero"],
        "dev2: language consistency": lc["dev2"],
        "dev2: mixed chains": f["mixed chains"]["dev2"],
        "dev3 - dev2: pass@1": one["dev3"] - one["dev2"],
        "r1 - dev2: pass@1": one["r1"] - one["dev2"],
        "r1 preferred to dev3": f["preferred to dev3 (strict)"]["r1"],
        "base preferred to dev3": f["preferred to dev3 (strict)"]["base"],
        "unsafe: r1 / dev3": unsafe["r1"] / max(unsafe["dev3"], 1e-9),
        "refusals: r1 - dev3": refusals["r1"] - refusals["dev3"],
        "refusals of how: dev3": how["dev3"],
        "refusals of how: r1 - dev3": how["r1"] - how["dev3"],
        "language reward: change of dev2's pass@1": one["dev2"] - without["pass@1"]["mean"],
        "language reward: change of dev2's consistency": lc["dev2"] - without["language_consistency"],
        "language reward: change of dev2's mixed chains": f["mixed chains"]["dev2"] - without["mixed_share"],
        **{f"{s}: distilled - by RL, pass@1": one[f"distill_{s}"] - one[f"rl_{s}"] for s in STUDENTS},
        **{f"{s}: distilled, language consistency": lc[f"distill_{s}"] for s in STUDENTS},
    }


def claim_table(by_seed: Mapping[int, dict[str, float]]) -> str:
    """A row a claim, a column a seed, then mean ± standard deviation."""
    lines = ["| figure | " + " | ".join(f"seed {s}" for s in by_seed) + " | mean ± sd |", "|---" * (len(by_seed) + 2) + "|"]
    for name in next(iter(by_seed.values())):
        values = [found[name] for found in by_seed.values()]
        lines.append(f"| {name} | " + " | ".join(f"{v:.3f}" for v in values) + f" | {spread(values)} |")
    return "\n".join(lines)


def price(by_seed: Mapping[int, Figures], without: Mapping[int, dict[str, Any]], params: Mapping[str, Any]) -> dict[str, Any]:
    """What the language reward costs and brings, over seeds, and with which parameters: reports/metrics/language_price.json."""
    one = {"pass@1": [e["pass@1"]["mean"] for e in without.values()]}
    one |= {key: [e[key] for e in without.values()] for key in ("language_consistency", "mixed_share")}
    names = {"pass@1": "pass@1", "language_consistency": "language consistency", "mixed_share": "mixed chains"}
    return {
        "with": {key: float(np.mean([f[name]["dev2"] for f in by_seed.values()])) for key, name in names.items()},
        "without": {key: float(np.mean(values)) for key, values in one.items()},
        "seeds": len(by_seed),
        "settings": price_settings(params),
    }


def machine() -> str:
    """What the figures were measured on."""
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"


def rebuild_report() -> None:
    """Runs the stage `report` alone: no dependency of it in dvc.yaml says that the price has changed."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run([sys.executable, "-m", "dvc", "repro", "--force", "--single-item", "report"], cwd=ROOT, env=environment, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    by_seed: dict[int, Figures] = {}
    without: dict[int, dict[str, Any]] = {}
    for seed in seeds:
        own = seed == params["rl"]["seed"]
        folder = ROOT if own else prepare(seed)
        by_seed[seed] = figures(folder / "reports/metrics" if own else recipe(folder))
        without[seed] = without_language(seed, folder / "models/dev1")
    base = read(ROOT / "reports/metrics/evaluate_base.json")
    text = (
        f"# The recipe over seeds\n\n`make seeds` wrote this page. Same data and base, seeds {', '.join(map(str, seeds))} of every stage; "
        f"{base['problems']} held-out problems with {base['samples_per_problem']} samples each and {sum(base['open']['prompts'].values())} "
        f"open prompts with {base['open']['samples_per_prompt']}, temperature {base['temperature']}, "
        f"top-p {base['top_p']}; {machine()}.\n\n"
        f"{stage_table(by_seed)}\n\n## What the README says, by seed\n\n{claim_table({s: claims(by_seed[s], without[s]) for s in seeds})}\n"
    )
    for path, content in ((TABLE, text), (PRICE, json.dumps(price(by_seed, without, params), indent=2) + "\n")):
        with records.atomic(path) as temporary:
            temporary.write_text(content)
    print(text)
    rebuild_report()


if __name__ == "__main__":
    main()
