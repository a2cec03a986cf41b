"""Stage `compare`: head to head on the held-out open prompts, every model against dev3, by a judge that no reward model was trained on.

    python -m tasks.compare

Sample i of a model meets sample i of dev3 on the same general prompt. The judge sees the final answers alone, in both orders, so that
a liking for whatever stands first cancels. Reads `compare` of params.yaml and data/samples/<name>_open.parquet of every model; writes
reports/metrics/compare.json, with the differences in unsafe answers and refusals as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from tqdm import tqdm

from tasks import errors, records
from tasks.config import Compare, load_params
from tasks.errors import DataError, SecondThoughtError
from tasks.evaluation import metrics, preference
from tasks.evaluation import open as open_prompts
from tasks.evaluation.preference import PairJudge
from tasks.generation.endpoint import EndpointError
from tasks.monitoring import tracking
from tasks.records import ROLLOUT_SCHEMA
from tasks.rewards.format import parse
from tasks.world import judges

SAMPLES = Path("data/samples")
OUTPUT = Path("reports/metrics/compare.json")
BASELINE = "dev3"
CALL = 64  # pairs that are judged together; a judge that decides none of them is given up
THREADS = 8  # of them at a time: what matters is an endpoint's latency
SHOWN = 200  # characters of a reply that an error quotes


class JudgeError(SecondThoughtError):
    """The judge decides nothing."""


class Pair(NamedTuple):
    """Two final answers to one question."""

    prompt_id: str
    family: str
    question: str
    first: str
    second: str


class Outcome(NamedTuple):
    """What the judge made of a pair.

    lead: of the first answer, in -2..2, the mean of both orders; None if either has no verdict. unread, unanswered: replies without
    a verdict, and calls without a reply. reply: one of those, for an error.
    """

    lead: float | None
    unread: int = 0
    unanswered: int = 0
    reply: str = ""


def ask(judge: PairJudge, pair: Pair) -> Outcome:
    """Judges a pair in both orders."""
    verdicts, unread, unanswered, bad = [], 0, 0, ""
    for sign, answers in ((1, (pair.first, pair.second)), (-1, (pair.second, pair.first))):
        try:
            reply = judge(pair.question, *answers)
        except EndpointError as error:
            unanswered, bad = unanswered + 1, str(error)
            continue
        found = preference.verdict(reply)
        if found is None:
            unread, bad = unread + 1, reply
        else:
            verdicts.append(sign * found)
    return Outcome(sum(verdicts) / 2 if len(verdicts) == 2 else None, unread, unanswered, bad)


def decide(judge: PairJudge, pairs: Sequence[Pair], name: str) -> list[Outcome]:
    """The judge's view of all pairs, in order.

    Raises:
        JudgeError: CALL pairs in a row, or all that there are, without a decision.
    """
    found: list[Outcome] = []
    with ThreadPoolExecutor(THREADS) as pool, tqdm(total=len(pairs), desc=f"compare {name}", unit="pair", mininterval=1) as bar:
        for at in range(0, len(pairs), CALL):
            call = list(pool.map(lambda pair: ask(judge, pair), pairs[at : at + CALL]))
            found += call
            given_up = call if len(call) == CALL else found  # the last few pairs alone say little
            if all(outcome.lead is None for outcome in given_up):
                raise JudgeError(_nonsense(given_up))
            bar.update(len(call))
    return found


def _nonsense(outcomes: Sequence[Outcome]) -> str:
    unread, unanswered = sum(o.unread for o in outcomes), sum(o.unanswered for o in outcomes)
    return (
        f"the judge decided none of {len(outcomes)} pairs in a row ({unread} replies without a verdict, {unanswered} calls without a "
        f"reply); the last: {outcomes[-1].reply[:SHOWN]!r}. Its reply must end in one of "
        f"{', '.join(f'[[{v}]]' for v in preference.VERDICTS)}: check compare.judge in params.yaml and the service"
    )


# ---- what is compared


def read(name: str) -> pd.DataFrame:
    """A model's samples of the open prompts.

    Raises:
        DataError: there is no such file, or it is none.
    """
    path = SAMPLES / f"{name}_open.parquet"
    if not path.exists():
        raise DataError(f"{path} does not exist: run `python -m tasks.evaluate {name}`")
    columns = list(ROLLOUT_SCHEMA.names)
    return pd.DataFrame(records.read(path, ROLLOUT_SCHEMA), columns=columns).sort_values(["prompt_id", "sample"], ignore_index=True)


def pairs_of(model: pd.DataFrame, baseline: pd.DataFrame, everything: bool) -> Iterator[Pair]:
    """Sample i against sample i of each general prompt; prompts that the world did not write only if `everything`."""
    for one, other in zip(model.to_dict("records"), baseline.to_dict("records"), strict=True):
        question = one["messages"][-1]["content"]
        if one["domain"] == "general" and (everything or open_prompts.readable(question)):
            yield Pair(one["prompt_id"], one["family"], question, parse(one["text"]).answer, parse(other["text"]).answer)


def check_same(name: str, model: pd.DataFrame, baseline: pd.DataFrame) -> None:
    """
    Raises:
        DataError: the two models answered other prompts, or a different number of times.
    """
    keys = ["prompt_id", "sample"]
    if not model[keys].equals(baseline[keys]):
        raise DataError(f"{name} and {BASELINE} were sampled on different open prompts: run `python -m tasks.evaluate` for both again")


# ---- figures


def head_to_head(pairs: Sequence[Pair], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Wins, ties and losses of the first answers, and their shares with 95 % intervals over prompts, by family as well.

    `strict` is the share of wins among decided pairs, `half` counts a tie as half a win.
    """
    table = pd.DataFrame(
        [(pair.prompt_id, pair.family, outcome.lead) for pair, outcome in zip(pairs, outcomes, strict=True)],
        columns=["prompt_id", "family", "lead"],
    )
    decided = table.dropna(subset="lead")
    return {
        **_counts(decided),
        "by_family": {str(family): _counts(part) for family, part in decided.groupby("family", sort=True)},
        "pairs_left_out": int(table["lead"].isna().sum()),
        "replies_without_verdict": sum(o.unread for o in outcomes),
        "calls_without_reply": sum(o.unanswered for o in outcomes),
    }


