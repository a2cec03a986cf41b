"""Stage `evaluate`: samples held-out problems from one model, keeps every sample, and computes the metrics from the file.

    python -m tasks.evaluate zero

Paper: temperature 0.6, top-p 0.95, k samples a problem. Writes data/samples/<name>.parquet and reports/metrics/evaluate_<name>.json;
`forbid_reflection` forbids the reflective words at decoding (the causal control: same weights, no "wait").
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
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
from tasks.evaluation.metrics import summarize
from tasks.generation import model_folder
from tasks.generation.sampler import Sampling
from tasks.monitoring import reflection, tracking
from tasks.records import SAMPLE_SCHEMA, Record
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
    found = [r for r in records.read(TEST) if r["domain"] in VERIFIABLE and r["verifier"] != "none"]
    if not found:
        raise DataError(f"{TEST} holds no problem that a rule can verify: check curate.sources and curate.test")
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


def sample(params: Params, model: Evaluated, problems: Sequence[Record]) -> list[Output]:
    """All samples of all problems, in order; chunks have their own generators, so the number of workers changes nothing."""
    settings = params.evaluate
    policy, tokenizer = model_folder.load(Path(model.folder))
    check_lengths(problems, tokenizer, policy.config.max_position_embeddings, settings.max_new_tokens)
    forbidden = reflection.forbidden_sequences(tokenizer) if model.forbid_reflection else ()
    sampling = Sampling(settings.temperature, settings.top_p, settings.max_new_tokens, settings.samples, forbidden)
    count = workers.measure(os.cpu_count() or 1)
    actor = Actor(policy.share_memory(), None, tokenizer, {r["id"]: r for r in problems}, torch.empty(0), 1.0)
    crew, outputs = workers.Workers(actor, count), []
    chunks = [[r["id"] for r in problems[i : i + CHUNK]] for i in range(0, len(problems), CHUNK)]
    try:
        for at in tqdm(range(0, len(chunks), 2 * count), desc=f"evaluate {model.name}", unit="batch"):
            jobs = [(0, chunk, sampling, seed_of(params.seed, "evaluate", i)) for i, chunk in enumerate(chunks[at : at + 2 * count], at)]
            outputs += [output for made in crew.map("sample", jobs) for output in made]
    finally:
        crew.close()
    return outputs


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


def metrics(name: str, samples: Path, problems: Sequence[Record]) -> dict[str, Any]:
    """reports/metrics/evaluate_<name>.json: a pure function of the sample file and the problems."""
    frame = pd.read_parquet(samples)
    first = frame.iloc[0]
    settings = {key: round(float(first[key]), 6) for key in ("temperature", "top_p")} | {"max_new_tokens": int(first["max_new_tokens"])}
    return {"model": name, "fingerprint": str(first["model"]), **settings, **summarize(frame, {r["id"]: r for r in problems})}


def evaluate(params: Params, name: str) -> dict[str, Any]:
    """Samples, stores and measures one model; returns the metrics."""
    torch.set_num_threads(1)
    model, problems = find(params.evaluate, name), held_out(params.evaluate.problems)
    model_folder.check(Path(model.folder))
    path, inputs = SAMPLES / f"{name}.parquet", {str(TEST): TEST, model.folder: Path(model.folder)}
    settings = params.evaluate.model_dump(mode="json", exclude={"models"}) | model.model_dump(mode="json") | {"seed": params.seed}
    with tracking.run(stage=f"evaluate_{name}", params=settings, inputs=inputs, state=Path(f".runs/evaluate_{name}")) as run:
        records.write(to_records(sample(params, model, problems), problems, params.evaluate), path, SAMPLE_SCHEMA)
        contracts.check("samples", pq.read_table(path), samples_per_prompt=params.evaluate.samples)
        found = metrics(name, path, problems)
        with records.atomic(METRICS / f"evaluate_{name}.json") as temporary:
            temporary.write_text(json.dumps(found, indent=2) + "\n")
        run.metrics(0, {key: found[key]["mean"] for key in ("pass@1", f"cons@{params.evaluate.samples}")})
        run.metrics(0, {key: found[key] for key in ("format", "wait_share", "language_consistency", "mixed_share", "truncated")})
        run.artifact(METRICS / f"evaluate_{name}.json")
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
