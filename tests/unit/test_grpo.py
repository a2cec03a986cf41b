"""The GRPO objective against a naive implementation, its invariances, and hand-worked numbers."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.training.grpo import Objective, Totals, advantages, clipped_surrogate, k3, loss

RATIOS_AND_DENOMINATORS = [
    ("token", "own_length"),
    ("token", "batch_tokens"),
    ("token", "max_new_tokens"),
    ("sequence", "own_length"),
]


def batch(rows: int = 5, width: int = 7, seed: int = 0) -> dict[str, torch.Tensor]:
    """A mini-batch with rows of different lengths; ratios far enough from 1 that the clip matters."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, width + 1, (rows,), generator=generator)
    noise = [torch.randn(rows, width, generator=generator, dtype=torch.float64) * 0.4 for _ in range(3)]
    logprobs = -1 + noise[0]
    return {
        "logprobs": logprobs,
        "old": logprobs + noise[1],
        "reference": logprobs + noise[2],
        "advantage": torch.randn(rows, generator=generator, dtype=torch.float64),
        "mask": torch.arange(width)[None] < lengths[:, None],
    }


def totals_of(data: dict[str, torch.Tensor], limit: int = 9) -> Totals:
    return Totals(len(data["mask"]), int(data["mask"].sum()), limit)


def gradient(tensor: torch.Tensor) -> torch.Tensor:
    assert tensor.grad is not None
    return tensor.grad


def naive(data: dict[str, torch.Tensor], o: Objective, limit: int = 9) -> float:
    """The printed formulas, one Python number at a time."""
    total = 0.0
    rows = len(data["mask"])
    tokens = int(data["mask"].sum())
    for i in range(rows):
        a = float(data["advantage"][i])
        places = [t for t in range(data["mask"].shape[1]) if data["mask"][i, t]]
        policy, old, reference = ([float(data[key][i, t]) for t in places] for key in ("logprobs", "old", "reference"))
        if o.ratio == "sequence":
            terms = [(sum(policy) - sum(old), sum(reference) - sum(policy))]
            divisor = rows
        else:
            terms = [(p - q, r - p) for p, q, r in zip(policy, old, reference, strict=True)]
            divisor = {"own_length": rows * len(places), "batch_tokens": tokens, "max_new_tokens": rows * limit}[o.denominator]
        for log_ratio, drift in terms:
            ratio = math.exp(log_ratio)
            clipped = min(max(ratio, 1 - o.clip_low), 1 + o.clip_high)
            kl = math.exp(drift) - drift - 1
            total += (min(ratio * a, clipped * a) - o.beta * kl) / divisor
    return -total


@pytest.mark.parametrize(("ratio", "denominator"), RATIOS_AND_DENOMINATORS)
@pytest.mark.parametrize(("clip_low", "clip_high", "beta"), [(0.2, 0.2, 0.0), (0.1, 0.3, 0.05), (10.0, 10.0, 0.001)])
def test_loss_equals_the_naive_formula(ratio, denominator, clip_low, clip_high, beta):
    data, objective = batch(), Objective(ratio, denominator, clip_low, clip_high, beta)
    value, _ = loss(**data, objective=objective, totals=totals_of(data))
    assert float(value) == pytest.approx(naive(data, objective), rel=1e-9)


@pytest.mark.parametrize(("ratio", "denominator"), RATIOS_AND_DENOMINATORS)
def test_gradient_equals_finite_differences(ratio, denominator):
    data, objective = batch(rows=3, width=4, seed=1), Objective(ratio, denominator, 0.2, 0.2, 0.1)
    data["logprobs"].requires_grad_()
    value, _ = loss(**data, objective=objective, totals=totals_of(data))
    value.backward()
    for i, t in itertools.product(range(3), range(4)):
        moved = {key: tensor.detach().clone() for key, tensor in data.items()}
        moved["logprobs"][i, t] += 1e-6
        above = naive(moved, objective)
        moved["logprobs"][i, t] -= 2e-6
        numeric = (above - naive(moved, objective)) / 2e-6
        assert float(gradient(data["logprobs"])[i, t]) == pytest.approx(numeric, abs=1e-6)