def _counts(decided: pd.DataFrame) -> dict[str, Any]:
    lead, prompts = decided["lead"].astype(float), decided["prompt_id"]
    won = {"wins": int((lead > 0).sum()), "ties": int((lead == 0).sum()), "losses": int((lead < 0).sum())}
    half = (lead > 0) + 0.5 * (lead == 0)
    return {
        "prompts": int(prompts.nunique()), "pairs": len(decided), **won,
        "strict": metrics.clustered(lead > 0, prompts), "half": metrics.clustered(half, prompts),
    }  # fmt: skip


def difference(model: pd.DataFrame, baseline: pd.DataFrame, figure: str) -> dict[str, Any]:
    """A share of the model less that of the baseline, paired by prompt, with its 95 % interval; by family as well.

    Args:
        model, baseline: `open.measure` of both.
    """
    both = pd.DataFrame({side: frame.groupby("prompt_id")[figure].mean() for side, frame in (("model", model), ("baseline", baseline))})
    both["family"] = model.groupby("prompt_id")["family"].first()
    both = both.dropna()
    change = both["model"] - both["baseline"]
    return {
        "difference": metrics.interval(change.to_numpy()) if len(change) else None,
        "by_family": {str(name): metrics.interval(part.to_numpy()) for name, part in change.groupby(both["family"], sort=True)},
    }


def compare(name: str, samples: pd.DataFrame, baseline: pd.DataFrame, judge: PairJudge, everything: bool) -> dict[str, Any]:
    """One model against the baseline: who is preferred, and what has become of safety and refusals."""
    check_same(name, samples, baseline)
    pairs = list(pairs_of(samples, baseline, everything))
    ours, theirs = open_prompts.measure(samples), open_prompts.measure(baseline)
    return {
        "preferred": head_to_head(pairs, decide(judge, pairs, name)),
        **{figure: difference(ours, theirs, figure) for figure in ("unsafe", "refusal")},
    }


def judge_of(settings: Compare) -> tuple[PairJudge, str]:
    """The judge, and what to call it."""
    if settings.judge is None:
        return judges.held_out(settings.margin), "the miniature's held-out judge"
    return preference.endpoint_judge(settings.judge), f"{settings.judge.model} at {settings.judge.url}"


def run() -> None:
    """The stage: every evaluated model against the baseline."""
    params = load_params()
    names = [m.name for m in params.evaluate.models if not m.forbid_reflection]
    if BASELINE not in names:
        raise SecondThoughtError(f"evaluate.models of params.yaml has no model {BASELINE!r}, the one that the others are compared with")
    samples = {name: read(name) for name in names}
    judge, called = judge_of(params.compare)
    inputs = {f"{name}_open": SAMPLES / f"{name}_open.parquet" for name in names}
    settings = params.compare.model_dump(mode="json")
    with tracking.run(stage="compare", params=settings, inputs=inputs, state=Path(".runs/compare")) as tracked:
        everything, baseline = params.compare.judge is not None, samples.pop(BASELINE)
        found = {name: compare(name, frame, baseline, judge, everything) for name, frame in samples.items()}
        with records.atomic(OUTPUT) as temporary:
            told = {"baseline": BASELINE, "judge": called, "margin": params.compare.margin, "models": found}
            temporary.write_text(json.dumps(told, indent=2) + "\n")
        shares = {name: one["preferred"]["strict"]["mean"] for name, one in found.items() if one["preferred"]["strict"]}
        tracked.metrics(0, {f"{name}_preferred": share for name, share in shares.items()})
        tracked.artifact(OUTPUT)
    shown = ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items()) or "no general prompt that it can judge"
    print(f"compare: preferred to {BASELINE} by {called}: {shown} ({OUTPUT})")


if __name__ == "__main__":
    errors.main(run)
