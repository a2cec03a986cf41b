"""An embedded torch decoder for dense Qwen2, Qwen3 and Llama checkpoints, on CPU or CUDA.

Features: one prefill per prompt, shared by its samples; static KV cache; ended rows are dropped at once; every token
comes with its log-prob; temperature, top-p, greedy decoding, forbidden token sequences.

A row's tokens depend only on (weights, prompts, sampling, generator state): each step draws one uniform per row of the
batch, ended or not, in row order, and a row picks its token by inverse CDF.

Measured on one AVX512 core (4 heads over 2 KV heads of 32, 64-512 rows, 66-186 positions), per layer:
- keys cached as [head_dim, length]: attention takes 15-35 % less time than with [length, head_dim];
- bmm with the query heads that share a KV head as rows: 5-35 % less than scaled_dot_product_attention with one query.
Over a whole call, 192 rows of mean length 60: matrix products 28 %, attention 32 %, dropping rows 5 %, drawing 6 %;
batches of 512 rows sample 15-20 % faster than batches of 256.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.generation.transformer import Transformer

NUCLEUS_GUESS = 32  # top-p looks at this many tokens first: a quarter of the time of sorting 512


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    `temperature` 0 is greedy. `top_p` keeps the smallest set of most probable tokens that reaches it. `samples` is the
    number of completions per prompt. No completion contains a sequence of `forbidden` (tuples of token ids; only the
    completion's own tokens count).

    Raises:
        ValueError: a value outside its range, or an empty forbidden sequence.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 128
    samples: int = 1
    forbidden: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.max_new_tokens < 1 or self.samples < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}, samples {self.samples}; both must be at least 1")
        if not all(self.forbidden):
            raise ValueError("forbidden holds an empty sequence; every one needs at least one token")


@dataclass
class Rollout:
    """One completion: its tokens (the last one is EOS if `finished`) and one log-prob per token.

    Log-probs (nats) are the policy's at the sampling temperature (at 1 if greedy), before top-p and `forbidden`.
    """

    token_ids: list[int]
    logprobs: list[float]
    finished: bool


class _Cache:
    """Keys and values of the rows being decoded. Slot s holds row `row[s]`; live rows fill the first slots."""

    def __init__(self, keys: Tensor, values: Tensor, padding: Tensor, prompt_length: int) -> None:
        self.keys, self.values = keys, values  # [layers, rows, kv_heads, head_dim, max_len], [..., max_len, head_dim]
        self._keys, self._values = keys.flatten(1, 2).unbind(), values.flatten(1, 2).unbind()
        self.row = torch.arange(keys.shape[1], device=keys.device)
        self.padding = padding  # [live] positions before the row's prompt
        self.length = prompt_length  # used positions; all rows advance together, prompts are padded on the left
        padded = torch.arange(prompt_length, device=keys.device) < padding[:, None]
        mask = torch.zeros(padded.shape, dtype=keys.dtype, device=keys.device).masked_fill_(padded, -torch.inf)
        self.mask = mask.unsqueeze(1) if bool(padding.any()) else None  # [live, 1, prompt_length]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Writes one position of every live row and attends over all of its positions (shapes: `Attend`)."""
        count, end = len(key), self.length
        keys, values = self._keys[layer], self._values[layer]
        keys[:count, :, end - 1], values[:count, end - 1] = key, value
        # Query heads that share a KV head are the rows of one product: keys and values are never repeated.
        scores = torch.bmm(query, keys[:count, :, :end])
        if self.mask is not None:
            scores.view(len(self.mask), -1, end)[..., : self.mask.shape[-1]].add_(self.mask)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
        return torch.bmm(weights, values[:count, :end]).view(len(self.row), -1)

    def drop(self, ended: Tensor, tokens: Tensor) -> Tensor:
        """Moves the last live rows into the slots of `ended` ones ([live] bool): one row's copy at most per ended row.

        Returns `tokens` [live] of the rows that remain, in slot order.
        """
        live = len(ended) - int(ended.sum())
        holes = ended[:live].nonzero().squeeze(1)
        movers = (~ended[live:]).nonzero().squeeze(1) + live
        self.keys[:, holes, ..., : self.length] = self.keys[:, movers, ..., : self.length]
        self.values[:, holes, :, : self.length] = self.values[:, movers, :, : self.length]
        slots = torch.arange(live, device=tokens.device).index_copy_(0, holes, movers)
        self.row, self.padding = self.row[slots], self.padding[slots]
        self.mask = None if self.mask is None else self.mask[slots]
        return tokens[slots]


