"""Micro-batches, padding and token log-probabilities."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen3Config, Qwen3ForCausalLM

from tasks.training.actor import lanes
from tasks.training.batching import Sample, micro_batches, pad, token_logprobs


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(10, 200))
def test_micro_batches_hold_every_row_once_within_the_budget(lengths, budget):
    made = micro_batches(lengths, budget)
    assert sorted(i for batch in made for i in batch) == list(range(len(lengths)))
    for batch in made:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


def test_sorting_by_length_saves_padding():
    lengths = [10, 100] * 20
    padded = sum(len(b) * max(lengths[i] for i in b) for b in micro_batches(lengths, 400))
    assert padded == sum(lengths)


def test_lanes_are_the_same_micro_batches_whatever_their_number():
    samples = [Sample([1] * 3, [2] * n, [0.0] * n, 0.0) for n in (5, 9, 1, 7, 3, 8)]
    made = micro_batches([3 + n for n in (5, 9, 1, 7, 3, 8)], 24)
    for count in (1, 2, 4):
        assert sorted(batch for lane in lanes(samples, 24, count) for batch in lane) == sorted(made)


def test_pad_marks_exactly_the_sampled_tokens_and_the_end_token():
    ids, mask, old, attention = pad([Sample([5, 6], [7, 0], [-0.1, -0.2], 1.0), Sample([5], [8, 9, 0], [-0.3, -0.4, -0.5], 1.0)], fill=0)
    assert ids.tolist() == [[5, 6, 7, 0], [5, 8, 9, 0]]
    assert mask.tolist() == [[False, True, True], [True, True, True]]
    assert old.tolist() == [
        [0, pytest.approx(-0.1), pytest.approx(-0.2)],
        [pytest.approx(-0.3), pytest.approx(-0.4), pytest.approx(-0.5)],
    ]
    assert attention.sum(1).tolist() == [4, 4]


def test_token_logprobs_do_not_depend_on_padding_and_entropy_is_that_of_the_distribution():
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=16,
    )
    model = Qwen3ForCausalLM(config).eval()
    samples = [Sample([1, 2], [3, 4, 5], [0.0] * 3, 0.0), Sample([1], [6], [0.0], 0.0)]
    ids, mask, _, attention = pad(samples, fill=0)
    logprobs, entropy = token_logprobs(model, ids, attention, temperature=0.7)
    for row, sample in enumerate(samples):
        alone = torch.tensor([sample.prompt + sample.completion])
        expected = (model(alone).logits[0, :-1] / 0.7).log_softmax(-1)
        chosen = expected.gather(1, alone[0, 1:, None]).squeeze(1)[len(sample.prompt) - 1 :]
        assert torch.allclose(logprobs[row][mask[row]], chosen, atol=1e-5)
        spread = -(expected.exp() * expected).sum(-1)[len(sample.prompt) - 1 :]
        assert torch.allclose(entropy[row][mask[row]], spread, atol=1e-5)
