"""Builds reports/report.html: what a run did, on one self-contained page, and reports/curves.png for the README.

    python -m tasks.report

Everything comes from files: metrics, per-step tables, samples, the test split, parameters and the base's provenance.
A missing input leaves a note in its section with the command that makes it; nothing fails. Same inputs, same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import yaml
from markupsafe import Markup

from tasks import errors, records
from tasks.config import load_params
from tasks.errors import DataError
from tasks.monitoring import figures, glossary, recipe_page, tracking, zero_page
from tasks.monitoring.stage_table import STAGES
from tasks.monitoring.steps import COLUMNS

PAGE = Path(__file__).parent / "page"
EVALUATED = (*STAGES, "zero_no_reflection")


@dataclass(frozen=True)
class Source:
    """An input file and the command that makes it."""

    path: str
    command: str


SOURCES: dict[str, Source] = {
    "params": Source("params.yaml", "git checkout params.yaml"),
    "provenance": Source("models/base/provenance.json", "python -m tasks.pretrain base"),
    "curate": Source("reports/metrics/curate.json", "dvc repro curate"),
    "cold_start": Source("reports/metrics/cold_start.json", "dvc repro cold_start"),
    "rejection": Source("reports/metrics/rejection.json", "dvc repro rejection"),
    "reward_models": Source("reports/metrics/reward_models.json", "dvc repro reward_models"),
    "compare": Source("reports/metrics/compare.json", "dvc repro compare"),
    **{f"{s}_summary": Source(f"reports/metrics/{s}.json", f"dvc repro {s}") for s in STAGES if s != "base"},
    **{f"{s}_steps": Source(f"reports/metrics/{s}_steps.csv", f"dvc repro {s}") for s in STAGES if s != "base"},
    "test": Source("data/curated/test.parquet", "dvc repro curate"),
    **{f"evaluate_{m}": Source(f"reports/metrics/evaluate_{m}.json", f"dvc repro evaluate@{m}") for m in EVALUATED},
    **{f"samples_{m}": Source(f"data/samples/{m}.parquet", f"dvc repro evaluate@{m}") for m in zero_page.MODELS},
    **{f"samples_{m}_open": Source(f"data/samples/{m}_open.parquet", f"dvc repro evaluate@{m}") for m in ("dev3", "r1")},
}
OPTIONAL = {"language_price": Source("reports/metrics/language_price.json", "")}  # no part of a run: nothing is said if it is not there
RL_STEPS = ("zero_steps", "dev2_steps", "r1_steps")


def _read(path: Path) -> Any:
    match path.suffix:
        case ".json":
            return json.loads(path.read_text(encoding="utf-8"))
        case ".yaml":
            return yaml.safe_load(path.read_text(encoding="utf-8"))
        case ".csv":
            return pd.read_csv(path)
    return pd.read_parquet(path)


def load(root: Path) -> dict[str, Any]:
    """Every input by its name in SOURCES and OPTIONAL; None for a file that does not exist or a table without rows.

    Raises:
        DataError: a file exists but cannot be read, or a per-step table of RL lacks a column.
    """
    inputs: dict[str, Any] = {}
    for name, source in (SOURCES | OPTIONAL).items():
        path = root / source.path
        try:
            value = _read(path) if path.exists() else None
        except (ValueError, OSError, yaml.YAMLError) as error:
            raise DataError(f"{source.path} cannot be read ({error}); delete it and run `{source.command}`") from error
        inputs[name] = None if isinstance(value, pd.DataFrame) and value.empty else value
    for name in RL_STEPS:
        lacking = [] if inputs[name] is None else [column for column in COLUMNS if column not in inputs[name]]
        if lacking:
            raise DataError(f"{SOURCES[name].path} lacks the columns {', '.join(lacking)}: run `{SOURCES[name].command}` again")
    for model in EVALUATED:
        if evaluation := inputs[f"evaluate_{model}"]:  # readers need not know k
            evaluation["cons"] = evaluation[f"cons@{evaluation['samples_per_problem']}"]
    return inputs


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


def context(inputs: Mapping[str, Any], shown: int) -> dict[str, Any]:
    """Everything that the template shows; at most ``shown`` problems side by side."""
    zero, recipe = zero_page.context(inputs, shown), recipe_page.context(inputs)
    return {
        **inputs,
        **zero,
        **recipe,
        "figure": {name: svg and Markup(svg) for name, svg in (zero["figure"] | recipe["figure"]).items()},
        "missing": {name: source for name, source in SOURCES.items() if inputs[name] is None},
        "sources": SOURCES,
        "evaluations": {stage: inputs[f"evaluate_{stage}"] for stage in STAGES},
        "summaries": {stage: inputs[f"{stage}_summary"] for stage in STAGES if stage != "base"},
        "splits": split_table(inputs["curate"]),
        "flat": flatten,
        "terms": glossary.METRICS,
        "differences": glossary.DIFFERENCES,
        "paper": glossary.PAPER,
    }


def percent(share: float | None, digits: int = 1) -> str:
    """A share in per cent without the sign; a dash for a missing one."""
    return "–" if share is None or np.isnan(share) else f"{100 * share:.{digits}f}"


def render(inputs: Mapping[str, Any], shown: int) -> str:
    """The page for loaded inputs (see ``load``), with at most ``shown`` problems side by side."""
    loader = jinja2.FileSystemLoader(PAGE)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters["pct"] = percent
    return environment.get_template("report.html.j2").render(context(inputs, shown))


def write(root: Path, shown: int) -> list[Path]:
    """Writes reports/report.html, and reports/curves.png if there are steps, under ``root``; returns what it wrote.

    Raises:
        DataError: an input exists but cannot be read.
    """
    inputs, page, picture = load(root), root / "reports" / "report.html", root / "reports" / "curves.png"
    with records.atomic(page) as temporary:
        temporary.write_text(render(inputs, shown), encoding="utf-8")
    steps = inputs["zero_steps"]
    if steps is None:
        return [page]
    return [page, figures.save_overview(steps, zero_page.takeoff_step(inputs), picture)]


def run() -> None:
    """The stage: builds the report of the current folder and logs it."""
    params = load_params().report
    read = {name: path for name, source in (SOURCES | OPTIONAL).items() if (path := Path(source.path)).exists()}
    with tracking.run(stage="report", params=params.model_dump(), inputs=read, state=Path(".runs/report")) as tracked:
        for path in write(Path(), params.examples):
            tracked.artifact(path)
            print(f"report: wrote {path}")


if __name__ == "__main__":
    errors.main(run)
