"""The embedded sampler against transformers and against naive decoding without a cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from tasks.generation.sampler import Rollout, Sampling, TorchSampler, _inverse_cdf
from tasks.generation.transformer import fingerprint

VOCABULARY = 61
EOS = (1, 2)
PROMPTS = [[3, 4, 5], [6, 7, 8, 9, 10, 11, 12, 13, 14], [15], [16, 17, 18, 19, 20]]
SHAPE: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 96, "initializer_range": 0.3}
SHAPE |= {"eos_token_id": list(EOS), "bos_token_id": None, "pad_token_id": 0}
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
LLAMA3["original_max_position_embeddings"] = 24
YARN: dict[str, Any] = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 24}
CONFIGS: dict[str, PreTrainedConfig] = {
    "qwen2": Qwen2Config(**SHAPE, tie_word_embeddings=False),
    "qwen2-tied": Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SHAPE, head_dim=10, attention_bias=True, tie_word_embeddings=False),
    "qwen3-tied": Qwen3Config(**SHAPE, head_dim=10, tie_word_embeddings=True),
    "llama": LlamaConfig(**SHAPE, rope_parameters=LLAMA3, attention_bias=True, mlp_bias=True),
    "llama-tied": LlamaConfig(**SHAPE, rope_parameters=LLAMA3, tie_word_embeddings=True),
    "llama-linear": LlamaConfig(**SHAPE, rope_parameters={"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}),
    "llama-yarn": LlamaConfig(**SHAPE | {"num_key_value_heads": 4}, rope_parameters=YARN),
    "qwen3-one-kv-head": Qwen3Config(**SHAPE | {"num_key_value_heads": 1}, head_dim=16, rope_parameters=LLAMA3),
}


def random_model(config: PreTrainedConfig, seed: int = 0) -> Any:
    """A model whose norms and biases are random as well: with ones and zeros a forgotten one would not show."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.copy_(torch.randn_like(parameter) * 0.5 + (1.0 if "norm" in name else 0.0))
    return model


def ready(model: Any, eos: Sequence[int] = EOS, **options: Any) -> TorchSampler:
    sampler = TorchSampler(model.config, eos, **options)
    sampler.load(model.state_dict())
    return sampler


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flat_sampler(vocabulary: int, eos: Sequence[int], **options: Any) -> TorchSampler:
    """Every token has the same probability, whatever came before."""
    model = random_model(Qwen3Config(**SHAPE | {"vocab_size": vocabulary}, head_dim=8))
    model.lm_head.weight.data.zero_()
    return ready(model, eos, **options)


@torch.no_grad()
def reference_logits(model: Any, tokens: Sequence[int]) -> torch.Tensor:
    return model(torch.tensor([list(tokens)])).logits[0].float()


def naive_draw(logits: torch.Tensor, sampling: Sampling, so_far: list[int], uniform: float) -> int:
    """One token from the definition: forbid, softmax, nucleus, inverse CDF."""
    logits = logits.clone()
    for sequence in sampling.forbidden:
        begun = len(sequence) - 1
        if begun == 0 or tuple(so_far[-begun:]) == sequence[:-1]:
            logits[sequence[-1]] = -torch.inf
    if sampling.temperature == 0:
        return int(logits.argmax())
    probs = torch.softmax(logits.double() / sampling.temperature, dim=0)
    order = list(range(len(probs)))
    if sampling.top_p < 1:
        order = probs.argsort(descending=True).tolist()
        mass, size = 0.0, 0
        while mass < sampling.top_p:
            mass, size = mass + float(probs[order[size]]), size + 1
        order = order[:size]
    target = uniform * float(probs[order].sum())
    reached = 0.0
    for token in order:
        reached += float(probs[token])
        if reached > target:
            return token
    return order[-1]


