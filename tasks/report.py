"""Builds reports/report.html: what a run did, on one self-contained page, and reports/curves.png for the README.

    python -m tasks.report

Everything comes from files: metrics, the per-step table, samples, the test split, parameters and the base's provenance.
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
from tasks.evaluation import metrics
from tasks.monitoring import examples, figures, glossary, tracking
from tasks.monitoring.changepoint import takeoff
from tasks.monitoring.reflection import CHINESE, WORDS
from tasks.monitoring.steps import COLUMNS

MODELS = {"base": "Base", "zero_no_reflection": "Zero, reflection forbidden", "zero": "Zero"}
GROUPS = {"by_domain": "Domain", "by_family": "Family", "by_language": "Language of the question"}
LEVELS = {"by_level": "Family and level"}


@dataclass(frozen=True)
class Source:
    """An input file and the command that makes it."""

    path: str
    command: str


SOURCES: dict[str, Source] = {
    "params": Source("params.yaml", "git checkout params.yaml"),
    "provenance": Source("models/base/provenance.json", "python -m tasks.pretrain base"),
    "curate": Source("reports/metrics/curate.json", "dvc repro curate"),
    "zero_summary": Source("reports/metrics/zero.json", "dvc repro zero"),
    "steps": Source("reports/metrics/zero_steps.csv", "dvc repro zero"),
    "test": Source("data/curated/test.parquet", "dvc repro curate"),
    **{f"evaluate_{m}": Source(f"reports/metrics/evaluate_{m}.json", f"dvc repro evaluate@{m}") for m in MODELS},
    **{f"samples_{m}": Source(f"data/samples/{m}.parquet", f"dvc repro evaluate@{m}") for m in MODELS},
}


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
    """Every input by its name in SOURCES; None for a file that does not exist or a table without rows.

    Raises:
        DataError: a file exists but cannot be read, or the per-step table lacks a column.
    """
    inputs: dict[str, Any] = {}
    for name, source in SOURCES.items():
        path = root / source.path
        try:
            value = _read(path) if path.exists() else None
        except (ValueError, OSError, yaml.YAMLError) as error:
            raise DataError(f"{source.path} cannot be read ({error}); delete it and run `{source.command}`") from error
        inputs[name] = None if isinstance(value, pd.DataFrame) and value.empty else value
    steps = inputs["steps"]
    lacking = [] if steps is None else [column for column in COLUMNS if column not in steps]
    if lacking:
        raise DataError(f"{SOURCES['steps'].path} lacks the columns {', '.join(lacking)}: run `{SOURCES['steps'].command}` again")
    for model in MODELS:
        if inputs[f"evaluate_{model}"] is not None:
            inputs[f"evaluate_{model}"] = _plain(inputs[f"evaluate_{model}"])
    return inputs


def _plain(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation with "cons" beside "cons@k" everywhere, so that readers need not know k (samples_per_problem)."""
    key = f"cons@{evaluation['samples_per_problem']}"
    kinds = [*GROUPS, *LEVELS]
    return {
        **evaluation,
        "cons": evaluation[key],
        **{kind: {name: {**group, "cons": group[key]} for name, group in evaluation[kind].items()} for kind in kinds},
    }


def interval(values: pd.Series) -> dict[str, float] | None:
    """Mean and 95 % interval of a per-problem figure; None for fewer than two problems, which have no spread."""
    return metrics.interval(values.to_numpy()) if len(values) > 1 else None


def solved(samples: pd.DataFrame) -> pd.Series:
    """Share of correct samples of each problem."""
    return samples.groupby("prompt_id")["correct"].mean()


def cost_of_forbidding(inputs: Mapping[str, Any]) -> dict[str, float] | None:
    """Pass@1 lost by the same weights when reflective words are forbidden, paired by problem."""
    free, forbidden = inputs["samples_zero"], inputs["samples_zero_no_reflection"]
    if free is None or forbidden is None:
        return None
    return interval((solved(free) - solved(forbidden)).dropna())


def right_if_well_formed(samples: pd.DataFrame | None) -> float | None:
    """Share of right answers among the well-formed samples; None without any."""
    if samples is None or not samples["format"].any():
        return None
    return float(samples.loc[samples["format"], "correct"].mean())


def intervals(samples: pd.DataFrame | None, kind: str) -> dict[str, dict[str, float] | None]:
    """Pass@1 with its interval for every group of one kind (a key of GROUPS or LEVELS); empty without samples."""
    if samples is None:
        return {}
    labels = samples[kind.removeprefix("by_")].astype(str)
    if kind in LEVELS:
        labels = samples["family"].str.cat(labels, sep="-")
    return {str(name): interval(solved(part)) for name, part in samples.groupby(labels)}


