"""Supervised fine-tuning on packed rows: loss on responses alone, cosine learning rate, resumable to the same bytes.

Paper, B.4.2 and B.4.3: two to three epochs, a cosine from the initial rate to a tenth of it, 32,768 tokens of context, 128 samples
an update (distillation: 64). Optimizer, warm-up and clipping are not disclosed; AdamW has the betas of DeepSeek-V3.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tasks.config import SFT
from tasks.errors import DataError, SecondThoughtError
from tasks.template import render
from tasks.training import checkpoint, flops
from tasks.training.batching import micro_batches
from tasks.training.packing import IGNORED, Rows, Tokens, best_fit, collate, deal, padded
from tasks.training.rl import LANES, DivergedError, set_gradients
from tasks.training.workers import Workers

NAMED = 20  # samples that an error names; the rest are counted
LEAK_TOLERANCE = 1e-3  # nats that company in a row may change; the base: at most 3e-6, and at least 0.7 where attention leaks


class LeakError(SecondThoughtError):
    """The model lets packed samples attend to each other."""


@dataclass(frozen=True)
class Sample:
    """One prompt and its response, as they are trained on."""

    ids: Tokens  # of prompt, response and the end token
    prompt: int  # tokens of the prompt

    @property
    def response(self) -> int:
        """Tokens that are trained on, the end token among them."""
        return len(self.ids) - self.prompt


# ---- data


def encode(records: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> list[Sample]:
    """Token ids of SFT records: the prompt as in RL, then the response (no special tokens of its own) and the end token."""
    prompts = tokenizer([render(r["messages"][-1]["content"]) for r in records])["input_ids"]
    responses = tokenizer([r["response"] for r in records], add_special_tokens=False)["input_ids"]
    end = [tokenizer.eos_token_id]
    return [Sample(np.array(p + r + end, dtype=np.int32), len(p)) for p, r in zip(prompts, responses, strict=True)]


def load(
    batches: Iterable[Sequence[Mapping[str, Any]]], tokenizer: PreTrainedTokenizerBase, context: int, positions: int, what: str
) -> list[Sample]:
    """All samples of a stream of SFT records (SFT_SCHEMA), 4 bytes a token.

    Args:
        context: tokens of a row.
        positions: that the model has.
        what: the dataset's name, for errors.

    Raises:
        DataError: no sample; a sample without a message or a response; samples that do not fit, by id with the arithmetic.
    """
    samples: list[Sample] = []
    long: list[str] = []
    for batch in batches:
        if hollow := [r["id"] for r in batch if not r["messages"] or r["response"] is None]:
            raise DataError(f"{what}: samples without a message or a response: {', '.join(map(str, hollow[:NAMED]))}; remove them")
        made = encode(batch, tokenizer)
        for record, sample in zip(batch, made, strict=True):
            if len(sample.ids) > min(context, positions):
                long.append(f"{record['id']} (prompt {sample.prompt} + response {sample.response - 1} + end 1 = {len(sample.ids)})")
        samples += made
    if long:
        more = f" and {len(long) - NAMED} more" if len(long) > NAMED else ""
        raise DataError(
            f"{what}: {len(long)} of {len(samples)} samples have more tokens than fit, {min(context, positions)} (context {context}, "
            f"positions of the model {positions}): {', '.join(long[:NAMED])}{more}; remove them or raise context"
        )
    if not samples:
        raise DataError(f"{what} holds no sample: see the counts of the stage that writes it, and loosen its filters or sample more")
    return samples


# ---- schedule and sizes


@lru_cache(maxsize=1)
def order(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    """The samples of one epoch, shuffled."""
    return tuple(random.Random(f"sft/{seed}/{epoch}").sample(range(count), count))


def batch_of(step: int, count: int, params: SFT) -> tuple[int, tuple[int, ...]]:
    """Epoch (from 0) and samples of an update; the last update of an epoch takes what is left."""
    epoch, at = divmod(step, math.ceil(count / params.batch))
    return epoch, order(count, params.seed, epoch)[at * params.batch : (at + 1) * params.batch]


def updates_of(count: int, params: SFT) -> int:
    """Number of updates of the whole run."""
    return params.epochs * math.ceil(count / params.batch)


def rate(step: int, updates: int, params: SFT) -> float:
    """Learning rate: short linear warm-up, then a cosine from the peak to exactly `final_rate` of it at the last update.

    A run too short for its warm-up has a shorter one, so that peak and end are always reached (the end alone with one update).
    """
    warm = max(0, min(params.warmup_steps, updates - 2))
    if step < warm:
        return params.learning_rate * (step + 1) / (warm + 1)
    progress = (step - warm) / (updates - 1 - warm) if updates > 1 else 1.0
    return params.learning_rate * (params.final_rate + (1 - params.final_rate) * 0.5 * (1 + math.cos(math.pi * progress)))


def plan(samples: Sequence[Sample], chosen: Sequence[int], params: SFT) -> list[list[Rows]]:
    """The micro-batches of every lane for one update, as rows of indices of `samples`."""
    rows = best_fit([len(samples[i].ids) for i in chosen], params.context)
    return deal([[chosen[i] for i in row] for row in rows], LANES, params.rows)


def lengths(batches: Iterable[Rows], samples: Sequence[Sample]) -> Iterator[list[int]]:
    """Tokens in each row, micro-batch by micro-batch."""
    return ([sum(len(samples[i].ids) for i in row) for row in batch] for batch in batches)


@dataclass(frozen=True)
class Sizes:
    """What follows from samples and parameters; shares of padding are of computed positions over the whole run."""

    samples: int
    tokens: int  # of the samples
    response_tokens: int
    epochs: int
    updates: int
    rows: int  # packed, over the whole run
    padding: float
    padding_unpacked: float  # one sample a row, sorted by length, in micro-batches of as many positions


def sizes(samples: Sequence[Sample], params: SFT) -> Sizes:
    """The derived sizes of a run."""
    rows = packed = unpacked = 0
    updates, tokens = updates_of(len(samples), params), sum(len(s.ids) for s in samples)
    for step in range(updates):
        _, chosen = batch_of(step, len(samples), params)
        made = list(lengths(chain(*plan(samples, chosen, params)), samples))
        alone = [len(samples[i].ids) for i in chosen]
        rows += sum(len(batch) for batch in made)
        packed += padded(made)
        unpacked += padded([[alone[i] for i in batch] for batch in micro_batches(alone, params.rows * params.context)])
    seen = params.epochs * tokens
    responses = sum(s.response for s in samples)
    return Sizes(len(samples), tokens, responses, params.epochs, updates, rows, 1 - seen / packed, 1 - seen / unpacked)


# ---- training


def losses(model: PreTrainedModel, rows: Sequence[Sequence[Sample]]) -> Tensor:
    """Cross-entropy in nats of every next token that belongs to a response, 0 elsewhere [rows, width].

    No cache: with one, transformers would not look for restarting positions, and samples would see each other.
    """
    ids, positions, labels = collate([[(sample.ids, sample.prompt) for sample in row] for row in rows])
    logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits.float()
    return cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none").view_as(ids)


class Learner:
    """What a worker holds: the samples and the policy, whose weights and gradients [lanes, parameters] are in shared memory."""

    def __init__(self, policy: PreTrainedModel, samples: Sequence[Sample], gradients: Tensor) -> None:
        self.policy, self.samples, self.gradients = policy, samples, gradients

    def gradient(self, lane: int, batches: Sequence[Rows], targets: int) -> float:
        """Writes the lane's share of the gradient of the mean loss over `targets`, all response tokens of the update.

        Returns:
            the lane's share of that loss, nats a token.
        """
        self.policy.zero_grad(set_to_none=True)
        total = 0.0
        for batch in batches:
            value = losses(self.policy, [[self.samples[i] for i in row] for row in batch]).sum() / targets
            value.backward()
            total += float(value.detach())
        flat = [p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in self.policy.parameters()]
        self.gradients[lane] = torch.cat(flat)
        return total

    @torch.no_grad()
    def leak(self) -> float:
        """Largest difference in nats that it makes to a token's loss whether two samples share a row."""
        pair = [self.samples[0], self.samples[-1]]
        alone = torch.cat([losses(self.policy, [[sample]]) for sample in pair], dim=1)
        together = losses(self.policy, [pair, pair])  # two rows: flash attention looks for restarts only in a batch of one
        return float((together - alone).abs().max())