def naive_generate(
    model: Any, prompts: list[list[int]], sampling: Sampling, eos: Sequence[int], generator: torch.Generator
) -> list[list[Rollout]]:
    """No cache, no batch, no dropping: the whole sequence is read again for every token."""
    groups = [[Rollout([], [], False) for _ in range(sampling.samples)] for _ in prompts]
    rows = [(prompt, rollout) for prompt, group in zip(prompts, groups, strict=True) for rollout in group]
    for _ in range(sampling.max_new_tokens):
        uniforms = torch.rand(len(rows), generator=generator).tolist()
        for (prompt, rollout), uniform in zip(rows, uniforms, strict=True):
            if rollout.finished:
                continue
            logits = reference_logits(model, prompt + rollout.token_ids)[-1]
            token = naive_draw(logits, sampling, rollout.token_ids, uniform)
            logprobs = torch.log_softmax(logits / (sampling.temperature or 1.0), dim=0)
            rollout.token_ids.append(token)
            rollout.logprobs.append(float(logprobs[token]))
            rollout.finished = token in eos
        if all(rollout.finished for _, rollout in rows):
            break
    return groups


def flatten(groups: list[list[Rollout]]) -> list[Rollout]:
    return [rollout for group in groups for rollout in group]


@pytest.mark.parametrize("kind", CONFIGS)
def test_logits_and_scores_equal_transformers(kind: str) -> None:
    model = random_model(CONFIGS[kind])
    sampler = ready(model)
    tokens = torch.randint(VOCABULARY, (70,), generator=seeded()).tolist()
    expected = reference_logits(model, tokens)
    torch.testing.assert_close(sampler.logits(tokens), expected, atol=1e-4, rtol=0)
    logprobs = torch.log_softmax(expected[:-1], dim=-1).gather(1, torch.tensor(tokens[1:])[:, None]).squeeze(1)
    torch.testing.assert_close(sampler.score(tokens), logprobs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", CONFIGS)
def test_sampled_logprobs_equal_teacher_forced_ones(kind: str) -> None:
    model = random_model(CONFIGS[kind])
    sampling = Sampling(temperature=0.7, top_p=0.8, max_new_tokens=40, samples=4, forbidden=((5,), (6, 7)))
    groups = ready(model).generate(PROMPTS, sampling, seeded())
    assert any(rollout.finished for rollout in flatten(groups))
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for rollout in group:
            logits = reference_logits(model, prompt + rollout.token_ids)[len(prompt) - 1 : -1]
            logprobs = torch.log_softmax(logits / 0.7, dim=-1)
            expected = logprobs.gather(1, torch.tensor(rollout.token_ids)[:, None]).squeeze(1)
            torch.testing.assert_close(torch.tensor(rollout.logprobs), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", CONFIGS)
def test_greedy_equals_transformers_generate(kind: str) -> None:
    model = random_model(CONFIGS[kind])
    groups = ready(model).generate(PROMPTS, Sampling(temperature=0, max_new_tokens=30), seeded())
    for prompt, (rollout,) in zip(PROMPTS, groups, strict=True):
        ids = torch.tensor([prompt])
        found = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=30)
        assert rollout.token_ids == found[0, len(prompt) :].tolist()


@pytest.mark.parametrize("kind", ["qwen2", "qwen3-tied", "llama"])
def test_padding_and_company_change_nothing(kind: str) -> None:
    sampler = ready(random_model(CONFIGS[kind]))
    sampling = Sampling(temperature=0, max_new_tokens=20)
    together = flatten(sampler.generate(PROMPTS, sampling, seeded()))
    alone = [sampler.generate([prompt], sampling, seeded())[0][0] for prompt in PROMPTS]
    for a, b in zip(together, alone, strict=True):
        assert a.token_ids == b.token_ids
        torch.testing.assert_close(torch.tensor(a.logprobs), torch.tensor(b.logprobs), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_new_tokens=20, samples=3),
        Sampling(temperature=0.6, top_p=0.95, max_new_tokens=20, samples=3),
        Sampling(temperature=3.0, top_p=0.9, max_new_tokens=20, samples=3, forbidden=((9,), (43, 44), (48, 44), (45, 45, 45))),
        Sampling(temperature=0, max_new_tokens=10, forbidden=((9,), (40,))),
    ],
    ids=["plain", "nucleus", "hot-forbidden", "greedy-forbidden"],
)
def test_cache_batching_and_dropping_change_nothing(sampling: Sampling) -> None:
    """The naive loop is fed the same uniforms; with nine EOS of 61 tokens, rows end at many different steps."""
    model, eos = random_model(CONFIGS["qwen3"]), range(1, 10)
    found = flatten(ready(model, eos).generate(PROMPTS, sampling, seeded(7)))
    expected = flatten(naive_generate(model, PROMPTS, sampling, eos, seeded(7)))
    assert [rollout.token_ids for rollout in found] == [rollout.token_ids for rollout in expected]
    assert [rollout.finished for rollout in found] == [rollout.finished for rollout in expected]
    if sampling.temperature > 0:
        assert len({len(rollout.token_ids) for rollout in found}) >= 5, "rows should end at different steps"
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.tensor(a.logprobs), torch.tensor(b.logprobs), atol=1e-4, rtol=0)


