"""Stage `rejection`: samples dev2, keeps what is right and readable, and joins general data: what dev3 is fine-tuned on.

    python -m tasks.rejection

Paper: about 600,000 reasoning samples from the first RL stage's checkpoint, checked by rules or by a judge that knows a reference
answer, and about 200,000 general ones (recipe.md section 4). Reads `rejection` of params.yaml, data/curated/train.parquet and
models/dev2. Writes data/rejection/sft.parquet, reports/rejection.md (the paper's Table 5 of it) and reports/metrics/rejection.json.
Killed at any moment, the same command continues from .runs/rejection and ends with the same bytes.

Candidates are streamed: beside a batch of them only the current prompt's responses are held, whatever the size of the set.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from tasks import errors, records
from tasks.config import Params, Rejection, fingerprint, load_params
from tasks.errors import DataError
from tasks.evaluation.correctness import JUDGE, OUTCOMES, Verdicts, judge
from tasks.evaluation.sieve import FILTERS, Sieve
from tasks.generation import model_folder
from tasks.generation.collect import collect, spent
from tasks.generation.sampler import Sampling
from tasks.monitoring import tracking
from tasks.records import ROLLOUT_SCHEMA, SFT_SCHEMA, Record
from tasks.rewards.verify import VERIFIERS
from tasks.training.actor import check_lengths
from tasks.training.rl_stage import code, file_hash, files_of
from tasks.world import general
from tasks.world.problems import VERIFIABLE

PROMPTS = Path("data/curated/train.parquet")
MODEL = Path("models/dev2")
SFT = Path("data/rejection/sft.parquet")
TABLE = Path("reports/rejection.md")
METRICS = Path("reports/metrics/rejection.json")
RUNS = Path(".runs/rejection")

DOMAINS = {"math": "Math", "code": "Code", "stem": "STEM", "logic": "Logic", "general": "General"}  # rows of the paper's Table 5


# ---- prompts


def kind(record: Mapping[str, Any]) -> str:
    """What a train prompt is to this stage: sampled ("reasoning"), answered by annotators ("general"), or why it is left out."""
    if record["domain"] in VERIFIABLE:
        return "reasoning" if record["verifier"] in (*VERIFIERS, JUDGE) else "no_reference"
    return "general" if record["source"] == "world" else "no_response"  # nobody has answered a user's own general prompts


def survey(path: Path) -> dict[str, Counter[str]]:
    """Number of prompts by kind and family.

    Raises:
        DataError: there is no reasoning prompt.
    """
    found: dict[str, Counter[str]] = {name: Counter() for name in ("reasoning", "general", "no_reference", "no_response")}
    for record in _stream(path):
        found[kind(record)][record["family"]] += 1
    if not found["reasoning"]:
        raise DataError(f"{path} holds no reasoning prompt with a rule or a reference answer: check curate.sources")
    return found


def shares(sizes: Mapping[str, int], wanted: int) -> dict[str, int]:
    """How many of each family to take so that `wanted` are spread in proportion to the families' sizes (largest remainders).

    Sums to `wanted`, or to all there are if those are fewer.
    """
    total = sum(sizes.values())
    wanted = min(wanted, total)
    exact = {name: divmod(wanted * size, total) for name, size in sizes.items()}
    spare = wanted - sum(whole for whole, _ in exact.values())
    first = sorted(exact, key=lambda name: (-exact[name][1], name))[:spare]
    return {name: whole + (name in first) for name, (whole, _) in exact.items()}


def choose(path: Path, what: str, sizes: Mapping[str, int], wanted: int, seed: int) -> Iterator[Record]:
    """`wanted` prompts of one kind in file order, each family's at even distances; holds no list of them.

    The rows of the curated file stand in the order of a hash, so this is a random choice.
    """
    quota, seen = shares(sizes, wanted), Counter[str]()
    start = {name: random.Random(f"rejection/{seed}/{what}/{name}").randrange(size) for name, size in sizes.items()}
    for record in _stream(path):
        if kind(record) != what:
            continue
        name, at = record["family"], seen[record["family"]]
        seen[name] += 1
        before, after = (n * quota[name] + start[name] for n in (at, at + 1))
        if after // sizes[name] > before // sizes[name]:
            yield record


def _stream(path: Path) -> Iterator[Record]:
    return (record for batch in records.iter_batches(path) for record in batch)


# ---- the data set


def sample(row: Mapping[str, Any], source: str) -> Record:
    """A record of SFT_SCHEMA from a row that has its columns but `id`, `source` and `rounds`."""
    identifier = hashlib.sha256(f"{row['prompt_id']}|{row['response']}".encode()).hexdigest()[:16]
    rounds = sum(turn["role"] == "user" for turn in row["messages"])
    same = ("prompt_id", "domain", "family", "language", "messages", "response", "tokens")
    return {"id": identifier, **{key: row[key] for key in same}, "source": source, "rounds": rounds}


def answered(prompts: Iterable[Record], seed: int, tokenizer: PreTrainedTokenizerBase) -> Iterator[Record]:
    """General samples: what annotators say to the world's general and harmful prompts, each drawn from a generator of its own."""
    for record in prompts:
        response = general.annotate(record, random.Random(f"rejection/{seed}/{record['id']}"))
        tokens = len(tokenizer.encode(response)) + 1  # and EOS
        own = {"prompt_id": record["id"], "domain": "general", "response": response, "tokens": tokens}
        yield sample(record | own, "annotators")


