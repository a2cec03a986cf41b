"""PPO's parts against naive loops and hand-worked numbers, its invariances, and that it learns."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tasks.config import RL
from tasks.training import ppo
from tasks.training.batching import Sample, pad, token_logprobs
from tasks.training.grpo import Totals, k3
from tasks.training.ppo import PPO, Valued, explained_variance, gae, token_rewards, value_loss, whiten

ROOT = Path(__file__).parents[2]
VOCABULARY = 12


def params(**changes: Any) -> RL:
    shipped = yaml.safe_load((ROOT / "params.yaml").read_text())
    own = {"steps": 4, "minibatches": 1, "group_size": 2, "prompts_per_rollout": 4, "algorithm": "ppo", "warmup_steps": 0}
    return RL.model_validate(shipped["rl"] | own | changes)


def policy(seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        intermediate_size=16, max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def samples(count: int = 5, seed: int = 0) -> list[Sample]:
    rng = random.Random(seed)
    rows = [([rng.randrange(1, VOCABULARY) for _ in range(rng.randrange(1, 4))], rng.randrange(1, 6)) for _ in range(count)]
    return [
        Sample(prompt, [rng.randrange(1, VOCABULARY) for _ in range(n)], [-rng.random() * 3 for _ in range(n)], 0.0) for prompt, n in rows
    ]


def algorithm(trained: PreTrainedModel, **changes: Any) -> PPO:
    """With a head that tells tokens apart, and a reference that is another model."""
    made = PPO(params(**changes), policy(7), trained)
    with torch.no_grad():
        made.value.score.weight.normal_(0, 1, generator=torch.Generator().manual_seed(3))
        made.value.score.bias.fill_(0.3)
    return made


def scores(made: PPO, rows: list[Sample]) -> list[Any]:
    return made.score(pad(rows, 0))


def credited(made: PPO, rows: list[Sample], rewards: list[float]) -> list[Any]:
    return made.credit(rows, rewards, lambda asked: scores(made, list(asked)))[0]


# ---- generalized advantage estimation


def outputs(seed: int, rows: int = 4, width: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, width + 1, (rows,), generator=generator)
    rewards, values = (torch.randn(rows, width, generator=generator) for _ in range(2))
    return rewards, values, torch.arange(width)[None] < lengths[:, None]


@given(seed=st.integers(0, 1000), decay=st.sampled_from([0.0, 0.5, 0.95, 1.0]))
@settings(max_examples=30, deadline=None)
def test_gae_equals_the_naive_double_loop(seed, decay):
    rewards, values, mask = outputs(seed)
    advantage, returns = gae(rewards, values, mask, decay)
    for i in range(len(mask)):
        length = int(mask[i].sum())
        v = [*values[i, :length].tolist(), 0.0]
        errors = [float(rewards[i, t]) + v[t + 1] - v[t] for t in range(length)]
        for t in range(length):
            expected = sum(decay ** (u - t) * errors[u] for u in range(t, length))
            assert float(advantage[i, t]) == pytest.approx(expected, abs=1e-5)
            assert float(returns[i, t]) == pytest.approx(expected + v[t], abs=1e-5)
    assert not advantage[~mask].any() and not returns[~mask].any()


def test_gae_by_hand():
    """Rewards 0, 0, 1 and values .5, .2, .6 of one output, beside a shorter one."""
    rewards, values = torch.tensor([[0.0, 0.0, 1.0], [2.0, 9.0, 9.0]]), torch.tensor([[0.5, 0.2, 0.6], [0.5, 9.0, 9.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    whole, returns = gae(rewards, values, mask, 1.0)  # what is still to come, minus the value
    assert torch.allclose(whole, torch.tensor([[0.5, 0.8, 0.4], [1.5, 0, 0]])) and returns[0].tolist() == pytest.approx([1, 1, 1])
    one_step, _ = gae(rewards, values, mask, 0.0)
    assert torch.allclose(one_step, torch.tensor([[-0.3, 0.4, 0.4], [1.5, 0, 0]]))
    half, targets = gae(rewards, values, mask, 0.5)  # .4; .4 + .2 = .6; -.3 + .3 = 0
    assert torch.allclose(half, torch.tensor([[0.0, 0.6, 0.4], [1.5, 0, 0]]), atol=1e-6)
    assert torch.allclose(targets[0], torch.tensor([0.5, 0.8, 1.0]))


@pytest.mark.parametrize("decay", [0.0, 0.95, 1.0])
def test_a_perfect_value_function_leaves_no_advantage(decay):
    rewards, _, mask = outputs(3)
    rewards = rewards * mask
    to_come = rewards.flip(1).cumsum(1).flip(1)
    advantage, returns = gae(rewards, to_come, mask, decay)
    assert torch.allclose(advantage, torch.zeros_like(advantage), atol=1e-5)
    assert torch.allclose(returns, to_come * mask, atol=1e-5)
    assert torch.equal(whiten(torch.zeros_like(advantage), mask), torch.zeros_like(advantage))  # not noise blown up
    assert explained_variance(to_come[mask], returns[mask]) == pytest.approx(1, abs=1e-5)


def test_explained_variance_by_hand():
    returns = torch.tensor([0.0, 2.0])
    assert explained_variance(torch.tensor([5.0, 5.0]), returns) == 0  # a constant knows nothing
    assert explained_variance(torch.tensor([1.0, 2.0]), returns) == pytest.approx(0.75)  # residuals -1 and 0: variance 1/4 of 1
    assert explained_variance(returns, torch.ones(2)) == 0


def test_whitened_advantages_have_mean_zero_and_deviation_one_over_the_tokens():
    rewards, values, mask = outputs(5)
    white = whiten(rewards - values, mask)
    assert float(white[mask].mean()) == pytest.approx(0, abs=1e-6)
    assert float(white[mask].std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert not white[~mask].any()


# ---- the reward of a token


def test_the_kl_is_in_the_reward_of_each_token_and_the_rule_in_the_last():
    old, reference = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, 0.0, 0.0]]), torch.tensor([[-1.5, -1.0, -3.0], [-2.0, 5.0, 5.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    made = token_rewards(torch.tensor([2.0, 1.0]), old, reference, mask, 0.1)
    assert torch.allclose(made, torch.tensor([[-0.05, 0.1, 2.0], [1 - 0.1, 0, 0]]))


def test_credit_takes_returns_from_the_kl_and_the_rule_reward():
    made, rows = algorithm(policy(), gae_lambda=1.0, whiten=False, beta=0.5), samples()
    rewards = [2.0, 0.0, 1.0, 2.0, 0.0]
    for row, reward, old in zip(credited(made, rows, rewards), rewards, rows, strict=True):
        penalties = [0.5 * (q - r) for q, r in zip(old.logprobs, row.reference, strict=True)]
        expected = [reward - sum(penalties[t:]) for t in range(len(penalties))]
        assert row.returns == pytest.approx(expected, abs=1e-5)
        assert row.advantage == pytest.approx([g - v for g, v in zip(expected, row.values, strict=True)], abs=1e-5)


def test_values_and_reference_stand_at_the_token_that_they_are_about():
    """The value before a token has seen the prompt and the tokens before it, and no more."""
    made, rows = algorithm(policy()), samples()
    for row, (values, reference) in zip(rows, scores(made, rows), strict=True):
        for t in range(len(row.completion)):
            seen = torch.tensor([row.prompt + row.completion[:t]])
            with torch.no_grad():
                value = made.value(seen).logits[0, -1, 0]
                assert made.reference is not None
                logprobs = made.reference(seen).logits[0, -1].log_softmax(-1)
            assert values[t] == pytest.approx(float(value), abs=1e-5)
            assert reference[t] == pytest.approx(float(logprobs[row.completion[t]]), abs=1e-5)


def test_without_a_reference_nothing_is_taken_off():
    made, rows = PPO(params(beta=0.0, whiten=False, gae_lambda=1.0), None, policy()), samples(2)
    for row, reward in zip(credited(made, rows, [2.0, 1.0]), (2.0, 1.0), strict=True):
        assert row.returns == pytest.approx([reward] * len(row.completion))
        assert row.values == [0.0] * len(row.completion)  # the head starts at zero


# ---- the loss


def test_the_value_loss_and_its_clip_by_hand():
    values = torch.tensor([1.0, 2.0, 0.3, 2.0]).requires_grad_()
    old, returns = torch.tensor([1.0, 1.0, 0.5, 1.0]), torch.tensor([2.0, 3.0, 1.0, 1.5])
    # at the old value; 1 above it, held at 1.5; .2 below it, within the clip; held at 1.5, which the return is, but the larger error counts
    errors, clipped = value_loss(values, old, returns, 0.5)
    assert errors.tolist() == pytest.approx([0.5, 1.125, 0.245, 0.125]) and clipped.tolist() == [False, True, False, False]
    errors.sum().backward()
    assert values.grad is not None and values.grad.tolist() == pytest.approx([-1.0, 0.0, -0.7, 0.5])
    free, none = value_loss(values.detach(), old, returns, None)
    assert free.tolist() == pytest.approx([0.5, 0.5, 0.245, 0.125]) and not none.any()


def batch_of(made: PPO, seed: int = 0) -> tuple[list[Any], Totals]:
    rows = credited(made, samples(seed=seed), [2.0, 0.0, 1.0, 2.0, 0.0])
    return rows, Totals(len(rows), sum(len(row.completion) for row in rows), 9)


def naive(made: PPO, rows: list[Any], logprobs: list[list[float]], values: list[list[float]], clip: float | None) -> float:
    """Policy and value loss, each output's mean over its own tokens, one Python number at a time."""
    total, objective = 0.0, made.objective
    for row, new, now in zip(rows, logprobs, values, strict=True):
        for t in range(len(row.completion)):
            ratio = float(torch.tensor(new[t] - row.logprobs[t]).exp())
            clipped = min(max(ratio, 1 - objective.clip_low), 1 + objective.clip_high)
            gain = min(ratio * row.advantage[t], clipped * row.advantage[t])
            error = (now[t] - row.returns[t]) ** 2
            if clip is not None:
                held = row.values[t] + min(max(now[t] - row.values[t], -clip), clip)
                error = max(error, (held - row.returns[t]) ** 2)
            total += (error / 2 - gain) / (len(row.completion) * len(rows))
    return total


