"""Floating-point operations of a dense decoder (Qwen2, Qwen3, Llama), from its shape and the tokens that went through it.

Counted are the matrix products, a multiply-add as two: the projections, the MLP, attention (a query meets the keys up to its own
position) and the head; a backward pass is twice its forward pass (a product each for the gradient of inputs and of weights). Not counted
are norms, activations, softmax, the optimizer, and what an implementation computes in vain: padding, and keys that a mask hides.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


def pairs(length: int) -> int:
    """Pairs of a query and a key that it sees, in a causal sequence of `length` positions."""
    return length * (length + 1) // 2


@dataclass(frozen=True)
class Cost:
    """What one model's parts cost, in floating-point operations."""

    position: int  # projections and MLPs of one position, over all layers
    pair: int  # of one query and one key, over all layers and heads: its score, and the value that it weighs
    logits: int  # of one position

    def forward(self, length: int) -> int:
        """A pass over a sequence with logits at every position."""
        return length * (self.position + self.logits) + pairs(length) * self.pair

    def training(self, length: int) -> int:
        """Forward and backward pass over a sequence."""
        return 3 * self.forward(length)

    def prefill(self, prompt: int) -> int:
        """A prompt read into the cache; the logits of its last position count with the first token that is drawn from them."""
        return prompt * self.position + pairs(prompt) * self.pair

    def decode(self, prompt: int, new: int) -> int:
        """`new` tokens (at least one) drawn one by one after a cached prompt; the last one is drawn and never read."""
        read = new - 1
        return new * self.logits + read * self.position + (pairs(prompt + read) - pairs(prompt)) * self.pair

    def sampling(self, prompt: int, completions: Iterable[int]) -> int:
        """A prompt of so many tokens, read once, and all completions (tokens of each) of it."""
        return self.prefill(prompt) + sum(self.decode(prompt, new) for new in completions)


def cost(config: Any) -> Cost:
    """The costs of the model that `config` (of transformers) describes."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    size = getattr(config, "head_dim", None) or hidden // heads
    query, key = heads * size, config.num_key_value_heads * size
    layer = 2 * hidden * (2 * query + 2 * key + 3 * config.intermediate_size)
    layers = config.num_hidden_layers
    return Cost(position=layers * layer, pair=layers * 2 * 2 * query, logits=2 * hidden * config.vocab_size)
