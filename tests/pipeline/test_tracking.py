"""Tracking: what a stage records arrives, once, in a real store; no store, however broken, fails or delays a stage."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dvc.repo import Repo

from tasks.monitoring import delivery, tracking

ROOT = Path(__file__).resolve().parents[2]
HANGING_STAGE = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tasks.monitoring import tracking
inputs = {"data/train.txt": Path("data/train.txt"), "models/base": Path("data")}
with tracking.run("zero", {"zero": {"clip": [0.2, 0.3]}}, inputs, Path("state")) as run:
    for step in range(3):
        run.metrics(step, {"reward": step / 10})
    Path("ready").touch()
    time.sleep(600)
"""
EMBEDDED = "sqlite:///.mlflow/mlflow.db"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", EMBEDDED)
    Path("data").mkdir()
    Path("data/train.txt").write_text("1 + 1")
    return tmp_path


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database: making one takes 6 s, copying it nothing."""
    import mlflow.store.db.utils as utils

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    engine = utils.create_sqlalchemy_engine_with_retry(f"sqlite:///{path}")
    utils._initialize_tables(engine)
    engine.dispose()
    return path


@pytest.fixture
def database(folder: Path, empty_database: Path) -> Path:
    Path(".mlflow").mkdir()
    Path(".mlflow/mlflow.db").write_bytes(empty_database.read_bytes())
    return folder / ".mlflow/mlflow.db"


@pytest.fixture
def inline(database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Delivers in this process at the end of the stage; spares the sender's start (4 s) where it is not the matter."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    monkeypatch.setattr(tracking, "_start_sender", lambda state: None)
    monkeypatch.setattr(tracking, "_stop_sender", lambda sender, state: delivery.deliver(state / delivery.JOURNAL))
    return database


def _rows(database: Path, query: str) -> list[tuple]:
    with sqlite3.connect(database) as connection:
        return connection.execute(query).fetchall()


def _stage(steps: range = range(5), params: dict | None = None, error: BaseException | None = None) -> None:
    inputs = {"data/train.txt": Path("data/train.txt"), "models/base": Path("data")}
    with tracking.run("zero", params or {"zero": {"clip": [0.2, 0.3]}}, inputs, Path("state")) as run:
        for step in steps:
            run.metrics(step, {"reward": step / 10, "pass@1": None if step else 0.5})
        Path("plot.txt").write_text("a curve")
        run.artifact("plot.txt")
        run.checkpoint(Path("data"))
        if error:
            raise error


def test_parameters_metrics_hashes_and_the_pointer_arrive(database: Path) -> None:
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=e@x", "commit", "-q", "--allow-empty", "-m", "one"], check=True)
    _stage()
    assert _rows(database, "select key, step, value from metrics order by key, step") == [
        ("pass_at_1", 0, 0.5),
        *[("reward", step, step / 10) for step in range(5)],
    ]
    assert _rows(database, "select key, value from params") == [("zero.clip", "[0.2, 0.3]")]
    assert _rows(database, "select name, status from runs") == [("zero", "FINISHED")]
    tags = dict(_rows(database, "select key, value from tags"))
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert tags["git.commit"] == head and tags["git.dirty"] == "true" and tags["dvc.path"] == "data"
    digests = dict(_rows(database, "select name, digest from datasets"))
    assert digests == {"data/train.txt": tracking.content_hash(Path("data/train.txt")), "models/base": tags["dvc.md5"]}
    assert _rows(database, "select name from logged_models") == [("data",)]
    assert [file.read_text() for file in Path(".mlflow/artifacts").rglob("plot.txt")] == ["a curve"]
    assert not Path("state/unsent.jsonl").exists() and not Path("mlruns").exists()


def test_the_hash_is_dvcs(folder: Path) -> None:
    Path("data/b").mkdir()
    Path("data/b/x.txt").write_text("x")
    Path("data/b.txt").write_text("y")
    repo = Repo.init(no_scm=True)
    [stage] = repo.add("data")
    assert tracking.content_hash(Path("data")) == stage.outs[0].hash_info.value


def test_a_killed_stage_goes_on_in_the_same_run_and_nothing_is_double(database: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HANGING_STAGE, str(ROOT)])
    _wait(lambda: bool(Path("ready").exists() and _rows(database, "select 1 from metrics")), "the first metrics")
    process.kill()
    process.wait()
    with Path("state/unsent.jsonl").open("a") as journal:
        journal.write('{"kind": "metr')  # the kill hit a write
    _stage(range(1, 5))  # continues from a checkpoint before the kill
    assert _rows(database, "select step, value from metrics where key = 'reward' order by step") == [(s, s / 10) for s in range(5)]
    assert _rows(database, "select status from runs") == [("FINISHED",)]
    assert json.loads(Path("reports/costs/zero.json").read_text())["resumed"] == 1


def test_a_finished_run_is_not_continued_nor_one_with_other_parameters(inline: Path) -> None:
    _stage(range(2))
    with pytest.raises(ValueError):
        _stage(range(2), error=ValueError("stop"))
    _stage(range(2), params={"other": 1})
    assert _rows(inline, "select status from runs order by start_time") == [("FINISHED",), ("FAILED",), ("FINISHED",)]


def test_an_error_and_a_signal_mark_the_run_failed_and_the_next_start_continues_it(inline: Path) -> None:
    with pytest.raises(SystemExit):
        _stage(range(2), error=SystemExit(143))
    assert _rows(inline, "select status from runs") == [("FAILED",)]
    _stage(range(4))
    assert _rows(inline, "select status from runs") == [("FINISHED",)]
    assert len(_rows(inline, "select 1 from metrics where key = 'reward'")) == 4


def _wait(condition: Callable[[], bool], what: str, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except (OSError, sqlite3.Error):
            pass
        time.sleep(0.1)
    raise AssertionError(f"{what} did not come within {seconds} s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def serve(database: Path) -> Iterator[Callable[[int], None]]:
    """Starts a real MLflow server on a port of the loopback interface."""
    started: list[subprocess.Popen[bytes]] = []

    def start(port: int) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", EMBEDDED, "--workers", "1"]
        command += [
            "--artifacts-destination",
            str(database.parent / "served"),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        started.append(subprocess.Popen(command, env=environment, start_new_session=True, **quiet))  # type: ignore[call-overload]
        _wait(lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).status == 200, "the server")

    yield start
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_an_unreachable_server_gets_one_warning_and_a_later_resend_delivers_all(
    database: Path, serve: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    port = _free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{port}")
    began = time.monotonic()
    _stage()
    assert time.monotonic() - began < 40
    error = capfd.readouterr().err
    assert error.count("warning:") == 1
    assert f"http://user:***@127.0.0.1:{port}" in error and "secret" not in error
    assert "MLFLOW_TRACKING_URI" in error and "tasks.monitoring.tracking resend" in error
    assert delivery.unsent(Path("state/unsent.jsonl")) == 9  # start, 5 steps, artifact, checkpoint, end
    _stage(range(2), params={"second": 1})  # a new run does not overwrite what waits
    assert len(list(Path("state").glob("unsent*.jsonl"))) == 2

    resend = [sys.executable, "-m", "tasks.monitoring.tracking", "resend", "state"]
    assert subprocess.run(resend, env=delivery.environment(), stderr=subprocess.DEVNULL).returncode == 1  # still down: nothing is lost
    serve(port)
    done = subprocess.run(resend, env=delivery.environment(), capture_output=True, text=True)
    assert done.returncode == 0 and "all records are sent" in done.stdout, done.stdout + done.stderr
    assert sorted(_rows(database, "select name, status from runs")) == [("zero", "FINISHED")] * 2
    steps = _rows(database, "select r.step, r.value from metrics r where key = 'reward' order by step, value")
    assert steps == [(0, 0.0), (0, 0.0), (1, 0.1), (1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]
    assert list((database.parent / "served").rglob("plot.txt"))
    assert not list(Path("state").glob("unsent*.jsonl"))


def test_a_store_that_hangs_is_given_up_at_the_deadline(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as silent:  # accepts connections, never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
        began = time.monotonic()
        _stage()
        assert time.monotonic() - began < 30
    assert capfd.readouterr().err.count("warning:") == 1
    assert delivery.unsent(Path("state/unsent.jsonl")) == 9


def test_a_full_disk_stops_tracking_but_not_the_stage(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("state").mkdir()
    Path("state/unsent.jsonl").symlink_to("/dev/full")
    monkeypatch.setattr(delivery, "read_journal", lambda state: [])
    monkeypatch.setattr(delivery, "set_aside", lambda state: None)
    monkeypatch.setattr(tracking, "_start_sender", lambda state: None)
    _stage()
    error = capfd.readouterr().err
    assert error.count("warning:") == 1 and "No space left" in error


def test_a_run_deleted_from_the_store_is_sent_again_whole(inline: Path) -> None:
    with pytest.raises(ValueError):
        _stage(range(2), error=ValueError("stop"))
    progress = Path("state/unsent.sent.json")
    progress.write_text(json.dumps({**json.loads(progress.read_text()), "run_id": "0" * 32}))
    _stage(range(4))
    assert ("FINISHED",) in _rows(inline, "select status from runs")
    [[run]] = _rows(inline, "select run_uuid from runs where status = 'FINISHED'")
    assert len(_rows(inline, f"select 1 from metrics where key = 'reward' and run_uuid = '{run}'")) == 4


def test_parameters_are_flat_and_metrics_are_batched() -> None:
    assert tracking.flatten({"a": {"b": {"c": 1}, "d": None}, "e": "x"}) == {"a.b.c": "1", "a.d": "null", "e": "x"}
    records: list[tuple[dict, int]] = [
        ({"kind": "start"}, 1),
        *[({"kind": "metrics", "values": dict.fromkeys("abc", 0.0)}, 1)] * 400,
        ({"kind": "end"}, 1),
    ]
    batches = list(delivery._batches(records))
    assert [record for batch in batches for record in batch] == records
    assert {record["kind"] for record, _ in batches[0]} == {"start"} and {record["kind"] for record, _ in batches[-1]} == {"end"}
    assert all(sum(len(record.get("values", ())) for record, _ in batch) <= delivery.BATCH for batch in batches)
    assert len(batches) == 5
