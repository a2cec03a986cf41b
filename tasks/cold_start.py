"""Stage `cold_start`: a small set of readable chains of thought, sampled from Zero, filtered, refined, checked again and reviewed.

    python -m tasks.cold_start

Reads `cold_start` of params.yaml, data/curated/train.parquet, models/zero and the file of a person's verdicts. Writes
data/cold_start/sft.parquet, data/cold_start/review.jsonl (what a person looks at) and reports/metrics/cold_start.json with the count
at every filter. Samples and a model's answers stay in .runs/cold_start: a killed stage goes on, and a verdict samples nothing anew.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks import errors, records
from tasks.config import ColdStart, fingerprint, load_params
from tasks.errors import DataError
from tasks.evaluation.metrics import mean_or_zero
from tasks.generation import model_folder
from tasks.generation.collect import collect
from tasks.generation.sampler import Sampling
from tasks.monitoring import readability, tracking
from tasks.records import ROLLOUT_SCHEMA, SFT_SCHEMA, Record, prompt_text
from tasks.refine import EndpointRefiner, Refined, Refiner, Refused, Rewriter
from tasks.rewards.format import parse
from tasks.rewards.language import consistency
from tasks.rewards.verify import VERIFIERS, Outcome, verify
from tasks.training.actor import check_lengths
from tasks.training.rl import prompt_order
from tasks.training.rl_stage import file_hash, files_of
from tasks.world.corpus import completion

TRAIN = Path("data/curated/train.parquet")
ZERO = Path("models/zero")
SFT = Path("data/cold_start/sft.parquet")
REVIEW = Path("data/cold_start/review.jsonl")
METRICS = Path("reports/metrics/cold_start.json")
RUNS = Path(".runs/cold_start")
EXAMPLE = '{"id": "...", "verdict": "accept" or "reject", "reviewer": "...", "note": "..."}'
NAMED = 10  # malformed verdicts that an error names, and refusals that the metrics quote


class Verdict(BaseModel):
    """A person's word on one refined sample."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(min_length=1)
    verdict: Literal["accept", "reject"]
    reviewer: str = ""
    note: str = ""


@dataclass(frozen=True)
class Candidate:
    """A sampled row (ROLLOUT_SCHEMA) and what the refiner made of it. `id` changes with prompt or wording, so a verdict never strays."""

    row: Record
    refined: Refined

    @property
    def response(self) -> str:
        return completion(self.refined.thought, self.refined.answer)

    @property
    def id(self) -> str:
        return hashlib.sha256(f"{self.row['prompt_id']}|{self.response}".encode()).hexdigest()[:16]


@dataclass
class Funnel:
    """How many samples each filter leaves, in all and by family."""

    steps: list[dict[str, Any]] = field(default_factory=list)

    def count(self, name: str, rows: Iterable[Record]) -> None:
        families = Counter(row["family"] for row in rows)
        left = sum(families.values())
        before = self.steps[-1]["left"] if self.steps else left
        self.steps.append({"filter": name, "removed": before - left, "left": left, "by_family": dict(sorted(families.items()))})

    def __str__(self) -> str:
        sampled, *filters = self.steps
        return f"{sampled['left']} sampled" + "".join(f", {s['filter']} -{s['removed']}" for s in filters)


# ---- verdicts