def test_same_seed_same_bytes() -> None:
    sampler, sampling = ready(random_model(CONFIGS["qwen2"])), Sampling(max_new_tokens=30, samples=6)
    first = sampler.generate(PROMPTS, sampling, seeded(3))
    sampler.generate(PROMPTS[:1], Sampling(max_new_tokens=60, samples=40), seeded(1))  # leaves other data in the cache
    assert sampler.generate(PROMPTS, sampling, seeded(3)) == first
    assert sampler.generate(PROMPTS, sampling, seeded(4)) != first


def test_batches_of_prompts_are_drawn_one_after_the_other() -> None:
    model, sampling = random_model(CONFIGS["qwen3"]), Sampling(max_new_tokens=12, samples=3)
    whole = ready(model, max_rows=6).generate(PROMPTS, sampling, seeded())
    generator, sampler = seeded(), ready(model)
    parts = sampler.generate(PROMPTS[:2], sampling, generator) + sampler.generate(PROMPTS[2:], sampling, generator)
    assert whole == parts
    assert [len(group) for group in whole] == [3] * 4
    assert sampler.generate([], sampling, generator) == []


def test_eos_is_last_and_only_last() -> None:
    rollouts = flatten(flat_sampler(12, EOS).generate(PROMPTS[:1], Sampling(max_new_tokens=9, samples=400), seeded()))
    ends = Counter(rollout.token_ids[-1] for rollout in rollouts if rollout.finished)
    assert set(ends) == set(EOS)
    for rollout in rollouts:
        assert not set(rollout.token_ids[:-1]) & set(EOS)
        assert rollout.finished == (rollout.token_ids[-1] in EOS)
        assert len(rollout.token_ids) == len(rollout.logprobs) <= 9
        assert rollout.finished or len(rollout.token_ids) == 9
    assert sum(rollout.finished for rollout in rollouts) / 400 == pytest.approx(1 - (10 / 12) ** 9, abs=0.1)


def test_forbidden_sequences_never_appear_and_all_else_does() -> None:
    forbidden = ((2,), (3, 4), (5, 4), (6, 7, 6))
    sampling = Sampling(max_new_tokens=40, samples=600, forbidden=forbidden)
    rollouts = flatten(flat_sampler(9, (0,), max_rows=600).generate([[3]], sampling, seeded()))
    pairs, triples = Counter[tuple[int, ...]](), Counter[tuple[int, ...]]()
    for tokens in (rollout.token_ids for rollout in rollouts):
        pairs.update(pairwise(tokens))
        triples.update(zip(tokens, tokens[1:], tokens[2:], strict=False))
    assert not any(2 in pair for pair in pairs)
    assert (6, 7, 6) not in triples
    allowed = {(a, b) for a in range(1, 9) for b in range(9) if 2 not in (a, b)} - {(3, 4), (5, 4)}
    assert set(pairs) == allowed
    assert {triple[2] for triple in triples if triple[:2] == (6, 7)} == {0, 1, 3, 4, 5, 7, 8}
    assert any(rollout.token_ids[0] == 4 for rollout in rollouts), "the prompt's last token begins no sequence"
    after_3 = {b: count for (a, b), count in pairs.items() if a == 3}
    assert max(after_3.values()) < 1.6 * min(after_3.values()), "what is left is renormalised evenly"
    assert all(value == pytest.approx(-2.1972246) for value in rollouts[0].logprobs), "log-probs are before forbidding"


