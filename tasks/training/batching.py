"""From rollouts to padded tensors: mini-batches of whole outputs, micro-batches by token budget, token log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Sample:
    """One sampled output ready for training: token ids end to end, never text."""

    prompt: list[int]
    completion: list[int]  # ends with EOS if the model finished
    logprobs: list[float]  # of the sampling policy, one a completion token
    advantage: float | list[float]  # of the whole output (GRPO), or of each completion token (PPO)


class Padded(NamedTuple):
    """A micro-batch, right-padded."""

    ids: Tensor  # [rows, width]
    mask: Tensor  # [rows, width - 1], true where the next token was sampled
    old: Tensor  # [rows, width - 1], log-probs of the sampling policy in the same places, 0 elsewhere
    attention: Tensor  # [rows, width]


def micro_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices in micro-batches of at most `budget` padded tokens (rows x longest row), after sorting by length.

    A row longer than the budget gets a micro-batch of its own.
    """
    made: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not made or (len(made[-1]) + 1) * lengths[made[-1][0]] > budget:
            made.append([])
        made[-1].append(index)
    return made


def pad(samples: Sequence[Sample], fill: int) -> Padded:
    """Right-padded tensors of a micro-batch."""
    width = max(len(s.prompt) + len(s.completion) for s in samples)
    ids = torch.full((len(samples), width), fill)
    mask = torch.zeros(len(samples), width - 1, dtype=torch.bool)
    old = torch.zeros(len(samples), width - 1)
    attention = torch.zeros(len(samples), width, dtype=torch.long)
    for row, sample in enumerate(samples):
        start, end = len(sample.prompt), len(sample.prompt) + len(sample.completion)
        ids[row, :end] = torch.tensor(sample.prompt + sample.completion)
        mask[row, start - 1 : end - 1] = True
        old[row, start - 1 : end - 1] = torch.tensor(sample.logprobs)
        attention[row, :end] = 1
    return Padded(ids, mask, old, attention)


def token_logprobs(model: PreTrainedModel, ids: Tensor, attention: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probabilities of each next token [rows, width - 1] at a temperature, and the entropy in nats there (no gradient).

    Right padding needs no mask in a causal model; it is passed all the same so that any architecture is safe.
    """
    logits = model(input_ids=ids, attention_mask=attention, use_cache=False).logits[:, :-1].float() / temperature
    logprobs = logits.log_softmax(-1)
    chosen = logprobs.gather(-1, ids[:, 1:, None]).squeeze(-1)
    with torch.no_grad():
        entropy = -(logprobs.exp() * logprobs).sum(-1)
    return chosen, entropy