def read_verdicts(path: Path) -> dict[str, str]:
    """The last verdict on each id.

    Raises:
        DataError: no such file, or lines that are no verdict, by number.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: create it (it may be empty), or correct cold_start.review in params.yaml") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    verdicts: dict[str, str] = {}
    faults = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                verdict = Verdict.model_validate_json(line)
                verdicts[verdict.id] = verdict.verdict
            except ValidationError as error:
                first = error.errors()[0]
                faults.append(f"line {number}: {'.'.join(map(str, first['loc'])) or 'JSON'}: {first['msg']}")
    if faults:
        more = f"; and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
        raise DataError(f"{path} must hold lines such as {EXAMPLE}; {'; '.join(faults[:NAMED])}{more}")
    return verdicts


# ---- sampling


def choose_prompts(count: int) -> list[Record]:
    """The first `count` train problems that a rule can check, families spread evenly.

    Raises:
        DataError: there are none.
    """
    found = {r["id"]: r for r in records.read(TRAIN) if r["verifier"] in VERIFIERS}
    if not found:
        raise DataError(f"{TRAIN} holds no problem that a rule can check: check curate.sources")
    return [found[key] for key in prompt_order(list(found.values()), 0, 0)[:count]]


def state_folder(params: ColdStart) -> Path:
    """Where this very sample is kept: other settings, problems, weights or sampling code get another folder."""
    here = Path(__file__).parent
    code = [*sorted((here / "generation").glob("*.py")), here / "template.py", here / "training/rl.py"]
    inputs = [TRAIN, *files_of(ZERO), *code]
    settings = params.model_dump(mode="json", include={"seed", "prompts", "samples", "temperature", "max_new_tokens"})
    return RUNS / fingerprint(settings, [file_hash(path) for path in inputs])


def sample(params: ColdStart, prompts: Sequence[Record], state: Path) -> list[Record]:
    """Zero's samples of the prompts (ROLLOUT_SCHEMA), drawn once for each state folder."""
    rollouts = state / "rollouts.parquet"
    if not rollouts.exists():
        sampling = Sampling(params.temperature, 1.0, params.max_new_tokens, params.samples)
        collect(ZERO, prompts, sampling, params.seed, rollouts, state / "parts", "cold_start")
    return records.read(rollouts, ROLLOUT_SCHEMA)


# ---- filters


def is_right(row: Record, answer: str) -> bool:
    r"""Whether a rule calls the answer right; of a summary in prose, what stands in its one \boxed{} is the answer.

    Raises:
        DataError: the problem's truth cannot be read.
    """
    outcome = verify(row["verifier"], row["truth"], answer)
    if outcome is Outcome.UNSCORABLE:
        raise DataError(f"{TRAIN}: prompt {row['prompt_id']} cannot be scored: verifier {row['verifier']}, truth {row['truth']!r:.80}")
    return outcome is Outcome.CORRECT


def in_language(row: Record, text: str, least: float) -> bool:
    """Whether at least the share `least` of the thought's words is in the question's language; a thought without words passes."""
    share = consistency(parse(text).thought, row["language"])
    return share is None or share >= least


def select(rows: Sequence[Record], params: ColdStart, funnel: Funnel) -> list[Record]:
    """The samples worth refining. A try that is said twice is left to the refiner; a loop is beyond repair."""
    filters: tuple[tuple[str, Callable[[Record], bool]], ...] = (
        ("unfinished", lambda r: r["finished"]),
        ("malformed", lambda r: parse(r["text"]).well_formed),
        ("wrong answer", lambda r: is_right(r, parse(r["text"]).answer)),
        ("loop", lambda r: not readability.loops(r["text"])),
        ("language", lambda r: in_language(r, r["text"], params.min_language)),
    )
    kept = list(rows)
    funnel.count("sampled", kept)
    for name, good in filters:
        kept = [row for row in kept if good(row)]
        funnel.count(name, kept)
    return kept


def refine(rows: Sequence[Record], refiner: Refiner, funnel: Funnel) -> tuple[list[Candidate], list[Refused]]:
    """What the refiner makes of the samples, and its refusals."""
    results = refiner.refine(rows)
    made = [Candidate(row, result) for row, result in zip(rows, results, strict=True) if isinstance(result, Refined)]
    funnel.count("not refinable", [c.row for c in made])
    return made, [result for result in results if isinstance(result, Refused)]


def check_again(made: Sequence[Candidate], least: float, funnel: Funnel) -> list[Candidate]:
    """The refined samples that stand up to the filters themselves, each wording of a problem once."""
    filters: tuple[tuple[str, Callable[[Candidate], bool]], ...] = (
        ("refined: malformed", lambda c: parse(c.response).well_formed and bool(parse(c.response).thought)),
        ("refined: wrong answer", lambda c: is_right(c.row, parse(c.response).answer)),
        ("refined: language", lambda c: in_language(c.row, c.response, least)),
        # Sentences of the chain alone: a summary may well say again what a step said.
        ("refined: repetition", lambda c: not (readability.repeats_sentence(c.refined.thought) or readability.loops(c.response))),
    )
    kept = list(made)
    for name, good in filters:
        kept = [c for c in kept if good(c)]
        funnel.count(name, [c.row for c in kept])
    unique = list({c.id: c for c in reversed(kept)}.values())[::-1]  # the first of each id
    funnel.count("duplicate", [c.row for c in unique])
    return unique


