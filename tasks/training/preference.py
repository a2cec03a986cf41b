"""Training of the reward models (paper, section 3.1): Bradley-Terry on pairs for helpfulness, cross-entropy on labels for safety.

Paper: batch 256, learning rate 6e-6, 1 epoch; pairwise and point-wise loss, whose forms it does not print (recipe.md, section 5). Rows are
token ids; what text they hold is decided in tasks/rewards/model.py.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification

from tasks.config import RewardModels
from tasks.errors import SecondThoughtError
from tasks.rewards.model import TOKEN_BUDGET, raw_scores
from tasks.training.batching import micro_batches
from tasks.training.heads import with_scalar_head

Row = list[int]
GRADIENT_NORM = 1.0


class RewardTrainingError(SecondThoughtError):
    """A reward model's training produced numbers that are not finite."""


def with_head(policy: Any, fill: int, seed: int) -> Any:
    """The policy's network under a fresh scalar head; the policy's own weights are copied, not shared.

    Args:
        fill: the padding token, which transformers must know to find a row's last token.
        seed: of the head, which starts as small as transformers starts any layer, hence with scores near 0.
    """
    model = with_scalar_head(policy, AutoModelForSequenceClassification, pad_token_id=fill)
    with torch.no_grad():
        model.score.weight.normal_(0, model.config.initializer_range, generator=torch.Generator().manual_seed(seed))
    return model


def pair_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Bradley-Terry: -log sigmoid(r_chosen - r_rejected) of each pair, [pairs]."""
    return -F.logsigmoid(chosen - rejected)


def label_loss(scores: Tensor, safe: Tensor) -> Tensor:
    """Binary cross-entropy of each response, [responses]; a high score says safe."""
    return F.binary_cross_entropy_with_logits(scores, safe, reduction="none")


def learning_rate(step: int, steps: int, params: RewardModels) -> float:
    """Linear warm-up to the peak, then half a cosine that reaches `final_rate` of it at the last of `steps` updates."""
    if step < params.warmup_steps:
        return params.learning_rate * (step + 1) / (params.warmup_steps + 1)
    done = (step - params.warmup_steps) / max(1, steps - 1 - params.warmup_steps)
    return params.learning_rate * (params.final_rate + (1 - params.final_rate) * 0.5 * (1 + math.cos(math.pi * done)))


def train_pairs(model: Any, pairs: Sequence[tuple[Row, Row]], fill: int, params: RewardModels) -> list[float]:
    """Trains on (chosen, rejected) in place; returns the mean loss of each update.

    Raises:
        RewardTrainingError: a gradient is not finite; the update was not made.
    """

    def losses(batch: Sequence[int]) -> Tensor:
        scores = raw_scores(model, [pairs[i][side] for side in (0, 1) for i in batch], fill)
        return pair_loss(scores[: len(batch)], scores[len(batch) :])

    return _fit(model, [2 * max(map(len, pair)) for pair in pairs], losses, params, "helpful")


def train_labels(model: Any, responses: Sequence[Row], safe: Sequence[bool], fill: int, params: RewardModels) -> list[float]:
    """Trains on labelled responses in place; returns the mean loss of each update.

    Raises:
        RewardTrainingError: a gradient is not finite; the update was not made.
    """

    def losses(batch: Sequence[int]) -> Tensor:
        return label_loss(raw_scores(model, [responses[i] for i in batch], fill), torch.tensor([float(safe[i]) for i in batch]))

    return _fit(model, [len(row) for row in responses], losses, params, "safety")


def batches(count: int, params: RewardModels) -> list[list[int]]:
    """The examples of every update: each epoch in an order of its own, the last batch of an epoch as it comes out."""
    made = []
    for epoch in range(params.epochs):
        order = list(range(count))
        random.Random(f"reward/{params.seed}/{epoch}").shuffle(order)
        made += [order[i : i + params.batch] for i in range(0, count, params.batch)]
    return made


def _fit(model: Any, lengths: Sequence[int], losses: Callable[[Sequence[int]], Tensor], params: RewardModels, what: str) -> list[float]:
    """Runs all updates; `losses` gives one loss an example, `lengths` how many tokens each takes in a micro-batch."""
    weights = list(model.parameters())
    optimizer = torch.optim.AdamW(weights, lr=0.0, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    plan, told = batches(len(lengths), params), []
    for step, batch in enumerate(tqdm(plan, desc=f"reward model: {what}", unit="update", mininterval=1)):
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for micro in micro_batches([lengths[i] for i in batch], TOKEN_BUDGET):
            loss = losses([batch[i] for i in micro]).sum() / len(batch)
            loss.backward()
            total += float(loss.detach())
        norm = float(torch.nn.utils.clip_grad_norm_(weights, GRADIENT_NORM))
        if not math.isfinite(norm):
            raise RewardTrainingError(
                f"update {step} of the {what} reward model: the gradient's norm is {norm}, the loss {total:g}; "
                f"lower reward_models.learning_rate (now {params.learning_rate:g}) and run again"
            )
        optimizer.param_groups[0]["lr"] = learning_rate(step, len(plan), params)
        optimizer.step()
        told.append(total)
    return told