def test_forbidding_a_certain_token_leaves_the_rest() -> None:
    """At temperature 0.01 every other probability underflows in float32; the choice must still be a legal one."""
    model = random_model(CONFIGS["qwen3"])
    best = int(reference_logits(model, PROMPTS[0])[-1].argmax())
    sampling = Sampling(temperature=0.01, max_new_tokens=1, samples=50, forbidden=((best,),))
    rollouts = flatten(ready(model).generate(PROMPTS[:1], sampling, seeded()))
    second = int(reference_logits(model, PROMPTS[0])[-1].index_fill(0, torch.tensor([best]), -torch.inf).argmax())
    assert Counter(rollout.token_ids[0] for rollout in rollouts).most_common(1)[0][0] == second
    assert all(-torch.inf < rollout.logprobs[0] < 0 for rollout in rollouts)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 0.95), (0.6, 1.0), (20.0, 0.9), (5.0, 0.5), (1.0, 1e-6)])
def test_distribution(temperature: float, top_p: float) -> None:
    """20000 first tokens; at temperature 20 the nucleus is larger than the 32 tokens that are looked at first."""
    count = 20_000
    model = random_model(CONFIGS["llama"])
    sampling = Sampling(temperature=temperature, top_p=top_p, max_new_tokens=1, samples=count)
    drawn = Counter(r.token_ids[0] for r in flatten(ready(model).generate(PROMPTS[:1], sampling, seeded())))
    probs = torch.softmax(reference_logits(model, PROMPTS[0])[-1].double() / temperature, dim=0)
    order = probs.argsort(descending=True)
    before = probs[order].cumsum(0) - probs[order]
    nucleus = order[before < top_p]
    if temperature == 20:
        assert len(nucleus) > 40
    assert set(drawn) <= set(nucleus.tolist())
    for token in nucleus.tolist():
        share = float(probs[token] / probs[nucleus].sum())
        spread = (share * (1 - share) / count) ** 0.5
        assert abs(drawn[token] / count - share) < 5 * spread + 1 / count


def test_inverse_cdf_never_picks_a_zero() -> None:
    """The smallest and the largest float32 uniform, and one that falls on a boundary."""
    weights, uniforms = torch.tensor([[0, 0.5, 0, 0.5, 0]]).expand(3, -1), torch.tensor([0, 0.5, 1 - 2**-24])
    assert _inverse_cdf(weights, uniforms).tolist() == [1, 3, 3]


def test_load_copies_and_replaces() -> None:
    old, new = random_model(CONFIGS["qwen3-tied"], seed=1), random_model(CONFIGS["qwen3-tied"], seed=2)
    sampler, probe = ready(old), [3, 4, 5, 6]
    before = sampler.score(probe)
    with torch.no_grad():
        for parameter in old.parameters():
            parameter.add_(1.0)
    assert torch.equal(sampler.score(probe), before), "the sampler must hold copies"
    sampler.load(new.state_dict())
    expected = torch.log_softmax(reference_logits(new, probe)[:-1], -1).gather(1, torch.tensor(probe[1:])[:, None])
    torch.testing.assert_close(sampler.score(probe), expected.squeeze(1), atol=1e-4, rtol=0)


