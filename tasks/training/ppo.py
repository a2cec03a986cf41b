"""Proximal Policy Optimization with a value model, to which the paper compares GRPO (v2, A.3; DeepSeekMath, arXiv 2402.03300, eq. 1-2).

Against GRPO: a value model as large as the policy is trained beside it; the KL to the reference is a part of the reward of each token,
not of the loss; advantages come from generalized advantage estimation (GAE, arXiv 1506.02438), not from the group. Prompts, samples,
mini-batches, clip, denominators and optimizer are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForTokenClassification, PreTrainedModel

from tasks.config import RL
from tasks.training import grpo
from tasks.training.batching import Padded, Sample
from tasks.training.grpo import Objective, Score, Totals, reference_logprobs, token_weight
from tasks.training.heads import with_scalar_head


@dataclass(frozen=True)
class Valued(Sample):
    """A sample with what PPO holds fixed for the rollout, one number a completion token."""

    reference: list[float] = field(default_factory=list)  # log-probs of the reference
    values: list[float] = field(default_factory=list)  # of the value model before the rollout's first update
    returns: list[float] = field(default_factory=list)  # what the value model shall learn


def token_rewards(final: Tensor, old: Tensor, reference: Tensor, mask: Tensor, beta: float) -> Tensor:
    """-beta (log pi_old - log pi_ref) at each token, and at the last one the rule reward as well (DeepSeekMath, eq. 2).

    Args:
        final: [outputs]; old, reference: log-probs [outputs, tokens]; mask: [outputs, tokens], true on each output's first tokens.
    """
    rewards = -beta * (old - reference) * mask
    rewards[torch.arange(len(final)), mask.sum(1) - 1] += final
    return rewards


def gae(rewards: Tensor, values: Tensor, mask: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation without discount (gamma 1): A_t = d_t + decay A_t+1 with d_t = r_t + V_t+1 - V_t.

    An output ends with its last token, also where the length limit cut it off: no value follows. With decay 1 the advantage is the sum of
    the rewards to come minus the value, with decay 0 the one-step error d_t.

    Args:
        rewards, values, mask: [outputs, tokens], the mask true on each output's first tokens.
        decay: lambda of GAE.

    Returns:
        Advantages and returns (advantage + value), [outputs, tokens], 0 after the end.
    """
    values, rewards = values * mask, rewards * mask
    advantage, after, following = torch.zeros_like(values), torch.zeros(len(values)), torch.zeros(len(values))
    for t in range(values.shape[1] - 1, -1, -1):
        following = rewards[:, t] + after - values[:, t] + decay * following
        advantage[:, t], after = following, values[:, t]
    return advantage, advantage + values


def whiten(advantage: Tensor, mask: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Advantages with mean 0 and deviation 1 over all tokens of the rollout, 0 after the end; all 0 where they do not differ."""
    known = advantage[mask]
    deviation = known.std(correction=0)
    return (advantage - known.mean()) / deviation * mask if deviation > epsilon else torch.zeros_like(advantage)


def value_loss(values: Tensor, old: Tensor, returns: Tensor, clip: float | None) -> tuple[Tensor, Tensor]:
    """Half the squared error, elementwise, and where the clip took the gradient away.

    As the ratio's clip does for the policy, this one keeps the values within `clip` of those before the rollout's first update: the larger
    of the errors with and without it counts. None does without.
    """
    error = (values - returns) ** 2
    if clip is None:
        return error / 2, torch.zeros_like(error, dtype=torch.bool)
    clipped = (old + (values - old).clamp(-clip, clip) - returns) ** 2
    return torch.maximum(error, clipped) / 2, clipped > error


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - var(returns - values) / var(returns): 1 for a perfect value model, 0 for one that knows no more than the mean. [tokens]"""
    spread = float(returns.var(correction=0))
    return 1 - float((returns - values).var(correction=0)) / spread if spread > 0 else 0.0


def _columns(rows: Sequence[Sequence[float]]) -> Tensor:
    """Lists of different lengths as [rows, longest], zeros after the end."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def _placed(rows: Sequence[Sequence[float]], mask: Tensor) -> Tensor:
    """Numbers of each row's completion tokens, laid where the mask is true; zeros elsewhere."""
    made = torch.zeros(mask.shape)
    made[mask] = torch.tensor([value for row in rows for value in row])
    return made


class PPO:
    """The algorithm: a value model credits each token, and learns from the same mini-batches as the policy."""

    sums = ("clipped", "kl", "value_loss", "value_clip_share")

    def __init__(self, params: RL, reference: PreTrainedModel | None, policy: PreTrainedModel) -> None:
        """The value model is the policy's network under a head of zeros; `reference` is None if beta is 0."""
        self.params, self.reference = params, reference
        self.objective = Objective("token", params.denominator, params.clip_low, params.clip_high, beta=0.0)
        self.value = with_scalar_head(policy, AutoModelForTokenClassification).share_memory()
        self.critics = {"value": self.value}

    def values(self, batch: Padded) -> Tensor:
        """What the rest of the output is expected to earn before each token, [rows, tokens], in the places of the log-probs."""
        return self.value(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False).logits[:, :-1, 0].float()

    @torch.no_grad()
    def score(self, batch: Padded) -> list[tuple[list[float], list[float]]]:
        """Values and the reference's log-probs of each row's completion tokens (its own without a reference: no drift)."""
        values, reference = self.values(batch), reference_logprobs(self.reference, batch, self.params.temperature)
        drifted = batch.old if reference is None else reference
        return [(v[m].tolist(), r[m].tolist()) for v, r, m in zip(values, drifted, batch.mask, strict=True)]

    def credit(self, samples: Sequence[Sample], rewards: Sequence[float], score: Score) -> tuple[list[Sample], dict[str, float]]:
        """The samples of a rollout with advantages, values and returns of each token, and what the step table shall tell of it."""
        scored = score(samples)
        values, reference = _columns([v for v, _ in scored]), _columns([r for _, r in scored])
        old, mask = _columns([s.logprobs for s in samples]), _columns([[1.0] * len(s.completion) for s in samples]) > 0
        earned = token_rewards(torch.tensor(rewards), old, reference, mask, self.params.beta)
        advantage, returns = gae(earned, values, mask, self.params.gae_lambda)
        credited = whiten(advantage, mask) if self.params.whiten else advantage
        told = {"explained_variance": explained_variance(values[mask], returns[mask])}
        made: list[Sample] = [
            Valued(s.prompt, s.completion, s.logprobs, a[m].tolist(), r, v, g[m].tolist())
            for s, (v, r), a, g, m in zip(samples, scored, credited, returns, mask, strict=True)
        ]
        return made, told

    def loss(self, rows: Sequence[Any], batch: Padded, logprobs: Tensor, totals: Totals) -> tuple[Tensor, dict[str, float]]:
        """This micro-batch's share of the policy's and the value model's loss, and `sums` over its tokens.

        Args:
            rows: Valued samples; logprobs: [rows, tokens] of the policy, with gradient.
        """
        reference, advantage, old, returns = (
            _placed([getattr(row, name) for row in rows], batch.mask) for name in ("reference", "advantage", "values", "returns")
        )
        policy, sums = grpo.loss(logprobs, batch.old, reference, advantage, batch.mask, self.objective, totals)
        errors, clipped = value_loss(self.values(batch), old, returns, self.params.value_clip)
        keep = batch.mask.to(errors.dtype)
        value = (errors * keep * token_weight(keep, self.objective, totals)).sum()
        sums |= {"value_loss": float((errors.detach() * keep).sum()), "value_clip_share": float((clipped & batch.mask).sum())}
        return policy + value, sums
