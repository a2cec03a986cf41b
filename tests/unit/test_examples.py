"""Which samples the report shows: the rules that it prints, by hand."""

from __future__ import annotations

import pandas as pd

from tasks.monitoring import examples
from tests.fake_run import _open_samples


def test_open_examples_are_picked_by_the_rule_that_is_printed() -> None:
    inputs = {f"samples_{m}_open": _open_samples(m) for m in ("dev3", "r1")}
    found = examples.open_examples(inputs["samples_dev3_open"], inputs["samples_r1_open"].iloc[::-1])
    families = inputs["samples_r1_open"].groupby("family")["prompt_id"]
    assert [e.id for e in found] == [min(ids, key=lambda i: i.split("-")[1]) for _, ids in families]
    assert [e.family for e in found] == sorted({e.family for e in found}) and len(found) > 2


def sample(identifier: str, language: str, correct: bool, text: str = "") -> dict:
    family = identifier.split("-")[0]
    row = {"prompt_id": identifier, "sample": 0, "text": text, "token_ids": [1], "finished": True, "correct": correct}
    return row | {"family": family, "level": 1, "language": language}


def test_examples_are_picked_by_the_rule_that_is_printed() -> None:
    ids = ["calc-b", "calc-a", "fill-c", "fill-d", "fill-e", "fill-f"]
    languages = ["en", "en", "en", "zh", "en", "en"]
    base = pd.DataFrame([sample(i, x, i == "fill-e") for i, x in zip(ids, languages, strict=True)])
    zero = pd.DataFrame(
        [sample(i, x, i != "calc-b", "wait" if i in ("fill-e", "fill-f") else "") for i, x in zip(ids, languages, strict=True)]
    )
    second = zero.assign(sample=1, correct=False)
    chosen = examples.choose(base.sample(frac=1, random_state=1), pd.concat([second, zero]), count=4)
    # calc in English: a is before b; fill in Chinese: only d; fill-e says "wait", but the base solves it too.
    assert [identifier for identifier, _ in chosen] == ["calc-a", "fill-d", "fill-f", "calc-b"]
    assert ["picked by outcome" in why for _, why in chosen] == [False, False, True, True]
    assert [i for i, _ in examples.choose(base, zero, count=1)] == ["calc-a"]
    assert {i for i, _ in examples.choose(base, zero, count=50)} == set(ids)
