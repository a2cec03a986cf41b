"""Stage `evaluate`: samples held-out prompts from one model, keeps every sample, and computes the metrics from the files.

    python -m tasks.evaluate zero

Paper: temperature 0.6, top-p 0.95, k samples a problem. Writes data/samples/<name>.parquet (verifiable problems),
data/samples/<name>_open.parquet (general and harmful prompts, which no rule verifies) and reports/metrics/evaluate_<name>.json.
`forbid_reflection` forbids the reflective words at decoding (the causal control: same weights, no "wait").
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from data import contracts
from tasks import errors, records
from tasks.config import Evaluate, Evaluated, Params, load_params
from tasks.errors import DataError, SecondThoughtError
from tasks.evaluation import open as open_prompts
from tasks.evaluation.metrics import summarize
from tasks.generation import collect, model_folder
from tasks.generation.sampler import Sampling
from tasks.monitoring import reflection, tracking
from tasks.records import ROLLOUT_SCHEMA, SAMPLE_SCHEMA, Record
from tasks.rewards.total import Rewarder
from tasks.rewards.verify import VERIFIERS
from tasks.training import workers
from tasks.training.actor import Actor, Output, check_lengths
from tasks.training.rl import CHUNK, seed_of
from tasks.world.problems import VERIFIABLE

TEST = Path("data/curated/test.parquet")
SAMPLES = Path("data/samples")
METRICS = Path("reports/metrics")


def held_out(limit: int) -> list[Record]:
    """The first `limit` verifiable problems of the test split in the order of their ids (hashes, so a random choice).

    Raises:
        DataError: there are none.
    """
    found = [r for r in records.read(TEST) if r["domain"] in VERIFIABLE and r["verifier"] in VERIFIERS]
    if not found:
        raise DataError(f"{TEST} holds no problem that a rule can verify: check curate.sources and curate.test")
    return _first(found, limit)


def held_out_open(limit: int) -> list[Record]:
    """The first `limit` general prompts of the test split and as many harmful ones; none if the data have none."""
    found = records.read(TEST)
    return [r for domain in open_prompts.DOMAINS for r in _first([r for r in found if r["domain"] == domain], limit)]


def _first(found: Sequence[Record], limit: int) -> list[Record]:
    return sorted(found, key=lambda r: r["id"].rsplit("-", 1)[1])[:limit]


def find(params: Evaluate, name: str) -> Evaluated:
    """The entry of evaluate.models with a name.

    Raises:
        SecondThoughtError: there is none.
    """
    for model in params.models:
        if model.name == name:
            return model
    raise SecondThoughtError(f"no model {name!r} in evaluate.models of params.yaml; it has {', '.join(m.name for m in params.models)}")


class Model:
    """A model under evaluation, loaded, with the way in which it is sampled."""

    def __init__(self, entry: Evaluated, settings: Evaluate, prompts: Sequence[Record]) -> None:
        """
        Raises:
            DataError: prompts that leave no room for their completion, by id.
            SecondThoughtError: the model folder is not whole.
        """
        self.name, self.folder = entry.name, Path(entry.folder)
        model_folder.check(self.folder)
        self.policy, self.tokenizer = model_folder.load(self.folder)
        check_lengths(prompts, self.tokenizer, self.policy.config.max_position_embeddings, settings.max_new_tokens)
        forbidden = reflection.forbidden_sequences(self.tokenizer) if entry.forbid_reflection else ()
        self.sampling = Sampling(settings.temperature, settings.top_p, settings.max_new_tokens, settings.samples, forbidden)


def sample(model: Model, problems: Sequence[Record], seed: int) -> list[Output]:
    """All samples of all problems, in order; chunks have their own generators, so the number of workers changes nothing."""
    count = workers.measure(os.cpu_count() or 1)
    records_by_id = {r["id"]: r for r in problems}
    actor = Actor(model.policy.share_memory(), None, model.tokenizer, records_by_id, torch.empty(0), Rewarder())
    crew, outputs = workers.Workers(actor, count), []
    chunks = [[r["id"] for r in problems[i : i + CHUNK]] for i in range(0, len(problems), CHUNK)]
    try:
        for at in tqdm(range(0, len(chunks), 2 * count), desc=f"evaluate {model.name}", unit="batch"):
            jobs = [(0, chunk, model.sampling, seed_of(seed, "evaluate", i)) for i, chunk in enumerate(chunks[at : at + 2 * count], at)]
            outputs += [output for made in crew.map("sample", jobs) for output in made]
    finally:
        crew.close()
    return outputs


def sample_problems(model: Model, problems: Sequence[Record], params: Params, path: Path) -> None:
    """Writes scored samples of the problems, and checks the file."""
    records.write(to_records(sample(model, problems, params.seed), problems, params.evaluate), path, SAMPLE_SCHEMA)
    contracts.check("samples", pq.read_table(path), samples_per_prompt=params.evaluate.samples)


def sample_open(model: Model, prompts: Sequence[Record], samples: int, seed: int, path: Path) -> None:
    """Writes samples of the open prompts, without scores: the judges of tasks/evaluation/open.py read them later."""
    if not prompts:
        return records.write([], path, ROLLOUT_SCHEMA)
    state = Path(f".runs/evaluate_{model.name}/open")
    shutil.rmtree(state, ignore_errors=True)  # seconds of work: it starts again instead of asking what has changed since a kill
    collect.collect(
        model.folder, prompts, replace(model.sampling, samples=samples), seed, path, state, f"evaluate {model.name}, open prompts"
    )


def to_records(outputs: Sequence[Output], problems: Sequence[Record], settings: Evaluate) -> list[dict[str, Any]]:
    """Sample records (docs/data.md)."""
    by_id = {r["id"]: r for r in problems}
    rows = []
    for number, output in enumerate(outputs):
        record = by_id[output.prompt_id]
        rows.append({
            "prompt_id": output.prompt_id, "sample": number % settings.samples, "text": output.text, "token_ids": output.completion,
            "finished": output.finished, "answer": output.reward.answer, "correct": output.reward.accuracy == 1,
            "format": output.reward.format == 1, "language_consistency": output.reward.language,
            **{key: record[key] for key in ("domain", "family", "level", "language")},
            "model": output.policy, "temperature": settings.temperature, "top_p": settings.top_p, "max_new_tokens": settings.max_new_tokens,
        })  # fmt: skip
    return rows


def metrics(name: str, samples: Path, open_samples: Path, problems: Sequence[Record]) -> dict[str, Any]:
    """reports/metrics/evaluate_<name>.json: a pure function of the sample files and the problems."""
    frame = pd.read_parquet(samples)
    first = frame.iloc[0]
    settings = {key: round(float(first[key]), 6) for key in ("temperature", "top_p")} | {"max_new_tokens": int(first["max_new_tokens"])}
    told = summarize(frame, {r["id"]: r for r in problems}) | {"open": open_prompts.summarize(pd.read_parquet(open_samples), frame)}
    return {"model": name, "fingerprint": str(first["model"]), **settings, **told}


def evaluate(params: Params, name: str) -> dict[str, Any]:
    """Samples, stores and measures one model; returns the metrics."""
    torch.set_num_threads(1)
    own, entry = params.evaluate, find(params.evaluate, name)
    problems, prompts = held_out(own.problems), held_out_open(own.open_problems)
    model = Model(entry, own, [*problems, *prompts])
    path, open_path, report = SAMPLES / f"{name}.parquet", SAMPLES / f"{name}_open.parquet", METRICS / f"evaluate_{name}.json"
    settings = own.model_dump(mode="json", exclude={"models"}) | entry.model_dump(mode="json") | {"seed": params.seed}
    inputs = {str(TEST): TEST, entry.folder: model.folder}
    with tracking.run(stage=f"evaluate_{name}", params=settings, inputs=inputs, state=Path(f".runs/evaluate_{name}")) as run:
        sample_problems(model, problems, params, path)
        sample_open(model, prompts, own.open_samples, params.seed, open_path)
        found = metrics(name, path, open_path, problems)
        with records.atomic(report) as temporary:
            temporary.write_text(json.dumps(found, indent=2) + "\n")
        run.metrics(0, {key: found[key]["mean"] for key in ("pass@1", f"cons@{own.samples}")})
        run.metrics(0, {key: found[key] for key in ("format", "wait_share", "language_consistency", "mixed_share", "truncated")})
        run.metrics(0, {f"open_{key}": value["mean"] for key in open_prompts.FIGURES if (value := found["open"][key])})
        run.artifact(report)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="a name of evaluate.models in params.yaml")
    name = parser.parse_args().name
    found = evaluate(load_params(), name)
    one, cons = found["pass@1"], found[f"cons@{found['samples_per_problem']}"]
    print(f"{name}: pass@1 {one['mean']:.3f} [{one['low']:.3f}, {one['high']:.3f}], cons@{found['samples_per_problem']} {cons['mean']:.3f}")


if __name__ == "__main__":
    errors.main(main)
