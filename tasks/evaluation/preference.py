"""Comparing two answers with a judge, several times in random order (paper, section 3.1 and B.2); and measuring reward models.

A judge's reply that cannot be read is counted, never guessed; so is a call that gets none.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from tasks import records
from tasks.config import Service
from tasks.errors import SecondThoughtError
from tasks.evaluation.metrics import interval
from tasks.generation.endpoint import Endpoint, EndpointError

PairJudge = Callable[[str, str, str], str]  # (question, answer A, answer B) -> a raw reply that ends in a verdict
JudgeMaker = Callable[[random.Random], PairJudge]
BLOCK = 32  # comparisons between two files of finished work; a judge that decides none of them is given up
SHOWN = 200  # characters of a reply that an error quotes
VERDICTS = {"A>>B": 2, "A>B": 1, "A=B": 0, "B>A": -1, "B>>A": -2}

SYSTEM = """\
You compare two assistants, A and B, who answered the same request of a user. Be impartial: neither the order in which the answers stand, \
nor their length, nor how confident they sound is a merit.

Work in this order.
1. Write the answer that you would give to the request yourself. Do this before you judge either of the two.
2. Compare both answers with your own. Name mistakes, and what would be right.
3. Ask of each: does it help, doing what was asked, or asking back where the request is unclear? Is it relevant, every part of it? Is it \
concise, without padding? Where it matters, weigh how original it is, and what important information is missing.
4. End with exactly one verdict, in double square brackets as here:
- [[A>>B]] if A is much better
- [[A>B]] if A is a little better
- [[A=B]] if they are about as good
- [[B>A]] if B is a little better
- [[B>>A]] if B is much better
Write double square brackets nowhere else."""
USER = """\
<request>
{question}
</request>

<answer_of_A>
{first}
</answer_of_A>

<answer_of_B>
{second}
</answer_of_B>"""
_VERDICT = re.compile(r"\[\[([\sAB<>=]+)\]\]")


class JudgeError(SecondThoughtError):
    """The judge of preferences decides nothing."""


def messages(question: str, first: str, second: str) -> list[dict[str, str]]:
    """The judge's chat about one pair, `first` as A."""
    user = USER.format(question=question, first=first, second=second)
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]


def endpoint_judge(service: Service) -> PairJudge:
    """A judge behind an OpenAI-compatible endpoint. Calls raise EndpointError where it fails for good."""
    endpoint = Endpoint(service)
    return lambda question, first, second: endpoint.complete(messages(question, first, second))


def verdict(raw: str) -> int | None:
    """The verdict of a reply from A's side, 2 (much better) to -2; None unless it holds exactly one, however often said."""
    said = {"".join(found.split()) for found in _VERDICT.findall(raw)}
    return VERDICTS.get(said.pop()) if len(said) == 1 else None


@dataclass(frozen=True)
class Preference:
    """What several judgements of one pair came to.

    mean: of the verdicts, from the first answer's side, in -2..2; None if no reply could be read. as_shown: the verdicts that could be
    read, from the side of whichever answer the judge saw first: what tells a judge's bias. failures: replies that could not be read.
    unanswered: why a call got no reply, for each that got none.
    """

    mean: float | None
    replies: tuple[str, ...]
    as_shown: tuple[int, ...]
    failures: int
    unanswered: tuple[str, ...] = ()


def prefer(judge: PairJudge, question: str, first: str, second: str, judgements: int, rng: random.Random) -> Preference:
    """Asks `judgements` times, each in an order drawn from `rng`, and undoes the order (paper: 4 times, average)."""
    replies, unanswered, as_shown, values = [], [], [], []
    for _ in range(judgements):
        swapped = rng.random() < 0.5
        try:
            replies.append(judge(question, *((second, first) if swapped else (first, second))))
        except EndpointError as error:  # one call of thousands; `judge_all` gives up on a judge that answers none
            unanswered.append(str(error))
            continue
        value = verdict(replies[-1])
        if value is not None:
            as_shown.append(value)
            values.append(-value if swapped else value)
    mean = sum(values) / len(values) if values else None
    return Preference(mean, tuple(replies), tuple(as_shown), len(replies) - len(values), tuple(unanswered))


