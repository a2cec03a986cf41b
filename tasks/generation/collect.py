"""Samples prompts from a model into a Parquet file: streamed, shared by workers, resumable chunk by chunk.

The data stages (cold_start, rejection, reward_models) sample thousands of prompts; a killed one continues after its last whole part.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tasks import records
from tasks.generation import model_folder
from tasks.generation.sampler import Sampling, TorchSampler
from tasks.records import ROLLOUT_SCHEMA, Record
from tasks.template import render
from tasks.training import flops, workers
from tasks.training.rl import CHUNK, seed_of

PART = 8  # chunks of prompts in a part: what a kill can lose
JOINED = ("domain", "family", "level", "language", "messages", "verifier", "truth")


class _Drawer:
    """What a worker holds: a sampler of one frozen model."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.sampler = TorchSampler(model.config, [tokenizer.eos_token_id])
        self.policy = self.sampler.load(dict(model.state_dict()))

    def draw(self, chunk: Sequence[Record], sampling: Sampling, seed: int) -> list[dict[str, Any]]:
        prompts = [self.tokenizer.encode(render(r["messages"][-1]["content"])) for r in chunk]
        groups = self.sampler.generate(prompts, sampling, torch.Generator().manual_seed(seed))
        return [self._row(r, i, rollout, sampling) for r, group in zip(chunk, groups, strict=True) for i, rollout in enumerate(group)]

    def _row(self, record: Mapping[str, Any], number: int, rollout: Any, sampling: Sampling) -> dict[str, Any]:
        return {
            "prompt_id": record["id"], "sample": number, **{key: record[key] for key in JOINED},
            "text": self.tokenizer.decode(rollout.token_ids, skip_special_tokens=True),
            "tokens": len(rollout.token_ids), "finished": rollout.finished, "policy": self.policy,
        }  # fmt: skip


def collect(folder: Path, prompts: Iterable[Record], sampling: Sampling, seed: int, path: Path, state: Path, what: str) -> int:
    """Samples every prompt from the model in `folder` into `path` (ROLLOUT_SCHEMA), prompts in order; returns the number of rows.

    Each chunk of prompts has its own seeded generator, so neither workers nor interruptions change a byte.

    Args:
        prompts: prompt records, possibly a stream.
        seed: of the stage.
        state: folder of finished parts; the caller names it after everything that decides the result, and it is removed at the end.
        what: the stage's name, for the progress bar and the seeds.

    Raises:
        DataError: a prompt leaves no room for its completion (from check_lengths of the caller), or the model folder is not whole.
    """
    torch.set_num_threads(1)
    model, tokenizer = model_folder.load(folder)
    crew = workers.Workers(_Drawer(model, tokenizer), workers.measure(os.cpu_count() or 1))
    try:
        parts = list(_parts(crew, prompts, sampling, seed, state, what))
    finally:
        crew.close()
    records.write((row for part in parts for batch in records.iter_batches(part, ROLLOUT_SCHEMA) for row in batch), path, ROLLOUT_SCHEMA)
    rows = sum(records.count(part) for part in parts)
    shutil.rmtree(state, ignore_errors=True)
    return rows


def spent(path: Path, config: Any, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """What it took to sample `path` (ROLLOUT_SCHEMA) from the model that `config` describes: tokens of completions, and FLOPs."""
    cost, tokens, total, prompt = flops.cost(config), 0, 0, 0
    for row in (row for batch in records.iter_batches(path, ROLLOUT_SCHEMA) for row in batch):
        if row["sample"] == 0:  # a prompt is read once, and its samples follow each other
            prompt = len(tokenizer.encode(render(row["messages"][-1]["content"])))
            total += cost.prefill(prompt)
        tokens += row["tokens"]
        total += cost.decode(prompt, row["tokens"])
    return {"tokens": tokens, "flops": total}


def _parts(crew: workers.Workers, prompts: Iterable[Record], sampling: Sampling, seed: int, state: Path, what: str) -> Iterator[Path]:
    """Paths of the parts in order; only those that do not exist yet are sampled."""
    source, number = iter(prompts), 0
    with tqdm(desc=f"{what}: sampling", unit=" samples", mininterval=1) as bar:
        while group := list(islice(source, PART * CHUNK)):
            part = state / f"part-{number:06d}.parquet"
            if not part.exists():
                chunks = [group[i : i + CHUNK] for i in range(0, len(group), CHUNK)]
                jobs = [(chunk, sampling, seed_of(seed, what, number, i)) for i, chunk in enumerate(chunks)]
                records.write((row for made in crew.map("draw", jobs) for row in made), part, ROLLOUT_SCHEMA)
            bar.update(records.count(part))
            number += 1
            yield part
