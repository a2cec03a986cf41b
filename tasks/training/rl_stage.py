"""An RL stage (zero, dev2, r1, distill_rl) from files to files: what they share around `rl.Trainer`.

A stage reads data/curated and an initial model, writes models/<name>, reports/metrics/<name>_steps.csv and reports/metrics/<name>.json.
Killed at any moment, the same command continues from .runs/<name> and ends with the same bytes.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tasks import records
from tasks.config import RL, fingerprint
from tasks.errors import DataError
from tasks.generation import model_folder
from tasks.monitoring import changepoint, tracking
from tasks.monitoring.meter import Meter
from tasks.monitoring.steps import COLUMNS
from tasks.records import Record
from tasks.rewards.total import Rewarder
from tasks.rewards.verify import VERIFIERS
from tasks.training import workers
from tasks.training.actor import check_lengths, policy_fingerprint
from tasks.training.rl import LANES, Draw, State, Trainer, rollout_prompts

CURATED = Path("data/curated")
CHECKPOINTS = "checkpoints"
ROOMS = ("generation", "rewards", "training")  # the sources that decide what a rollout and an update are


@dataclass(frozen=True)
class Stage:
    """One RL stage.

    initial: the model that it starts from. draw: the prompts of a rollout, from `prompts`. inputs: further files or folders that it
    reads. findings: what the stage adds to its metrics, from its rows. budget: FLOPs after which it ends. module: the file under tasks/,
    where it is not the stage's name. reports: folder of its metrics. measured: what it adds to them from the trained model in its folder
    and from what training took.
    """

    name: str
    params: RL
    initial: Path
    prompts: Sequence[Record]
    draw: Draw
    rewarder: Rewarder
    inputs: tuple[Path, ...] = ()
    findings: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]] = field(default=lambda rows: {})
    budget: int | None = None
    module: str = ""
    reports: Path = Path("reports/metrics")
    measured: Callable[[Trainer, Meter], dict[str, Any]] = field(default=lambda trainer, meter: {})

    @property
    def model(self) -> Path:
        return Path("models") / self.name

    @property
    def steps(self) -> Path:
        return self.reports / f"{self.name}_steps.csv"

    @property
    def summary(self) -> Path:
        return self.reports / f"{self.name}.json"


def load_prompts(split: str, domains: Iterable[str]) -> list[Record]:
    """The prompts of a split that a rule can verify.

    Raises:
        DataError: there are none.
    """
    path, wanted = CURATED / f"{split}.parquet", set(domains)
    found = [r for r in records.read(path) if r["domain"] in wanted and r["verifier"] in VERIFIERS]
    if not found:
        raise DataError(f"{path} holds no verifiable prompt of the domains {sorted(wanted)}: check `domains` and curate.sources")
    return found


def load_validation(params: RL) -> list[Record]:
    """The problems that measure a run while it goes on, at most `validation_problems`.

    Raises:
        DataError: there are none.
    """
    return load_prompts("validation", params.domains)[: params.validation_problems]


def in_order(prompts: Sequence[Record], params: RL) -> Draw:
    """Draws rollouts from an endless sequence of epochs over `prompts`."""
    return lambda rollout: rollout_prompts(prompts, params.seed, rollout, params.prompts_per_rollout)


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_of(path: Path) -> list[Path]:
    """A file, or the files directly in a folder, by name."""
    return [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())


def code(name: str) -> list[Path]:
    """The sources that decide a stage's result: its own file, the prompt's template and the rooms that it works with."""
    tasks = Path(__file__).parents[1]
    return [tasks / f"{name}.py", tasks / "template.py", *sorted(path for room in ROOMS for path in (tasks / room).glob("*.py"))]


def state_folder(stage: Stage) -> Path:
    """Where this very run keeps its checkpoints: other parameters, data, initial model or code get another folder."""
    inputs = [CURATED / "train.parquet", CURATED / "validation.parquet", *code(stage.module or stage.name)]
    inputs += [file for path in (stage.initial, *stage.inputs) for file in files_of(path)]
    settings = stage.params.model_dump(mode="json", exclude={"workers", "checkpoint_every"}) | {"budget": stage.budget}
    return Path(".runs") / stage.name / fingerprint(settings, [file_hash(path) for path in inputs])


def write_steps(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One row a policy update, columns as in docs/data.md; figures to 6 significant digits, so that the file reads well."""
    columns = [*COLUMNS, *(name for name in rows[0] if name not in COLUMNS)]  # PPO tells of its value model as well
    with records.atomic(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in rows:
            writer.writerow([_cell(row[column]) for column in columns])


def _cell(value: Any) -> Any:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value


def summarize(state: State, seed: int, policy: str) -> dict[str, Any]:
    """The stage's headline figures; means of the first and last tenth of the run, since single steps are noisy."""
    rows, tenth = state.rows, max(1, len(state.rows) // 10)

    def ends(column: str) -> dict[str, float | None]:
        return {name: _mean([r[column] for r in part]) for name, part in (("first", rows[:tenth]), ("last", rows[-tenth:]))}

    takeoff = changepoint.takeoff([r["wait_share"] for r in rows], [r["step"] for r in rows], seed=seed)
    return {
        "steps": state.step, "seed": seed, "rollouts": state.rollout, "tokens_sampled": state.tokens_sampled,
        "first_reward": ends("reward")["first"], "last_reward": ends("reward")["last"],
        **{column: ends(column) for column in ("accuracy", "length", "wait_share", "language_consistency", "entropy")},
        "wait_takeoff_step": takeoff, "reference_updates": state.reference_updates, "policy_fingerprint": policy,
        "flops": state.flops | {"total": sum(state.flops.values())},
    }  # fmt: skip


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def describe_sizes(stage: Stage, count: int) -> str:
    """The derived sizes, printed before the first step."""
    p, train, bound = stage.params, len(stage.prompts), "" if stage.budget is None else "at most "
    return (
        f"{stage.name}: {bound}{p.rollouts} rollouts x {p.prompts_per_rollout} prompts x {p.group_size} samples = "
        f"{p.rollouts * p.outputs_per_rollout:,} outputs; "
        f"{p.minibatches} updates of {p.outputs_per_step} outputs a rollout = {p.steps} steps; "
        f"{train:,} prompts = {p.rollouts * p.prompts_per_rollout / train:.2f} epochs; {count} worker processes"
    )


def train(stage: Stage) -> None:
    """Trains and publishes the outputs; the resumable state is removed at the end.

    Raises:
        SecondThoughtError: prompts without a reward or too long for the model, bad inputs, and what `Trainer.run` raises.
    """
    torch.set_num_threads(1)  # before anything is forked; work is shared by processes, not threads
    model_folder.check(stage.initial)
    params, validation = stage.params, load_validation(stage.params)
    stage.rewarder.check(stage.prompts)
    folder = state_folder(stage)
    count = params.workers or workers.measure(min(LANES, os.cpu_count() or 1))
    policy, tokenizer = model_folder.load(stage.initial)
    longest = max(limit.tokens for limit in params.limits)
    check_lengths([*stage.prompts, *validation], tokenizer, policy.config.max_position_embeddings, longest)
    print(describe_sizes(stage, count))
    trainer = Trainer(stage.name, policy, tokenizer, stage.draw, stage.prompts, validation, stage.rewarder, params, count, stage.budget)
    inputs = {str(path): path for path in (CURATED, stage.initial, *stage.inputs)}
    try:
        with tracking.run(stage=stage.name, params=params.model_dump(mode="json"), inputs=inputs, state=folder) as run:
            meter = Meter(folder / CHECKPOINTS / "meter.json")
            state = trainer.run(folder / CHECKPOINTS, lambda rows: _track(run, rows, meter))
            publish(stage, trainer, tokenizer, state, meter)
            run.artifact(stage.steps)
            run.artifact(stage.summary)
            run.checkpoint(stage.model)
    finally:
        trainer.workers.close()
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)  # what tracking could not deliver yet stays


def _track(run: tracking.Run, rows: Sequence[dict[str, Any]], meter: Meter) -> None:
    meter.lap()
    for row in rows:
        run.metrics(row["step"], {key: value for key, value in row.items() if key != "step"})


def publish(stage: Stage, trainer: Trainer, tokenizer: Any, state: State, meter: Meter) -> None:
    """Writes the stage's outputs, the summary last: where it is, all of them are."""
    model_folder.save(trainer.policy, tokenizer, stage.model)
    write_steps(stage.steps, state.rows)
    summary = summarize(state, stage.params.seed, policy_fingerprint(trainer.policy)) | stage.findings(state.rows)
    summary["parameters"] = sum(weight.numel() for weight in trainer.policy.parameters())
    if stage.budget is not None:
        summary["flops"] |= {"budget": stage.budget}
    summary |= stage.measured(trainer, meter)
    with records.atomic(stage.summary) as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n")
