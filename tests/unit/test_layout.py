"""The shape of the repository: what would break it without any other test failing."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

import tasks
from tasks import dev2
from tasks.config import load_params
from tasks.environment import DEFAULTS

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"benchmarks", "data", "flows", "infra", "tasks"}
STUDENTS = ("student_small", "student_tiny", "distill_small", "distill_tiny", "rl_small", "rl_tiny")
MODELS = ("base", "zero", "zero_no_reflection", "dev1", "dev2", "dev3", "r1", *STUDENTS)
STAGES = [
    "curate", "zero", "cold_start", "dev1", "dev2", "rejection", "dev3", "distill", "distill_rl", "reward_models", "r1", "evaluate",
    "compare", "report",
]  # fmt: skip
ABLATIONS = "ablations/dvc.yaml"
TRAINED = ("grpo", "ppo_lambda_1", "ppo_lambda_095", "sequence_level", "clip_10", "clip_02", "language_off")
PINS = {
    "torch": "2.13.0",
    "transformers": "5.19.0",
    "prefect": "3.7.",
    "sqlalchemy": "2.0.",
    "fastapi": "0.136.",
    "mlflow": "3.17.",
    "dvc": "3.67.",
    "great-expectations": "1.24.",
    "vllm": "0.32.0",
    "deepspeed": "0.19.8",
}


def _tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def _file_of(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.exists()), None)


def _imports(path: Path) -> set[str]:
    """First-party modules that a file imports anywhere, with the packages above them."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import of {node.module}; write it in full"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    parts = [name.split(".") for name in found if name.split(".")[0] in PACKAGES]
    return {".".join(p[:i]) for p in parts for i in range(1, len(p) + 1)}


def _needed(path: Path) -> set[Path]:
    """A file and all first-party files that its import reads."""
    seen: set[Path] = set()
    waiting = [path, ROOT / "tasks" / "__init__.py"]
    while waiting:
        file = waiting.pop()
        if file not in seen:
            seen.add(file)
            waiting += [found for module in _imports(file) if (found := _file_of(module))]
    return seen


def _deps() -> dict[str, set[Path]]:
    with Repo(str(ROOT)) as repo:
        return {stage.addressing: {Path(dep.fs_path) for dep in stage.deps} for stage in repo.index.stages}


def _module(stage: str) -> str:
    """The file under tasks/ that a stage runs; all ablations run the same one."""
    return "ablate" if stage.startswith(ABLATIONS) else stage.split("@")[0]


def _covered(file: Path, deps: set[Path]) -> bool:
    return any(parent in deps for parent in (file, *file.parents))


@pytest.mark.parametrize("name", [*STAGES, "ablate"])
def test_the_deps_of_a_stage_hold_all_that_it_imports(name: str) -> None:
    needed = _needed(ROOT / "tasks" / f"{name}.py")
    assert ROOT / "tasks" / "config.py" in needed  # the walk sees something
    for stage, deps in _deps().items():
        if _module(stage) == name:
            missing = sorted(str(file.relative_to(ROOT)) for file in needed if not _covered(file, deps))
            assert not missing, f"stage {stage}: add to deps {missing}"


def test_the_deps_of_a_stage_hold_no_code_that_it_does_not_import() -> None:
    for stage, deps in _deps().items():
        needed = _needed(ROOT / "tasks" / f"{_module(stage)}.py")
        idle = [
            dep
            for dep in deps
            if (dep.suffix == ".py" or (dep / "__init__.py").exists()) and not any(_covered(file, {dep}) for file in needed)
        ]
        assert not idle, f"stage {stage}: {idle} would rerun it for nothing"


def test_the_models_of_dvc_yaml_are_those_of_the_parameters() -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    named = {model["name"]: model["folder"] for model in params["evaluate"]["models"]}
    assert {name: item["folder"] for name, item in graph["stages"]["evaluate"]["foreach"].items()} == named


def test_the_ablations_of_their_pipeline_file_are_those_of_the_parameters() -> None:
    runs = yaml.safe_load((ROOT / "params.yaml").read_text())["ablations"]["runs"]
    stages = yaml.safe_load((ROOT / ABLATIONS).read_text())["stages"]
    trained, repeated = stages["ablate"]["foreach"], stages["repeat"]["foreach"]
    assert {name: next(key for key in ("zero", "dev2") if key in run) for name, run in runs.items()} == {
        name: item["like"] for name, item in (trained | repeated).items()
    }
    assert {name: run["same_as"] for name, run in runs.items() if "same_as" in run} == {name: r["twin"] for name, r in repeated.items()}
    assert {item["initial"] for item in trained.values() if item["like"] == "dev2"} == {str(dev2.INITIAL)}


def test_the_students_of_dvc_yaml_are_those_of_the_parameters() -> None:
    students = {name: {"base": student.base} for name, student in load_params(ROOT / "params.yaml").distill.students.items()}
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert graph["distill"]["foreach"] == graph["distill_rl"]["foreach"] == students