def test_fingerprint_tells_weights_apart() -> None:
    model = random_model(CONFIGS["qwen2-tied"])
    sampler = TorchSampler(model.config, EOS)
    weights = model.state_dict()
    first = sampler.load(weights)
    assert len(first) == 16 and int(first, 16) >= 0
    others = {"b": torch.ones(6)}, {"a": torch.ones(2, 3)}
    assert fingerprint({"a": torch.ones(6)}) not in map(fingerprint, others)
    del weights["lm_head.weight"]  # tied: the embedding under a second name
    assert first == sampler.load({name: tensor.clone() for name, tensor in weights.items()})
    for name in weights:
        assert sampler.load(weights | {name: weights[name] + 1e-3}) != first, name


def test_bfloat16_is_near_float32() -> None:
    model = random_model(Qwen3Config(**SHAPE | {"initializer_range": 0.1}, head_dim=8))
    expected = torch.log_softmax(reference_logits(model, PROMPTS[1]), dim=-1)
    found = torch.log_softmax(ready(model, dtype=torch.bfloat16).logits(PROMPTS[1]), dim=-1)
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0)
    rollouts = ready(model, dtype=torch.bfloat16).generate(PROMPTS, Sampling(max_new_tokens=10, samples=2), seeded())
    assert all(rollout.logprobs for rollout in flatten(rollouts))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (MistralConfig(**SHAPE), ["'mistral'", "llama", "qwen2", "qwen3"]),
        (Qwen2Config(**SHAPE, hidden_act="gelu"), ["'gelu'", "silu"]),
        (LlamaConfig(**SHAPE, rope_parameters={"rope_type": "dynamic", "factor": 2.0}), ["'dynamic'", "llama3"]),
    ],
)
def test_unsupported_models_are_named(config: PreTrainedConfig, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        TorchSampler(config, EOS)
    assert all(word in str(caught.value) for word in words)


def test_sliding_window_is_refused_only_when_exceeded() -> None:
    config = Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=16, max_window_layers=1)
    model = random_model(config)
    sampler = ready(model)
    torch.testing.assert_close(sampler.logits(list(range(16))), reference_logits(model, range(16)), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="sliding window"):
        sampler.generate([[3] * 10], Sampling(max_new_tokens=7), seeded())


def test_wrong_weights_are_named() -> None:
    model = random_model(CONFIGS["qwen3"])
    weights, sampler = model.state_dict(), TorchSampler(model.config, EOS)
    name = "model.layers.1.self_attn.q_norm.weight"
    with pytest.raises(ValueError, match=f"missing .*{name}"):
        sampler.load({key: tensor for key, tensor in weights.items() if key != name})
    with pytest.raises(ValueError, match=r"unknown .*o_proj\.extra"):
        sampler.load(weights | {"model.layers.0.self_attn.o_proj.extra": torch.ones(1)})
    with pytest.raises(ValueError, match=f"{name} has shape .*3"):
        sampler.load(weights | {name: torch.ones(3)})
    with pytest.raises(ValueError, match=f"{name} holds NaN"):
        sampler.load(weights | {name: weights[name] * torch.nan})


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([], "0 tokens"),
        ([3] * 90, "90 tokens.*1 to 86"),
        ([3, VOCABULARY], rf"tokens \[{VOCABULARY}\]"),
        ([-1], r"\[-1\]"),
    ],
)
def test_bad_prompts_are_named(prompt: list[int], words: str) -> None:
    sampler = ready(random_model(CONFIGS["llama"]))
    sampler.generate([[3] * 86], Sampling(max_new_tokens=10), seeded())  # the longest that fits
    with pytest.raises(ValueError, match=f"prompt 1 .*{words}"):
        sampler.generate([[3], prompt], Sampling(max_new_tokens=10), seeded())


def test_forbidding_everything_is_refused() -> None:
    forbidden = tuple((token,) for token in range(VOCABULARY))
    with pytest.raises(ValueError, match="nothing could be sampled"):
        ready(random_model(CONFIGS["llama"])).generate(PROMPTS, Sampling(max_new_tokens=9, forbidden=forbidden), seeded())


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"samples": 0}, "samples"),
        ({"forbidden": ((3,), ())}, "forbidden"),
    ],
)
def test_sampling_values_are_checked(bad: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Sampling(**bad)
