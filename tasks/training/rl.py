"""The reinforcement-learning loop: roll out, score, split into mini-batches, update; resumable to the same bytes.

Per rollout (paper, section 2.1 and B.1): prompts x group size outputs are sampled from the frozen policy and scored; advantages are
taken over whole groups; then outputs are split at random into mini-batches, one policy update each, one inner epoch.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tasks.config import RL
from tasks.errors import SecondThoughtError
from tasks.evaluation.metrics import mean_or_zero
from tasks.generation.sampler import Sampling
from tasks.monitoring.steps import consensus, describe
from tasks.rewards.total import Rewarder
from tasks.training import checkpoint, flops
from tasks.training.actor import Actor, Output, lanes, policy_fingerprint
from tasks.training.batching import Sample
from tasks.training.grpo import GRPO, Totals, advantages
from tasks.training.ppo import PPO
from tasks.training.workers import Workers

LANES = 4  # gradients are summed in four lanes whatever the number of workers; up to four workers share the work
CHUNK = 8  # prompts that are sampled together: 8 x 16 rows fill one core, and four chunks a rollout keep two busy
VALIDATION_SAMPLES = 4
SHOWN = ("reward", "accuracy", "reward_preference", "length", "entropy")  # beside the progress bar
GAP_TOLERANCE = 1e-3  # nats between sampler and trainer for the same weights; measured 1e-5 in fp32


Draw = Callable[[int], Sequence[str]]  # number of a rollout -> ids of its prompts


class StaleWeightsError(SecondThoughtError):
    """The sampler does not hold the policy's weights."""


class DivergedError(SecondThoughtError):
    """Training produced numbers that are not finite."""


@dataclass
class State:
    """Where the run stands; with the weights and the optimizer it is all that a resumed run needs.

    Every draw comes from a generator seeded by (seed, what, rollout), so (seed, rollout) is the generators' state.
    """

    step: int = 0
    rollout: int = 0
    reference_age: int = 0
    reference_updates: int = 0
    tokens_sampled: int = 0
    flops: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("sampling", "training", "reference"), 0))
    rows: list[dict[str, Any]] = field(default_factory=list)


def seed_of(*parts: Any) -> int:
    """A 63-bit seed from a tuple of values."""
    return random.Random("/".join(map(str, parts))).getrandbits(63)


def set_gradients(weights: Sequence[Tensor], flat: Tensor) -> None:
    """Lays a flat gradient [parameters] out over the weights, in their order."""
    at = 0
    for weight in weights:
        weight.grad = flat[at : at + weight.numel()].view_as(weight)
        at += weight.numel()