class Made:
    """Counts what goes into the set: Table 5."""

    def __init__(self) -> None:
        self.sums: Counter[tuple[str, str]] = Counter()

    def passing(self, rows: Iterable[Record]) -> Iterator[Record]:
        """The rows unchanged, counted."""
        for row in rows:
            for domain in (row["domain"], "total"):
                self.sums[domain, "samples"] += 1
                self.sums[domain, "rounds"] += row["rounds"]
                self.sums[domain, "tokens"] += row["tokens"]
            self.sums["harmful", "samples"] += row["family"] == "harm"
            yield row

    def table(self) -> dict[str, dict[str, float | int | None]]:
        """Domain or "total" -> number of samples, mean user turns, mean tokens of the response (None without samples)."""
        return {domain: {"samples": self.samples(domain), **self._means(domain)} for domain in (*DOMAINS, "total")}

    def samples(self, domain: str) -> int:
        return self.sums[domain, "samples"]

    def _means(self, domain: str) -> dict[str, float | None]:
        n = self.samples(domain)
        return {name: round(self.sums[domain, name] / n, 4) if n else None for name in ("rounds", "tokens")}


def make(
    candidates: Path, prompts: Path, out: Path, settings: Rejection, verdicts: Verdicts, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """Filters the candidates (ROLLOUT_SCHEMA), joins general data and writes `out` (SFT_SCHEMA); returns all counts.

    Raises:
        DataError: no candidate is left. JudgeError: the judge gave no verdicts. In both cases nothing is written.
    """
    stock, sieve, made = survey(prompts), Sieve(settings, verdicts), Made()

    def rows() -> Iterator[Record]:
        for batch in records.iter_batches(candidates, ROLLOUT_SCHEMA):
            kept = (sample(row | {"response": row["text"]}, "judged" if judged else "dev2") for row, judged in sieve.keep(batch))
            yield from made.passing(kept)
        verdicts.check()
        if not (reasoning := made.samples("total")):
            raise DataError(_nothing_left(sieve))
        chosen = choose(prompts, "general", stock["general"], round(reasoning / settings.reasoning_ratio), settings.seed)
        yield from made.passing(answered(chosen, settings.seed, tokenizer))

    records.write(rows(), out, SFT_SCHEMA)
    return findings(settings, stock, sieve, made)


def _nothing_left(sieve: Sieve) -> str:
    counts = sieve.counts()
    dropped = ", ".join(f"{name} {row['total']:,}" for name, row in counts.items() if name in FILTERS and row["total"])
    return (
        f"no sample is left of {counts['candidates']['total']:,} candidates ({dropped or 'there was none'}): nothing was written. "
        "Train dev2 longer, or loosen the filter of `rejection` in params.yaml that takes them"
    )


def findings(settings: Rejection, stock: Mapping[str, Counter[str]], sieve: Sieve, made: Made) -> dict[str, Any]:
    """reports/metrics/rejection.json."""
    taken = made.samples("general")
    reasoning = made.samples("total") - taken
    return {
        "table": made.table(),
        "filters": sieve.counts(),
        "judge": {"asked": sieve.verdicts.counts.total(), **{name: sieve.verdicts.counts[name] for name in OUTCOMES}},
        "prompts": {name: sizes.total() for name, sizes in stock.items()},
        "general": {
            "wanted": round(reasoning / settings.reasoning_ratio), "taken": taken,
            "ratio_wanted": settings.reasoning_ratio, "ratio": round(reasoning / taken, 4) if taken else None,
            "harmful": made.samples("harmful"),
        },
    }  # fmt: skip


# ---- the stage


def state_folder(settings: Rejection) -> Path:
    """Where this very sampling keeps its parts: other settings, prompts, model or code get another folder. Filters change nothing in it."""
    inputs = [PROMPTS, *files_of(MODEL), *code("rejection")]
    named = settings.model_dump(mode="json", include={"seed", "prompts", "samples", "temperature", "max_new_tokens"})
    return RUNS / fingerprint(named, [file_hash(path) for path in inputs])


def chosen(settings: Rejection) -> Iterator[Record]:
    """The prompts that are sampled, in file order."""
    return choose(PROMPTS, "reasoning", survey(PROMPTS)["reasoning"], settings.prompts, settings.seed)


def candidates(settings: Rejection, folder: Path) -> Path:
    """The candidates of every chosen prompt, sampled unless they are there already."""
    path = folder / "candidates.parquet"
    if not path.exists():
        sampling = Sampling(settings.temperature, 1.0, settings.max_new_tokens, settings.samples)
        collect(MODEL, chosen(settings), sampling, settings.seed, path, folder / "parts", "rejection")
    return path


def _check_judge(settings: Rejection) -> None:
    """The miniature's judge knows the world's questions only; better told before hours of sampling."""
    foreign = Counter(r["source"] for r in chosen(settings) if r["verifier"] == JUDGE and r["source"] != "world")
    if foreign and settings.judge is None:
        raise DataError(
            f"{foreign.total()} prompts of {', '.join(sorted(foreign))} need a judge of correctness (verifier {JUDGE!r}), and "
            "rejection.judge is null: name an OpenAI-compatible endpoint there, or remove them"
        )


def reject(params: Params) -> dict[str, Any]:
    """Samples, filters, joins and publishes; returns the metrics. The resumable state is removed at the end."""
    torch.set_num_threads(1)  # before anything is forked; work is shared by processes, not threads
    settings = params.rejection
    model, tokenizer = model_folder.load(MODEL)
    _check_judge(settings)
    check_lengths(chosen(settings), tokenizer, model.config.max_position_embeddings, settings.max_new_tokens)
    ask, folder = judge(settings.judge), state_folder(settings)
    memory = None if settings.judge is None else folder / f"replies-{fingerprint(settings.judge.model_dump(mode='json'))}.jsonl"
    inputs: dict[str, Path | str] = {str(path): path for path in (PROMPTS, MODEL)}
    with tracking.run(stage="rejection", params=settings.model_dump(mode="json"), inputs=inputs, state=folder) as run:
        found = candidates(settings, folder)
        metrics = make(found, PROMPTS, SFT, settings, Verdicts(ask, memory), tokenizer)
        metrics["sampling"] = spent(found, model.config, tokenizer)
        publish(metrics)
        run.metrics(0, {f"samples.{domain}": row["samples"] for domain, row in metrics["table"].items()})
        run.metrics(0, {f"filter.{name}": row["total"] for name, row in metrics["filters"].items()})
        run.metrics(0, {"ratio": metrics["general"]["ratio"]})
        run.artifact(TABLE)
        run.artifact(METRICS)
    for path in filter(None, (found, memory)):  # what tracking could not deliver yet stays
        path.unlink(missing_ok=True)
    return metrics


def publish(metrics: Mapping[str, Any]) -> None:
    """Writes the metrics and the readable tables."""
    with records.atomic(METRICS) as temporary:
        temporary.write_text(json.dumps(metrics, indent=2) + "\n")
    with records.atomic(TABLE) as temporary:
        temporary.write_text(markdown(metrics), encoding="utf-8")


def markdown(metrics: Mapping[str, Any]) -> str:
    """The paper's Table 5 of this set, the filters, and in words what else happened."""
    lines = ["# What dev3 is fine-tuned on", "", "| domain | samples | average rounds | average tokens |", "|---|---:|---:|---:|"]
    for domain, row in metrics["table"].items():
        rounds, tokens = ("" if row[name] is None else f"{row[name]:,.1f}" for name in ("rounds", "tokens"))
        lines.append(f"| {DOMAINS.get(domain, 'Total')} | {row['samples']:,} | {rounds} | {tokens} |")
    lines += ["", "As the paper's Table 5; tokens are those of the response.", "", "## From candidates to samples", ""]
    lines += [f"| | {' | '.join([*(DOMAINS[d] for d in VERIFIABLE), 'Total'])} |", "|---|" + "---:|" * (len(VERIFIABLE) + 1)]
    for name, counts in metrics["filters"].items():
        lines.append(f"| {FILTERS.get(name, name)} | {' | '.join(f'{n:,}' for n in counts.values())} |")
    return "\n".join([*lines, "", "The first filter that applies counts.", "", _remarks(metrics), ""])


def _remarks(metrics: Mapping[str, Any]) -> str:
    asked, joined, prompts = metrics["judge"], metrics["general"], metrics["prompts"]
    reached = "none" if joined["ratio"] is None else f"{joined['ratio']:.2f} : 1"
    lines = [
        f"- Judge of correctness: {asked['asked']:,} items, {', '.join(f'{asked[name]:,} {name}' for name in OUTCOMES)}.",
        f"- Reasoning to general: {reached}, wanted {joined['ratio_wanted']:g} : 1. {joined['taken']:,} of {joined['wanted']:,} wanted "
        f"general samples joined; there are {prompts['general']:,} prompts to answer, each once. {joined['harmful']:,} of them are answers "
        "to harmful requests, some of which comply.",
        f"- Left out: {prompts['no_response']:,} general or harmful prompts of the user's own, which nobody has answered; "
        f"{prompts['no_reference']:,} reasoning prompts without rule or reference.",
    ]
    return "\n".join(lines)


def main() -> None:
    metrics = reject(load_params())
    kept, joined = metrics["filters"]["kept"]["total"], metrics["general"]["taken"]
    print(
        f"rejection: {kept:,} of {metrics['filters']['candidates']['total']:,} candidates kept, {joined:,} general samples join ({TABLE})"
    )


if __name__ == "__main__":
    errors.main(main)
