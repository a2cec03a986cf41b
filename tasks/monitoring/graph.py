"""Draws the graph of stages as SVG: boxes in layers from the sources down, edges as lanes beside them, colours of the page's theme."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from tasks.monitoring.lineage import Node
from tasks.monitoring.plots import COLOURS

WIDTH, PAD, LINE, GAP_X, GAP_Y = 238, 10, 15, 16, 56  # pixels: of a box, within it, of a line of text, between boxes and layers
ROW = 4  # boxes beside each other
LANE = 9  # pixels between two lanes
FONT = "font-family: inherit"
DIGITS = 8  # of a hash


def _colour(role: str) -> str:
    return f"var(--{role}, {COLOURS[role]})"


@dataclass(frozen=True)
class Box:
    """A node with its place in pixels."""

    node: Node
    x: float
    y: float
    row: int
    column: int

    @property
    def height(self) -> int:
        return 2 * PAD + LINE * (1 + len(self.node.lines))


def _rows(nodes: Sequence[Node]) -> list[list[Node]]:
    """Nodes by layer, at most ROW of them beside each other."""
    rows: list[list[Node]] = []
    for layer in range(1 + max(node.layer for node in nodes)):
        of_layer = [node for node in nodes if node.layer == layer]
        rows += [of_layer[i : i + ROW] for i in range(0, len(of_layer), ROW)]
    return rows


def _place(rows: Sequence[Sequence[Node]], left: float) -> list[Box]:
    boxes, y = [], 4.0
    for number, row in enumerate(rows):
        placed = [Box(node, left + i * (WIDTH + GAP_X), y, number, i) for i, node in enumerate(row)]
        boxes += placed
        y += max(box.height for box in placed) + GAP_Y
    return boxes


def _lanes(boxes: Sequence[Box]) -> dict[str, int]:
    """A lane left of all boxes for each node that is read beyond the next row."""
    rows = {box.node.title: box.row for box in boxes}
    far = [parent for box in boxes for parent, _ in box.node.parents if box.row - rows[parent] > 1]
    return {title: lane for lane, title in enumerate(box.node.title for box in boxes if box.node.title in far)}


def _text(x: float, y: float, said: str, role: str, size: float, extra: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" style="fill: {_colour(role)}; font-size: {size:g}px; {FONT}; {extra}">{html.escape(said)}</text>'


def _clip(said: str, most: int) -> str:
    return said if len(said) <= most else said[: most - 1] + "…"


def _draw_box(box: Box) -> str:
    role = "blue" if any(name.startswith("models/") for name, _ in box.node.lines) or box.node.title.startswith("models/") else "rule"
    frame = f'style="fill: {_colour("panel")}; stroke: {_colour(role)}; stroke-width: 1"'
    drawn = [f'<rect x="{box.x:g}" y="{box.y:g}" width="{WIDTH}" height="{box.height}" rx="4" {frame}/>']
    drawn.append(_text(box.x + PAD, box.y + PAD + 10, _clip(box.node.title, 30), "ink", 13, "font-weight: 600"))
    for number, (name, md5) in enumerate(box.node.lines, 1):
        y = box.y + PAD + 10 + LINE * number
        drawn.append(_text(box.x + PAD, y, _clip(name, 25), "muted", 11))
        drawn.append(_text(box.x + WIDTH - PAD, y, md5[:DIGITS], "ink", 11, "text-anchor: end"))
    return "".join(drawn)


def _over(child: Box, slot: int) -> float:
    """Height above a box at which the edge into a slot runs: later slots and boxes further right higher, so that few edges cross."""
    return child.y - 9 - 4 * slot - 8 * child.column


def _draw_edge(parent: Box, child: Box, model: bool, slot: int, lane: float | None) -> str:
    """From the parent's foot, or its lane, to a slot in the child's head, of as many slots as it has parents."""
    x = child.x + WIDTH * (0.5 + 0.12 * (slot - (len(child.node.parents) - 1) / 2))
    over = _over(child, slot)
    start = f"M{parent.x + WIDTH / 2:g} {parent.y + parent.height:g}V{over:g}" if lane is None else f"M{lane:g} {over:g}"
    path = f"{start}H{x:g}V{child.y - 1:g}"
    role = "blue" if model else "grey"
    head = f"M{x - 3.5:g} {child.y - 7:g}L{x:g} {child.y - 1:g}L{x + 3.5:g} {child.y - 7:g}"
    return f'<path d="{path}{head}" style="fill: none; stroke: {_colour(role)}; stroke-width: 1.3"/>'


def _draw_lane(parent: Box, children: Sequence[Box], x: float, under: float, last: float) -> str:
    """From a box down, to its lane under the boxes of its row, and down to its last child."""
    models = any(dict(child.node.parents)[parent.node.title] for child in children)
    start, role = parent.x + 0.4 * WIDTH, "blue" if models else "grey"
    path = f"M{start:g} {parent.y + parent.height:g}V{under:g}H{x:g}V{last:g}"
    return f'<path d="{path}" style="fill: none; stroke: {_colour(role)}; stroke-width: 1.3"/>'


def _from_left(parent: Box, child: Box, lanes: dict[str, int]) -> float:
    """Order of a box's edges from left to right: those from lanes, then those from the row above."""
    return lanes[parent.node.title] if child.row - parent.row > 1 else len(lanes) + parent.x


def _edges(boxes: dict[str, Box], lanes: dict[str, int]) -> list[str]:
    """All edges and lanes, to be drawn under the boxes."""
    drawn: list[str] = []
    far: dict[str, list[tuple[Box, int]]] = {title: [] for title in lanes}  # children beyond the next row, with their slots
    for box in boxes.values():
        for slot, (parent, model) in enumerate(sorted(box.node.parents, key=lambda p: _from_left(boxes[p[0]], box, lanes))):
            beyond = box.row - boxes[parent].row > 1
            drawn.append(_draw_edge(boxes[parent], box, model, slot, LANE * (1 + lanes[parent]) if beyond else None))
            if beyond:
                far[parent].append((box, slot))
    for title, reached in far.items():
        under = max(box.y + box.height for box in boxes.values() if box.row == boxes[title].row) + 4 + 3 * lanes[title]
        last = max(_over(box, slot) for box, slot in reached)
        drawn.append(_draw_lane(boxes[title], [box for box, _ in reached], LANE * (1 + lanes[title]), under, last))
    return drawn


def draw(nodes: Sequence[Node], alt: str) -> str | None:
    """The graph as an ``<svg>`` element; None without nodes. Blue edges carry a model, grey ones data."""
    if not nodes:
        return None
    rows = _rows(nodes)
    lanes = _lanes(_place(rows, 0))
    boxes = {box.node.title: box for box in _place(rows, LANE * (len(lanes) + 1) + 4)}
    width = max(box.x for box in boxes.values()) + WIDTH + 4
    height = max(box.y + box.height for box in boxes.values()) + 4
    body = "".join([*_edges(boxes, lanes), *(_draw_box(box) for box in boxes.values())])
    head = f'data-name="graph" role="img" aria-label="{html.escape(alt)}" viewBox="0 0 {width:g} {height:g}"'
    return f'<svg {head} xmlns="http://www.w3.org/2000/svg">{body}</svg>'
