"""Stage `zero`: R1-Zero, GRPO straight on a base model with R1's template and the rule reward, accuracy + format.

    python -m tasks.zero

Reads `zero` of params.yaml, data/curated and the base. Writes models/zero, reports/metrics/zero_steps.csv and
reports/metrics/zero.json. Killed at any moment, the same command continues from .runs/zero and ends with the same bytes.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from tasks import errors, records
from tasks.config import Params, fingerprint, load_params
from tasks.errors import DataError
from tasks.generation import model_folder
from tasks.monitoring import changepoint, tracking
from tasks.monitoring.steps import COLUMNS
from tasks.records import Record
from tasks.training import workers
from tasks.training.actor import check_lengths, policy_fingerprint
from tasks.training.rl import LANES, State, Trainer

CURATED = Path("data/curated")
MODEL = Path("models/zero")
STEPS = Path("reports/metrics/zero_steps.csv")
SUMMARY = Path("reports/metrics/zero.json")
RUNS = Path(".runs/zero")
CHECKPOINTS = "checkpoints"


def load_prompts(split: str, domains: Iterable[str]) -> list[Record]:
    """The verifiable prompts of a split.

    Raises:
        DataError: there are none.
    """
    path, wanted = CURATED / f"{split}.parquet", set(domains)
    found = [r for r in records.read(path) if r["domain"] in wanted and r["verifier"] != "none"]
    if not found:
        raise DataError(f"{path} holds no verifiable prompt of the domains {sorted(wanted)}: check zero.domains and curate.sources")
    return found


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def state_folder(params: Params) -> Path:
    """Where this very run keeps its checkpoints: other parameters, data, base or code get another folder."""
    base = sorted(path for path in Path(params.zero.base).iterdir() if path.is_file())
    inputs = [CURATED / "train.parquet", CURATED / "validation.parquet", *base, *code()]
    settings = params.zero.model_dump(mode="json", exclude={"workers", "checkpoint_every"})
    return RUNS / fingerprint(settings, [file_hash(path) for path in inputs])


def code() -> list[Path]:
    """The sources that decide what a rollout and an update are."""
    tasks = Path(__file__).parent
    return [Path(__file__), *sorted(path for room in ("generation", "rewards", "training") for path in (tasks / room).glob("*.py"))]


def write_steps(rows: Sequence[dict[str, Any]]) -> None:
    """One row a policy update, columns as in docs/data.md; figures to 6 significant digits, so that the file reads well."""
    with records.atomic(STEPS) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row in rows:
            writer.writerow([_cell(row[column]) for column in COLUMNS])


def _cell(value: Any) -> Any:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value


def summarize(state: State, seed: int, policy: str) -> dict[str, Any]:
    """The stage's headline figures; means of the first and last tenth of the run, since single steps are noisy."""
    rows, tenth = state.rows, max(1, len(state.rows) // 10)

    def ends(column: str) -> dict[str, float]:
        return {name: sum(r[column] for r in part) / tenth for name, part in (("first", rows[:tenth]), ("last", rows[-tenth:]))}

    takeoff = changepoint.takeoff([r["wait_share"] for r in rows], [r["step"] for r in rows], seed=seed)
    return {
        "steps": state.step, "seed": seed, "rollouts": state.rollout, "tokens_sampled": state.tokens_sampled,
        "first_reward": ends("reward")["first"], "last_reward": ends("reward")["last"],
        **{column: ends(column) for column in ("accuracy", "length", "wait_share", "language_consistency", "entropy")},
        "wait_takeoff_step": takeoff, "reference_updates": state.reference_updates, "policy_fingerprint": policy,
    }  # fmt: skip


def describe_sizes(params: Params, train: int, count: int) -> str:
    """The derived sizes, printed before the first step."""
    z = params.zero
    return (
        f"zero: {z.rollouts} rollouts x {z.prompts_per_rollout} prompts x {z.group_size} samples = "
        f"{z.rollouts * z.outputs_per_rollout:,} outputs; "
        f"{z.minibatches} updates of {z.outputs_per_step} outputs a rollout = {z.steps} steps; "
        f"{train:,} prompts = {z.rollouts * z.prompts_per_rollout / train:.2f} epochs; {count} worker processes"
    )


def train(params: Params) -> None:
    """Trains Zero and publishes its outputs; the resumable state is removed at the end."""
    torch.set_num_threads(1)  # before anything is forked; work is shared by processes, not threads
    model_folder.check(Path(params.zero.base))
    prompts = load_prompts("train", params.zero.domains)
    validation = load_prompts("validation", params.zero.domains)[: params.zero.validation_problems]
    folder = state_folder(params)
    count = params.zero.workers or workers.measure(min(LANES, os.cpu_count() or 1))
    policy, tokenizer = model_folder.load(Path(params.zero.base))
    longest = max(limit.tokens for limit in params.zero.limits)
    check_lengths([*prompts, *validation], tokenizer, policy.config.max_position_embeddings, longest)
    print(describe_sizes(params, len(prompts), count))
    trainer = Trainer(policy, tokenizer, prompts, validation, params.zero, params.zero.seed, count)
    inputs = {str(CURATED): CURATED, params.zero.base: Path(params.zero.base)}
    try:
        with tracking.run(stage="zero", params=params.zero.model_dump(mode="json"), inputs=inputs, state=folder) as run:
            state = trainer.run(folder / CHECKPOINTS, lambda rows: _track(run, rows))
            publish(trainer, tokenizer, state, params.zero.seed)
            run.artifact(STEPS)
            run.artifact(SUMMARY)
            run.checkpoint(MODEL)
    finally:
        trainer.workers.close()
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)  # what tracking could not deliver yet stays


def _track(run: tracking.Run, rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        run.metrics(row["step"], {key: value for key, value in row.items() if key != "step"})


def publish(trainer: Trainer, tokenizer: Any, state: State, seed: int) -> None:
    """Writes the stage's outputs."""
    write_steps(state.rows)
    summary = summarize(state, seed, policy_fingerprint(trainer.policy))
    with records.atomic(SUMMARY) as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n")
    model_folder.save(trainer.policy, tokenizer, MODEL)


def main() -> None:
    train(load_params())


if __name__ == "__main__":
    errors.main(main)