@pytest.mark.parametrize("clip", [0.1, None])
def test_loss_equals_the_naive_formula(clip):
    trained = policy()
    made = algorithm(trained, value_clip=clip, gae_lambda=0.95)
    rows, totals = batch_of(made)
    with torch.no_grad():
        made.value.score.weight.mul_(1.5)  # the values have moved since the rollout
        batch = pad(rows, 0)
        logprobs, _ = token_logprobs(trained, batch.ids, batch.attention)
        value, sums = made.loss(rows, batch, logprobs, totals)
        now, new = ([x[m].tolist() for x, m in zip(all_, batch.mask, strict=True)] for all_ in (made.values(batch), logprobs))
    assert float(value) == pytest.approx(naive(made, rows, new, now, clip), rel=1e-5)
    drift = [r - p for row, own in zip(rows, new, strict=True) for r, p in zip(row.reference, own, strict=True)]
    assert sums["kl"] == pytest.approx(float(k3(torch.tensor(drift)).sum()), rel=1e-4)  # told, but not part of the loss


@pytest.mark.parametrize("what", ["policy", "value"])
def test_gradients_equal_finite_differences(what):
    trained = policy().double()
    made = algorithm(trained, value_clip=0.2)
    made.value.double()
    rows, totals = batch_of(made)
    batch = pad(rows, 0)
    weight = trained.lm_head.weight if what == "policy" else made.value.score.weight

    def loss() -> torch.Tensor:
        logits = trained(input_ids=batch.ids, attention_mask=batch.attention).logits[:, :-1]
        logprobs = logits.log_softmax(-1).gather(-1, batch.ids[:, 1:, None]).squeeze(-1)
        values = made.value(input_ids=batch.ids, attention_mask=batch.attention).logits[:, :-1, 0]
        made.values = lambda batch: values  # type: ignore[method-assign]  # in double precision
        return made.loss(rows, batch, logprobs, totals)[0]

    loss().backward()
    assert weight.grad is not None
    for i, j in itertools.product(range(min(3, weight.shape[0])), range(3)):
        moved = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                weight[i, j] += step
                moved.append(float(loss().detach()))
                weight[i, j] -= step
        assert float(weight.grad[i, j]) == pytest.approx((moved[0] - moved[1]) / 2e-6, abs=1e-6)