class TorchSampler:
    """Samples from a dense Qwen2, Qwen3 or Llama model; `config` is the model's transformers config.

    At most `max_rows` completions are decoded together (the samples of one prompt are never separated): their cache
    holds 2 * layers * rows * kv_heads * head_dim * (prompt + new tokens) numbers.

    Raises:
        ValueError: the model type, activation or RoPE type is not supported (names the value and the supported ones).
    """

    def __init__(
        self,
        config: Any,
        eos_token_ids: Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        max_rows: int = 512,
    ) -> None:
        self.device = torch.device(device)
        self.model = Transformer(config, dtype, self.device)
        self.max_rows, self.vocabulary = max_rows, config.vocab_size
        self._ends = torch.zeros(self.vocabulary, dtype=torch.bool, device=self.device)
        self._ends[list(eos_token_ids)] = True
        self._buffer = torch.empty(0, dtype=dtype, device=self.device)

    def load(self, weights: Mapping[str, Tensor]) -> str:
        """Copies and fuses the weights (named as in transformers); returns their `transformer.fingerprint`.

        Raises:
            ValueError: a tensor is missing, superfluous, not finite or of another shape than the config's (named).
        """
        return self.model.load(weights)

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, generator: torch.Generator) -> list[list[Rollout]]:
        """`sampling.samples` completions of every prompt, in the order of the prompts.

        Raises:
            ValueError: an empty prompt, a token outside the vocabulary, a prompt too long for the model, or `forbidden`
                leaves no token.
        """
        self._check(prompts, sampling.max_new_tokens)
        if {sequence[-1] for sequence in sampling.forbidden} >= set(range(self.vocabulary)):
            raise ValueError(f"forbidden ends with every one of the {self.vocabulary} tokens; nothing could be sampled")
        step = max(1, self.max_rows // sampling.samples)
        batches = [prompts[start : start + step] for start in range(0, len(prompts), step)]
        return [group for batch in batches for group in self._decode(batch, sampling, generator)]

    @torch.no_grad()
    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """float32 logits [len, vocab] after each token of one sequence.

        Raises:
            ValueError: the sequence is empty, too long for the model, or holds a token outside the vocabulary.
        """
        self._check([token_ids], new_tokens=0)
        tokens = torch.tensor([token_ids], device=self.device)
        hidden = self._prefill(tokens, torch.zeros(1, dtype=torch.long, device=self.device), None)
        return self.model.logits(hidden[0])

    def score(self, token_ids: Sequence[int]) -> Tensor:
        """Log-probs [len - 1] (nats, temperature 1) of the tokens after the first of one sequence (the probe).

        Raises:
            ValueError: as `logits`.
        """
        following = torch.tensor(token_ids[1:], dtype=torch.long, device=self.device)
        logprobs = torch.log_softmax(self.logits(token_ids)[:-1], dim=-1)
        return logprobs.gather(1, following[:, None]).squeeze(1)

    def _check(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:
        limit = self.model.max_length - new_tokens
        for number, prompt in enumerate(prompts):
            if not 0 < len(prompt) <= limit:
                raise ValueError(
                    f"prompt {number} has {len(prompt)} tokens; with {new_tokens} new ones it must have 1 to {limit}: "
                    f"the model has {self.model.max_length} positions (max_position_embeddings or its sliding window)"
                )
            if not 0 <= min(prompt) <= max(prompt) < self.vocabulary:
                bad = [token for token in prompt if not 0 <= token < self.vocabulary]
                raise ValueError(f"prompt {number} holds tokens {bad} outside the vocabulary of {self.vocabulary}")

    def _decode(self, prompts: Sequence[Sequence[int]], sampling: Sampling, generator: torch.Generator) -> list[list[Rollout]]:
        """One batch: prefill, then one token a step for every live row."""
        rows = len(prompts) * sampling.samples
        cache, hidden = self._start(prompts, sampling)
        picker = _Picker(sampling, rows, generator, self.device)
        rotary = self.model.rotary_table(cache.length + sampling.max_new_tokens)
        for step in range(sampling.max_new_tokens):
            tokens = picker.pick(step, self.model.logits(hidden), cache.row)
            ended = self._ends[tokens]
            if bool(ended.any()):
                picker.finish(step, cache.row[ended])
                tokens = cache.drop(ended, tokens)
            if len(tokens) == 0 or step + 1 == sampling.max_new_tokens:
                break
            cache.length += 1
            hidden = self.model.hidden(tokens, rotary[cache.length - 1 - cache.padding], cache.attend)
        return picker.rollouts()

    def _start(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> tuple[_Cache, Tensor]:
        """A cache that holds the prompts for every row, and the last hidden state [rows, hidden] of each."""
        width = max(len(prompt) for prompt in prompts)
        padding = torch.tensor([width - len(prompt) for prompt in prompts], device=self.device)
        tokens = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=self.device)
        length, rows = width + sampling.max_new_tokens, len(prompts) * sampling.samples
        cache = _Cache(*self._storage(rows, length), padding.repeat_interleave(sampling.samples), width)
        hidden = self._prefill(tokens, padding, cache)
        return cache, hidden[:, -1].repeat_interleave(sampling.samples, 0)

    def _storage(self, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values for `_Cache`, in memory that is kept from call to call instead of faulted in each time."""
        model = self.model
        shape = (model.config.num_hidden_layers, rows, model.kv_heads)
        count = shape[0] * rows * model.kv_heads * model.head_dim * length
        if self._buffer.numel() < 2 * count:
            self._buffer = torch.empty(2 * count, dtype=model.dtype, device=self.device)
        keys = self._buffer[:count].view(*shape, model.head_dim, length)
        return keys, self._buffer[count : 2 * count].view(*shape, length, model.head_dim)

    def _prefill(self, tokens: Tensor, padding: Tensor, cache: _Cache | None) -> Tensor:
        """Hidden states [prompts, width, hidden] of left-padded `tokens`; fills `cache` with one copy for every row."""
        prompts, width = tokens.shape
        place = torch.arange(width, device=self.device)
        mask = None
        if bool(padding.any()):
            itself = place[:, None] == place  # a padded position sees itself, or its softmax would be 0 / 0
            mask = ((place[:, None] >= place) & (place >= padding[:, None, None]) | itself).unsqueeze(1)

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            shape = (prompts, width, self.model.kv_heads, -1, self.model.head_dim)
            query = query.reshape(shape).permute(0, 2, 3, 1, 4).flatten(1, 2)
            key, value = (part.view(shape).squeeze(3).transpose(1, 2) for part in (key, value))
            if cache is not None:
                cache.keys[layer].unflatten(0, (prompts, -1))[..., :width] = key.mT[:, None]
                cache.values[layer].unflatten(0, (prompts, -1))[..., :width, :] = value[:, None]
            context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None, scale=1.0, enable_gqa=True)
            return context.transpose(1, 2).reshape(prompts * width, -1)

        positions = (place - padding[:, None]).clamp_min_(0)
        hidden = self.model.hidden(tokens.flatten(), self.model.rotary_table(width)[positions.flatten()], attend)
        return hidden.view(prompts, width, -1)


class _Picker:
    """Draws one token per live row and keeps what was drawn, by row."""

    def __init__(self, sampling: Sampling, rows: int, generator: torch.Generator, device: torch.device) -> None:
        self.sampling, self.generator, self.rows = sampling, generator, rows
        self.tokens = torch.zeros(sampling.max_new_tokens, rows, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(sampling.max_new_tokens, rows, device=device)
        self.slots = torch.arange(rows, device=device)
        self.lengths = torch.full((rows,), sampling.max_new_tokens, device=device)
        self.finished = torch.zeros(rows, dtype=torch.bool, device=device)
        by_length: dict[int, list[tuple[int, ...]]] = defaultdict(list)
        for sequence in sampling.forbidden:
            by_length[len(sequence)].append(sequence)
        self.forbidden = [torch.tensor(same, device=device) for _, same in sorted(by_length.items())]

    def pick(self, step: int, logits: Tensor, row: Tensor) -> Tensor:
        """Tokens [live] drawn from `logits` [live, vocab] of the rows `row` [live]."""
        if self.sampling.temperature not in (0.0, 1.0):
            logits = logits / self.sampling.temperature
        logprobs = torch.log_softmax(logits, dim=-1)
        allowed = self._forbid(step, logprobs, row) if self.forbidden else logprobs
        if self.sampling.temperature == 0:
            tokens = allowed.argmax(dim=-1)
        else:
            uniforms = torch.rand(self.rows, generator=self.generator, device=self.generator.device)
            # Renormalised after forbidding: the remaining probabilities could all have underflowed.
            probs = torch.softmax(allowed, dim=-1) if self.forbidden else allowed.exp()
            tokens = _draw(probs, uniforms.to(row.device)[row], self.sampling.top_p)
        self.tokens[step, row] = tokens
        self.logprobs[step, row] = logprobs[self.slots[: len(row)], tokens]
        return tokens

    def _forbid(self, step: int, logprobs: Tensor, row: Tensor) -> Tensor:
        """`logprobs` with -inf for each token that would complete a forbidden sequence."""
        allowed = logprobs.clone()
        for sequences in self.forbidden:
            begun = sequences.shape[1] - 1
            if begun > step:
                continue
            history = self.tokens[step - begun : step, row]  # [begun, live]
            matches = (history[:, :, None] == sequences[:, :begun].t()[:, None, :]).all(dim=0)  # [live, sequences]
            penalty = torch.zeros(matches.shape, device=row.device).masked_fill_(matches, -torch.inf)
            allowed.index_add_(1, sequences[:, -1], penalty)  # adding: two sequences may end with the same token
        return allowed

    def finish(self, step: int, row: Tensor) -> None:
        """Notes that the rows `row` have ended with the token of `step`."""
        self.lengths[row], self.finished[row] = step + 1, True

    def rollouts(self) -> list[list[Rollout]]:
        """All rows, grouped by prompt."""
        tokens, logprobs = self.tokens.t().tolist(), self.logprobs.t().tolist()
        ends = zip(self.lengths.tolist(), self.finished.tolist(), strict=True)
        flat = [Rollout(tokens[i][:length], logprobs[i][:length], done) for i, (length, done) in enumerate(ends)]
        return [flat[start : start + self.sampling.samples] for start in range(0, self.rows, self.sampling.samples)]


def _draw(probs: Tensor, uniforms: Tensor, top_p: float) -> Tensor:
    """One token per row of `probs` [rows, vocab]; the CDF is in token order, or by falling probability if top_p < 1."""
    return _inverse_cdf(probs, uniforms) if top_p == 1 else _draw_nucleus(probs, uniforms, top_p, NUCLEUS_GUESS)


def _inverse_cdf(weights: Tensor, uniforms: Tensor) -> Tensor:
    """The first index whose cumulative weight exceeds the uniform's share of the total; never one of weight 0."""
    cumulative = weights.cumsum(dim=-1)
    total = cumulative[:, -1:]
    # uniform * total may round up to the total, which no cumulative weight exceeds.
    target = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True).squeeze(1)


def _draw_nucleus(probs: Tensor, uniforms: Tensor, top_p: float, guess: int) -> Tensor:
    """Inverse CDF over the smallest set of most probable tokens that reaches `top_p`, searched in the first `guess`."""
    top, order = probs.topk(min(guess, probs.shape[1]), dim=-1)
    before = top.cumsum(dim=-1) - top
    picked = _inverse_cdf(top.masked_fill(before >= top_p, 0), uniforms)
    tokens = order.gather(1, picked[:, None]).squeeze(1)
    short = (before[:, -1] + top[:, -1] < top_p).nonzero().squeeze(1)
    if len(short) and top.shape[1] < probs.shape[1]:
        tokens[short] = _draw_nucleus(probs[short], uniforms[short], top_p, probs.shape[1])
    return tokens
