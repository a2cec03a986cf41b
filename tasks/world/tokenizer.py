"""The miniature's tokenizer: a byte-level vocabulary whose tokens are whole words, Chinese characters and digits.

It is an ordinary `tokenizer.json` (byte-level BPE with `ignore_merges`, as Llama 3 uses it, and no merges): a pre-token of the
corpus is one token, anything else falls back to bytes, so every text round-trips. R1's template, which opens every
conversation, is one token: at word level it would be 73 tokens and more than double the cost of every training step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from tasks.template import CHAT_TEMPLATE, PREAMBLE

END = "<|endoftext|>"
# Alternatives in order: the template, tags, "10" (as in "% 10"), one digit, a Latin word, one Han character, one other sign, a blank.
PATTERN = "|".join(
    (
        "".join("\\" + c if c in "|().?*+[]{}^$" else c for c in PREAMBLE),
        " ?</?(?:think|answer)>",
        " ?10(?![0-9])",
        " ?[0-9]",
        " ?[A-Za-z]+",
        r"\p{Han}",
        r" ?[^\sA-Za-z0-9\p{Han}]",
        r"\s",
    )
)


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def build(texts: Iterable[str], minimum: int = 5) -> PreTrainedTokenizerFast:
    """Vocabulary: the end token, 256 bytes, and every pre-token seen at least `minimum` times, in order of frequency."""
    splitter = _pre_tokenizer()
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(piece for piece, _ in splitter.pre_tokenize_str(text))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [word for word, n in sorted(counts.items(), key=lambda x: (-x[1], x[0])) if n >= minimum and word not in alphabet]
    vocabulary = {token: i for i, token in enumerate([END, *alphabet, *words])}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, chat_template=CHAT_TEMPLATE, clean_up_tokenization_spaces=False
    )