@given(seed=st.integers(0, 100), cut=st.integers(1, 4))
@settings(max_examples=10, deadline=None)
def test_credit_and_loss_do_not_depend_on_padding_or_split(seed, cut):
    """Each output scored alone, and the loss in two micro-batches of other widths: the same numbers."""
    trained = policy()
    made = algorithm(trained, value_clip=0.1)
    rows, totals = batch_of(made, seed)
    alone = made.credit(samples(seed=seed), [2.0, 0.0, 1.0, 2.0, 0.0], lambda asked: [scores(made, [one])[0] for one in asked])[0]
    for a, b in zip(rows, alone, strict=True):
        assert isinstance(b, Valued) and a.advantage == pytest.approx(b.advantage, abs=1e-4)

    def loss(part: list[Any]) -> float:
        batch = pad(part, 0)
        return float(made.loss(part, batch, token_logprobs(trained, batch.ids, batch.attention)[0], totals)[0])

    with torch.no_grad():
        assert loss(rows[:cut]) + loss(rows[cut:][::-1]) == pytest.approx(loss(rows), abs=1e-5)


def test_the_policy_is_taught_by_its_advantages_and_the_value_model_by_the_returns_alone():
    trained = policy()
    made = algorithm(trained, value_clip=None)
    rows, totals = batch_of(made)
    perfect = [Valued(r.prompt, r.completion, r.logprobs, [0.0] * len(r.completion), r.reference, r.values, r.values) for r in rows]
    batch = pad(perfect, 0)
    value, sums = made.loss(perfect, batch, token_logprobs(trained, batch.ids, batch.attention)[0], totals)
    value.backward()
    assert sums["value_loss"] == pytest.approx(0, abs=1e-8)
    for weight in (*trained.parameters(), *made.value.parameters()):
        assert weight.grad is None or float(weight.grad.abs().max()) < 1e-5


