"""What a worker holds: the policy, the algorithm, and a sampler of the policy. It samples and scores prompts, and gives gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tasks.errors import DataError
from tasks.generation.sampler import Rollout, Sampling, TorchSampler
from tasks.generation.transformer import fingerprint
from tasks.rewards.total import Reward, Rewarder
from tasks.template import render
from tasks.training.batching import Sample, micro_batches, pad, token_logprobs
from tasks.training.grpo import GRPO, Totals
from tasks.training.ppo import PPO


@dataclass(frozen=True)
class Output:
    """One sampled and scored completion."""

    prompt_id: str
    prompt: list[int]
    completion: list[int]
    logprobs: list[float]
    finished: bool
    text: str
    language: str
    reward: Reward
    policy: str  # fingerprint of the weights that sampled it


class Actor:
    """The state of a lane of work. Weights are shared between processes; the sampler's fused copy is refreshed on demand."""

    def __init__(
        self, policy: PreTrainedModel, algorithm: GRPO | PPO | None, tokenizer: PreTrainedTokenizerBase,
        records: Mapping[str, Mapping[str, Any]], gradients: Tensor, rewarder: Rewarder,
    ) -> None:  # fmt: skip
        """`gradients`: [lanes, parameters] in shared memory; `algorithm` is None where nothing is trained."""
        self.policy, self.algorithm, self.tokenizer = policy, algorithm, tokenizer
        self.records, self.gradients, self.rewarder = records, gradients, rewarder
        self.fill = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id  # Llama 3 has no pad token
        self.prompts = {key: tokenizer.encode(render(r["messages"][-1]["content"])) for key, r in records.items()}
        self._sampler: TorchSampler | None = None
        self._loaded, self._fingerprint = -1, ""

    def _sampler_at(self, version: int) -> TorchSampler:
        if self._sampler is None:
            self._sampler = TorchSampler(self.policy.config, [self.tokenizer.eos_token_id])
        if self._loaded != version:
            self._fingerprint = self._sampler.load(dict(self.policy.state_dict()))
            self._loaded = version
        return self._sampler

    def sample(self, version: int, ids: Sequence[str], sampling: Sampling, seed: int) -> list[Output]:
        """Completions of a chunk of prompts, scored; the chunk has its own generator, so it does not matter who draws it.

        Args:
            version: number of policy updates so far; a new one makes the sampler load the weights again.
        """
        sampler = self._sampler_at(version)
        groups = sampler.generate([self.prompts[i] for i in ids], sampling, torch.Generator().manual_seed(seed))
        return self._outputs([(key, rollout) for key, group in zip(ids, groups, strict=True) for rollout in group])

    def _outputs(self, made: Sequence[tuple[str, Rollout]]) -> list[Output]:
        records = [self.records[key] for key, _ in made]
        texts = [self.tokenizer.decode(rollout.token_ids, skip_special_tokens=True) for _, rollout in made]
        rewards = self.rewarder(records, texts, [rollout.finished for _, rollout in made])
        return [
            Output(
                key, self.prompts[key], rollout.token_ids, rollout.logprobs, rollout.finished,
                text, record["language"], reward, self._fingerprint,
            )
            for (key, rollout), record, text, reward in zip(made, records, texts, rewards, strict=True)
        ]  # fmt: skip

    def score(self, lane: int, samples: Sequence[Sample], batches: Sequence[Sequence[int]]) -> list[Any]:
        """What the algorithm needs to know of each sample before it can credit it, in their order."""
        assert self.algorithm is not None
        found: dict[int, Any] = {}
        for batch in batches:
            found |= zip(batch, self.algorithm.score(pad([samples[i] for i in batch], self.fill)), strict=True)
        return [found[i] for i in range(len(samples))]

    def gradient(
        self, lane: int, samples: Sequence[Sample], batches: Sequence[Sequence[int]], totals: Totals, temperature: float
    ) -> dict[str, float]:
        """Adds up the gradient of this lane's micro-batches into `gradients[lane]`; returns sums over the lane's tokens."""
        assert self.algorithm is not None
        networks = (self.policy, *self.algorithm.critics.values())
        for network in networks:
            network.zero_grad(set_to_none=True)
        sums = dict.fromkeys((*self.algorithm.sums, "entropy", "gap"), 0.0)
        for batch in batches:
            self._accumulate(self.algorithm, [samples[i] for i in batch], totals, temperature, sums)
        weights = [p for network in networks for p in network.parameters()]
        self.gradients[lane] = torch.cat([p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in weights])
        return sums

    def _accumulate(
        self, algorithm: GRPO | PPO, rows: Sequence[Sample], totals: Totals, temperature: float, sums: dict[str, float]
    ) -> None:
        batch = pad(rows, self.fill)
        logprobs, entropy = token_logprobs(self.policy, batch.ids, batch.attention, temperature)
        value, found = algorithm.loss(rows, batch, logprobs, totals)
        value.backward()
        for name, counted in found.items():
            sums[name] += counted
        sums["entropy"] += float((entropy * batch.mask).sum())
        gap = float(((logprobs.detach() - batch.old).abs() * batch.mask).max())
        sums["gap"] = gap if not gap <= sums["gap"] else sums["gap"]  # not max(): it would hide NaN


def check_lengths(records: Iterable[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, positions: int, new_tokens: int) -> None:
    """Whether every prompt leaves room for its completion; checked before the first step, not when the prompt is drawn.

    Raises:
        DataError: prompts that are too long, by id, with the arithmetic.
    """
    lengths = {r["id"]: len(tokenizer.encode(render(r["messages"][-1]["content"]))) for r in records}
    long = [f"{key} ({n} tokens)" for key, n in lengths.items() if n + new_tokens > positions]
    if long:
        raise DataError(
            f"{len(long)} prompts are too long: prompt + {new_tokens} new tokens must be at most {positions} positions of the model, so a "
            f"prompt at most {positions - new_tokens}: {', '.join(long[:20])}; remove them or lower the length limit"
        )


def policy_fingerprint(model: PreTrainedModel) -> str:
    """The fingerprint that a sampler of exactly these weights reports."""
    return fingerprint(dict(model.named_parameters()))  # a tied head counts once, as in the sampler


def lanes(samples: Sequence[Sample], budget: int, count: int) -> list[list[list[int]]]:
    """Micro-batches dealt out to `count` lanes, the same lanes however many workers there are."""
    made = micro_batches([len(s.prompt) + len(s.completion) for s in samples], budget)
    return [made[lane::count] for lane in range(count)]