def admit(candidates: Sequence[Candidate], verdicts: Mapping[str, str], params: ColdStart, funnel: Funnel) -> list[Candidate]:
    """What review and the cap leave: nothing rejected; of one problem the accepted samples first, then the earliest."""
    wanted = ("accept",) if params.require_review else ("accept", None)
    kept = [c for c in candidates if verdicts.get(c.id) in wanted]
    funnel.count("not accepted" if params.require_review else "rejected", [c.row for c in kept])
    taken: Counter[str] = Counter()
    chosen = set()
    for candidate in sorted(kept, key=lambda c: verdicts.get(c.id) != "accept"):
        taken[candidate.row["prompt_id"]] += 1
        if taken[candidate.row["prompt_id"]] <= params.per_prompt:
            chosen.add(candidate.id)
    used = [c for c in kept if c.id in chosen]
    funnel.count("beyond per_prompt", [c.row for c in used])
    return used


# ---- outputs


def to_sft(candidate: Candidate, tokenizer: Any) -> Record:
    """A row of SFT_SCHEMA."""
    row = candidate.row
    return {
        "id": candidate.id, **{key: row[key] for key in ("prompt_id", "domain", "family", "language", "messages")},
        "response": candidate.response, "source": "zero", "rounds": sum(turn["role"] == "user" for turn in row["messages"]),
        "tokens": len(tokenizer.encode(candidate.response)) + 1,  # and the token that ends it
    }  # fmt: skip


def review_line(candidate: Candidate, verdicts: Mapping[str, str], used: bool) -> str:
    """What a person needs to judge one sample."""
    row = candidate.row
    shown = {
        "id": candidate.id, "family": row["family"], "language": row["language"], "question": prompt_text(row),
        "before": parse(row["text"]).thought, "after": candidate.refined.thought.strip(), "answer": candidate.refined.answer,
        "verdict": verdicts.get(candidate.id), "used": used,
    }  # fmt: skip
    return json.dumps(shown, ensure_ascii=False) + "\n"


def write_review(candidates: Sequence[Candidate], used: Sequence[Candidate], verdicts: Mapping[str, str]) -> None:
    chosen = {c.id for c in used}
    with records.atomic(REVIEW) as temporary:
        temporary.write_text("".join(review_line(c, verdicts, c.id in chosen) for c in candidates), encoding="utf-8")


def _readable(used: Sequence[Candidate], text: Callable[[Candidate], str]) -> dict[str, float]:
    """Shares of defects, and mean language consistency, of the used samples before or after refining."""
    spoken = [s for c in used if (s := consistency(parse(text(c)).thought, c.row["language"])) is not None]
    found = readability.shares(readability.defects(text(c), c.row["language"]) for c in used)
    return {"language_consistency": mean_or_zero(spoken), "mixed": found["mixed_language"], "repetition": found["repetition"]}


def summarize(
    funnel: Funnel, refiner: Refiner, refused: Sequence[Refused], candidates: Sequence[Candidate], used: Sequence[Candidate],
    rows: Sequence[Record], verdicts: Mapping[str, str],
) -> dict[str, Any]:  # fmt: skip
    """reports/metrics/cold_start.json. `filters` is the table of counts; `rows` are those of sft.parquet."""
    known = {c.id for c in candidates}
    given = Counter(verdict for key, verdict in verdicts.items() if key in known)
    return {
        "refiner": refiner.name, "policy": used[0].row["policy"], "filters": funnel.steps,
        "refusals": dict(sorted(Counter(r.reason for r in refused).items())),
        "refusal_examples": sorted({r.detail for r in refused})[:NAMED],
        "verdicts": {"accept": given["accept"], "reject": given["reject"], "stale": len(verdicts.keys() - known)},
        "samples": len(rows), "prompts": len({row["prompt_id"] for row in rows}), "tokens": sum(row["tokens"] for row in rows),
        "rewritten": sum(c.refined.thought.strip() != parse(c.row["text"]).thought for c in used),
        "by_family_and_language": _by_family_and_language(rows),
        "before": _readable(used, lambda c: c.row["text"]), "after": _readable(used, lambda c: c.response),
    }  # fmt: skip


