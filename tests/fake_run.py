"""Writes the files of a plausible finished run, small and made up, for tests of what reads them."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from tasks.monitoring.reflection import WORDS, counts, has_wait
from tasks.world import problems, thoughts
from tasks.world.corpus import blind_answer, completion

STEPS = 60
TAKEOFF = 20
RAISED = 36
SKILL = {"base": 0.2, "zero_no_reflection": 0.55, "zero": 0.85}
WAITS = {"base": 0.05, "zero_no_reflection": 0.0, "zero": 0.5}


def _completion(problem: problems.Problem, language: str, model: str, rng: random.Random) -> tuple[str, str, bool]:
    """(text, answer, correct) of one made-up sample; only its look is real."""
    good = rng.random() < SKILL[model]
    if isinstance(problem, problems.Fill | problems.Expression):
        tries = 4 if rng.random() < WAITS[model] * 2 else 1
        sentences, told = thoughts.search(problem, rng, tries)
    else:
        segments, told = thoughts.reason(problem, rng, thoughts.slipping(rng, 0.0))
        sentences = [segments]
    answer = told(language) if good else blind_answer(problem, rng, language)
    s = 0 if language == "en" else 1
    thought = "".join((",", "，")[s].join(segment[s] for segment in sentence) + (".", "。")[s] for sentence in sentences)
    return completion(thought, answer), answer.strip(), good


def _samples(records: list[dict], drawn: dict[str, problems.Problem], model: str, per_problem: int) -> pd.DataFrame:
    rng, rows = random.Random(model), []
    for record in records:
        for sample in range(per_problem):
            text, answer, correct = _completion(drawn[record["id"]], record["language"], model, rng)
            rows.append(
                {
                    "prompt_id": record["id"],
                    "sample": sample,
                    "text": text,
                    "token_ids": list(range(len(text) // 3)),
                    "finished": True,
                }
                | {"answer": answer, "correct": correct, "format": True, "language_consistency": rng.uniform(0.5, 1.0)}
                | {key: record[key] for key in ("domain", "family", "level", "language")}
                | {"model": f"{model}-fingerprint", "temperature": 0.6, "top_p": 0.95, "max_new_tokens": 144}
            )
    return pd.DataFrame(rows)


def _group(part: pd.DataFrame) -> dict:
    return {
        "problems": part["prompt_id"].nunique(),
        "pass@1": float(part["correct"].mean()),
        f"cons@{part['sample'].max() + 1}": float(part.groupby("prompt_id")["correct"].mean().gt(0.5).mean()),
        "wait_share": float(part["text"].map(has_wait).mean()),
        "length": float(part["token_ids"].map(len).mean()),
        "language_consistency": float(part["language_consistency"].mean()),
    }


def _evaluation(samples: pd.DataFrame, model: str) -> dict:
    """Metrics in the shape of reports/metrics/evaluate_<name>.json."""
    total, words, cons = _group(samples), samples["text"].map(counts), f"cons@{samples['sample'].max() + 1}"
    around = {
        name: {"mean": total[name], "low": max(total[name] - 0.03, 0.0), "high": min(total[name] + 0.03, 1.0)} for name in ("pass@1", cons)
    }
    level = samples["family"] + "-" + samples["level"].astype(str)
    kinds = {
        "by_domain": samples["domain"],
        "by_family": samples["family"],
        "by_language": samples["language"],
        "by_level": level,
    }
    return {
        "model": model,
        "fingerprint": f"{model}-fingerprint",
        "problems": total["problems"],
        "samples_per_problem": int(samples["sample"].max()) + 1,
        "temperature": 0.6,
        "top_p": 0.95,
        "max_new_tokens": 144,
        **around,
        "pass@k": {str(k): total["pass@1"] for k in (1, 2, 4, 8, 16)},
        "format": 0.95,
        "wait_share": total["wait_share"],
        "reflection_share": total["wait_share"],
        "words_per_1000_samples": {word: 1000 * float(np.mean([c[word] for c in words])) for word in WORDS},
        "language_consistency": total["language_consistency"],
        "mixed_share": 0.4,
        "length": {"mean": total["length"], "p95": 2 * total["length"]},
        "truncated": 0.01,
        **{kind: {str(name): _group(part) for name, part in samples.groupby(labels)} for kind, labels in kinds.items()},
    }


def steps_table() -> pd.DataFrame:
    """A per-step table in which "wait" takes off at step TAKEOFF and the length limit is raised at step RAISED."""
    rng, step = np.random.default_rng(0), np.arange(1, STEPS + 1)
    rise = np.clip((step - TAKEOFF + 1) / 20, 0, 1)
    learnt = 1 / (1 + np.exp(-(step - 22) / 6))

    def noisy(values: np.ndarray, scale: float) -> np.ndarray:
        return np.maximum(values + rng.normal(0, scale, STEPS), 0)

    table = pd.DataFrame(
        {
            "step": step,
            "reward_accuracy": noisy(0.2 + 0.6 * learnt, 0.03),
            "reward_format": noisy(0.8 + 0.18 * learnt, 0.01).clip(max=1),
        }
    )
    table["reward"] = table["reward_accuracy"] + table["reward_format"]
    table["accuracy"], table["length"] = table["reward_accuracy"], noisy(24 + 48 * rise, 2)
    table["entropy"], table["kl"] = noisy(0.7 - 0.4 * learnt, 0.02), noisy(0.02 * ((step - 1) % 20) / 20, 0.001)
    table["clip_share"], table["informative_groups"] = noisy(0.02 + 0 * step, 0.01), noisy(0.7 - 0.3 * learnt, 0.05)
    table["grad_norm"], table["learning_rate"] = noisy(0.5 + 0 * step, 0.05), 1e-3
    table["max_new_tokens"], table["truncated"] = (
        np.where(step < RAISED, 96, 144),
        noisy(0.01 + 0.05 * rise * (step < RAISED), 0.005),
    )
    table["language_consistency"], table["wait_share"] = (
        noisy(0.82 - 0.24 * rise, 0.015),
        noisy(0.05 + 0.45 * rise, 0.02),
    )
    for i, word in enumerate(WORDS):
        table[word] = 1000 * noisy(table["wait_share"] * (1.8 if word == "wait" else 0.02 * (i % 3)), 0.002)
    table["repetition"], table["no_answer"], table["mixed_language"] = (
        noisy(0.02 + 0.05 * rise, 0.01),
        noisy(0.1 * (1 - learnt), 0.01),
        noisy(0.15 + 0.5 * rise, 0.02),
    )
    table["sampler_gap"], table["reference_age"] = 1e-6, (step - 1) % 20
    table["validation_pass1"] = np.where(step % 10 == 0, 0.25 + 0.6 * learnt, np.nan)
    return table


def _curated(records: list[dict], count: int) -> dict:
    """Metrics in the shape of reports/metrics/curate.json."""
    domains = {
        "train": Counter(r["domain"] for r in records[count:]),
        "test": Counter(r["domain"] for r in records[:count]),
    }
    check = {
        "what": "gold answers verify",
        "expectation": "gold",
        "column": "truth",
        "rows": len(records),
        "passed": True,
    }
    return {
        "problems": len(records),
        "dataset_hash": "0" * 64,
        "removed": {"train": {"the same words": 3}, "validation": {}},
        "counts": {split: {"problems": found.total(), "domain": dict(found)} for split, found in domains.items()},
        "contract": {
            "dataset": "prompts",
            "rows": len(records),
            "passed": True,
            "checks": [check | {"failures": 0, "observed": "100 %", "offenders": []}],
        },
    }


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_run(root: Path, count: int = 60, per_problem: int = 4) -> Path:
    """Writes every input of the report under ``root`` and returns it; the same bytes at every call."""
    rng = random.Random(0)
    drawn = {problems.identify(p): p for p in (problems.draw(rng) for _ in range(2 * count))}
    records = [problems.record(problem, rng.choice(("en", "zh", "en"))) for problem in drawn.values()]
    (root / "data/curated").mkdir(parents=True)
    (root / "data/samples").mkdir(parents=True)
    pd.DataFrame([record | {"split": "test"} for record in records[:count]]).to_parquet(root / "data/curated/test.parquet")
    for model in SKILL:
        samples = _samples(records[:count], drawn, model, per_problem)
        samples.to_parquet(root / f"data/samples/{model}.parquet")
        _write_json(root / f"reports/metrics/evaluate_{model}.json", _evaluation(samples, model))
    steps_table().to_csv(root / "reports/metrics/zero_steps.csv", index=False)
    _write_json(root / "reports/metrics/zero.json", {"steps": STEPS, "seed": 0, "policy_fingerprint": "zero-fingerprint"})
    _write_json(root / "reports/metrics/curate.json", _curated(records, count))
    _write_json(
        root / "models/base/provenance.json",
        {"command": "python -m tasks.pretrain base", "parameters": 812345, "probes": {"facts": 0.99}},
    )
    (root / "params.yaml").write_text("seed: 0\nzero:\n  group_size: 16\n  learning_rate: 0.001\n", encoding="utf-8")
    return root
