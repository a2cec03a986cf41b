"""Samples of different lengths in rows of one length: best-fit packing, and tensors in which no sample sees another.

The paper (B.1) packs each rank's samples by best fit into chunks of fixed length. Here positions start at 0 with every sample of a
row, and that is all a transformers model needs: given no attention mask, it derives the block-diagonal causal one from the restarts,
for eager and SDPA attention and for sliding windows alike. (A ready 4-D mask is as fast, but would replace a sliding window.)
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

IGNORED = -100  # a label without a loss: prompts, and padding
Tokens = np.ndarray  # int32 token ids of one sample, end to end

Rows = list[list[int]]  # rows of indices of samples


def best_fit(lengths: Sequence[int], capacity: int) -> Rows:
    """Indices of `lengths` (tokens) in rows of at most `capacity` tokens: longest first, each into the fullest row with room for it.

    O(n log n) but for the shifts of a short sorted list; equal rooms go to the earlier row, equal lengths in their order.

    Raises:
        ValueError: a length exceeds the capacity.
    """
    rows: Rows = []
    free: list[tuple[int, int]] = []  # (room, row), least room first
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if lengths[index] > capacity:
            raise ValueError(f"sample {index} has {lengths[index]} tokens, a row holds {capacity}")
        at = bisect_left(free, (lengths[index], -1))
        room, row = free.pop(at) if at < len(free) else (capacity, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(index)
        insort(free, (room - lengths[index], row))
    return rows


def deal(rows: Rows, lanes: int, size: int) -> list[list[Rows]]:
    """Rows dealt out in turn to `lanes` lanes, each lane's in micro-batches of at most `size` rows."""
    return [[own[i : i + size] for i in range(0, len(own), size)] for own in (rows[lane::lanes] for lane in range(lanes))]


def collate(rows: Sequence[Sequence[tuple[Tokens, int]]]) -> tuple[Tensor, Tensor, Tensor]:
    """Tensors [rows, width] of a micro-batch, as wide as its longest row.

    Args:
        rows: (token ids, number of them that are the prompt's) of each sample; a prompt has at least one token.

    Returns:
        ids; positions, from 0 in every sample and 0 throughout the padding; labels: the next token where that is one of a response.
    """
    width = max(sum(len(tokens) for tokens, _ in row) for row in rows)
    ids, positions = torch.zeros(2, len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORED)
    for number, row in enumerate(rows):
        start = 0
        for tokens, prompt in row:
            end = start + len(tokens)
            ids[number, start:end] = torch.from_numpy(tokens)
            positions[number, start:end] = torch.arange(len(tokens))
            labels[number, start + prompt - 1 : end - 1] = torch.from_numpy(tokens[prompt:])
            start = end
    return ids, positions, labels


def padded(batches: Sequence[Sequence[int]]) -> int:
    """Positions that micro-batches compute, given the lengths of their rows: rows x longest row, over all of them."""
    return sum(len(batch) * max(batch) for batch in batches if batch)
