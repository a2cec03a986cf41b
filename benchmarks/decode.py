"""Tokens per second of the embedded sampler against transformers' generate: the ratio, measured in one interleaved run.

The model is a random Qwen3; its probabilities are nearly even, so that `vocabulary / mean length` EOS tokens make
completions of about that mean length. Both sides get the same prompts and count the tokens up to EOS. Wall time varies
with whatever else the machine does: read the ratio, not the rates.

    python -m benchmarks.decode --prompts 12 --samples 16
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from tasks.generation.sampler import Sampling, TorchSampler

Prompts = list[list[int]]


def build_model(args: argparse.Namespace) -> Any:
    torch.manual_seed(args.seed)
    config = Qwen3Config(
        vocab_size=args.vocabulary,
        hidden_size=args.hidden,
        intermediate_size=3 * args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads,
        head_dim=args.hidden // args.heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config).eval()


def build_prompts(args: argparse.Namespace) -> Prompts:
    """Lengths between 3/4 of --prompt-length and all of it."""
    generator = torch.Generator().manual_seed(args.seed)
    lengths = torch.randint(args.prompt_length * 3 // 4, args.prompt_length + 1, (args.prompts,), generator=generator)
    return [torch.randint(1, args.vocabulary, (int(n),), generator=generator).tolist() for n in lengths]


def embedded(sampler: TorchSampler, prompts: Prompts, sampling: Sampling, seed: int) -> int:
    """Tokens sampled by the embedded decoder."""
    groups = sampler.generate(prompts, sampling, torch.Generator().manual_seed(seed))
    return sum(len(rollout.token_ids) for group in groups for rollout in group)


@torch.inference_mode()
def huggingface(model: Any, prompts: Prompts, sampling: Sampling, eos: list[int], seed: int) -> int:
    """Tokens sampled by transformers' generate, EOS included, padding not."""
    torch.manual_seed(seed)
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    found = model.generate(
        ids,
        attention_mask=mask,
        do_sample=True,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=0,
        num_return_sequences=sampling.samples,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=eos,
        pad_token_id=eos[0],
    )[:, width:]
    ended = torch.isin(found, torch.tensor(eos)).cumsum(1)
    return int(((ended == 0) | ((ended == 1) & ended.diff(dim=1, prepend=torch.zeros_like(ended[:, :1])).bool())).sum())


def rate(run: Callable[[], int]) -> float:
    """Tokens per second of one call."""
    start = time.perf_counter()
    tokens = run()
    return tokens / (time.perf_counter() - start)


def compare(args: argparse.Namespace, model: Any, sampling: Sampling) -> tuple[list[float], list[float]]:
    """Rates of both sides, one after the other in each round, after one uncounted round."""
    eos = list(range(max(1, args.vocabulary // args.mean_length)))
    sampler = TorchSampler(model.config, eos)
    sampler.load(model.state_dict())
    prompts = build_prompts(args)
    ours, theirs = [], []
    for seed in range(args.rounds + 1):
        ours.append(rate(lambda: embedded(sampler, prompts, sampling, seed)))  # noqa: B023
        theirs.append(rate(lambda: huggingface(model, prompts, sampling, eos, seed)))  # noqa: B023
    return ours[1:], theirs[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"prompts": 12, "samples": 16, "prompt-length": 48, "mean-length": 60, "max-new-tokens": 192, "rounds": 3}
    shape = {"hidden": 128, "layers": 4, "heads": 4, "kv-heads": 2, "vocabulary": 512}
    for name, value in (sizes | shape | {"threads": 1, "seed": 0}).items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default {value}")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = build_model(args)
    print(f"{args.prompts} prompts x {args.samples} samples, {args.threads} thread(s), {args.rounds} rounds, tokens/s")
    print(f"{'sampling':28}{'embedded':>10}{'generate':>10}{'ratio':>8}  lowest-highest ratio")
    for temperature, top_p in ((1.0, 1.0), (0.6, 0.95)):
        sampling = Sampling(temperature, top_p, args.max_new_tokens, args.samples)
        ours, theirs = compare(args, model, sampling)
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        label = f"temperature {temperature}, top-p {top_p}"
        middle = [statistics.median(values) for values in (ours, theirs, ratios)]
        print(f"{label:28}{middle[0]:10.0f}{middle[1]:10.0f}{middle[2]:8.2f}  {min(ratios):.2f}-{max(ratios):.2f}")


if __name__ == "__main__":
    main()
