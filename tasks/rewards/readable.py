"""What rejection sampling calls unreadable beside mixed languages: long paragraphs and code blocks in a thought (recipe.md section 4)."""

from __future__ import annotations

import re

_PARAGRAPH = re.compile(r"\n[^\S\n]*\n")  # a blank line; a single line break does not end a paragraph
# One Han character, or a run of other letters and digits: "试 3加 14" is four. Signs and punctuation are no words.
_WORD = re.compile(r"[一-鿿㐀-䶿]|[^\W_一-鿿㐀-䶿]+")
_FENCE = re.compile(r"```|^[^\S\n]*~~~", re.MULTILINE)  # Markdown's two fences; "~~~" within a line is none


def longest_paragraph(thought: str) -> int:
    """Length of a thought's longest paragraph in words and Han characters; the paper names no unit and no limit."""
    return max(len(_WORD.findall(paragraph)) for paragraph in _PARAGRAPH.split(thought))


def has_code_block(thought: str) -> bool:
    """Whether a thought opens a fenced code block, closed or not. Code in the answer is no defect."""
    return _FENCE.search(thought) is not None
