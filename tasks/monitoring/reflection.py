"""The paper's reflective words: counting them in a text, and forbidding them at decoding (R1 paper v2, appendix C.2).

Three experts' lists merged into ten English words; this module adds the Chinese counterparts, since R1-Zero thinks in
both languages. Counting is exact on words, not on stems ("waiting" and "errors" do not count): the paper lists words.

Known ambiguity: 等等 also means "and so on" at the end of a list. No rule on characters tells the two apart reliably,
so it counts as "wait".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

# Keys: the ten words in the paper's order. Values: Chinese literals, each optionally written as
# "not-after|literal|not-before": the literal does not count directly after or before one of these characters.
CHINESE: dict[str, tuple[str, ...]] = {
    "wait": ("|等等|于级待价", "等一下", "等一等", "稍等", "且慢", "慢着"),
    "mistake": ("失误", "弄错", "搞错", "犯错", "算错", "看错"),
    "however": ("然而", "只通超信好|不过|分关去来期敏"),
    "but": ("不非岂|但是|", "不非岂|但|凡愿"),
    "retry": ("重试", "再试", "重新尝试", "再尝试"),
    "error": ("错误", "出错"),
    "verify": ("验证", "核实", "验算"),
    "wrong": ("不|错了|", "对|不对|称等应齐付口", "不正确"),
    "evaluate": ("评估",),
    "check": ("检查", "核对", "检验"),
}
WORDS: tuple[str, ...] = tuple(CHINESE)

# Traditional characters of the literals above, so that both scripts count alike.
_SIMPLIFIED = str.maketrans("錯誤對過試驗證檢評實慢著", "错误对过试验证检评实慢着")


class Match(NamedTuple):
    """One reflective word in a text: ``text[start:end]`` is an occurrence of ``word`` (its English name)."""

    start: int
    end: int
    word: str


def _literals() -> Iterator[tuple[str, str, str, str]]:
    """Yields (literal, word, characters it must not follow, characters it must not precede)."""
    for word, chinese in CHINESE.items():
        for entry in chinese:
            after, literal, before = entry.split("|") if "|" in entry else ("", entry, "")
            yield literal, word, after, before


def _pattern() -> re.Pattern[str]:
    """One alternation, longest literal first, so that nothing is counted twice (但是 is one "but", not two)."""
    # ASCII look-arounds, not \b: for Python a Chinese character is a word character, so \b sees no border in 等wait.
    parts = {word: rf"(?<![A-Za-z0-9_]){word}(?![A-Za-z0-9_])" for word in WORDS}
    for literal, _, after, before in _literals():
        parts[literal] = (f"(?<![{after}])" if after else "") + literal + (f"(?![{before}])" if before else "")
    return re.compile("|".join(parts[key] for key in sorted(parts, key=lambda key: (-len(key), key))), re.IGNORECASE)


_WORD_OF: dict[str, str] = {word: word for word in WORDS} | {literal: word for literal, word, _, _ in _literals()}
_PATTERN = _pattern()


def find(text: str) -> list[Match]:
    """Every reflective word of ``text``, in order, without overlaps."""
    plain = text.translate(_SIMPLIFIED)
    return [Match(m.start(), m.end(), _WORD_OF[m.group().lower()]) for m in _PATTERN.finditer(plain)]


def counts(text: str) -> dict[str, int]:
    """How often each of the ten words occurs in ``text``, Chinese counterparts included; keys in the paper's order."""
    found = dict.fromkeys(WORDS, 0)
    for match in find(text):
        found[match.word] += 1
    return found


def has_wait(text: str) -> bool:
    """Whether ``text`` says "wait" or a Chinese counterpart at least once."""
    return any(match.word == "wait" for match in find(text))


def _spellings() -> Iterator[str]:
    """Every spelling to forbid: words as written, capitalised and in capitals, and the Chinese literals."""
    for word in WORDS:
        yield from (word, word.capitalize(), word.upper())
    yield from (literal for literal, *_ in _literals())


def _encode(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def _encodings(tokenizer: Any, spelling: str) -> Iterator[tuple[int, ...]]:
    """Token ids of a spelling at the start of a text, after a space, and after a line break."""
    yield _encode(tokenizer, spelling)
    yield _encode(tokenizer, " " + spelling)
    # SentencePiece puts its word mark before the first word of a text: only the ids after an anchor show the bare form.
    anchor = _encode(tokenizer, "\n")
    anchored = _encode(tokenizer, "\n" + spelling)
    if anchor and anchored[: len(anchor)] == anchor:
        yield anchored[len(anchor) :]


def forbidden_sequences(tokenizer: Any) -> tuple[tuple[int, ...], ...]:
    """Token-id sequences that spell a reflective word: what the causal control forbids at decoding.

    A word may be several tokens; the whole sequence is returned, never a part of it. A sequence is kept only if it
    decodes to its word and nothing else, so a word that the vocabulary lacks (it would encode to the unknown token)
    forbids nothing.

    Limits: tokens, not words, are forbidden. A sequence that happens to begin an unrelated word is forbidden there too
    (" check" + "ers"); in a BPE vocabulary common words have their own token, so this is rare and is tolerated. A model
    can still spell a word in unusual pieces ("w" + "ait"): the share of samples with reflective words under the control
    is therefore measured and reported, not assumed to be zero.

    Args:
        tokenizer: a Hugging Face tokenizer (``encode(text, add_special_tokens=False)`` and ``decode(ids)``).

    Returns:
        Distinct sequences, shortest first, then by ids; empty if the vocabulary can spell none of the words.
    """
    found: set[tuple[int, ...]] = set()
    for spelling in _spellings():
        for ids in _encodings(tokenizer, spelling):
            if ids and "".join(tokenizer.decode(list(ids)).split()) == spelling:
                found.add(ids)
    return tuple(sorted(found, key=lambda ids: (len(ids), ids)))
