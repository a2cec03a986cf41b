"""Held-out problems solved by the base and by Zero side by side: which ones are shown, and how their text is marked up.

Nothing is picked by hand or by looks. Problems stand in the order of the hash in their id, which knows nothing of
results, and sample 0 is shown. Families take turns; two more problems are picked by outcome, and labelled as such.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice

import pandas as pd
from markupsafe import Markup, escape

from tasks.monitoring import reflection

HOW = (
    "Problems are ordered by the hash in their id, which knows nothing of results, and the first sample of each model"
    " is shown. Families take turns, and so do English and Chinese: each family's first problem that is not yet "
    "shown, whatever came of it. The last two are picked by outcome: the first one that Zero solves after saying "
    "“wait” while the base fails, and the first one that Zero gets wrong (none if there is none)."
)
HOW_OPEN = (
    "Of each family the prompt that comes first by the hash in its id, which knows nothing of results, with the first sample of each model."
)
BY_OUTCOME = 2
_TAG = re.compile(r"\s*(&lt;/?(?:think|answer)&gt;)\s*")  # in escaped text


@dataclass(frozen=True)
class Answer:
    """One model's sample, ready to show."""

    html: Markup
    correct: bool
    tokens: int
    finished: bool


@dataclass(frozen=True)
class OpenExample:
    """One prompt without a rule, with the texts of Dev3 and R1, marked up."""

    id: str
    family: str
    language: str
    question: str
    dev3: Markup
    r1: Markup


@dataclass(frozen=True)
class Example:
    """One problem with both models' samples and why it is shown."""

    id: str
    family: str
    level: int
    language: str
    why: str
    question: str
    base: Answer
    zero: Answer


def highlight(text: str) -> Markup:
    """``text`` escaped, with reflective words in <mark> elements and the template's tags in dimmed spans."""
    parts: list[Markup] = []
    position = 0
    for match in reflection.find(text):
        parts += [
            escape(text[position : match.start]),
            Markup('<mark title="{}">{}</mark>').format(match.word, text[match.start : match.end]),
        ]
        position = match.end
    marked = Markup("").join([*parts, escape(text[position:])])
    tagged = _TAG.sub(r' <span class="tag">\1</span> ', str(marked)).strip()
    return Markup(re.sub(r'\s+(?=<span class="tag">&lt;answer&gt;)', "\n", tagged))  # the answer on a line of its own


def _answer(row: pd.Series) -> Answer:
    return Answer(highlight(row["text"]), bool(row["correct"]), len(row["token_ids"]), bool(row["finished"]))


def _question(record: pd.Series) -> str:
    return str(next(m["content"] for m in reversed(list(record["messages"])) if m["role"] == "user"))


def _first_samples(samples: pd.DataFrame) -> pd.DataFrame:
    return samples[samples["sample"] == 0].set_index("prompt_id")


def _by_turns(pairs: pd.DataFrame, count: int) -> Iterator[tuple[str, str]]:
    """(id, why) of up to ``count`` problems: families and languages by turns, the other language if one is lacking."""
    families, languages = cycle(sorted(pairs["family"].unique())), cycle(("en", "zh"))
    for family, language in islice(zip(families, languages, strict=False), min(count, len(pairs))):
        of_family = pairs[pairs["family"] == family]
        wanted = of_family[of_family["language"] == language]
        if len(of_family):
            identifier = str((wanted if len(wanted) else of_family).index[0])
            pairs = pairs.drop(identifier)
            yield identifier, "by turn, whatever came of it"


def _by_outcome() -> Iterator[tuple[Callable[[pd.Series], bool], str]]:
    yield (
        lambda row: bool(row["correct_zero"]) and not row["correct_base"] and reflection.has_wait(row["text_zero"]),
        "picked by outcome: first that Zero solves after saying “wait” and the base does not",
    )
    yield lambda row: not row["correct_zero"], "picked by outcome: first that Zero gets wrong"


def choose(base: pd.DataFrame, zero: pd.DataFrame, count: int) -> list[tuple[str, str]]:
    """(problem id, why it is shown) of up to ``count`` problems, by the rule in HOW; no problem twice."""
    pairs = _first_samples(base).join(_first_samples(zero), suffixes=("_base", "_zero"), how="inner")
    pairs = pairs.rename(columns={"family_zero": "family", "language_zero": "language"})
    pairs = pairs.loc[sorted(pairs.index, key=lambda identifier: (identifier.rsplit("-", 1)[-1], identifier))]
    chosen = dict(_by_turns(pairs, max(count - BY_OUTCOME, 1)))
    for fits, why in _by_outcome():
        found = next((str(i) for i, row in pairs.iterrows() if i not in chosen and fits(row)), None)
        if found is not None:
            chosen[found] = why
    return list(chosen.items())[:count]


def examples(test: pd.DataFrame, base: pd.DataFrame, zero: pd.DataFrame, count: int) -> list[Example]:
    """The problems to show with both models' first samples.

    Args:
        test: prompt records of the test split.
        base: sample records of the base.
        zero: sample records of Zero on the same problems.
        count: of problems, at most.
    """
    records, of_base, of_zero = test.set_index("id"), _first_samples(base), _first_samples(zero)
    return [
        Example(
            id=identifier,
            family=str(of_zero.at[identifier, "family"]),
            level=int(of_zero.at[identifier, "level"]),
            language=str(of_zero.at[identifier, "language"]),
            why=why,
            question=_question(records.loc[identifier]),
            base=_answer(of_base.loc[identifier]),
            zero=_answer(of_zero.loc[identifier]),
        )
        for identifier, why in choose(base, zero, count)
        if identifier in records.index
    ]


def open_examples(dev3: pd.DataFrame, r1: pd.DataFrame) -> list[OpenExample]:
    """One prompt of each family, picked by the rule in HOW_OPEN.

    Args:
        dev3, r1: their samples of the open prompts (ROLLOUT_SCHEMA).
    """
    of_dev3, of_r1 = _first_samples(dev3), _first_samples(r1)
    both = of_r1.loc[[i for i in of_r1.index if i in of_dev3.index]]
    both = both.loc[sorted(both.index, key=lambda identifier: (identifier.rsplit("-", 1)[-1], identifier))]
    return [
        OpenExample(
            id=str(identifier),
            family=str(row["family"]),
            language=str(row["language"]),
            question=_question(row),
            dev3=highlight(of_dev3.at[identifier, "text"]),
            r1=highlight(row["text"]),
        )
        for identifier, row in both.drop_duplicates("family").sort_values("family", kind="stable").iterrows()
    ]
