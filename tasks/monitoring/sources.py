"""What the report reads: every input file by a name, with the command that makes it.

A file that is not there is None under its name, and the page says which command makes it; nothing fails for want of a stage.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from tasks.errors import DataError
from tasks.monitoring import tracking
from tasks.monitoring.stage_table import STAGES
from tasks.monitoring.steps import COLUMNS

STUDENTS = {"small": "Small", "tiny": "Tiny"}
VARIANTS = {"student": "base", "rl": "RL at the same FLOPs", "distill": "distilled"}  # of a student: models/<variant>_<student>
TEMPLATES = {"distill": "distill", "rl": "distill_rl"}  # a trained variant's stages in dvc.yaml
TRAINED = tuple(f"{variant}_{student}" for student in STUDENTS for variant in TEMPLATES)
EVALUATED = (*STAGES, "zero_no_reflection", *(f"{variant}_{student}" for student in STUDENTS for variant in VARIANTS))
ABLATIONS = (
    "grpo", "ppo_lambda_1", "ppo_lambda_095", "sequence_level", "clip_02", "clip_10", "language_on", "language_off",
)  # fmt: skip
SIDE_BY_SIDE = ("base", "zero_no_reflection", "zero")  # models whose samples of problems are read
COSTS = "reports/costs"


@dataclass(frozen=True)
class Source:
    """An input file and the command that makes it."""

    path: str
    command: str


def _metrics(names: Iterable[str], suffix: str, kind: str) -> dict[str, Source]:
    """Sources of stages: "<name>_<kind>" to reports/metrics/<name><suffix>."""
    return {f"{name}_{kind}": Source(f"reports/metrics/{name}{suffix}", f"dvc repro {_stage(name)}") for name in names}


def _stage(name: str) -> str:
    """The name of a stage in dvc.yaml: students are made by one template a variant."""
    variant, _, student = name.partition("_")
    return f"{TEMPLATES[variant]}@{student}" if name in TRAINED else name


_FITTED = (*(stage for stage in STAGES if stage != "base"), *TRAINED)
SOURCES: dict[str, Source] = {
    "params": Source("params.yaml", "git checkout params.yaml"),
    "lock": Source("dvc.lock", "dvc repro"),
    "paper_map": Source("docs/paper-map.md", "git checkout docs/paper-map.md"),
    "provenance": Source("models/base/provenance.json", "python -m tasks.pretrain base"),
    **{
        name: Source(f"reports/metrics/{name}.json", f"dvc repro {name}")
        for name in ("curate", "cold_start", "rejection", "reward_models", "compare")
    },
    **_metrics(_FITTED, ".json", "summary"),
    **_metrics(_FITTED, "_steps.csv", "steps"),
    "test": Source("data/curated/test.parquet", "dvc repro curate"),
    **{f"evaluate_{m}": Source(f"reports/metrics/evaluate_{m}.json", f"dvc repro evaluate@{m}") for m in EVALUATED},
    **{f"samples_{m}": Source(f"data/samples/{m}.parquet", f"dvc repro evaluate@{m}") for m in SIDE_BY_SIDE},
    **{f"samples_{m}_open": Source(f"data/samples/{m}_open.parquet", f"dvc repro evaluate@{m}") for m in ("dev3", "r1")},
    **{f"ablation_{a}": Source(f"reports/ablations/{a}.json", "make ablations") for a in ABLATIONS},
    **{f"ablation_{a}_steps": Source(f"reports/ablations/{a}_steps.csv", "make ablations") for a in ABLATIONS},
    "costs": Source(COSTS, "make run"),
}
OPTIONAL = {"language_price": Source("reports/metrics/language_price.json", "")}  # no part of a run: nothing is said if it is not there
RL_STEPS = tuple(name for name in SOURCES if name.endswith("_steps") and not name.startswith(("dev1", "dev3", "distill")))


def _read(path: Path) -> Any:
    match path.suffix:
        case ".json":
            return json.loads(path.read_text(encoding="utf-8"))
        case ".yaml" | ".lock":
            return yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        case ".csv":
            return pd.read_csv(path)
        case ".md":
            return path.read_text(encoding="utf-8")
        case "":
            return {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in sorted(path.glob("*.json"))} or None
    return pd.read_parquet(path)


def load(root: Path) -> dict[str, Any]:
    """Every input by its name in SOURCES and OPTIONAL, and the "commit"; None for what does not exist or holds no row.

    Raises:
        DataError: a file exists but cannot be read, or a per-step table of RL lacks a column.
    """
    inputs: dict[str, Any] = {"commit": tracking.commit(root)}
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
