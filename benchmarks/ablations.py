"""Repeats the ablations over seeds of RL on the same data, base and dev1: the figures of docs/ablations.md.

    python -m benchmarks.ablations --seeds 0 1 2

The seed of the pipeline itself (ablations.seed) is what `make ablations` has left in reports/ablations; every other one runs the very
stage in a folder of its own under .runs/seeds, about half an hour each on two cores, and goes on where it was interrupted. Seconds and
memory mean something only where nothing else ran on the machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.seeds import ROOT, Figures, claim_table, link, machine, prepare, read, run, stage_table
from tasks import errors, records
from tasks.config import Params, load_params
from tasks.errors import SecondThoughtError

TABLE = ROOT / "docs/ablations.md"
REPORTS = Path("reports/ablations")
MIB = 2**20


def collect(params: Params, seed: int) -> dict[str, Any]:
    """Every run's figures for one seed, by name, trained where they are not there yet.

    Raises:
        SecondThoughtError: the pipeline's own seed has not been run.
    """
    runs = sorted(params.ablations.runs, key=lambda name: params.ablations.runs[name].same_as is not None)  # what is repeated comes last
    if seed == params.ablations.seed:
        missing = [name for name in runs if not (ROOT / REPORTS / f"{name}.json").exists()]
        if missing:
            raise SecondThoughtError(f"{REPORTS} lacks {', '.join(missing)}: run `make ablations` first")
        return {name: read(ROOT / REPORTS / f"{name}.json") for name in runs}
    folder = prepare(seed)
    link(folder / "models/dev1", ROOT / "models/dev1")
    for name in runs:
        run(folder, folder / REPORTS / f"{name}.json", "tasks.ablate", name)
    return {name: read(folder / REPORTS / f"{name}.json") for name in runs}


def figures(found: Mapping[str, Any]) -> Figures:
    """The figures of one seed, by run."""

    def of(value: Any) -> dict[str, float]:
        return {name: value(told) for name, told in found.items()}

    return {
        "pass@1": of(lambda told: told["evaluation"]["pass@1"]["mean"]),
        "language consistency": of(lambda told: told["evaluation"]["language_consistency"]),
        "mixed chains": of(lambda told: told["evaluation"]["mixed_share"]),
        'samples with "wait"': of(lambda told: told["evaluation"]["wait_share"]),
        "tokens of a response": of(lambda told: told["evaluation"]["length"]),
        "seconds": of(lambda told: told["seconds"]),
        "peak memory of all processes (MiB)": of(lambda told: (told["peak_memory_bytes"] or float("nan")) / MIB),
        "weights, moments and gradients (MiB)": of(lambda told: told["state_bytes"] / MIB),
    }


def claims(f: Figures) -> dict[str, float]:
    """What the paper says of its ablations, as differences and ratios of one seed."""
    made = {}
    for name, decay in (("ppo_lambda_1", "1.0"), ("ppo_lambda_095", "0.95")):
        made[f"PPO, lambda {decay} - GRPO: pass@1"] = f["pass@1"][name] - f["pass@1"]["grpo"]
        for figure in ("seconds", "peak memory of all processes (MiB)", "weights, moments and gradients (MiB)"):
            made[f"PPO, lambda {decay} / GRPO: {figure}"] = f[figure][name] / f[figure]["grpo"]
    pairs = {"sequence level - token level": ("sequence_level", "grpo"), "clip 0.2 - clip 10": ("clip_02", "clip_10")}
    pairs["with - without the language reward"] = ("language_on", "language_off")
    for what, (first, second) in pairs.items():
        for figure in ("pass@1", "language consistency"):
            made[f"{what}: {figure}"] = f[figure][first] - f[figure][second]
    return made


def page(params: Params, by_seed: Mapping[int, Figures]) -> str:
    """docs/ablations.md."""
    runs, names = params.ablations.runs, [name for name in params.ablations.runs if name in next(iter(by_seed.values()))["pass@1"]]
    what = "\n".join(f"- `{name}`: {runs[name].title}, from {'the base' if runs[name].like == 'zero' else 'dev1'}" for name in names)
    own = params.evaluate
    return (
        f"# The ablations over seeds\n\n`python -m benchmarks.ablations` wrote this page. Same data, base and dev1, seeds "
        f"{', '.join(map(str, by_seed))} of RL; {own.problems} held-out problems with {own.samples} samples each, temperature "
        f"{own.temperature}, top-p {own.top_p}; {machine()}.\n\n{what}\n\n{stage_table(by_seed, names)}\n\n"
        f"## Differences and ratios, by seed\n\n{claim_table({seed: claims(f) for seed, f in by_seed.items()})}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    params = load_params(ROOT / "params.yaml")
    text = page(params, {seed: figures(collect(params, seed)) for seed in parser.parse_args().seeds})
    with records.atomic(TABLE) as temporary:
        temporary.write_text(text)
    print(text)


if __name__ == "__main__":
    errors.main(main)
