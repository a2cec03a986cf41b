"""Builds the technical report of a run: reports/report.html, the same as reports/report.md with its figures, and the README's picture.

    python -m tasks.report

Everything comes from files (tasks/monitoring/sources.py) and the commit. A missing input leaves a note in its section with the command
that makes it; nothing fails. Same inputs, same bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup, escape

from tasks import errors, records
from tasks.config import Report, load_params
from tasks.monitoring import (
    ablations_page,
    behaviour_page,
    claims,
    costs,
    figures,
    glossary,
    graph,
    lineage,
    markdown,
    paper_map,
    plots,
    recipe_page,
    students_page,
    tracking,
    zero_page,
)
from tasks.monitoring.sources import COSTS, OPTIONAL, SOURCES, load
from tasks.monitoring.stage_table import STAGES

PAGE = Path(__file__).parent / "page"
REPORTS = Path("reports")


def split_table(curate: Mapping[str, Any] | None) -> dict[str, dict[str, int]]:
    """Number of prompts by domain and split, from the metrics of the curated data."""
    counts = {} if curate is None else {split: found["domain"] for split, found in curate["counts"].items()}
    domains = sorted({domain for found in counts.values() for domain in found})
    return {domain: {split: found.get(domain, 0) for split, found in counts.items()} for domain in domains}


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """(dotted key, value as text) of every leaf of nested mappings; lists are leaves."""
    if isinstance(value, Mapping):
        return [leaf for key, part in value.items() for leaf in flatten(part, f"{prefix}.{key}" if prefix else str(key))]
    text = f"{value:.6g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return [(prefix, text)]


def _lineage(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The graph of stages and its table, from dvc.lock."""
    lock = inputs["lock"]
    drawn = lock and graph.draw(lineage.graph(lock), "Graph of the stages, from the bases down; the table below has the hashes in full.")
    return {"lineage": lineage.stages(lock) if lock else [], "bases": lineage.sources(lock) if lock else [], "figure": {"graph": drawn}}


def _paper(inputs: Mapping[str, Any]) -> dict[str, Any]:
    page = inputs["paper_map"]
    titles = {"differs": paper_map.DIFFERS, "undisclosed": paper_map.UNDISCLOSED}
    return {name: page and paper_map.table(page, title) for name, title in titles.items()}


def _costs(inputs: Mapping[str, Any], settings: Report) -> dict[str, Any]:
    rows = costs.ledger(inputs, settings.price_per_hour)
    return {
        "ledger": rows, "unclocked": costs.unclocked(rows), "machines": costs.machines(inputs), "price": settings.price_per_hour,
        "paper_costs": costs.PAPER,
    }  # fmt: skip


def _marked(figures_: Mapping[str, str | None]) -> dict[str, Any]:
    return {name: svg and Markup(svg) for name, svg in figures_.items()}


def context(inputs: Mapping[str, Any], settings: Report) -> dict[str, Any]:
    """Everything that the template shows; figures are SVG by name."""
    behaviour = behaviour_page.context(inputs)
    parts = [zero_page.context(inputs, settings.examples), recipe_page.context(inputs), students_page.context(inputs)]
    parts += [ablations_page.context(inputs), behaviour, _lineage(inputs)]
    made = {key: value for part in parts for key, value in part.items()}
    return {
        **inputs,
        **made,
        **_paper(inputs),
        **_costs(inputs, settings),
        "figure": _marked({name: svg for part in parts for name, svg in part["figure"].items()}),
        "level_figure": _marked(behaviour["level_figure"]),
        "claims": claims.table(inputs),
        "missing": {name: source for name, source in SOURCES.items() if inputs[name] is None},
        "sources": SOURCES,
        "evaluations": {stage: inputs[f"evaluate_{stage}"] for stage in STAGES},
        "summaries": {stage: inputs[f"{stage}_summary"] for stage in STAGES if stage != "base"},
        "splits": split_table(inputs["curate"]),
        "flat": flatten,
        "terms": glossary.METRICS,
    }


def percent(share: float | None, digits: int = 1) -> str:
    """A share in per cent without the sign; a dash for a missing one."""
    return "–" if share is None or np.isnan(share) else f"{100 * share:.{digits}f}"


def scientific(value: float | None) -> str:
    """A large number as 8.31·10¹³; a dash for a missing one."""
    if not value:
        return "–" if value is None else "0"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}·10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def unbroken(text: str) -> Markup:
    """Text whose intervals and percentages stay on one line."""
    joined = str(escape(text)).replace(" %", "\N{NO-BREAK SPACE}%")
    return Markup(re.sub(r"\([\d.]+–[\d.]+\)", r'<span class="nb">\g<0></span>', joined))


def render(inputs: Mapping[str, Any], settings: Report) -> str:
    """The page for loaded inputs (see `sources.load`)."""
    loader = jinja2.FileSystemLoader(PAGE)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"pct": percent, "sci": scientific, "unbroken": unbroken}
    return environment.get_template("report.html.j2").render(context(inputs, settings))


def theme() -> str:
    """The part of the page's style that sets colours and fonts, for figures that stand alone."""
    style = (PAGE / "report.css").read_text(encoding="utf-8")
    return style[: style.index("* {")]


def _write(path: Path, text: str) -> Path:
    with records.atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _write_markdown(folder: Path, page: str) -> Iterator[Path]:
    """report.md and its figures; figures of an earlier report that this one does not have go."""
    text, drawn = markdown.extract(page)
    shown = folder / markdown.FOLDER
    shown.mkdir(parents=True, exist_ok=True)
    for name, svg in drawn.items():
        yield _write(shown / f"{name}.svg", plots.standalone(svg, theme()))
    for path in set(shown.glob("*.svg")) - {shown / f"{name}.svg" for name in drawn}:
        path.unlink()
    yield _write(folder / "report.md", markdown.convert(text))


def write(root: Path, settings: Report) -> list[Path]:
    """Writes the report, and reports/curves.png if there are steps, under ``root``; returns the page, the Markdown and the picture.

    Raises:
        DataError: an input exists but cannot be read.
    """
    inputs, folder = load(root), root / REPORTS
    page = render(inputs, settings)
    *_, text = _write_markdown(folder, page)
    made, steps = [_write(folder / "report.html", page), text], inputs["zero_steps"]
    if steps is None:
        return made
    return [*made, figures.save_overview(steps, zero_page.takeoff_step(inputs), folder / "curves.png")]


def run() -> None:
    """The stage: builds the report of the current folder and logs it."""
    params = load_params().report
    read = {name: Path(source.path) for name, source in (SOURCES | OPTIONAL).items() if source.path != COSTS and Path(source.path).exists()}
    with tracking.run(stage="report", params=params.model_dump(), inputs=read, state=Path(".runs/report")) as tracked:
        for path in write(Path(), params):
            tracked.artifact(path)
            print(f"report: wrote {path}")


if __name__ == "__main__":
    errors.main(run)
