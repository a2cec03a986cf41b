"""Best-fit packing against a slow reference, and what the tensors of packed rows hold."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.training.packing import IGNORED, best_fit, collate, deal, padded

LENGTHS = st.lists(st.integers(1, 50), max_size=60)
CAPACITY = st.integers(50, 120)


def slow_best_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """By trying every row."""
    rows: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        rooms = [capacity - sum(lengths[i] for i in row) for row in rows]
        fitting = [number for number, room in enumerate(rooms) if room >= lengths[index]]
        if fitting:
            rows[min(fitting, key=lambda number: (rooms[number], number))].append(index)
        else:
            rows.append([index])
    return rows


def first_fit(lengths: list[int], capacity: int) -> int:
    rooms: list[int] = []
    for length in lengths:
        at = next((i for i, room in enumerate(rooms) if room >= length), None)
        if at is None:
            rooms.append(capacity - length)
        else:
            rooms[at] -= length
    return len(rooms)


@pytest.mark.parametrize(
    ("lengths", "capacity", "rows"),
    [
        ([], 8, []),
        ([8], 8, [[0]]),
        ([5, 3, 6, 2, 4], 8, [[2, 3], [0, 1], [4]]),
        ([3, 3, 3, 3], 8, [[0, 1], [2, 3]]),
        # Rooms 90 and 100; 95 leaves 5 in the second row: best fit puts the last sample there, first fit into the first row.
        ([130, 120, 95, 5], 220, [[0], [1, 2, 3]]),
    ],
)
def test_worked_by_hand(lengths, capacity, rows):
    assert best_fit(lengths, capacity) == rows


@given(LENGTHS, CAPACITY)
def test_it_is_what_trying_every_row_gives(lengths, capacity):
    assert best_fit(lengths, capacity) == slow_best_fit(lengths, capacity)


@given(LENGTHS, CAPACITY)
def test_every_sample_once_no_row_over_capacity_and_few_rows(lengths, capacity):
    rows = best_fit(lengths, capacity)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    filled = sorted(sum(lengths[i] for i in row) for row in rows)
    assert all(fill <= capacity for fill in filled)
    assert len(filled) < 2 or filled[0] + filled[1] > capacity  # else one of the two rows was opened for nothing
    assert math.ceil(sum(lengths) / capacity) <= len(rows) <= len(lengths)
    # Best fit by decreasing length needs at most 11/9 of the fewest rows and 6/9 of one; first fit needs at least the fewest.
    assert len(rows) <= 11 / 9 * first_fit(lengths, capacity) + 6 / 9


def test_fewer_rows_than_first_fit_on_samples_like_ours():
    rng = random.Random(0)
    lengths = [min(220, max(40, round(rng.gauss(90, 30)))) for _ in range(200)]
    assert len(best_fit(lengths, 384)) < first_fit(lengths, 384) < 200
    assert len(best_fit(lengths, 384)) <= math.ceil(sum(lengths) / 384) + 1


def test_a_sample_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="sample 1 has 9 tokens, a row holds 8"):
        best_fit([3, 9], 8)


def test_rows_are_dealt_out_in_turn():
    rows = [[i] for i in range(7)]
    assert deal(rows, 2, 3) == [[[[0], [2], [4]], [[6]]], [[[1], [3], [5]]]]
    assert deal(rows[:1], 4, 8) == [[[[0]]], [], [], []]


def test_collate_restarts_positions_and_labels_responses_alone():
    def sample(*ids: int, prompt: int) -> tuple[np.ndarray, int]:
        return np.array(ids, dtype=np.int32), prompt

    ids, positions, labels = collate([[sample(5, 6, 7, 1, prompt=2), sample(8, 9, 1, prompt=1)], [sample(4, 3, 1, prompt=2)]])
    no = IGNORED
    assert ids.tolist() == [[5, 6, 7, 1, 8, 9, 1], [4, 3, 1, 0, 0, 0, 0]]
    assert positions.tolist() == [[0, 1, 2, 3, 0, 1, 2], [0, 1, 2, 0, 0, 0, 0]]
    assert labels.tolist() == [[no, 7, 1, no, 9, 1, no], [no, 1, no, no, no, no, no]]


def test_padded_counts_rows_times_the_longest():
    assert padded([[10, 7], [], [3]]) == 23