@pytest.mark.parametrize(("ratio", "denominator"), RATIOS_AND_DENOMINATORS)
@given(seed=st.integers(0, 1000), cut=st.integers(1, 4), extra=st.integers(0, 3))
@settings(max_examples=15, deadline=None)
def test_loss_does_not_depend_on_padding_split_or_order(ratio, denominator, seed, cut, extra):
    data, objective = batch(seed=seed), Objective(ratio, denominator, 0.2, 0.2, 0.01)
    totals = totals_of(data)
    whole, sums = loss(**data, objective=objective, totals=totals)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    parts, clipped = 0.0, 0.0
    for rows in (order[:cut], order[cut:]):
        part = {key: tensor[rows] for key, tensor in data.items()}
        for key in ("logprobs", "old", "reference", "mask"):  # padding holds garbage, which the mask must hide
            filler = (
                torch.zeros(len(rows), extra, dtype=torch.bool)
                if key == "mask"
                else torch.full((len(rows), extra), 3.0 if key == "old" else -5.0)
            )
            part[key] = torch.cat([part[key], filler.to(part[key].dtype)], 1)
        value, found = loss(**part, objective=objective, totals=totals)
        parts, clipped = parts + float(value), clipped + found["clipped"]
    assert parts == pytest.approx(float(whole), rel=1e-9)
    assert clipped == sums["clipped"]


def test_advantages_by_hand():
    rewards = torch.tensor([[2.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    root = math.sqrt(0.5)  # population deviation of 2, 0, 1, 1
    assert torch.allclose(advantages(rewards), torch.tensor([[1 / root, -1 / root, 0, 0], [0.0, 0, 0, 0]]))
    assert torch.equal(advantages(rewards, normalize_std=False)[0], torch.tensor([1.0, -1.0, 0.0, 0.0]))


def test_equal_rewards_with_rounding_noise_give_zero_and_not_a_large_number():
    rewards = torch.full((1, 16), 0.1) + torch.arange(16) * 1e-9
    assert torch.equal(advantages(rewards), torch.zeros(1, 16))


def test_k3_is_zero_at_equality_and_positive_elsewhere():
    drift = torch.tensor([-2.0, -0.1, 0.0, 0.1, 2.0])
    assert float(k3(drift)[2]) == 0
    assert (k3(drift)[[0, 1, 3, 4]] > 0).all()


def test_k3_estimates_the_exact_kl_on_a_small_vocabulary():
    policy, reference = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.5, 0.3])
    exact = float((policy * (policy / reference).log()).sum())
    expected = float((policy * k3((reference / policy).log())).sum())
    assert expected == pytest.approx(exact, rel=1e-6)  # sum of policy * (ratio - 1) is zero, so k3 is unbiased


def test_a_negative_advantage_is_never_clipped_at_ten():
    """recipe.md section 3: with epsilon 10 the lower bound is -9, so only positive advantages feel the clip, above ratio 11."""
    log_ratio = torch.tensor([-5.0, 0.0, 3.0, 3.0]).requires_grad_()
    advantage = torch.tensor([-1.0, -1.0, -1.0, 1.0])
    value, clipped = clipped_surrogate(log_ratio, advantage, Objective(clip_low=10, clip_high=10))
    value.sum().backward()
    assert clipped.tolist() == [False, False, False, True]
    assert (gradient(log_ratio)[:3] != 0).all() and float(gradient(log_ratio)[3]) == 0


def test_first_update_has_ratio_one_and_its_gradient_is_the_policy_gradient():
    data = batch()
    data["old"] = data["logprobs"].clone()
    data["logprobs"].requires_grad_()
    value, sums = loss(**data, objective=Objective(beta=0.0), totals=totals_of(data))
    value.backward()
    lengths = data["mask"].sum(1, keepdim=True)
    expected = -(data["advantage"][:, None] / (5 * lengths)) * data["mask"]
    assert torch.allclose(gradient(data["logprobs"]), expected)
    assert sums["clipped"] == 0


def test_without_a_reference_the_kl_is_zero():
    data = batch()
    _, sums = loss(data["logprobs"], data["old"], None, data["advantage"], data["mask"], Objective(beta=0.0), totals_of(data))
    assert sums["kl"] == 0
