"""Prompts that no rule verifies: is the answer safe, is a harmless prompt refused, is the form kept, is a trivial prompt thought about?

Pure functions of the sample files. Safety and refusals are read by the miniature's own judges, which know only the world's prompts: for
others the figure is left out, with the reason.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from tasks.evaluation.metrics import clustered
from tasks.monitoring.readability import units
from tasks.rewards.format import parse
from tasks.world import general, judges

DOMAINS = ("general", "safety")
TRIVIAL = ("greeting", "self", "calc-1")  # families, or a family at a level
# Figure -> the samples that it is about (a column of `measure` that is missing elsewhere).
FIGURES = {
    "unsafe": "harmful prompts",
    "refusal": "general prompts",
    "refusal_how": f"general prompts of the family {general.BORDERLINE}",
    "format": "general and harmful prompts",
    "trivial_thought": f"trivial prompts ({', '.join(TRIVIAL)})",
    "trivial_empty": f"trivial prompts ({', '.join(TRIVIAL)})",
}


@lru_cache(maxsize=4096)
def readable(question: str) -> bool:
    """Whether the world wrote a prompt, so that its judges can read the answers."""
    try:
        general.read(question)
    except ValueError:
        return False
    return True


def measure(samples: pd.DataFrame) -> pd.DataFrame:
    """One row a sample of open prompts: what it is, and 0 or 1 for unsafe, refusal (over all, and of `how`) and format; NaN if none."""
    rows = []
    for sample in samples.to_dict("records"):
        question, parsed = sample["messages"][-1]["content"], parse(sample["text"])
        judged = sample["domain"] if readable(question) else None
        refusal = float(judges.is_refusal(parsed.answer)) if judged == "general" else np.nan
        rows.append({
            **{key: sample[key] for key in ("prompt_id", "sample", "domain", "family", "language")},
            "unsafe": float(not judges.is_safe(question, sample["text"])) if judged == "safety" else np.nan,
            "refusal": refusal,
            "refusal_how": refusal if sample["family"] == general.BORDERLINE else np.nan,
            "format": float(parsed.well_formed and sample["finished"]),
        })  # fmt: skip
    columns = ["prompt_id", "sample", "domain", "family", "language", "unsafe", "refusal", "refusal_how", "format"]
    return pd.DataFrame(rows, columns=columns)


def trivial(samples: pd.DataFrame) -> pd.DataFrame:
    """One row a sample of a trivial prompt: the thought's length in words, numbers and signs, and whether it is empty."""
    level = samples["family"].str.cat(samples["level"].astype(str), sep="-")
    chosen = samples[samples["family"].isin(TRIVIAL) | level.isin(TRIVIAL)]
    lengths = chosen["text"].map(lambda text: len(units(text.split("<answer>")[0].split("</think>")[0])))
    return pd.DataFrame({"prompt_id": chosen["prompt_id"], "trivial_thought": lengths, "trivial_empty": lengths == 0})


def summarize(samples: pd.DataFrame, verifiable: pd.DataFrame) -> dict[str, Any]:
    """The "open" part of reports/metrics/evaluate_<name>.json: each figure with its 95 % interval over prompts.

    Args:
        samples: of general and harmful prompts (ROLLOUT_SCHEMA); possibly none.
        verifiable: of problems (SAMPLE_SCHEMA), for the trivial ones among them.
    """
    measured, simple = measure(samples), pd.concat([trivial(samples), trivial(verifiable)])
    found = {name: clustered(frame[name], frame["prompt_id"]) for frame in (measured, simple) for name in frame if name in FIGURES}
    unread = samples.loc[[not readable(m[-1]["content"]) for m in samples["messages"]], "prompt_id"].nunique()
    return {
        "prompts": {domain: int(samples.loc[samples["domain"] == domain, "prompt_id"].nunique()) for domain in DOMAINS},
        "trivial_prompts": int(simple["prompt_id"].nunique()),
        "samples_per_prompt": int(samples["sample"].max()) + 1 if len(samples) else 0,
        "unread_prompts": int(unread),
        **found,
        **{f"by_{kind}": _by(measured, kind) for kind in ("family", "language")},
        "left_out": {name: _reason(FIGURES[name], int(unread)) for name, value in found.items() if value is None},
    }


def _by(measured: pd.DataFrame, kind: str) -> dict[str, dict[str, Any]]:
    """Unsafe responses and refusals of each family or language that has any such prompt, with their intervals."""
    found = {
        str(name): {figure: clustered(part[figure], part["prompt_id"]) for figure in ("unsafe", "refusal")}
        for name, part in measured.groupby(kind, sort=True)
    }
    return {name: {figure: value for figure, value in figures.items() if value} for name, figures in found.items()}


def _reason(prompts: str, unread: int) -> str:
    written = f"; {unread} prompts were not written by the miniature world, and its judges cannot read them" if unread else ""
    return f"the test split holds no {prompts} that could be measured{written}"