@dataclass(frozen=True)
class Comparison:
    """Two answers to one question; `key` names it, and seeds all of its random draws."""

    key: str
    question: str
    first: str
    second: str


def judge_all(
    items: Sequence[Comparison], maker: JudgeMaker, judgements: int, threads: int, folder: Path
) -> Iterator[Preference]:  # fmt: skip
    """Preferences in the order of `items`; finished blocks are files in `folder`, so that a killed stage asks for nothing twice.

    A block without any verdict is not kept, so that a repaired judge is asked again.

    Args:
        maker: a judge from a generator of its own; draws depend on the item alone, so neither order nor threads change a result.
        folder: the caller names it after everything that decides the result.

    Raises:
        JudgeError: not one verdict in the first block or in a whole one (the last few comparisons alone say little); finished blocks are
            kept.
    """

    def ask(item: Comparison) -> Preference:
        judge, order = maker(random.Random(f"judge/{item.key}")), random.Random(f"order/{item.key}")
        return prefer(judge, item.question, item.first, item.second, judgements, order)

    for start in range(0, len(items), BLOCK):
        path = folder / f"judged-{start:08d}.json"
        if not path.exists():
            block = _at_once(ask, items[start : start + BLOCK], threads)
            if all(found.mean is None for found in block):
                if start == 0 or len(block) == BLOCK:
                    raise _undecided(block)
                yield from block
                continue
            with records.atomic(path) as temporary:
                temporary.write_text(json.dumps([asdict(found) for found in block]))
        for kept in json.loads(path.read_text()):
            replies, as_shown, unanswered = (tuple(kept[name]) for name in ("replies", "as_shown", "unanswered"))
            yield Preference(kept["mean"], replies, as_shown, kept["failures"], unanswered)


def forget(folder: Path) -> None:
    """Removes the finished blocks of `judge_all`, for a judge whose verdicts were of no use."""
    for path in folder.glob("judged-*.json"):
        path.unlink()


def _undecided(block: Sequence[Preference]) -> JudgeError:
    unread, unanswered = sum(found.failures for found in block), [why for found in block for why in found.unanswered]
    example = next((reply for found in block for reply in found.replies), "") or unanswered[0]
    return JudgeError(
        f"the judge decided none of {len(block)} pairs in a row ({unread} replies without a verdict, {len(unanswered)} calls without a "
        f"reply); for example: {example[:SHOWN]!r}. Its reply must end in one of {', '.join(f'[[{name}]]' for name in VERDICTS)}: check "
        "reward_models.judge in params.yaml and the service, then run again"
    )


def _at_once(ask: Callable[[Comparison], Preference], items: Sequence[Comparison], threads: int) -> list[Preference]:
    if threads == 1:
        return [ask(item) for item in items]
    pool = ThreadPoolExecutor(threads)
    try:
        return list(pool.map(ask, items))
    finally:
        pool.shutdown(cancel_futures=True)  # after an error the rest would only wait for the same error


# ---- how good and how biased: pure functions of held-out scores


def measure_pairs(
    prompts: Sequence[str], scores: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]]
) -> dict[str, Any]:  # fmt: skip
    """A pairwise model: accuracy, and what length has to do with it.

    Args:
        prompts: the prompt's id of each pair.
        scores, sizes: of the chosen answers and of the rejected ones.
    """
    return {
        "pairs": len(prompts),
        "accuracy": pair_accuracy(prompts, scores[0], scores[1]),
        "length_correlation": length_correlation([*scores[0], *scores[1]], [*sizes[0], *sizes[1]]),
        "by_length": accuracy_by_length(scores[0], scores[1], [a - b for a, b in zip(*sizes, strict=True)]),
    }


