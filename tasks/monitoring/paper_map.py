"""Reads tables out of docs/paper-map.md, so that what differs from the paper is written in one place."""

from __future__ import annotations

import re
from dataclasses import dataclass

from markupsafe import Markup, escape

from tasks.errors import DataError

DIFFERS = "What differs from the paper, and why"
UNDISCLOSED = "What the paper does not disclose, and what we took"


@dataclass(frozen=True)
class Table:
    """A table of a Markdown page: cells as HTML, with code and links marked up."""

    header: tuple[Markup, ...]
    rows: tuple[tuple[Markup, ...], ...]


def cell(text: str) -> Markup:
    """One cell's Markdown as HTML: code spans; a link leaves its words, as its target is not on the page."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text.strip())
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(plain))))


def table(text: str, heading: str) -> Table:
    """The first table under a heading.

    Raises:
        DataError: the page has no such heading, or no table before the next one.
    """
    section = re.search(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    lines = [line for line in section[1].splitlines() if line.startswith("|")] if section else []
    if len(lines) < 3:
        raise DataError(f"docs/paper-map.md has no table under the heading {heading!r}: run `git checkout docs/paper-map.md`")
    cells = [tuple(cell(part) for part in re.split(r"(?<!\\)\|", line.strip().strip("|"))) for line in lines]
    return Table(cells[0], tuple(cells[2:]))
