"""The order of prompts, the split into mini-batches and the schedules of the RL loop."""

from __future__ import annotations

from collections import Counter

from tasks.training.rl import prompt_order, rollout_prompts

RECORDS = [{"id": f"{f}-{i}", "family": f} for f, n in (("calc", 40), ("fill", 60), ("order", 20)) for i in range(n)]


def test_an_epoch_holds_every_prompt_once_and_is_seeded():
    first = prompt_order(RECORDS, seed=0, epoch=0)
    assert sorted(first) == sorted(r["id"] for r in RECORDS)
    assert first == prompt_order(RECORDS, 0, 0)
    assert first != prompt_order(RECORDS, 1, 0) and first != prompt_order(RECORDS, 0, 1)


def test_every_window_has_nearly_the_same_mix():
    order = prompt_order(RECORDS, 0, 0)
    for at in range(0, 120, 12):
        mix = Counter(key.split("-")[0] for key in order[at : at + 12])
        assert abs(mix["calc"] - 4) <= 1 and abs(mix["fill"] - 6) <= 1 and abs(mix["order"] - 2) <= 1


def test_rollouts_walk_through_the_epochs_without_a_gap():
    walked = [key for rollout in range(30) for key in rollout_prompts(RECORDS, 0, rollout, 8)]
    assert walked == prompt_order(RECORDS, 0, 0) + prompt_order(RECORDS, 0, 1)
