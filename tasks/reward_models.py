"""Stage `reward_models`: helpfulness from judged pairs, safety from labelled responses (paper, section 3.1).

    python -m tasks.reward_models

Samples dev3 on general prompts, has pairs of final answers judged in random order, keeps those with a clear winner, evens out lengths, and
trains a pairwise model that reads the final answer alone; labels whole responses to harmful and harmless prompts and trains a point-wise
model that reads all of them. Reads `reward_models` of params.yaml, data/curated and models/dev3. Writes
data/preferences/{pairs,labels}.parquet, models/reward_helpful, models/reward_safety and reports/metrics/reward_models.json.
Killed at any moment, the same command continues from .runs/reward_models and ends with the same bytes.
"""

from __future__ import annotations

import json
import random
import shutil
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from tasks import errors, labels, records
from tasks.config import RewardModels, fingerprint, load_params
from tasks.errors import DataError
from tasks.evaluation import preference
from tasks.evaluation.preference import Comparison, Preference
from tasks.generation import collect, model_folder
from tasks.generation.sampler import Sampling
from tasks.labels import prompt_columns, question_of
from tasks.monitoring import tracking
from tasks.monitoring.readability import units
from tasks.records import LABEL_SCHEMA, PAIR_SCHEMA, ROLLOUT_SCHEMA, Record
from tasks.rewards.format import parse
from tasks.rewards.model import RewardModel, padding, score_all, text
from tasks.training.actor import check_lengths
from tasks.training.preference import train_labels, train_pairs, with_head
from tasks.training.rl import seed_of
from tasks.training.rl_stage import code, file_hash, files_of
from tasks.world import general, judges

TRAIN = Path("data/curated/train.parquet")
POLICY = Path("models/dev3")
PAIRS = Path("data/preferences/pairs.parquet")
LABELS = Path("data/preferences/labels.parquet")
MODELS = {"helpful": Path("models/reward_helpful"), "safety": Path("models/reward_safety")}
METRICS = Path("reports/metrics/reward_models.json")
RUNS = Path(".runs/reward_models")

NEIGHBOURS = 1000  # other prompts of its family that a prompt is compared with, to find those most like it
CALLS = 8  # pairs that an endpoint judges at a time
BALANCE = 0.05  # mean lengths of chosen and rejected answers may differ by this share of the rejected ones' mean
MOST_DROPPED = 0.5  # evening out lengths may cost this share of the pairs

Pair = tuple[Record, Record]  # responses (ROLLOUT_SCHEMA) to one prompt whose final answers differ


# ---- prompts and candidates