@dataclass
class State:
    """Where the run stands; order and schedule follow from parameters and step."""

    step: int = 0
    flops: int = 0  # of all forward and backward passes so far
    rows: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """One run of supervised fine-tuning: policy, optimizer and workers. `run` is the loop."""

    def __init__(self, policy: PreTrainedModel, samples: Sequence[Sample], params: SFT, name: str, workers: int) -> None:
        """`name`: of the stage, for the progress bar and errors; `workers`: processes, 0 for none."""
        self.params, self.samples, self.name = params, samples, name
        self.policy = policy.share_memory()
        self.policy.train(False)  # no dropout: the paper names none, and every draw must be resumable
        self.weights = list(self.policy.parameters())
        self.gradients = torch.zeros(LANES, sum(p.numel() for p in self.weights)).share_memory_()
        self.workers = Workers(Learner(self.policy, samples, self.gradients), workers)
        self.optimizer = torch.optim.AdamW(self.weights, lr=0.0, betas=(0.9, 0.95), weight_decay=params.weight_decay, fused=True)
        self.updates, self.cost = updates_of(len(samples), params), flops.cost(policy.config)
        self.state = State()

    def update(self) -> dict[str, Any]:
        """One optimizer step; returns its metrics row."""
        step = self.state.step
        epoch, chosen = batch_of(step, len(self.samples), self.params)
        dealt, targets = plan(self.samples, chosen, self.params), sum(self.samples[i].response for i in chosen)
        shares = self.workers.map("gradient", [(lane, batches, targets) for lane, batches in enumerate(dealt)])
        norm = self._step(rate(step, self.updates, self.params))
        computed = padded(list(lengths(chain(*dealt), self.samples)))
        row = {
            "step": step, "epoch": epoch + 1, "loss": sum(shares), "learning_rate": rate(step, self.updates, self.params),
            "grad_norm": norm, "response_tokens": targets, "padding": 1 - sum(len(self.samples[i].ids) for i in chosen) / computed,
        }  # fmt: skip
        self.state.step += 1
        self.state.flops += sum(self.cost.training(len(self.samples[i].ids)) for i in chosen)
        self.state.rows.append(row)
        return row

    def _step(self, learning_rate: float) -> float:
        set_gradients(self.weights, self.gradients.sum(0))
        norm = float(torch.nn.utils.clip_grad_norm_(self.weights, self.params.gradient_norm))
        if not math.isfinite(norm):  # before the optimizer: the weights and every checkpoint stay good
            raise DivergedError(
                f"{self.name}, update {self.state.step}: the gradient's norm is {norm}; nothing was updated. Lower "
                f"{self.name}.learning_rate (now {self.params.learning_rate:g}) and run again; if it is the first update, check the base"
            )
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.step()
        return norm

    def check_separation(self) -> None:
        """Whether this model keeps packed samples apart, which transformers promises for attention alone (no recurrent layers).

        Raises:
            LeakError: it does not.
        """
        gap = self.workers.map("leak", [()])[0]
        if gap > LEAK_TOLERANCE:
            raise LeakError(
                f"{self.name}: a token's loss changes by {gap:.2g} nats when its sample shares a row (tolerance {LEAK_TOLERANCE:g}): "
                f"this {self.policy.config.model_type} model does not keep packed samples apart; use attention 'sdpa' or 'eager', or "
                "another base"
            )

    def run(self, folder: Path, publish: Callable[[Sequence[dict[str, Any]]], None]) -> State:
        """Trains to the last update from the newest checkpoint in `folder`; `publish` gets the metrics rows.

        Raises:
            LeakError, DivergedError: see `check_separation` and above.
            CheckpointError: from tasks.training.checkpoint.
        """
        self.resume(folder)
        self.check_separation()
        publish(self.state.rows)  # of a killed run; what is known already is dropped there
        with tqdm(total=self.updates, initial=self.state.step, desc=self.name, unit="update", mininterval=1) as bar:
            while self.state.step < self.updates:
                row = self.update()
                if self.state.step % self.params.checkpoint_every == 0 or self.state.step == self.updates:
                    self.save(folder)
                publish([row])
                bar.set_postfix(loss=f"{row['loss']:.3f}", lr=f"{row['learning_rate']:.2g}", refresh=False)
                bar.update()
        return self.state

    def save(self, folder: Path) -> None:
        """Weights (a tied head once), both moments of AdamW and the state, under a hash manifest."""
        moments = {f"{name}.{i}": self.optimizer.state[p][name] for i, p in enumerate(self.weights) for name in ("exp_avg", "exp_avg_sq")}
        groups = {"policy": {name: weight.detach() for name, weight in self.policy.named_parameters()}, "moments": moments}
        checkpoint.save(folder, self.state.step, groups, vars(self.state))

    @torch.no_grad()
    def resume(self, folder: Path) -> None:
        """Continues from the newest checkpoint, if there is one."""
        found = checkpoint.latest(folder)
        if found is None:
            return
        groups, state = found
        self.state = State(**state)
        for i, (name, weight) in enumerate(self.policy.named_parameters()):
            weight.copy_(groups["policy"][name])
            moments = {kind: groups["moments"][f"{kind}.{i}"] for kind in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[weight] = {"step": torch.tensor(float(self.state.step)), **moments}
