"""The report's page as Markdown for a git host: the same text and tables, its figures as files of their own.

Converts the HTML that the report's own templates write, and no other: headings, paragraphs, lists, tables, figures, definition lists and
folded parts. What only serves the eye (the navigation, colours) is left out.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser

FOLDER = "figures"
VOID = frozenset({"meta", "img", "br", "hr"})
SKIPPED = frozenset({"head", "nav", "style"})
BLOCKS = frozenset(
    {"p", "h1", "h2", "h3", "table", "ul", "dl", "details", "figure", "div", "section", "article", "header", "main", "html", "body"}
)
_SVG = re.compile(r'<svg data-name="([\w-]+)" role="img" aria-label="([^"]*)".*?</svg>', re.DOTALL)


@dataclass
class Element:
    """An element of the page with its children, text among them."""

    tag: str
    attributes: dict[str, str] = field(default_factory=dict)
    children: list[Element | str] = field(default_factory=list)

    @property
    def classes(self) -> set[str]:
        return set(self.attributes.get("class", "").split())

    def find(self, *tags: str) -> list[Element]:
        """Every element with one of the tags within this one, in the order of the page; not within another of them."""
        found: list[Element] = []
        for child in self.children:
            if isinstance(child, Element):
                found += [child] if child.tag in tags else child.find(*tags)
        return found


class _Tree(HTMLParser):
    """Builds the elements; the page is well-formed (a test holds it to that)."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Element("root")
        self._open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        made = Element(tag, {name: value or "" for name, value in attrs})
        self._open[-1].children.append(made)
        if tag not in VOID:
            self._open.append(made)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)


def extract(page: str) -> tuple[str, dict[str, str]]:
    """The page with an image in the place of each figure, and the figures by name."""
    figures: dict[str, str] = {}

    def image(found: re.Match[str]) -> str:
        figures[found[1]] = found[0]
        return f'<img src="{FOLDER}/{found[1]}.svg" alt="{found[2]}">'

    return _SVG.sub(image, page), figures


def convert(page: str) -> str:
    """The page, figures extracted, as Markdown."""
    tree = _Tree()
    tree.feed(page)
    return re.sub(r"\n{3,}", "\n\n", "\n\n".join(_blocks(tree.root))).strip() + "\n"


def escape(text: str) -> str:
    """Text whose signs mean nothing to Markdown: no emphasis, code, links or tags."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", text)


def _blocks(element: Element) -> list[str]:
    """The Markdown blocks of an element's children; loose text between blocks is a paragraph of its own."""
    made: list[str] = []
    loose: list[Element | str] = []
    for child in [*element.children, Element("p")]:
        if isinstance(child, str) or child.tag not in BLOCKS | SKIPPED | {"img"}:
            loose.append(child)
            continue
        if said := inline(loose):
            made.append(said)
        loose = []
        made += _block(child)
    return made


def _block(element: Element) -> list[str]:
    if element.tag in SKIPPED:
        return []
    if maker := _MAKERS.get(element.tag):
        return [made] if (made := maker(element)) else []
    if "said" in element.classes:
        return [_said(element)]
    if "absent" in element.classes:
        return ["\n".join("> " + line if line else ">" for line in "\n\n".join(_blocks(element)).splitlines())]
    return _blocks(element)


def inline(children: list[Element | str]) -> str:
    """Text within a block on one line, blanks collapsed."""
    return re.sub(r"\s+", " ", "".join(_inline(child) for child in children).replace("\xa0", " ")).strip()


def _inline(child: Element | str) -> str:
    if isinstance(child, str):
        return escape(child)
    within = "".join(_inline(part) for part in child.children)
    match child.tag:
        case "strong" | "b" | "mark":
            return f"**{within.strip()}**" if within.strip() else ""
        case "em":
            return f"*{within.strip()}*"
        case "code":
            return _code(_text(child))
        case "small":
            return f" ({within.strip()})" if within.strip() else ""
        case "img":
            return _image(child)
        case "br":
            return " "
    if "tag" in child.classes:
        return _code(_text(child))
    return within + (" " if child.tag in ("p", "div") else "")


def _code(text: str) -> str:
    return f"`{text.strip()}`" if text.strip() else ""


def _text(element: Element) -> str:
    return "".join(child if isinstance(child, str) else _text(child) for child in element.children)


def _image(element: Element) -> str:
    return f"![{escape(element.attributes.get('alt', ''))}]({element.attributes['src']})"


def _heading(marks: str) -> Callable[[Element], str]:
    return lambda element: f"{marks} {inline(element.children)}"


def _said(element: Element) -> str:
    """A model's text: quoted, its lines kept."""
    lines = [re.sub(r"[ \t]+", " ", line).strip() for line in "".join(_inline(c) for c in element.children).splitlines()]
    return "\n".join(f"> {line}  " for line in lines if line)


def _list(element: Element) -> str:
    return "\n".join(f"- {inline(item.children)}" for item in element.find("li"))


def _terms(element: Element) -> str:
    pairs = element.find("dt", "dd")
    told = [f"- **{inline(t.children)}:** {inline(d.children)}" for t, d in zip(pairs[::2], pairs[1::2], strict=True)]
    return "\n".join(told)


def _details(element: Element) -> str:
    summary = next(iter(element.find("summary")), Element("summary"))
    rest = Element("div", {}, [child for child in element.children if child is not summary])
    title = html.escape(re.sub(r"\s+", " ", _text(summary)).strip(), quote=False)
    return "\n\n".join([f"<details>\n<summary>{title}</summary>", *_blocks(rest), "</details>"])


def _cells(row: Element) -> list[str]:
    """A row's cells; one that spans columns is followed by empty ones."""
    made: list[str] = []
    for found in row.find("th", "td"):
        made += [inline(found.children), *[""] * (int(found.attributes.get("colspan", "1")) - 1)]
    return made


def _header(rows: list[Element]) -> list[str]:
    """One header from all rows of a table's head: what spans columns is repeated before each of them."""
    levels = []
    for row in rows:
        names: list[str] = []
        for found in row.find("th", "td"):
            names += [inline(found.children)] * int(found.attributes.get("colspan", "1"))
        levels.append(names)
    return [": ".join(dict.fromkeys(name for name in column if name)) for column in zip(*levels, strict=True)]


def _table(element: Element) -> str:
    heads, bodies = element.find("thead"), element.find("tbody")
    rows = [(row, _cells(row)) for body in bodies for row in body.find("tr")]
    if not rows:
        return ""
    header = _header(heads[0].find("tr")) if heads else [""] * len(rows[0][1])
    marked = [[f"**{c}**" if c and "block" in row.classes else c for c in cells] for row, cells in rows]
    last = rows[-1][0].find("th", "td")
    rule = ["---:" if "n" in c.classes else "---" for c in last for _ in range(int(c.attributes.get("colspan", "1")))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *marked))


_MAKERS: dict[str, Callable[[Element], str]] = {
    "p": lambda element: inline(element.children),
    "h1": _heading("#"),
    "h2": _heading("##"),
    "h3": _heading("###"),
    "ul": _list,
    "dl": _terms,
    "details": _details,
    "table": _table,
    "img": _image,
}