def prompts(settings: RewardModels) -> dict[str, list[Record]]:
    """The prompts of the train split: "general", and half harmful, half harmless ones for safety; each kind in the order of its hashes.

    A harmless prompt may be a general one as well.

    Raises:
        DataError: there is no general prompt, no harmful one although no labels are given, or one that the miniature's judge or guideline
            cannot read although it would have to.
    """
    known = [r for r in records.read(TRAIN) if r["verifier"] == "none"]
    open_prompts = [r for r in known if r["domain"] == "general"]
    if not open_prompts:
        raise DataError(f"{TRAIN} holds no prompt of the domain general without a verifier: check curate.sources")
    harmful = [] if settings.labels else [r for r in known if r["domain"] == "safety"][: settings.prompts // 2]
    if not settings.labels and not any(r["domain"] == "safety" for r in known):
        raise DataError(f"{TRAIN} holds no prompt of the domain safety: check curate.sources, or name labels in reward_models.labels")
    harmless = [r for r in open_prompts if r["family"] == general.BORDERLINE][: len(harmful)]
    chosen = {"general": open_prompts[: settings.prompts], "harmful": harmful, "harmless": harmless}
    if settings.judge is None:
        _check_readable(chosen["general"], "judge", "judge: name an endpoint in reward_models.judge")
    _check_readable(harmful + harmless, "safety guideline", "label: name a file of your own labelled responses in reward_models.labels")
    return chosen


def _check_readable(chosen: Sequence[Record], who: str, remedy: str) -> None:
    foreign = []
    for record in chosen:
        try:
            general.read(question_of(record))
        except ValueError:
            foreign.append(record["id"])
    if foreign:
        raise DataError(
            f"the miniature's {who} reads what its own world wrote, and {len(foreign)} of {len(chosen)} prompts are others, such as "
            f"{foreign[0]}, which it cannot {remedy} (docs/data.md)"
        )


def candidates(settings: RewardModels, chosen: dict[str, list[Record]], work: Path) -> dict[str, list[Record]]:
    """Responses of the policy (ROLLOUT_SCHEMA) by prompt id; each prompt is sampled once, whatever it serves for."""
    path = work / "candidates.parquet"
    if not path.exists():
        unique = list({r["id"]: r for group in chosen.values() for r in group}.values())
        policy, tokenizer = model_folder.load(POLICY)
        check_lengths(unique, tokenizer, min(settings.context, policy.config.max_position_embeddings), settings.max_new_tokens)
        sampling = Sampling(settings.temperature, 1.0, settings.max_new_tokens, settings.candidates)
        collect.collect(POLICY, unique, sampling, settings.seed, path, work / "candidates", "reward_models")
    found: dict[str, list[Record]] = {}
    for row in records.read(path, ROLLOUT_SCHEMA):
        found.setdefault(row["prompt_id"], []).append(row)
    return found


# ---- pairs


def with_strangers(ids: Sequence[str], found: Mapping[str, list[Record]], count: int, seed: int) -> dict[str, list[Record]]:
    """The responses of each prompt and, as if they were its own, one each to the `count` prompts of its family and language most like it.

    A policy that answers the question nearly always gives the judge nothing to prefer about it: a model trained on its samples alone
    scored an answer to another question as high as the right one, and one trained beside answers to any other prompt still missed a
    single wrong name (docs/log.md). The likest prompts differ in a word or two, or in their places.
    """
    words = {prompt_id: frozenset(units(question_of(found[prompt_id][0]))) for prompt_id in ids}
    alike: dict[tuple[str, str], list[str]] = {}
    for prompt_id in ids:
        alike.setdefault((found[prompt_id][0]["family"], found[prompt_id][0]["language"]), []).append(prompt_id)
    joined = {}
    for prompt_id in ids:
        own, rng, asked = found[prompt_id], random.Random(f"strangers/{seed}/{prompt_id}"), words[prompt_id]
        others = [other for other in alike[own[0]["family"], own[0]["language"]] if other != prompt_id]
        pool = rng.sample(others, min(NEIGHBOURS, len(others)))
        closest = sorted(pool, key=lambda other: -len(asked & words[other]) / len(asked | words[other]))[:count]
        chosen = [rng.choice(found[other]) for other in closest]
        joined[prompt_id] = [*own, *({**row, "prompt_id": prompt_id, "messages": own[0]["messages"]} for row in chosen)]
    return joined


def draw_pairs(ids: Sequence[str], found: dict[str, list[Record]], most: int, seed: int) -> tuple[list[Pair], Counter[str]]:
    """Up to `most` pairs of distinct final answers a prompt; how many responses have none, and how many prompts have but one."""
    pairs: list[Pair] = []
    counts = Counter(unanswered_responses=0, one_answer_prompts=0)
    for prompt_id in ids:
        rows = {parse(row["text"]).answer: row for row in reversed(found[prompt_id])}  # the first response with each answer
        counts["unanswered_responses"] += sum(not parse(row["text"]).answer for row in found[prompt_id])
        answers = sorted(answer for answer in rows if answer)
        counts["one_answer_prompts"] += len(answers) < 2
        every, rng = list(combinations(answers, 2)), random.Random(f"pairs/{seed}/{prompt_id}")
        pairs += [(rows[a], rows[b]) for a, b in rng.sample(every, min(most, len(every)))]
    return pairs, counts


def judgements(pairs: Sequence[Pair], settings: RewardModels, work: Path) -> list[Preference]:
    """What the judge prefers, in order.

    Raises:
        JudgeError: the judge decides nothing.
    """
    items = []
    for first, second in pairs:
        a, b = parse(first["text"]).answer, parse(second["text"]).answer
        items.append(Comparison(f"{settings.seed}/{first['prompt_id']}/{a}/{b}", question_of(first), a, b))
    if settings.judge is None:
        return list(preference.judge_all(items, judges.annotator, settings.judgements, 1, work))
    judge = preference.endpoint_judge(settings.judge)
    return list(preference.judge_all(items, lambda rng: judge, settings.judgements, CALLS, work))


def clear_winners(pairs: Sequence[Pair], found: Sequence[Preference], settings: RewardModels) -> tuple[list[Record], Counter[str]]:
    """Pair records (PAIR_SCHEMA) whose mean preference exceeds the margin, and why the others were dropped."""
    counts = Counter(judged=len(pairs), unjudged=0, no_winner=0)
    rows = []
    for pair, judged in zip(pairs, found, strict=True):
        if judged.mean is None:
            counts["unjudged"] += 1
        elif abs(judged.mean) <= settings.margin:
            counts["no_winner"] += 1
        else:
            rows.append(_pair_row(pair, judged.mean, settings))
    return rows, counts


def _pair_row(pair: Pair, mean: float, settings: RewardModels) -> Record:
    chosen, rejected = pair if mean > 0 else pair[::-1]
    return prompt_columns(chosen, settings) | {"chosen": chosen["text"], "rejected": rejected["text"], "preference": abs(mean)}


def balance(chosen: Sequence[int], rejected: Sequence[int], seed: int) -> list[int]:
    """Indices of the pairs that stay so that chosen and rejected answers are about as long over the set (paper: kept comparable).

    Pairs whose longer answer is on the side that is longer over all go at random, until the means are within BALANCE or MOST_DROPPED of all
    pairs are gone. At random: fewer would do if those with the largest difference went first, but they are all of one kind (a whole
    sentence against a curt answer), and the model then preferred the curt ones (docs/log.md).

    Args:
        chosen, rejected: lengths of the two answers of each pair.
    """
    excess = [c - r for c, r in zip(chosen, rejected, strict=True)]
    sign = 1 if sum(excess) > 0 else -1
    going = [i for i, value in enumerate(excess) if sign * value > 0]
    random.Random(f"balance/{seed}").shuffle(going)
    surplus, base, stay = sign * sum(excess), sum(rejected), set(range(len(excess)))
    for i in going[: int(MOST_DROPPED * len(excess))]:
        if surplus <= BALANCE * base:
            break
        stay.remove(i)
        surplus, base = surplus - sign * excess[i], base - rejected[i]
    return sorted(stay)


def make_pairs(
    settings: RewardModels, ids: Sequence[str], found: dict[str, list[Record]], work: Path
) -> tuple[list[Record], dict[str, Any]]:
    """Pair records, and what the report tells of them.

    Raises:
        DataError: no pair is left, or none that trains or none that measures.
    """
    drawn, counts = draw_pairs(ids, with_strangers(ids, found, settings.strangers, settings.seed), settings.pairs_per_prompt, settings.seed)
    if not drawn:
        raise DataError(f"no prompt has two different final answers of {POLICY}: raise reward_models.candidates or temperature")
    judged = judgements(drawn, settings, work)
    rows, reasons = clear_winners(drawn, judged, settings)
    if not rows:
        preference.forget(work)  # else a judge that was repaired would not be asked again
        raise DataError(
            f"no pair is left of {len(drawn)}: {reasons['unjudged']} had no reply that could be read, {reasons['no_winner']} no winner by "
            f"more than {settings.margin:g}. The judge said {next(r for p in judged for r in p.replies)[:300]!r}: check judge and margin "
            "of reward_models"
        )
    _, tokenizer = model_folder.load(POLICY)
    chosen, rejected = ([answer_length(tokenizer, row[side]) for row in rows] for side in ("chosen", "rejected"))
    stay = balance(chosen, rejected, settings.seed)
    kept = [rows[i] for i in stay]
    splits = Counter(r["split"] for r in kept)
    if len(splits) < 2:
        raise DataError(f"all {len(kept)} pairs are {splits.most_common()[0][0]}: raise reward_models.prompts or change held_out")
    told = {
        **counts, **reasons, "dropped_for_length": len(rows) - len(kept), "kept": len(kept), **dict(sorted(splits.items())),
        "length_ratio_before": sum(chosen) / sum(rejected),  # mean length of the chosen answers over that of the rejected ones
        "length_ratio": sum(chosen[i] for i in stay) / sum(rejected[i] for i in stay),
        "judge": preference.position_bias([value for p in judged for value in p.as_shown])
        | {"unread": sum(p.failures for p in judged), "unanswered": sum(len(p.unanswered) for p in judged)},
    }  # fmt: skip
    return kept, told


# ---- training


def answer_length(tokenizer: Any, response: str) -> int:
    """Tokens of the final answer."""
    return len(tokenizer.encode(parse(response).answer))


def encode(tokenizer: Any, kind: str, rows: Sequence[Record], column: str, context: int) -> list[list[int]]:
    """Token rows of what a reward model reads.

    Raises:
        DataError: rows are longer than the training context; names their prompts.
    """
    made = [tokenizer.encode(text(kind, question_of(row), row[column])) for row in rows]
    long = [f"{row['prompt_id']} ({len(ids)} tokens)" for row, ids in zip(rows, made, strict=True) if len(ids) > context]
    if long:
        raise DataError(f"{len(long)} prompts with a response exceed reward_models.context {context}: {', '.join(long[:20])}")
    return made


def fit(kind: str, rows: Sequence[Record], settings: RewardModels, folder: Path) -> list[float]:
    """Trains one reward model from the policy, notes the scale of its scores on what it was trained on, and writes it; gives its losses."""
    policy, tokenizer = model_folder.load(POLICY)
    fill = padding(tokenizer)
    model = with_head(policy, fill, seed_of(settings.seed, kind))
    if kind == "helpful":
        chosen, rejected = (encode(tokenizer, kind, rows, side, settings.context) for side in ("chosen", "rejected"))
        losses, seen = train_pairs(model, list(zip(chosen, rejected, strict=True)), fill, settings), chosen + rejected
    else:
        seen = encode(tokenizer, kind, rows, "response", settings.context)
        losses = train_labels(model, seen, [row["safe"] for row in rows], fill, settings)
    raw = score_all(model, seen, fill)
    model.config.reward_kind, model.config.reward_shift, model.config.reward_scale = kind, statistics.mean(raw), statistics.pstdev(raw)
    model_folder.save(model, tokenizer, folder)
    return losses


def trained(kind: str, rows: Sequence[Record], settings: RewardModels, work: Path) -> tuple[RewardModel, list[float]]:
    """The reward model and the loss of every update; what an earlier, killed run has finished is taken as it is."""
    folder, told = work / kind, work / f"{kind}.json"
    if not told.exists():  # written after the folder
        losses = fit(kind, [row for row in rows if row["split"] == "train"], settings, folder)
        with records.atomic(told) as temporary:
            temporary.write_text(json.dumps(losses))
    return RewardModel(folder), json.loads(told.read_text())


# ---- the report


def measure(kind: str, model: RewardModel, rows: Sequence[Record]) -> dict[str, Any]:
    """What is reported of one reward model, on held-out prompts."""
    held_out = [row for row in rows if row["split"] == "held_out"]
    questions = [question_of(row) for row in held_out]
    if kind == "safety":
        texts = [row["response"] for row in held_out]
        sizes = [len(model.tokenizer.encode(one)) for one in texts]
        return preference.measure_labels(model.raw(questions, texts), [row["safe"] for row in held_out], sizes)
    sides = [[row[side] for row in held_out] for side in ("chosen", "rejected")]
    scores = [model.raw(questions, texts) for texts in sides]
    lengths = [[answer_length(model.tokenizer, one) for one in texts] for texts in sides]
    return preference.measure_pairs([row["prompt_id"] for row in held_out], scores, lengths)


# ---- the stage


def state_folder(settings: RewardModels, own: Sequence[Path]) -> Path:
    """Where this very run keeps its state: other parameters, data, policy or code get another folder."""
    package = Path(__file__).parent
    sources = [package / name for name in ("labels.py", "evaluation/preference.py", "world/general.py", "world/judges.py")]
    inputs = [TRAIN, *files_of(POLICY), *own, *code("reward_models"), *sources]
    return RUNS / fingerprint(settings.model_dump(mode="json"), [file_hash(path) for path in inputs])


def run(settings: RewardModels) -> dict[str, Any]:
    """Makes the preference data, trains both models and publishes everything at the end; returns the metrics."""
    torch.set_num_threads(1)
    model_folder.check(POLICY)
    own = [Path(settings.labels)] if settings.labels else []
    for path in (TRAIN, *own):
        records.count(path)  # raises where it cannot be read
    state, inputs = state_folder(settings, own), {str(path): path for path in (TRAIN, POLICY, *own)}
    with tracking.run(stage="reward_models", params=settings.model_dump(mode="json"), inputs=inputs, state=state) as tracked:
        told = build(settings, state / "work")
        _track(tracked, told)
    shutil.rmtree(state / "work", ignore_errors=True)  # what tracking could not deliver yet stays
    return told


def build(settings: RewardModels, work: Path) -> dict[str, Any]:
    """All steps; finished ones are taken from `work`, and outputs are written after the last."""
    chosen = prompts(settings)
    own = labels.of_file(Path(settings.labels), settings) if settings.labels else []
    if own:  # a mistake is told before hours of sampling
        encode(model_folder.load(POLICY)[1], "safety", own, "response", settings.context)
    found = candidates(settings, chosen, work)
    ids = {name: [record["id"] for record in group] for name, group in chosen.items()}
    labelled = own or labels.of_samples((found[key] for key in ids["harmful"] + ids["harmless"]), settings)
    counted = labels.count(labelled)
    pairs, paired = make_pairs(settings, ids["general"], found, work)
    told: dict[str, Any] = {
        "prompts": {name: len(group) for name, group in ids.items()}, "candidates": sum(map(len, found.values())),
        "pairs": paired, "labels": counted,
    }  # fmt: skip
    models = {}
    for kind, rows in (("helpful", pairs), ("safety", labelled)):
        models[kind], losses = trained(kind, rows, settings, work)
        told[kind] = measure(kind, models[kind], rows) | {"updates": len(losses), "loss": losses}
    publish(pairs, labelled, models, told)
    return told


def publish(pairs: Sequence[Record], labelled: Sequence[Record], models: dict[str, RewardModel], told: dict[str, Any]) -> None:
    """Writes the stage's outputs."""
    records.write(pairs, PAIRS, PAIR_SCHEMA)
    records.write(labelled, LABELS, LABEL_SCHEMA)
    for kind, model in models.items():
        model_folder.save(model.model, model.tokenizer, MODELS[kind])
    with records.atomic(METRICS) as temporary:
        temporary.write_text(json.dumps(told, indent=2) + "\n")


def _track(tracked: tracking.Run, told: dict[str, Any]) -> None:
    for kind, folder in MODELS.items():
        for step, value in enumerate(told[kind]["loss"]):
            tracked.metrics(step, {f"{kind}_loss": value})
        tracked.checkpoint(folder)
    tracked.metrics(0, {"helpful_accuracy": told["helpful"]["accuracy"]["mean"], "safety_auc": told["safety"]["auc"]})
    tracked.artifact(METRICS)


def main() -> None:
    told = run(load_params().reward_models)
    helpful, safety = told["helpful"], told["safety"]
    mean, low, high = (helpful["accuracy"][key] for key in ("mean", "low", "high"))
    print(
        f"reward_models: helpful accuracy {mean:.3f} [{low:.3f}, {high:.3f}] on {helpful['pairs']} held-out pairs, "
        f"safety AUC {safety['auc']:.3f} on {safety['responses']} held-out responses"
    )


if __name__ == "__main__":
    errors.main(main)
