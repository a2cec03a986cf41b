"""A stage of supervised fine-tuning: one dataset, one base, one model folder (dev1, dev3 and the students).

Writes models/<name>, reports/metrics/<name>_steps.csv and reports/metrics/<name>.json. Killed at any moment, the same command
continues from .runs/<name> and ends with the same bytes.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tasks import records, template
from tasks.config import SFT, fingerprint
from tasks.evaluation.metrics import mean_or_zero
from tasks.generation import model_folder
from tasks.monitoring import tracking
from tasks.training import sft, workers
from tasks.training.actor import policy_fingerprint
from tasks.training.rl import LANES

MODELS = Path("models")
METRICS = Path("reports/metrics")
RUNS = Path(".runs")
CHECKPOINTS = "checkpoints"
COLUMNS = ("step", "epoch", "loss", "learning_rate", "grad_norm", "response_tokens", "padding")


def code() -> list[Path]:
    """The sources that decide what an update is."""
    return [Path(template.__file__), *sorted(Path(__file__).parent.glob("*.py"))]


def state_folder(name: str, params: SFT, inputs: dict[str, str]) -> Path:
    """Where this very run keeps its checkpoints: other parameters, data, base or code get another folder."""
    settings = params.model_dump(mode="json", exclude={"workers", "checkpoint_every"})
    return RUNS / name / fingerprint(settings, inputs, [tracking.content_hash(path) for path in code()])


def describe(name: str, sizes: sft.Sizes, params: SFT, count: int) -> str:
    """The derived sizes, printed before the first step."""
    return (
        f"{name}: {sizes.samples:,} samples of {sizes.tokens:,} tokens, {sizes.response_tokens:,} of them responses; "
        f"{sizes.updates:,} updates of {params.batch} samples = {sizes.epochs} epochs; "
        f"{sizes.rows:,} packed rows of at most {params.context} tokens, padding {sizes.padding:.1%} "
        f"({sizes.padding_unpacked:.1%} unpacked); {count} worker processes"
    )


def summarize(sizes: sft.Sizes, state: sft.State, seed: int, policy: PreTrainedModel) -> dict[str, Any]:
    """The stage's headline figures; losses (nats a response token) are means of the first and last tenth of the run."""
    found, tenth = [row["loss"] for row in state.rows], max(1, len(state.rows) // 10)
    ends = {"first_loss": mean_or_zero(found[:tenth]), "last_loss": mean_or_zero(found[-tenth:])}
    return {
        **asdict(sizes), "seed": seed, **ends, "policy_fingerprint": policy_fingerprint(policy),
        "parameters": sum(weight.numel() for weight in policy.parameters()), "flops": {"training": state.flops, "total": state.flops},
    }  # fmt: skip


def write_steps(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """One row an update; figures to 6 significant digits, so that the file reads well."""
    with records.atomic(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows([f"{v:.6g}" if isinstance(v := row[column], float) else v for column in COLUMNS] for row in rows)


def train(name: str, data: Path, params: SFT, findings: Callable[[dict[str, Any]], dict[str, Any]] = lambda summary: {}) -> None:
    """Tunes `params.base` on `data` (SFT_SCHEMA) and publishes the stage's outputs; the resumable state is removed at the end.

    `findings`: what the stage adds to its summary, or puts in place of a part of it.

    Raises:
        DataError: the dataset is missing, empty, malformed, or holds samples that do not fit.
        ModelFolderError: the base is missing or damaged.
        LeakError, DivergedError, CheckpointError, WorkerError: see tasks.training.
    """
    torch.set_num_threads(1)  # before anything is forked; work is shared by processes, not threads
    base = model_folder.find(params.base)
    policy, tokenizer = model_folder.load(base)
    if params.positions:
        policy.config.max_position_embeddings = params.positions
    batches = records.iter_batches(data, records.SFT_SCHEMA)
    samples = sft.load(batches, tokenizer, params.context, policy.config.max_position_embeddings, str(data))
    inputs = {str(path): tracking.content_hash(path) for path in (data, base)}
    folder = state_folder(name, params, inputs)
    count = params.workers or workers.measure(min(LANES, os.cpu_count() or 1))
    sizes = sft.sizes(samples, params)
    print(describe(name, sizes, params, count), flush=True)
    trainer = sft.Trainer(policy, samples, params, name, count)
    try:
        with tracking.run(stage=name, params=params.model_dump(mode="json"), inputs=inputs, state=folder) as run:
            state = trainer.run(folder / CHECKPOINTS, lambda rows: _track(run, rows))
            summary = summarize(sizes, state, params.seed, policy)
            summary |= findings(summary)
            publish(name, trainer, tokenizer, summary, run)
    finally:
        trainer.workers.close()
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)  # what tracking could not deliver yet stays
    print(f"{name}: loss {summary['first_loss']:.3f} -> {summary['last_loss']:.3f} nats a response token; {MODELS / name}")


def _track(run: tracking.Run, rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        run.metrics(row["step"], {key: value for key, value in row.items() if key != "step"})


def publish(name: str, trainer: sft.Trainer, tokenizer: Any, summary: dict[str, Any], run: tracking.Run) -> None:
    """Writes the stage's outputs, the figures last (where they are, all of them are), and tells the tracker."""
    steps, figures, model = METRICS / f"{name}_steps.csv", METRICS / f"{name}.json", MODELS / name
    model_folder.save(trainer.policy, tokenizer, model)
    write_steps(trainer.state.rows, steps)
    with records.atomic(figures) as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n")
    run.artifact(steps)
    run.artifact(figures)
    run.checkpoint(model)
