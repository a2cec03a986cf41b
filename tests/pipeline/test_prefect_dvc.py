"""Prefect and DVC run the same graph: what one has done, the other has not to do again; failures tell their reason.

The repository under test is a copy with the real dvc.yaml, parameters and settings, and a stub in the place of a stage.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dvc.repo import Repo
from prefect.testing.utilities import prefect_test_harness

from flows import pipeline as flow
from flows.stage import StageError, _explain, repro_stage

ROOT = Path(__file__).resolve().parents[2]
STUDENTS = ("small", "tiny")
ARMS = tuple(f"{arm}_{student}" for arm in ("student", "distill", "rl") for student in STUDENTS)
MODELS = ("base", "zero", "zero_no_reflection", "dev1", "dev2", "dev3", "r1", *ARMS)
RECIPE = ["curate", "zero", "cold_start", "dev1", "dev2", "rejection", "dev3", "reward_models", "r1"]
STAGES = {*RECIPE, *(f"evaluate@{model}" for model in MODELS), "compare", "report"}
STAGES |= {f"{stage}@{student}" for stage in ("distill", "distill_rl") for student in STUDENTS}
PART = ["evaluate@base", "evaluate@zero"]  # four stages, where the whole graph would show no more

STUB = '''
"""Writes the outputs of one stage, as dvc.yaml lists them, and notes that it ran."""
import json, subprocess, sys, time
from pathlib import Path

name = "@".join([__spec__.name.split(".")[1], *sys.argv[1:]])
with open("ran.log", "a") as log:
    log.write(name + "\\n")
trouble = Path("trouble.json")
found = json.loads(trouble.read_text()) if trouble.exists() else {}
if found.get("stage") == name:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path("child.pid").write_text(str(child.pid))
    if found["kind"] == "fail":
        print("  12%|#2        | 1/8", end="\\r", file=sys.stderr)
        print("Traceback (most recent call last):", file=sys.stderr)
        print("ValueError: loss is nan at step 2: lower zero.learning_rate", file=sys.stderr)
        raise SystemExit(1)
    time.sleep(600)
for path in map(Path, json.loads(Path("outs.json").read_text())[name]):
    file = path if path.suffix else path / "part.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(name + Path("params.yaml").read_text())
'''


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    """One Prefect server for all tests of this file (13 s)."""
    with prefect_test_harness(server_startup_timeout=120):
        yield


def _dvc(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], env=_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def _ran() -> list[str]:
    return Path("ran.log").read_text().split() if Path("ran.log").exists() else []


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("dvc.yaml", "ablations/dvc.yaml", "params.yaml", ".dvc/config", ".dvcignore", ".gitignore"):
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    subprocess.run(["git", "init", "-q"], check=True)
    outs: dict[str, list[str]] = {}
    with Repo() as repo:
        made = {out.def_path for stage in repo.index.stages for out in stage.outs}
        for stage in repo.index.stages:
            outs[stage.addressing] = [out.def_path for out in stage.outs]
            for dep in stage.deps:
                if dep.protocol == "local" and dep.def_path not in made and dep.def_path != "params.yaml":
                    _touch(Path(dep.def_path))
    Path("outs.json").write_text(json.dumps(outs))
    for name in {stage.split(":")[-1].split("@")[0] for stage in outs}:
        Path("tasks", f"{name}.py").write_text(STUB)
    return tmp_path


def _touch(path: Path) -> None:
    file = path if path.suffix else path / "part.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()


def test_dvc_has_nothing_to_do_after_prefect(repository: Path, server: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert flow.main([]) == 0
    ran = _ran()
    assert sorted(ran) == sorted(STAGES)
    assert [name for name in ran if name in RECIPE] == RECIPE and ran[-1] == "report" and ran.index("evaluate@dev3") < ran.index("compare")
    assert "Report: reports/report.html" in capsys.readouterr().out
    assert "Data and pipelines are up to date" in _dvc("repro")
    assert _ran() == ran

    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("examples:", "examples:  "))
    assert flow.main([]) == 0  # a change of spelling is none of meaning
    assert "all stages are up to date" in capsys.readouterr().out
    assert _ran() == ran


def test_prefect_has_nothing_to_do_after_dvc(repository: Path, server: None) -> None:
    _dvc("repro", *PART)
    ran = _ran()
    assert sorted(ran) == sorted(["curate", "zero", *PART])
    assert flow.up_to_date(PART)
    state = flow.pipeline(PART, return_state=True)  # the flow itself, as a server would start it
    assert state.is_completed()
    assert state.message.count("cached") == 4
    assert _ran() == ran

    Path("data/samples/zero.parquet").unlink()
    assert not flow.up_to_date(PART)
    state = flow.pipeline(PART, return_state=True)
    assert state.is_completed() and Path("data/samples/zero.parquet").exists()


def test_a_target_runs_with_what_it_needs_and_nothing_else(repository: Path, server: None) -> None:
    assert flow.main(["evaluate@base"]) == 0
    assert _ran() == ["curate", "evaluate@base"]
    assert flow.up_to_date(["evaluate@base"]) and not flow.up_to_date()


def test_the_base_is_evaluated_without_zero(repository: Path) -> None:
    needs = flow.dependencies()
    assert set(needs) == STAGES
    assert needs["evaluate@base"] == {"curate"}
    assert needs["evaluate@zero_no_reflection"] == {"curate", "zero"}
    assert needs["dev3"] == {"rejection"} and needs["r1"] == {"curate", "dev3", "reward_models"}
    assert needs["report"] == STAGES - {"report"}


def test_the_ablations_are_left_out_unless_they_are_named(repository: Path) -> None:
    assert not [name for name in flow.dependencies() if "ablations" in name]
    needs = flow.dependencies(["ablations/dvc.yaml"])
    named = {name.split(":")[1]: need for name, need in needs.items() if ":" in name}
    assert named["ablate@ppo_lambda_1"] == {"curate"} and named["ablate@clip_02"] == {"curate", "dev1"}
    assert named["repeat@language_on"] == {"ablations/dvc.yaml:ablate@clip_10"}
    assert set(needs) - {name for name in needs if ":" in name} == {"curate", "zero", "cold_start", "dev1"}


def test_an_unknown_target_is_named(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert flow.main(["evaluat"]) == 1
    assert "'evaluat'" in capsys.readouterr().err


def test_a_failure_tells_the_stages_own_reason_and_leaves_no_child(
    repository: Path, server: None, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("trouble.json").write_text(json.dumps({"stage": "zero", "kind": "fail"}))
    assert flow.main(PART) == 1
    error = capsys.readouterr().err.split("\nerror: ")[-1]
    assert error.splitlines()[0] == "zero: ValueError: loss is nan at step 2: lower zero.learning_rate"
    assert "evaluate@zero" not in _ran()
    assert "evaluate@base" in _ran()  # what does not need the failed stage is finished and kept
    assert _gone(int(Path("child.pid").read_text()))

    Path("trouble.json").unlink()
    assert flow.main(PART) == 0
    assert _ran().count("curate") == 1 and _ran().count("evaluate@base") == 1


def test_stopping_the_pipeline_stops_its_stages(repository: Path) -> None:
    Path("trouble.json").write_text(json.dumps({"stage": "curate", "kind": "hang"}))
    code = "import sys; sys.path.insert(0, sys.argv[1]); from flows.stage import repro_stage; repro_stage('curate', print)"
    process = subprocess.Popen([sys.executable, "-c", code, str(ROOT)], env=_environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not Path("child.pid").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) != 0
    assert _gone(int(Path("child.pid").read_text()))


def _gone(pid: int) -> bool:
    """Whether the process has ended; one that nobody has collected yet counts."""
    for _ in range(100):
        stat = Path(f"/proc/{pid}/stat")
        try:
            if stat.read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_a_missing_input_is_reported_in_dvcs_words(repository: Path) -> None:
    Path("tasks/config.py").unlink()
    with pytest.raises(StageError, match=r"^curate: ERROR: failed to reproduce 'curate': .*tasks/config\.py"):
        repro_stage("curate", print)


def test_the_reason_is_the_last_error_line() -> None:
    lines = [
        "Running stage 'zero':",
        "KeyError: 'x'",
        "error: models/base lacks config.json",
        "ERROR: failed to reproduce 'zero': exited with 2",
    ]
    assert _explain("zero", 255, lines).startswith("zero: error: models/base lacks config.json\n")
    assert _explain("zero", 255, [lines[0], lines[3]]).startswith("zero: ERROR: failed to reproduce")
    assert _explain("zero", -15, lines[:1]).startswith("zero: stopped by signal 15\n")