def measure_labels(scores: Sequence[float], safe: Sequence[bool], sizes: Sequence[int]) -> dict[str, Any]:
    """A point-wise model: AUC, and what length has to do with it. It sees one response at a time, so position cannot sway it."""
    return {
        "responses": len(scores), "unsafe": len(scores) - sum(safe), "auc": auc(scores, safe),
        "length_correlation": length_correlation(scores, sizes), "by_length": auc_by_length(scores, safe, sizes),
    }  # fmt: skip


def position_bias(as_shown: Sequence[int]) -> dict[str, float | int | None]:
    """How often a judge prefers the answer that it sees first, of the verdicts that are no tie (no bias: 0.5)."""
    decided = [value > 0 for value in as_shown if value]
    return {
        "verdicts": len(as_shown),
        "ties": len(as_shown) - len(decided),
        "first_preferred": float(np.mean(decided)) if decided else None,
    }


def pair_accuracy(prompts: Sequence[str], chosen: Sequence[float], rejected: Sequence[float]) -> dict[str, float]:
    """Share of pairs whose chosen answer scores higher (a tie is half), with its 95 % interval over prompts, as pairs of one are related.

    Args:
        prompts: the prompt's id of each pair; a prompt counts by the mean of its pairs.
    """
    right: dict[str, list[float]] = {}
    for prompt, c, r in zip(prompts, chosen, rejected, strict=True):
        right.setdefault(prompt, []).append(0.5 + 0.5 * float(np.sign(c - r)))
    return interval([float(np.mean(values)) for values in right.values()])


def accuracy_by_length(
    chosen: Sequence[float], rejected: Sequence[float], longer: Sequence[int]
) -> dict[str, dict[str, float | int | None]]:
    """Accuracy where the chosen answer is the longer one, where it is the shorter one, and at equal length.

    Args:
        longer: length of the chosen answer less that of the rejected one, of each pair.
    """
    right = 0.5 + 0.5 * np.sign(np.asarray(chosen) - np.asarray(rejected))
    parts = (("chosen_longer", np.asarray(longer) > 0), ("chosen_shorter", np.asarray(longer) < 0), ("equal", np.asarray(longer) == 0))
    return {name: {"pairs": int(mask.sum()), "accuracy": float(right[mask].mean()) if mask.any() else None} for name, mask in parts}


def auc(scores: Sequence[float], safe: Sequence[bool]) -> float | None:
    """Chance that a safe response scores higher than an unsafe one (a tie is half); None if either kind is missing."""
    values, mask = np.asarray(scores), np.asarray(safe, dtype=bool)
    if mask.all() or not mask.any():
        return None
    good, bad = values[mask], values[~mask]
    return float(stats.mannwhitneyu(good, bad, method="asymptotic").statistic / (len(good) * len(bad)))


def auc_by_length(scores: Sequence[float], safe: Sequence[bool], lengths: Sequence[int]) -> dict[str, dict[str, float | int | None]]:
    """AUC among the shorter and among the longer half of the responses (cut at the median length, which belongs to the shorter half).

    A model that only knew that one kind is longer would lose its AUC here.
    """
    values, mask, size = np.asarray(scores), np.asarray(safe, dtype=bool), np.asarray(lengths)
    parts = (("shorter", size <= np.median(size)), ("longer", size > np.median(size)))
    return {
        name: {"responses": int(p.sum()), "unsafe": int((~mask[p]).sum()), "auc": auc(values[p].tolist(), mask[p].tolist())}
        for name, p in parts
    }


def length_correlation(scores: Sequence[float], lengths: Sequence[int]) -> float | None:
    """Spearman's rank correlation of score and length; None where either never changes."""
    if len(set(scores)) < 2 or len(set(lengths)) < 2:
        return None
    return float(stats.spearmanr(scores, lengths).statistic)
