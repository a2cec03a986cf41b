"""The steps that make the data of the reward models, by themselves: pairs, winners, lengths, split."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.config import load_params
from tasks.evaluation.preference import Preference
from tasks.labels import split_of
from tasks.reward_models import balance, clear_winners, draw_pairs, with_strangers
from tasks.rewards.format import parse

ROOT = Path(__file__).parents[2]
SETTINGS = load_params(ROOT / "params.yaml").reward_models


def response(prompt_id: str, answer: str, thought: str = "") -> dict:
    text = f" <think>{thought} </think> <answer> {answer} </answer>" if answer else f" <think>{thought}"
    return {"prompt_id": prompt_id, "family": "f", "language": "en", "messages": [{"role": "user", "content": "Q?"}], "text": text}


def test_pairs_are_of_distinct_answers_and_responses_without_one_are_counted():
    found = {
        "a": [response("a", "x"), response("a", "x", " other thought"), response("a", ""), response("a", "y")],
        "b": [response("b", "z", str(i)) for i in range(3)],
        "c": [response("c", str(i)) for i in range(5)],
    }
    pairs, counts = draw_pairs(["a", "b", "c"], found, 4, 0)
    assert counts == {"unanswered_responses": 1, "one_answer_prompts": 1}
    assert [{parse(row["text"]).answer for row in p} for p in pairs[:1]] == [{"x", "y"}]
    assert found["a"][1] not in [row for p in pairs for row in p]  # the first response with an answer stands for it
    drawn = [frozenset(row["text"] for row in p) for p in pairs[1:]]
    assert len(set(drawn)) == len(drawn) == 4 and all(len(pair) == 2 for pair in drawn)
    assert draw_pairs(["c"], found, 4, 0)[0] == pairs[1:] != draw_pairs(["c"], found, 4, 1)[0]


def test_only_a_mean_beyond_the_margin_has_a_winner():
    first, second = response("a", "x"), response("a", "y")
    means = (1.25, 1.0, -1.0, -1.5, 0.0, None)
    found = [Preference(mean, ("r",), (), 0) for mean in means]
    rows, counts = clear_winners([(first, second)] * 6, found, SETTINGS)
    assert counts == {"judged": 6, "unjudged": 1, "no_winner": 3}
    assert [(row["chosen"], row["rejected"], row["preference"]) for row in rows] == [
        (first["text"], second["text"], 1.25),
        (second["text"], first["text"], 1.5),
    ]


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=60), st.integers(0, 3))
def test_lengths_are_evened_out_or_half_of_the_pairs_stay(pairs, seed):
    chosen, rejected = [c for c, _ in pairs], [r for _, r in pairs]
    sign = 1 if sum(chosen) > sum(rejected) else -1
    stay = balance(chosen, rejected, seed)
    gone = set(range(len(pairs))) - set(stay)
    assert stay == sorted(set(stay)) and all(sign * (chosen[i] - rejected[i]) > 0 for i in gone)
    assert len(gone) <= len(pairs) / 2
    even = sign * sum(chosen[i] - rejected[i] for i in stay) <= 0.05 * sum(rejected[i] for i in stay)
    assert even or len(gone) == len(pairs) // 2
    assert balance(chosen, rejected, seed) == stay


def test_lengths_that_are_even_cost_no_pair_and_others_no_more_than_needed():
    assert balance([23, 17, 21], [20, 20, 20], 0) == [0, 1, 2]
    assert len(balance([20] * 4 + [10] * 96, [10] * 100, 0)) == 100  # 4 % longer
    assert len(balance([20] * 8 + [10] * 92, [10] * 100, 0)) == 96  # 80 of 1,000 too long; 4 pairs gone leave 40 of 960
    assert len(balance([10] * 12 + [20] * 88, [20] * 100, 0)) == 97  # 120 of 2,000 too short; 3 pairs gone leave 90 of 1,940
    kept = {tuple(balance([20] * 30 + [10] * 70, [10] * 100, seed)) for seed in range(4)}
    assert len(kept) == 4  # which ones go is drawn


def test_the_split_is_by_prompt_near_its_share_and_moves_with_the_seed_alone():
    ids = [f"how-{random.Random(i).getrandbits(64):016x}" for i in range(2000)]
    split = [split_of(key, SETTINGS) for key in ids]
    assert split.count("held_out") / 2000 == pytest.approx(SETTINGS.held_out, abs=0.03)
    assert split == [split_of(key, SETTINGS) for key in ids]
    assert split != [split_of(key, SETTINGS.model_copy(update={"seed": 1})) for key in ids]


def test_strangers_answer_another_prompt_of_the_family_and_language_as_if_it_were_theirs():
    def row(key: str, family: str, language: str, text: str) -> dict:
        return {"prompt_id": key, "family": family, "language": language, "messages": [{"role": "user", "content": key}], "text": text}

    found = {
        key: [row(key, family, language, f"{key}{i}") for i in range(2)]
        for key, family, language in [("a", "json", "en"), ("b", "json", "en"), ("c", "json", "zh"), ("d", "call", "en")]
    }
    joined = with_strangers(list(found), found, 3, 0)
    assert [len(rows) for rows in joined.values()] == [3, 3, 2, 2]  # c and d are alone in their family and language
    assert all(joined[key][:2] == found[key] for key in found)
    stranger = joined["a"][2]
    assert stranger["text"] in ("b0", "b1") and stranger["prompt_id"] == "a" and stranger["messages"] == found["a"][0]["messages"]
    assert found["b"][0]["prompt_id"] == "b"  # the stranger's own row is left as it was
    assert joined == with_strangers(list(found), found, 3, 0) and with_strangers(list(found), found, 0, 0) == found


def test_strangers_come_from_the_prompts_most_alike():
    def rows(key: str, question: str) -> list[dict]:
        return [response(key, key) | {"messages": [{"role": "user", "content": question}]}]

    asked = {"a": "Ann 3 and Bob 4.", "b": "Ann 3 and Bob 5.", "c": "Bob 3 and Ann 4.", "d": "Eve 7 and Dan 1."}
    found = {key: rows(key, f"As JSON: {question}") for key, question in asked.items()}
    near = [parse(row["text"]).answer for row in with_strangers(list(found), found, 2, 0)["a"][1:]]
    assert near == ["c", "b"]  # the same words in other places, then one other word
    pool = {"x": rows("x", "one two")} | {str(i): rows(str(i), "three four") for i in range(9)} | {"y": rows("y", "one three")}
    assert parse(with_strangers(list(pool), pool, 1, 0)["x"][1]["text"]).answer == "y"