def test_dvc_sends_nothing_and_keeps_nothing_but_outputs() -> None:
    with Repo(str(ROOT)) as repo:
        core = repo.config["core"]
        assert core["analytics"] is False and core["check_update"] is False
        cached = {out.def_path for stage in repo.index.stages for out in stage.outs if out.use_cache}
    assert cached == {
        *(f"data/{name}" for name in ("curated", "cold_start", "rejection", "preferences")),
        *(f"models/{name}" for name in ("zero", "dev1", "dev2", "dev3", "r1", "reward_helpful", "reward_safety")),
        *(f"models/{student}" for student in STUDENTS[2:]),  # the bases are in git
        "reports/report.html",
        *(f"data/samples/{m}{kind}.parquet" for m in MODELS for kind in ("", "_open")),
        *(out for name in TRAINED for out in (f"models/ablations/{name}", f"data/samples/ablations/{name}.parquet")),
    }


def test_mlflow_is_the_library() -> None:
    # Found from the root, where the folder mlflow/ is first on the path; a bare folder would have no origin.
    code = "import importlib.util; print(importlib.util.find_spec('mlflow').origin)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "site-packages" in done.stdout
    assert not (ROOT / "mlflow" / "__init__.py").exists()
    assert not [path for path in _tracked() if path.name == "mlflow.py"]
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_the_lock_holds_the_pins_and_names_no_place() -> None:
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", line) for line in lock), "only name==version lines"
    versions = dict(line.split("==") for line in lock)
    assert len(versions) == len(lock)
    assert {name: versions[name] for name, pin in PINS.items() if not versions[name].startswith(pin)} == {}


def test_every_direct_dependency_is_in_the_lock() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11,<3.13"
    asked = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    names = {re.split(r"[\[<>=;! ]", item)[0].lower() for item in asked}
    locked = {line.split("==")[0] for line in (ROOT / "requirements.lock").read_text().splitlines()}
    assert names <= locked


def test_the_core_never_imports_the_extras() -> None:
    for path in (*ROOT.glob("tasks/**/*.py"), *ROOT.glob("flows/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None) or ""]
            assert not {name.split(".")[0] for name in names} & {"vllm", "deepspeed"}, path


def test_no_file_names_a_machine_or_an_index() -> None:
    # Built from parts, so that this file does not name what it forbids.
    forbidden = re.compile("|".join(["/" + "work/", "/" + "opt/(pypi|wheels)", "/" + "root/", "py" + r"pi\.org", "python" + "hosted"]))
    for path in _tracked():
        if path.suffix not in {".safetensors", ".png", ".parquet"}:
            found = forbidden.search(path.read_text(encoding="utf-8", errors="replace"))
            assert not found, f"{path.relative_to(ROOT)} names {found.group()}"


def test_ci_runs_make_test(tmp_path: Path) -> None:
    make = tmp_path / "make"
    make.write_text('#!/bin/sh\necho "$PWD $*"\n')
    make.chmod(0o755)
    done = subprocess.run(
        [ROOT / ".ci" / "run"],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [str(ROOT), "test"]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_help_lists_every_target() -> None:
    done = subprocess.run(["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony and [line.split()[0] for line in done.stdout.splitlines()] == phony.group(1).split()


def test_telemetry_is_off_by_import_and_by_make_alike() -> None:
    assert tasks.__file__
    clean = {name: value for name, value in os.environ.items() if name not in DEFAULTS}
    show = "import os, json, tasks; print(json.dumps(dict(os.environ)))"
    done = subprocess.run([sys.executable, "-c", show], cwd=ROOT, env=clean, capture_output=True, text=True, check=True)
    assert {name: yaml.safe_load(done.stdout)[name] for name in DEFAULTS} == DEFAULTS
    exported = dict(re.findall(r"^export (\w+) \?= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert exported == DEFAULTS


def test_a_variable_that_the_user_set_stays() -> None:
    show = "import os, flows; print(os.environ['MLFLOW_TRACKING_URI'])"
    environment = {**os.environ, "MLFLOW_TRACKING_URI": "http://tracking.example:5000"}
    done = subprocess.run([sys.executable, "-c", show], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "http://tracking.example:5000"


def test_prefect_keeps_to_the_repository() -> None:
    show = (
        "from prefect.settings import get_current_settings; s = get_current_settings(); "
        "print(s.home, s.results.default_serializer, s.server.analytics_enabled, "
        "s.server.ephemeral.startup_timeout_seconds)"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    done = subprocess.run([sys.executable, "-c", show], cwd=ROOT, env=clean, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [".prefect", "json", "False", "120"]


@pytest.mark.parametrize("page", ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))])
def test_links_between_pages_resolve_and_nothing_is_left_to_fill_in(page):
    text = (ROOT / page).read_text()
    assert not re.findall(r"@[A-Z]+@", text)
    links = [link for link in re.findall(r"\]\(([^)#\s]+)\)", text) if "://" not in link]
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 250
