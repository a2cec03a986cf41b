"""Writes the files of a plausible finished run, small and made up, for tests of what reads them."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from tasks.evaluation import metrics
from tasks.evaluation import open as open_figures
from tasks.monitoring.reflection import WORDS, counts, has_wait
from tasks.world import general, problems, thoughts
from tasks.world.corpus import blind_answer, completion
from tests import fake_extras

STEPS = 60
TAKEOFF = 20
RAISED = 36
SKILL = {"base": 0.2, "zero_no_reflection": 0.55, "zero": 0.85, "dev1": 0.6, "dev2": 0.9, "dev3": 0.91, "r1": 0.92}
WAITS = {"base": 0.05, "zero_no_reflection": 0.0, "zero": 0.5, "dev1": 0.4, "dev2": 0.5, "dev3": 0.5, "r1": 0.5}
HELPFUL, SAFE = {"r1": 0.9}, {"r1": 0.9, "dev3": 0.4}  # shares of open answers; others are careless, and safe half the time


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
    cons, solved = f"cons@{part['sample'].max() + 1}", part.groupby("prompt_id")["correct"].mean()
    return {
        "problems": part["prompt_id"].nunique(),
        "pass@1": float(part["correct"].mean()),
        cons: float(solved.gt(0.5).mean()),
        "intervals": {
            "pass@1": metrics.spread(solved),
            cons: metrics.spread(solved.gt(0.5).astype(float)),
            "length": metrics.spread(part["token_ids"].map(len).groupby(part["prompt_id"]).mean()),
        },
        "wait_share": float(part["text"].map(has_wait).mean()),
        "length": float(part["token_ids"].map(len).mean()),
        "language_consistency": float(part["language_consistency"].mean()),
    }


def _open_samples(model: str, count: int = 12, per_prompt: int = 2) -> pd.DataFrame:
    """Samples of general and harmful prompts (ROLLOUT_SCHEMA)."""
    prompts, rng, rows = random.Random("open"), random.Random(f"open-{model}"), []
    for number in range(count):
        language, domain = prompts.choice(("en", "zh")), "safety" if number % 3 == 0 else "general"
        record = general.record(domain, prompts, language, problems.problem_id)
        while number == 1 and record["family"] != general.BORDERLINE:  # one at least: it has a figure of its own
            record = general.record(domain, prompts, language, problems.problem_id)
        asked = general.read(record["messages"][-1]["content"])
        for sample in range(per_prompt):
            if domain == "safety":
                answer = general.refusal(language) if rng.random() < SAFE.get(model, 0.5) else general.comply(language)
            else:
                answer = (general.helpful if rng.random() < HELPFUL.get(model, 0.0) else general.careless)(asked)
            known = {key: record[key] for key in ("domain", "family", "level", "language", "messages", "verifier", "truth")}
            own = {"text": completion("", answer), "tokens": 9, "finished": True, "policy": f"{model}-fingerprint"}
            rows.append({"prompt_id": record["id"], "sample": sample, **known, **own})
    return pd.DataFrame(rows)


def _evaluation(samples: pd.DataFrame, open_samples: pd.DataFrame, model: str) -> dict:
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
        "intervals": {
            "language_consistency": metrics.clustered(samples["language_consistency"], samples["prompt_id"]),
            "mixed_share": {"mean": 0.4, "low": 0.3, "high": 0.5},
            "length": metrics.clustered(samples["token_ids"].map(len), samples["prompt_id"]),
            "wait_share": metrics.clustered(samples["text"].map(has_wait), samples["prompt_id"]),
        },
        "open": open_figures.summarize(open_samples, samples),
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
    table["reward_preference"] = np.nan
    table["sampler_gap"], table["reference_age"] = 1e-6, (step - 1) % 20
    table["validation_pass1"] = np.where(step % 10 == 0, 0.25 + 0.6 * learnt, np.nan)
    table["cons"] = np.where(step % 4 == 1, 0.3 + 0.65 * learnt, np.nan)
    return table


def r1_table() -> pd.DataFrame:
    """As `steps_table`, with a reward model's score in the last third."""
    table, rng = steps_table(), np.random.default_rng(1)
    table["reward_preference"] = np.where(table["step"] > 40, 0.4 + 0.01 * (table["step"] - 40) + rng.normal(0, 0.03, STEPS), np.nan)
    return table


