"""Language consistency of a chain of thought: the share of its words that are in the target language (paper, eq. 7)."""

from __future__ import annotations

import re

# A word is a Latin word or one Han character. Digits, signs, single letters (option B, variable x) and two-letter
# symbols (Au) belong to no language. The paper discloses neither its tokenisation nor this choice.
_LATIN = re.compile(r"[A-Za-z]{2,}")
_HAN = re.compile(r"[一-鿿㐀-䶿]")
_SYMBOL = re.compile(r"[A-Z][a-z]?")


def words(text: str) -> tuple[int, int]:
    """Number of English words and of Han characters in a text."""
    latin = sum(not _SYMBOL.fullmatch(word) for word in _LATIN.findall(text))
    return latin, len(_HAN.findall(text))


def consistency(thought: str, language: str) -> float | None:
    """Share in [0, 1] of a thought's words that are in `language` ("en" or "zh"); None if it has no words.

    Raises:
        ValueError: the language is neither "en" nor "zh".
    """
    if language not in ("en", "zh"):
        raise ValueError(f"language {language!r} is not supported: use 'en' or 'zh'")
    latin, han = words(thought)
    if latin + han == 0:
        return None
    return (latin if language == "en" else han) / (latin + han)