def _by_family_and_language(rows: Sequence[Record]) -> dict[str, dict[str, int]]:
    counts = Counter((row["family"], row["language"]) for row in rows)
    return {family: {lang: counts[family, lang] for lang in ("en", "zh")} for family in sorted({row["family"] for row in rows})}


# ---- the stage


def make(params: ColdStart, verdicts: Mapping[str, str], refiner: Refiner, state: Path) -> dict[str, Any]:
    """Samples, filters, refines and writes; returns the metrics.

    Raises:
        DataError: nothing is left; the message has the count at every filter. Then neither sft.parquet nor metrics are written.
    """
    prompts, funnel = choose_prompts(params.prompts), Funnel()
    model, tokenizer = model_folder.load(ZERO)
    check_lengths(prompts, tokenizer, model.config.max_position_embeddings, params.max_new_tokens)
    made, refused = refine(select(sample(params, prompts, state), params, funnel), refiner, funnel)
    candidates = check_again(made, refiner.language, funnel)
    used = admit(candidates, verdicts, params, funnel)
    if candidates:  # a person may be waiting for it, even if nothing is accepted yet
        write_review(candidates, used, verdicts)
    if not used:
        raise DataError(f"no sample for the cold start is left: {funnel}; {_remedy(candidates)}")
    rows = [to_sft(candidate, tokenizer) for candidate in used]
    found = summarize(funnel, refiner, refused, candidates, used, rows, verdicts)
    records.write(rows, SFT, SFT_SCHEMA)
    with records.atomic(METRICS) as temporary:
        temporary.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return found


def _remedy(candidates: Sequence[Candidate]) -> str:
    if candidates:
        return f"{len(candidates)} refined samples wait for a verdict in {REVIEW}: accept some in the file that cold_start.review names"
    return "loosen the filter that took most (cold_start in params.yaml), raise prompts or samples, or train Zero longer"


def prepare(params: ColdStart) -> tuple[dict[str, str], Refiner, Path]:
    """What has to be right before anything is sampled: a person's verdicts, the refiner, and the state folder of this sample.

    Raises:
        DataError: the verdicts cannot be read, or there are no problems.
        ModelError: models/zero is not whole.
        EndpointError: the refiner's key cannot be sent.
    """
    verdicts = read_verdicts(Path(params.review))
    if not TRAIN.exists():
        raise DataError(f"{TRAIN} does not exist: run the stage `curate` first")
    model_folder.check(ZERO)
    refiner: Refiner = EndpointRefiner(params.refiner, RUNS / "answers.jsonl") if params.refiner else Rewriter()
    return verdicts, refiner, state_folder(params)


def run(params: ColdStart) -> dict[str, Any]:
    """The stage, tracked."""
    verdicts, refiner, state = prepare(params)
    inputs = {str(TRAIN): TRAIN, str(ZERO): ZERO, params.review: Path(params.review)}
    with tracking.run(stage="cold_start", params=params.model_dump(mode="json"), inputs=inputs, state=state) as tracked:
        found = make(params, verdicts, refiner, state)
        tracked.metrics(0, {step["filter"].replace(": ", "_").replace(" ", "_"): step["left"] for step in found["filters"]})
        tracked.metrics(0, {key: found[key] for key in ("samples", "prompts", "tokens", "rewritten")})
        for path in (METRICS, REVIEW):
            tracked.artifact(path)
    return found


def main() -> None:
    found = run(load_params().cold_start)
    sampled, families = found["filters"][0]["left"], found["filters"][-1]["by_family"]
    print(
        f"cold_start: {found['samples']} of {sampled} samples kept, of {found['prompts']} problems ({found['rewritten']} rewritten by "
        f"{found['refiner']}): {', '.join(f'{name} {n}' for name, n in families.items())}; for review: {REVIEW}"
    )


if __name__ == "__main__":
    errors.main(main)