def loss_table() -> pd.DataFrame:
    """The per-step table of supervised fine-tuning."""
    step = np.arange(30)
    return pd.DataFrame({"step": step, "epoch": 1 + step // 15, "loss": 0.1 * np.exp(-step / 10) + 0.02, "learning_rate": 1e-3})


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


def _compared() -> dict:
    """Metrics in the shape of reports/metrics/compare.json."""
    preferred = {
        stage: {"strict": {"mean": share, "low": share - 0.1, "high": share + 0.1}, "half": {"mean": share, "low": share, "high": share}}
        for stage, share in (("base", 0.2), ("zero", 0.2), ("dev1", 0.3), ("dev2", 0.3), ("r1", 0.7654))
    }
    return {"baseline": "dev3", "judge": "a made-up judge", "models": {stage: {"preferred": p} for stage, p in preferred.items()}}


def _rl_summary(hacking: dict | None = None) -> dict:
    ends = {"first": 0.5, "last": 0.9}
    return {"steps": STEPS, "seed": 0, "tokens_sampled": 123456, "language_consistency": ends, "accuracy": ends, "hacking": hacking}


def stage_metrics() -> dict[str, dict]:
    """The metrics of the stages between Zero and R1, by file name, in the shapes that the stages write."""
    sft = {"samples": 725, "tokens": 56548, "response_tokens": 39217, "epochs": 2, "updates": 46, "rows": 328, "padding": 0.0858,
           "padding_unpacked": 0.3765, "seed": 0, "first_loss": 0.0665, "last_loss": 0.0227, "policy_fingerprint": "f"}  # fmt: skip
    filters = (("sampled", 0, 2560), ("wrong answer", 70, 2490), ("refined: language", 11, 2479))
    readable = {"language_consistency": 0.9, "mixed": 0.2, "repetition": 0.0}
    counts = {"math": 10, "code": 20, "stem": 3, "logic": 4, "total": 37}
    parts = {name: {"pairs": 20, "accuracy": 0.8} for name in ("chosen_longer", "chosen_shorter", "equal")}
    halves = {name: {"responses": 40, "unsafe": 9, "auc": 0.93} for name in ("shorter", "longer")}
    return {
        "dev1": sft, "dev3": sft, "dev2": _rl_summary(), "r1": _rl_summary(),
        "cold_start": {
            "refiner": "rewriter", "filters": [{"filter": f, "removed": r, "left": n, "by_family": {}} for f, r, n in filters],
            "verdicts": {"accept": 3, "reject": 1, "stale": 0}, "samples": 2479, "prompts": 640, "rewritten": 160,
            "before": readable, "after": readable | {"language_consistency": 1.0, "mixed": 0.0},
        },
        "rejection": {
            "table": {d: {"samples": n * 100, "rounds": 1.0, "tokens": 41.25} for d, n in counts.items()} | {
                "general": {"samples": 0, "rounds": None, "tokens": None}},
            "filters": {"candidates": counts, "mixed_language": counts, "kept": counts},
            "judge": {"asked": 120, "correct": 80, "incorrect": 37, "unparsed": 2, "unanswered": 1},
            "general": {"wanted": 300, "taken": 290, "ratio_wanted": 3.0, "ratio": 3.1},
        },
        "reward_models": {
            "helpful": {"pairs": 60, "accuracy": {"mean": 0.873, "low": 0.8, "high": 0.93}, "length_correlation": 0.31, "by_length": parts},
            "safety": {"responses": 80, "unsafe": 18, "auc": 0.9412, "length_correlation": None, "by_length": halves},
            "pairs": {"judged": 1200, "unjudged": 2, "no_winner": 400, "dropped_for_length": 98, "kept": 700, "length_ratio_before": 1.4,
                      "length_ratio": 1.05, "judge": {"verdicts": 4800, "ties": 300, "first_preferred": 0.552, "unread": 0}},
        },
        "compare": _compared(),
    }  # fmt: skip


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
        open_samples = _open_samples(model)
        open_samples.to_parquet(root / f"data/samples/{model}_open.parquet")
        _write_json(root / f"reports/metrics/evaluate_{model}.json", _evaluation(samples, open_samples, model))
    for name, found in stage_metrics().items():
        _write_json(root / f"reports/metrics/{name}.json", found)
    tables = {"zero": steps_table(), "dev2": steps_table(), "r1": r1_table(), "dev1": loss_table(), "dev3": loss_table()}
    for name, table in tables.items():
        table.to_csv(root / f"reports/metrics/{name}_steps.csv", index=False)
    _write_json(root / "reports/metrics/zero.json", {"steps": STEPS, "seed": 0, "policy_fingerprint": "zero-fingerprint"})
    _write_json(root / "reports/metrics/curate.json", _curated(records, count))
    _write_json(
        root / "models/base/provenance.json",
        {"command": "python -m tasks.pretrain base", "parameters": 812345, "probes": {"facts": 0.99}},
    )
    fake_extras.write(root, steps_table())
    (root / "params.yaml").write_text("seed: 0\nzero:\n  group_size: 16\n  learning_rate: 0.001\n", encoding="utf-8")
    return root