def _weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Each weight once: a tied head is the embedding under another name, which safetensors refuses to store twice."""
    return {name: weight.detach() for name, weight in model.named_parameters()}


@torch.no_grad()
def _load(model: PreTrainedModel, stored: Mapping[str, Tensor]) -> None:
    for name, weight in model.named_parameters():
        weight.copy_(stored[name])


def prompt_order(records: Sequence[Mapping[str, Any]], seed: int, epoch: int) -> list[str]:
    """Ids of one epoch, each family spread evenly over it, so that every rollout has nearly the same mix (noise of the curves)."""
    rng = random.Random(f"order/{seed}/{epoch}")
    families: dict[str, list[str]] = {}
    for record in records:
        families.setdefault(record["family"], []).append(record["id"])
    placed = []
    for family in sorted(families):
        ids = sorted(families[family])
        rng.shuffle(ids)
        offset = rng.random()
        placed += [((i + offset) / len(ids), key) for i, key in enumerate(ids)]
    return [key for _, key in sorted(placed)]


def rollout_prompts(records: Sequence[Mapping[str, Any]], seed: int, rollout: int, count: int) -> list[str]:
    """The ids of a rollout: the next `count` of an endless sequence of epochs."""
    chosen: list[str] = []
    for place in range(rollout * count, (rollout + 1) * count):
        epoch, at = divmod(place, len(records))
        if not chosen or at == 0:
            order = prompt_order(records, seed, epoch)
        chosen.append(order[at])
    return chosen


class Trainer:
    """One RL run: policy, optimizer, reference and workers. `run` is the loop; everything else is a step of it."""

    def __init__(
        self, name: str, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, draw: Draw, records: Sequence[Mapping[str, Any]],
        validation: Sequence[Mapping[str, Any]], rewarder: Rewarder, params: RL, workers: int, budget: int | None = None,
    ) -> None:  # fmt: skip
        """`draw`: the ids of a rollout's prompts, all of them in `records`; `validation`: problems that rules can verify.

        `budget`: FLOPs after which the run ends, at the boundary of a rollout, though `params.steps` are not reached.
        """
        self.name, self.params, self.seed, self.draw, self.validation = name, params, params.seed, draw, list(validation)
        self.policy = policy.share_memory()
        self.policy.train(False)  # no dropout: the trainer's log-probs are the sampler's
        self.reference = copy.deepcopy(policy).share_memory() if params.beta > 0 else None
        self.algorithm = PPO(params, self.reference, policy) if params.algorithm == "ppo" else GRPO(params, self.reference)
        self.networks = {"policy": self.policy, **self.algorithm.critics}  # what is trained
        self.weights = [p for network in self.networks.values() for p in network.parameters()]
        self.gradients = torch.zeros(LANES, sum(p.numel() for p in self.weights)).share_memory_()
        known = {r["id"]: r for r in [*records, *validation]}
        self.actor = Actor(self.policy, self.algorithm, tokenizer, known, self.gradients, rewarder)
        self.workers = Workers(self.actor, workers)
        rates = {"policy": 1.0, "value": params.value_learning_rate / params.learning_rate}  # relative to the policy's
        groups = [{"params": list(network.parameters()), "relative": rates[name]} for name, network in self.networks.items()]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), weight_decay=params.weight_decay, fused=True)
        self.cost, self.budget = flops.cost(policy.config), budget
        self.state = State()

    # --- one rollout -------------------------------------------------------------------------------------------------------

    def sample(self, ids: Sequence[str], what: str, sampling: Sampling) -> list[Output]:
        """Samples and scores prompts in chunks over the workers; checks that every chunk was drawn from the current weights.

        Raises:
            StaleWeightsError: a worker sampled from other weights than the trainer holds.
        """
        chunks = [ids[i : i + CHUNK] for i in range(0, len(ids), CHUNK)]
        jobs = [(self.state.step, chunk, sampling, seed_of(self.seed, what, self.state.rollout, i)) for i, chunk in enumerate(chunks)]
        outputs = [output for made in self.workers.map("sample", jobs) for output in made]
        expected = policy_fingerprint(self.policy)
        for output in outputs:
            if output.policy != expected:
                raise StaleWeightsError(
                    f"a rollout came from weights {output.policy}, the policy is {expected}: the sampler was not updated"
                )
        return outputs

    def roll_out(self) -> list[Output]:
        params = self.params
        ids = self.draw(self.state.rollout)
        sampling = Sampling(params.temperature, 1.0, params.max_new_tokens(self.state.step), params.group_size)
        outputs = self.sample(ids, "rollout", sampling)
        self.state.tokens_sampled += sum(len(o.completion) for o in outputs)
        for group in (outputs[i : i + params.group_size] for i in range(0, len(outputs), params.group_size)):
            self.state.flops["sampling"] += self.cost.sampling(len(group[0].prompt), [len(o.completion) for o in group])
        return outputs

    def split(self, outputs: Sequence[Output]) -> list[list[int]]:
        """Random mini-batches of whole outputs (indices); advantages were taken before."""
        order = list(range(len(outputs)))
        random.Random(f"split/{self.seed}/{self.state.rollout}").shuffle(order)
        size = self.params.outputs_per_step
        return [order[i : i + size] for i in range(0, len(order), size)]

    # --- one policy update -------------------------------------------------------------------------------------------------

    def update(self, samples: Sequence[Sample], max_new_tokens: int) -> dict[str, float]:
        """One optimizer step on a mini-batch; returns the sums and rates that describe it."""
        totals = Totals(len(samples), sum(len(s.completion) for s in samples), max_new_tokens)
        sums = [found for _, found in self._over_lanes("gradient", samples, totals, self.params.temperature)]
        whole = {name: sum(s[name] for s in sums) for name in sums[0]}
        units = totals.outputs if self.params.ratio == "sequence" else totals.tokens
        rates = {name: value / totals.tokens for name, value in whole.items() if name not in ("clipped", "gap")}
        return rates | {"clip_share": whole["clipped"] / units, "sampler_gap": max(s["gap"] for s in sums)} | self._step()

    def score(self, samples: Sequence[Sample]) -> list[Any]:
        """What the algorithm says of each sample before it credits them."""
        found: dict[int, Any] = {}
        for own, scores in self._over_lanes("score", samples):
            found |= zip(own, scores, strict=True)
        return [found[i] for i in range(len(samples))]

    def _over_lanes(self, method: str, samples: Sequence[Sample], *arguments: Any) -> list[tuple[list[int], Any]]:
        """Runs a method of the actor on samples dealt out in lanes; the indices of a lane's samples, and its result."""
        jobs, owned = [], []
        for lane, batches in enumerate(lanes(samples, self.params.token_budget, LANES)):
            own = [i for batch in batches for i in batch]
            places = {i: k for k, i in enumerate(own)}
            local = [[places[i] for i in batch] for batch in batches]
            jobs.append((lane, [samples[i] for i in own], local, *arguments))
            owned.append(own)
        return list(zip(owned, self.workers.map(method, jobs), strict=True))

    def _step(self) -> dict[str, float]:
        """Clips each network's gradient and updates all weights; returns the norms before clipping."""
        set_gradients(self.weights, self.gradients.sum(0))
        norms = {}
        for name, network in self.networks.items():
            norm = float(torch.nn.utils.clip_grad_norm_(network.parameters(), self.params.gradient_norm))
            if not math.isfinite(norm):  # before the optimizer: the weights and every checkpoint stay good
                setting = "learning_rate" if name == "policy" else f"{name}_learning_rate"
                raise DivergedError(
                    f"step {self.state.step}: the norm of the {name}'s gradient is {norm}; nothing was updated. "
                    f"Lower {self.name}.{setting} (now {getattr(self.params, setting):g}) or {self.name}.clip_high, and run again"
                )
            norms["grad_norm" if name == "policy" else f"{name}_grad_norm"] = norm
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate() * group["relative"]
        self.optimizer.step()
        return norms

    def learning_rate(self) -> float:
        """Linear warm-up, then linear decay to `final_rate` of the peak at the end (the paper discloses no schedule)."""
        p, (done, whole) = self.params, self.progress()
        warm = min(1.0, (self.state.step + 1) / (p.warmup_steps + 1))
        return p.learning_rate * warm * (1 - (1 - p.final_rate) * done / whole)

    def progress(self) -> tuple[int, int]:
        """How much is done of how much: policy updates, or FLOPs where a budget ends the run."""
        if self.budget is None:
            return self.state.step, self.params.steps
        return min(sum(self.state.flops.values()), self.budget), self.budget

    @property
    def finished(self) -> bool:
        """Whether all is done; with a budget `steps` are a bound."""
        done, whole = self.progress()
        return done >= whole or self.state.step >= self.params.steps

    def count(self, samples: Sequence[Sample]) -> None:
        """Adds what an update on these samples has cost; samples of groups without information pass through the model as well."""
        forward = sum(self.cost.forward(len(s.prompt) + len(s.completion)) for s in samples)
        self.state.flops["training"] += 3 * forward
        for critic in self.algorithm.critics.values():  # a pass at the rollout, and forward and backward at the update
            cost = replace(flops.cost(critic.config), logits=2 * critic.config.hidden_size)
            self.state.flops["training"] += 4 * sum(cost.forward(len(s.prompt) + len(s.completion)) for s in samples)
        self.state.flops["reference"] += forward if self.reference is not None else 0

    def state_bytes(self) -> int:
        """Bytes of all networks' weights, both moments of AdamW, and the gradients of every lane."""
        networks = [*self.networks.values(), *([self.reference] if self.reference is not None else [])]
        weights = sum(p.nbytes for network in networks for p in network.parameters())
        return weights + 2 * sum(p.nbytes for p in self.weights) + self.gradients.nbytes

    def refresh_reference(self) -> None:
        """The reference becomes the policy every `reference_every` steps (paper: 400)."""
        self.state.reference_age += 1
        if self.reference is None or self.state.step % self.params.reference_every:
            return
        with torch.no_grad():
            for old, new in zip(self.reference.parameters(), self.policy.parameters(), strict=True):
                old.copy_(new)
        self.state.reference_age, self.state.reference_updates = 0, self.state.reference_updates + 1

    def validate(self) -> float:
        """pass@1 on the validation problems with VALIDATION_SAMPLES samples each at temperature 1."""
        sampling = Sampling(1.0, 1.0, self.params.max_new_tokens(self.state.step), VALIDATION_SAMPLES)
        outputs = self.sample([r["id"] for r in self.validation], "validation", sampling)
        return mean_or_zero([o.reward.accuracy for o in outputs if o.reward.accuracy is not None])

    # --- the loop ----------------------------------------------------------------------------------------------------------

    def one_rollout(self) -> list[dict[str, Any]]:
        """Samples once and makes `minibatches` policy updates; returns their metrics rows."""
        params, limit = self.params, self.params.max_new_tokens(self.state.step)
        validation = self.validate() if self.state.step % params.validation_every < params.minibatches else None
        outputs = self.roll_out()
        rewards = [o.reward.total for o in outputs]
        uncredited = [Sample(o.prompt, o.completion, o.logprobs, 0.0) for o in outputs]
        credited, told = self.algorithm.credit(uncredited, rewards, self.score)
        informative = (advantages(torch.tensor(rewards).view(-1, params.group_size), params.normalize_std) != 0).any(dim=1).tolist()
        rows, cons = [], consensus(outputs, params.group_size, self.actor.records)  # mini-batches tear groups apart
        for number, indices in enumerate(self.split(outputs)):
            chosen, samples = [outputs[i] for i in indices], [credited[i] for i in indices]
            row: dict[str, Any] = {"step": self.state.step, "learning_rate": self.learning_rate()}
            row |= {"reference_age": self.state.reference_age} | self.update(samples, limit) | told
            self._check_gap(row["sampler_gap"], number)
            row["sampler_gap"] = row["sampler_gap"] if number == 0 else None  # later mini-batches are off-policy: it says nothing
            teaching = mean_or_zero([informative[i // params.group_size] for i in indices])
            row |= describe(chosen) | {"informative_groups": teaching, "max_new_tokens": limit}
            row["validation_pass1"], row["cons"] = (validation, cons) if number == 0 else (None, None)
            self.state.step += 1
            self.count(samples)
            self.refresh_reference()
            rows.append(row)
        if self.finished:
            rows[-1]["validation_pass1"] = self.validate()  # of what is published
        self.state.rollout += 1
        self.state.rows += rows
        return rows

    def _check_gap(self, gap: float, minibatch: int) -> None:
        if minibatch == 0 and not gap <= GAP_TOLERANCE:  # on-policy: both sides hold the same weights
            raise StaleWeightsError(
                f"step {self.state.step}: sampler and trainer differ by {gap:.2g} nats on the same tokens (tolerance {GAP_TOLERANCE:g}): "
                "the sampler holds stale or differently computed weights"
            )

    def run(self, folder: Path, publish: Callable[[list[dict[str, Any]]], None]) -> State:
        """Trains to the last step from the newest checkpoint in `folder`; `publish` gets the rows of every rollout.

        Raises:
            SecondThoughtError: stale weights, a dead worker, a full disk, a damaged checkpoint.
        """
        self.resume(folder)
        publish(self.state.rows)  # a kill may have come between checkpoint and publication; what is known already is dropped there
        (done, whole), unit = self.progress(), "step" if self.budget is None else "FLOP"
        with tqdm(total=whole, initial=done, desc=self.name, unit=unit, unit_scale=self.budget is not None, mininterval=1) as bar:
            while not self.finished:
                rows = self.one_rollout()
                if self.state.rollout % self.params.checkpoint_every == 0 or self.finished:
                    self.save(folder)
                publish(rows)
                shown = {k: f"{rows[-1][k]:.2f}" for k in SHOWN if rows[-1][k] is not None}
                bar.set_postfix(shown | {"kl": f"{rows[-1]['kl']:.4f}"}, refresh=False)
                bar.update(self.progress()[0] - bar.n)
        return self.state

    # --- checkpoints -------------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Weights of all networks, both moments of AdamW and the state, under a hash manifest."""
        moments = {f"{name}.{i}": self.optimizer.state[p][name] for i, p in enumerate(self.weights) for name in ("exp_avg", "exp_avg_sq")}
        groups = {**{name: _weights(network) for name, network in self.networks.items()}, "moments": moments}
        if self.reference is not None:
            groups["reference"] = _weights(self.reference)
        checkpoint.save(folder, self.state.step, groups, vars(self.state))

    def resume(self, folder: Path) -> None:
        """Continues from the newest checkpoint, if there is one."""
        found = checkpoint.latest(folder)
        if found is None:
            return
        groups, state = found
        self.state = State(**state)
        for name, network in self.networks.items():
            _load(network, groups[name])
        if self.reference is not None:
            _load(self.reference, groups["reference"])
        for i, weight in enumerate(self.weights):
            moments = {name: groups["moments"][f"{name}.{i}"] for name in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[weight] = {"step": torch.tensor(float(self.state.step)), **moments}