def comparison(inputs: Mapping[str, Any], kinds: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows of the table of models: for each kind of group its title, then names with each model's metrics."""
    evaluations = {m: inputs[f"evaluate_{m}"] for m in MODELS if inputs[f"evaluate_{m}"]}
    rows: list[dict[str, Any]] = []
    for kind, title in kinds.items():
        spreads = {m: intervals(inputs[f"samples_{m}"], kind) for m in evaluations}
        names = sorted({name for e in evaluations.values() for name in e[kind]})
        rows += [{"title": title}] if names else []
        for name in names:
            found = {m: e[kind][name] | {"interval": spreads[m].get(name)} for m, e in evaluations.items() if name in e[kind]}
            rows.append({"name": name, "kind": kind, "models": found})
    return rows


def total(inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table's first row, all problems; empty without any evaluation."""
    found = {m: _overall(inputs[f"evaluate_{m}"]) for m in MODELS if inputs[f"evaluate_{m}"]}
    return [{"name": "All problems", "total": True, "models": found}] if found else []


def _overall(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation's totals in the shape of one of its groups."""
    return {
        "problems": evaluation["problems"],
        "pass@1": evaluation["pass@1"]["mean"],
        "interval": evaluation["pass@1"],
        "cons": evaluation["cons"]["mean"],
        "wait_share": evaluation["wait_share"],
        "length": evaluation["length"]["mean"],
        "language_consistency": evaluation["language_consistency"],
    }


def takeoff_step(inputs: Mapping[str, Any]) -> int | None:
    """The step at which "wait" takes off, with the seed that `zero` used, so that both say the same."""
    steps, summary = inputs["steps"], inputs["zero_summary"] or {}
    return None if steps is None else takeoff(steps["wait_share"], steps["step"], seed=summary.get("seed", 0))


def word_ratio(base: Mapping[str, Any] | None, zero: Mapping[str, Any] | None) -> float | None:
    """How many times as many reflective words Zero writes as the base; None if unknown or the base writes none."""
    if not base or not zero:
        return None
    before, after = (sum(e["words_per_1000_samples"].values()) for e in (base, zero))
    return after / before if before else None


def word_table(steps: pd.DataFrame) -> list[dict[str, Any]]:
    """For each word: Chinese counterparts, occurrences per 1,000 samples in the first and last tenth of the steps."""
    tenth = max(len(steps) // 10, 1)
    return [
        {
            "word": word,
            "chinese": "、".join(entry.split("|")[1] if "|" in entry else entry for entry in CHINESE[word]),
            "first": float(steps[word].head(tenth).mean()),
            "last": float(steps[word].tail(tenth).mean()),
        }
        for word in WORDS
    ]


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


def _side_by_side(inputs: Mapping[str, Any], shown: int) -> list[examples.Example]:
    test, base, zero = inputs["test"], inputs["samples_base"], inputs["samples_zero"]
    return [] if test is None or base is None or zero is None else examples.examples(test, base, zero, shown)


def _family_dots(rows: list[dict[str, Any]]) -> str | None:
    """The figure of pass@1 by family, for the rows of the families in the table of models."""
    families = [row for row in rows if row.get("kind") == "by_family"]
    told = {row["name"]: {m: g["interval"] for m, g in row["models"].items() if g["interval"]} for row in families}
    return figures.dots(told, name="families", alt="Pass@1 of the models by family; the table has the numbers.") if told else None


def _level_figures(inputs: Mapping[str, Any]) -> dict[str, str | None]:
    zero = inputs["evaluate_zero"]
    if not zero:
        return {}
    return {
        "level_length": figures.by_level(zero["by_level"], "length", name="level-length", ylabel="response length (tokens)"),
        "level_pass1": figures.by_level(zero["by_level"], "pass@1", name="level-pass1", ylabel="pass@1", percent=True),
    }


def context(inputs: Mapping[str, Any], shown: int) -> dict[str, Any]:
    """Everything that the template shows; at most ``shown`` problems side by side."""
    steps, rows = inputs["steps"], comparison(inputs, GROUPS)
    step = takeoff_step(inputs)
    curves = {} if steps is None else figures.training_curves(steps, step)
    return {
        **inputs,
        "models": MODELS,
        "missing": {name: source for name, source in SOURCES.items() if inputs[name] is None},
        "sources": SOURCES,
        "takeoff_step": step,
        "last_step": None if steps is None else int(steps["step"].iloc[-1]),
        "limits": [] if steps is None else [e.step for e in figures.limit_raised(steps)],
        "figure": {name: svg and Markup(svg) for name, svg in (curves | _level_figures(inputs) | {"families": _family_dots(rows)}).items()},
        "word_figure": {} if steps is None else {word: Markup(svg) for word, svg in figures.word_curves(steps).items()},
        "words": [] if steps is None else word_table(steps),
        "rows": total(inputs) + rows,
        "level_rows": comparison(inputs, LEVELS),
        "cost": cost_of_forbidding(inputs),
        "formed": right_if_well_formed(inputs["samples_zero_no_reflection"]),
        "word_ratio": word_ratio(inputs["evaluate_base"], inputs["evaluate_zero"]),
        "examples": _side_by_side(inputs, shown),
        "how_picked": examples.HOW,
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
    here = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=here, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
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
    steps = inputs["steps"]
    if steps is None:
        return [page]
    return [page, figures.save_overview(steps, takeoff_step(inputs), picture)]


def run() -> None:
    """The stage: builds the report of the current folder and logs it."""
    params = load_params().report
    read = {name: Path(source.path) for name, source in SOURCES.items() if Path(source.path).exists()}
    with tracking.run(stage="report", params=params.model_dump(), inputs=read, state=Path(".runs/report")) as tracked:
        for path in write(Path(), params.examples):
            tracked.artifact(path)
            print(f"report: wrote {path}")


if __name__ == "__main__":
    errors.main(run)