# ---- the value model


def test_the_value_model_is_the_policys_network_under_a_head_of_zeros():
    trained = policy()
    value = PPO(params(), None, trained).value
    for name, weight in trained.base_model.named_parameters():
        assert torch.equal(weight, value.base_model.get_parameter(name))
    with torch.no_grad():
        value.base_model.embed_tokens.weight.zero_()
    assert trained.base_model.embed_tokens.weight.any()  # copied, not shared
    assert value.score.weight.shape == (1, 16) and not value.score.weight.any() and not value.score.bias.any()
    assert not value.training and ppo.PPO.sums[:2] == ("clipped", "kl")


def test_it_learns_a_toy_task_and_the_value_model_learns_to_foresee_it():
    """The reward is the share of even tokens among three: from a half to nearly all; after another prompt it is always 0."""
    trained = policy()
    made = PPO(params(beta=0.0), None, trained)
    optimizer = torch.optim.AdamW([*trained.parameters(), *made.value.parameters()], lr=0.01)
    generator, history, foreseen = torch.Generator().manual_seed(0), [], []
    for _ in range(30):
        rows = sample(trained, 32, generator)
        rewards = [sum(t % 2 == 0 for t in row.completion) / 3 * (row.prompt == [1]) for row in rows]
        credited_rows, told = made.credit(rows, rewards, lambda asked: scores(made, list(asked)))
        optimizer.zero_grad()
        batch = pad(credited_rows, 0)
        logprobs, _ = token_logprobs(trained, batch.ids, batch.attention)
        made.loss(credited_rows, batch, logprobs, Totals(32, 96, 3))[0].backward()
        optimizer.step()
        history.append(sum(rewards) / 16)
        foreseen.append(told["explained_variance"])
    assert history[0] < 0.65 and sum(history[-5:]) / 5 > 0.9
    assert abs(foreseen[0]) < 1e-6 and foreseen[-1] > 0.5


@torch.no_grad()
def sample(model: PreTrainedModel, count: int, generator: torch.Generator) -> list[Sample]:
    """Three tokens after each of two prompts."""
    ids, logprobs = torch.tensor([[1], [2]]).repeat(count // 2, 1), []
    for _ in range(3):
        distribution = model(input_ids=ids).logits[:, -1].log_softmax(-1)
        drawn = torch.multinomial(distribution.exp(), 1, generator=generator)
        logprobs.append(distribution.gather(1, drawn))
        ids = torch.cat([ids, drawn], 1)
    return [Sample(row[:1], row[1:], old, 0.0) for row, old in zip(ids.tolist(), torch.cat(logprobs, 1).tolist(), strict=True)]
