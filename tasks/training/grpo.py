"""Group Relative Policy Optimization: advantages and objective, with every denominator named; and the interface of an algorithm.

Paper: DeepSeek-R1 (arXiv 2501.12948) eq. 1-3, and DeepSeekMath (arXiv 2402.03300) eq. 3-4 for the token-level form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tasks.config import RL
from tasks.training.batching import Padded, Sample, token_logprobs

Score = Callable[[Sequence[Sample]], list[Any]]  # what `score` of the algorithm says of each sample, worked out by all workers


@dataclass(frozen=True)
class Objective:
    """The switches of the loss.

    ratio: "token" takes the importance ratio of each token (DeepSeekMath eq. 3); "sequence" of the whole output (R1 eq. 1, as printed).
    denominator (token ratios only): "own_length" divides each output's sum by its own length, then by the number of outputs;
        "batch_tokens" divides by all tokens of the mini-batch; "max_new_tokens" by outputs x the length limit.
        With sequence ratios the denominator is the number of outputs.
    clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high].
    beta: weight of the k3 KL term, which is part of the loss and never of the reward.
    """

    ratio: Literal["token", "sequence"] = "token"
    denominator: Literal["own_length", "batch_tokens", "max_new_tokens"] = "own_length"
    clip_low: float = 0.2
    clip_high: float = 0.2
    beta: float = 0.001


@dataclass(frozen=True)
class Totals:
    """Sizes of the whole mini-batch, known before it is split into micro-batches: the denominators."""

    outputs: int
    tokens: int
    max_new_tokens: int


def advantages(rewards: Tensor, normalize_std: bool = True, epsilon: float = 1e-6) -> Tensor:
    """Group-relative advantages: (r - mean) / std over each group (paper, eq. 3).

    Args:
        rewards: [groups, group size], whole groups (before any split into mini-batches).
        normalize_std: divide by the population standard deviation (denominator: group size); else only centre.
        epsilon: groups whose deviation is below it get zeros instead of a division by nearly nothing.

    Returns:
        [groups, group size]; all zeros for a group of equal rewards.
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    if not normalize_std:
        return centred
    deviation = rewards.std(dim=1, correction=0, keepdim=True)
    return torch.where(deviation > epsilon, centred / deviation.clamp_min(epsilon), torch.zeros_like(centred))


def k3(log_ratio: Tensor) -> Tensor:
    """Schulman's estimator of KL(policy || reference), >= 0: exp(d) - d - 1 with d = log pi_ref - log pi (paper, eq. 2)."""
    return torch.expm1(log_ratio) - log_ratio


def clipped_surrogate(log_ratio: Tensor, advantage: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """min(ratio A, clip(ratio) A), elementwise, and where the clip took the gradient away (paper, eq. 1)."""
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - objective.clip_low, 1 + objective.clip_high)
    return torch.minimum(ratio * advantage, clipped * advantage), clipped * advantage < ratio * advantage


def loss(
    logprobs: Tensor, old: Tensor, reference: Tensor | None, advantage: Tensor, mask: Tensor, objective: Objective, totals: Totals
) -> tuple[Tensor, dict[str, float]]:
    """This micro-batch's share of the mini-batch's loss: the shares of all micro-batches add up to the whole, however it is split.

    Args:
        logprobs: [rows, tokens] of the policy, with gradient; old: of the policy that sampled, frozen for the rollout.
        reference: [rows, tokens] of the reference model; None only if beta is 0.
        advantage: [rows], or with token ratios [rows, tokens]; mask: [rows, tokens], true on sampled tokens including the end token.
        totals: sizes of the whole mini-batch.

    Returns:
        The loss to minimise (a scalar), and sums over this micro-batch: "clipped" and "kl" over tokens (or over
        outputs for sequence ratios).
    """
    keep = mask.to(logprobs.dtype)
    log_ratio = (logprobs - old) * keep
    drift = torch.zeros_like(log_ratio) if reference is None else (reference - logprobs) * keep
    if objective.ratio == "sequence":
        surrogate, clipped = clipped_surrogate(log_ratio.sum(1), advantage, objective)
        gain, weight = surrogate - objective.beta * k3(drift.sum(1)), torch.full_like(advantage, 1 / totals.outputs)
        clipped_count = clipped.sum()
    else:
        surrogate, clipped = clipped_surrogate(log_ratio, advantage if advantage.dim() == 2 else advantage[:, None], objective)
        gain, weight = surrogate - objective.beta * k3(drift), keep * token_weight(keep, objective, totals)
        clipped_count = (clipped & mask).sum()
    sums = {"clipped": float(clipped_count), "kl": float((k3(drift.detach()) * keep).sum())}
    return -(gain * weight).sum(), sums


def token_weight(keep: Tensor, objective: Objective, totals: Totals) -> Tensor:
    """[rows, 1] weight of each token of a row: one over the chosen denominator."""
    if objective.denominator == "own_length":
        return 1 / (keep.sum(1, keepdim=True).clamp_min(1) * totals.outputs)
    whole = totals.tokens if objective.denominator == "batch_tokens" else totals.outputs * totals.max_new_tokens
    return keep.new_full((keep.shape[0], 1), 1 / whole)


class GRPO:
    """R1's algorithm: advantages from the group, KL in the loss, no network beside the policy.

    The trainer asks an algorithm for `credit`, once a rollout, which may ask for `score`, and for `loss`, for each micro-batch.
    """

    sums = ("clipped", "kl")  # what `loss` counts

    def __init__(self, params: RL, reference: PreTrainedModel | None) -> None:
        """`reference` is None if beta is 0."""
        self.params, self.reference = params, reference
        self.objective = Objective(params.ratio, params.denominator, params.clip_low, params.clip_high, params.beta)
        self.critics: dict[str, PreTrainedModel] = {}  # further networks that the loss trains, by name

    def score(self, batch: Padded) -> list[Any]:
        """Nothing: rewards alone decide."""
        return [None] * len(batch.ids)

    def credit(self, samples: Sequence[Sample], rewards: Sequence[float], score: Score) -> tuple[list[Sample], dict[str, float]]:
        """The samples of whole groups with their advantages, and what the step table shall tell of the rollout."""
        whole = advantages(torch.tensor(rewards).view(-1, self.params.group_size), self.params.normalize_std)
        return [replace(sample, advantage=a) for sample, a in zip(samples, whole.flatten().tolist(), strict=True)], {}

    def loss(self, rows: Sequence[Any], batch: Padded, logprobs: Tensor, totals: Totals) -> tuple[Tensor, dict[str, float]]:
        """This micro-batch's share of the loss, and `sums` over its tokens. `logprobs`: [rows, tokens] of the policy, with gradient."""
        advantage = torch.tensor([row.advantage for row in rows])
        reference = reference_logprobs(self.reference, batch, self.params.temperature)
        return loss(logprobs, batch.old, reference, advantage, batch.mask, self.objective, totals)


@torch.no_grad()
def reference_logprobs(reference: PreTrainedModel | None, batch: Padded, temperature: float) -> Tensor | None:
    """The reference's log-probs of each next token, [rows, tokens]; None without a reference."""
    return None if reference is None else token_logprobs(reference, batch.ids, batch.attention, temperature)[0]
