"""The count of FLOPs, against torch's own counter on tiny models of every kind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tasks import records
from tasks.generation import model_folder
from tasks.generation.collect import spent
from tasks.generation.sampler import Sampling, TorchSampler
from tasks.template import render
from tasks.training.flops import Cost, cost, pairs

ROOT = Path(__file__).parents[2]
SHAPE = {
    "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 20, "max_position_embeddings": 64, "attn_implementation": "eager",
}  # fmt: skip
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, head_dim=10)),  # heads wider than the hidden size, as student_tiny's
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=True)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=8)),
}


@pytest.fixture(params=sorted(MODELS))
def model(request) -> PreTrainedModel:
    torch.manual_seed(0)
    return MODELS[request.param]().eval()


def _in_place(_, left, right, *__, **___) -> int:
    return 2 * left[0] * left[1] * right[1]


def _attention(query, key, *_, **__) -> int:
    batch, heads, length, size = query
    return 2 * 2 * batch * heads * length * key[-2] * size


# What the sampler uses and torch's counter does not know: products added in place, and the CPU's fused attention.
MISSING = {torch.ops.aten.addmm_: _in_place, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}


def counted(run) -> int:
    with FlopCounterMode(display=False, custom_mapping=MISSING) as counter:
        run()
    return counter.get_total_flops()


def hidden_keys(length: int) -> int:
    """Pairs that a masked product computes in vain: transformers multiplies all keys, and masks."""
    return length * length - pairs(length)


def test_a_forward_and_a_backward_pass(model):
    found, ids = cost(model.config), torch.randint(50, (1, 17))
    in_vain = hidden_keys(17) * found.pair
    with torch.no_grad():
        assert counted(lambda: model(ids, use_cache=False)) == found.forward(17) + in_vain
    assert counted(lambda: model(ids, use_cache=False).logits.sum().backward()) == found.training(17) + 3 * in_vain


def test_cached_decoding_token_by_token(model):
    found, ids = cost(model.config), torch.randint(50, (1, 12))

    def read() -> None:
        cache = None
        for place in range(12):
            cache = model(ids[:, place : place + 1], past_key_values=cache, use_cache=True).past_key_values

    with torch.no_grad():
        assert counted(read) == found.forward(12)  # with one query at a time nothing is masked: the causal count is exact


def test_what_the_sampler_really_does(model):
    """Prefill once a prompt, each sample on its own from there; ended rows cost nothing any more."""
    found, prompt = cost(model.config), list(range(3, 12))
    sampler = TorchSampler(model.config, list(range(8)))
    sampler.load(dict(model.state_dict()))
    made: list = []

    def run() -> None:
        made.extend(sampler.generate([prompt], Sampling(max_new_tokens=20, samples=6), torch.Generator().manual_seed(1))[0])

    total = counted(run)
    lengths = [len(rollout.token_ids) for rollout in made]
    assert len(set(lengths)) > 2 and min(lengths) < 20  # some ended early
    assert total == found.sampling(9, lengths) + hidden_keys(9) * found.pair


def test_the_cost_of_a_file_of_samples(tmp_path):
    """Prompts are tokenised as they were for sampling, and read once."""
    policy, tokenizer = model_folder.load(ROOT / "models/student_tiny")
    problem = {"domain": "math", "family": "calc", "level": 1, "language": "en", "verifier": "math", "truth": "0", "policy": "p"}
    rows = [
        problem
        | {"prompt_id": text, "messages": [{"role": "user", "content": text}], "sample": i, "text": "", "tokens": n, "finished": True}
        for text, lengths in (("1 + 1", (3, 1)), ("What is 2 + 3?", (4, 4)))
        for i, n in enumerate(lengths)
    ]  # fmt: skip
    records.write(rows, tmp_path / "candidates.parquet", records.ROLLOUT_SCHEMA)
    found, prompts = cost(policy.config), [len(tokenizer.encode(render(text))) for text in ("1 + 1", "What is 2 + 3?")]
    expected = found.sampling(prompts[0], [3, 1]) + found.sampling(prompts[1], [4, 4])
    assert spent(tmp_path / "candidates.parquet", policy.config, tokenizer) == {"tokens": 12, "flops": expected}


def test_by_hand():
    assert [pairs(n) for n in (0, 1, 2, 5)] == [0, 1, 3, 15]
    by_hand = Cost(position=100, pair=10, logits=1)
    assert by_hand.forward(3) == 3 * 101 + 6 * 10 and by_hand.training(3) == 3 * by_hand.forward(3)
    # Two tokens after a prompt of three: the prompt, then one more position that sees four keys; two draws.
    assert by_hand.sampling(3, [2]) == (3 * 100 + 6 * 10) + (100 + 4 * 10) + 2
    assert by_hand.sampling(3, [2, 1]) == by_hand.sampling(3, [2]) + 1
    # One layer of 2 heads of 4 over 1 KV head, hidden 8, MLP 6, vocabulary 5: q 8 x 8, k and v 8 x 4 each, o 8 x 8, three of 8 x 6.
    config = LlamaConfig(
        vocab_size=5, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, intermediate_size=6
    )  # fmt: skip
    assert cost(config) == Cost(position=2 * (64 + 32 + 32 + 64 + 3 * 48), pair=2 * 2 * 8, logits=2 * 8 * 5)
