"""Carries a tracking journal to MLflow: `python -m tasks.monitoring.delivery <state folder>`, started by tracking.run.

The journal (`unsent.jsonl`) holds every record of a run in order, `unsent.sent.json` beside it how far MLflow has them,
and under which run id. Records go in order and keep their time stamps, so sending a metric twice changes nothing. A
journal whose run finished and arrived whole is removed; one that went to a store other than MLFLOW_TRACKING_URI, or
whose run was deleted there, is sent again from its first record.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

JOURNAL = "unsent.jsonl"
JOURNAL_PATTERN = "unsent*.jsonl"
ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = "second-thought"

FLUSH_SECONDS = 3.0  # between two looks at the journal; one batch costs 20-60 ms
RETRY_SECONDS = 30.0  # after a failure
DEADLINE = 25  # seconds that the end of a stage may wait for the store
UNSENT = 3  # exit code: records remain, and the warning has been given
BATCH = 500  # metric values a request; MLflow takes 1,000 and 1 MB

# MLflow's own defaults wait for minutes. What is not sent stays in the journal, so giving up early loses nothing.
REQUESTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def uri() -> str:
    """The store's address, without a password."""
    value = os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///.mlflow/mlflow.db")
    password = urlsplit(value).password
    return value.replace(f":{password}@", ":***@") if password else value


def environment() -> dict[str, str]:
    """The sender's environment: it imports this repository from any working directory."""
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
    return {**os.environ, "PYTHONPATH": path}


def remedy(state: Path) -> str:
    """What to do about records that stay behind."""
    return (
        f"the stage goes on and its records stay in {state / JOURNAL}. Start the server or correct "
        f"MLFLOW_TRACKING_URI, then run: python -m tasks.monitoring.tracking resend"
    )


def warning(journal: Path, error: BaseException) -> str:
    """One line that names the store, the reason and the remedy."""
    cause = error
    while cause.__cause__ or cause.__context__:  # "Connection refused" says more than the four layers around it
        cause = cause.__cause__ or cause.__context__ or cause
    reason = " ".join(str(cause).split())[:200]
    refusal = f"MLflow at {uri()} did not take the records ({type(cause).__name__}: {reason})"
    return f"warning: {refusal}; {remedy(journal.parent)}"


def read_journal(state: Path) -> list[dict[str, Any]]:
    """All whole records of the state folder's journal; an empty list without one."""
    journal = state / JOURNAL
    if not journal.exists():
        return []
    return [json.loads(line) for line in _lines(journal, 0)]


def unsent(journal: Path) -> int:
    """Number of records that the store named by MLFLOW_TRACKING_URI, or the one they went to, does not have."""
    return len(_lines(journal, _progress(journal)["sent"])) if journal.exists() else 0


def set_aside(state: Path) -> None:
    """Makes room for a new run: a delivered journal is removed, another keeps waiting under a name of its own."""
    journal = state / JOURNAL
    if not journal.exists():
        return
    if unsent(journal) == 0:
        journal.unlink()
        _progress_path(journal).unlink(missing_ok=True)
        return
    other = state / f"unsent-{time.time_ns()}.jsonl"
    journal.rename(other)
    with contextlib.suppress(FileNotFoundError):
        _progress_path(journal).rename(_progress_path(other))


def deliver(journal: Path) -> None:
    """Sends what MLflow does not have yet.

    Raises:
        Exception: whatever MLflow's stores raise; records up to the failed one are kept as sent.
    """
    if not journal.exists():
        return
    with _locked(journal):
        progress = _progress(journal)
        if progress["uri"] != uri():
            progress = {"uri": uri(), "run_id": None, "sent": 0}
        try:
            _send_all(journal, progress)
        except Exception as error:
            if progress["run_id"] is None or getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
                raise
            _send_all(journal, {"uri": uri(), "run_id": None, "sent": 0})


def _send_all(journal: Path, progress: dict[str, Any]) -> None:
    from mlflow.tracking import MlflowClient

    client, last = MlflowClient(), {"kind": ""}
    lines = _lines(journal, progress["sent"])
    records = [(json.loads(line), len(line)) for line in lines]
    for batch in _batches(records):
        _send(client, progress, [record for record, _ in batch])
        progress["sent"] += sum(size for _, size in batch)
        _write_progress(journal, progress)
        last = batch[-1][0]
    if last["kind"] == "end" and last["status"] == "FINISHED":
        journal.unlink()
        _progress_path(journal).unlink()


def _batches(records: list[tuple[dict[str, Any], int]]) -> Iterator[list[tuple[dict[str, Any], int]]]:
    """Consecutive metric records together, up to BATCH values; every other record alone."""
    batch: list[tuple[dict[str, Any], int]] = []
    values = 0
    for record, size in records:
        count = len(record["values"]) if record["kind"] == "metrics" else BATCH
        if batch and values + count > BATCH:
            yield batch
            batch, values = [], 0
        batch.append((record, size))
        values += count
    if batch:
        yield batch


def _send(client: Any, progress: dict[str, Any], records: list[dict[str, Any]]) -> None:
    record, run_id = records[0], progress["run_id"]
    match record["kind"]:
        case "start":
            _start(client, progress, record)
        case "resume":
            client.update_run(run_id, status="RUNNING")
        case "metrics":
            _metrics(client, run_id, records)
        case "artifact":
            _artifact(client, run_id, Path(record["path"]))
        case "checkpoint":
            _checkpoint(client, run_id, record)
        case "end":
            client.set_terminated(run_id, status=record["status"], end_time=record["time"])


def _start(client: Any, progress: dict[str, Any], record: dict[str, Any]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param

    if progress["run_id"] is None:
        experiment = _experiment(client)
        made = client.create_run(experiment, start_time=record["time"], tags=record["tags"], run_name=record["stage"])
        progress["run_id"] = made.info.run_id
    params = [Param(_name(key), value[:6000]) for key, value in record["params"].items()]
    for chunk in _chunks(params, 100):
        client.log_batch(progress["run_id"], params=chunk)
    datasets = [
        # 36 characters is all that MLflow keeps of a digest; DVC's folder hash is exactly that long.
        DatasetInput(Dataset(name, digest[:36], "local", json.dumps({"uri": name})), [InputTag("dvc.md5", digest)])
        for name, digest in record["inputs"].items()
    ]
    if datasets:
        _inputs(client, progress["run_id"], datasets)


def _inputs(client: Any, run_id: str, datasets: list[Any]) -> None:
    """Two stages that start on the same data at once may both try to insert it; the second attempt finds it there."""
    try:
        client.log_inputs(run_id, datasets)
    except Exception as error:
        if "UNIQUE constraint" not in str(error):
            raise
        client.log_inputs(run_id, datasets)


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    for i in range(0, len(items), size):
        yield items[i : i + size]


def _metrics(client: Any, run_id: str, records: list[dict[str, Any]]) -> None:
    from mlflow.entities import Metric

    values = [Metric(_name(key), value, record["time"], record["step"]) for record in records for key, value in record["values"].items()]
    for chunk in _chunks(values, BATCH):
        client.log_batch(run_id, metrics=chunk)


def _artifact(client: Any, run_id: str, path: Path) -> None:
    if path.is_dir():
        client.log_artifacts(run_id, str(path), artifact_path=path.name)
    elif path.exists():  # a later run may have replaced or removed it before a late delivery
        client.log_artifact(run_id, str(path))


def _checkpoint(client: Any, run_id: str, record: dict[str, Any]) -> None:
    """DVC owns the bytes; MLflow gets a logged model that points to them, which can be registered like any other."""
    import mlflow

    tags = {"dvc.path": record["path"], "dvc.md5": record["md5"]}
    run = client.get_run(run_id)
    mlflow.create_external_model(name=Path(record["path"]).name, source_run_id=run_id, tags=tags, experiment_id=run.info.experiment_id)
    for key, value in tags.items():
        client.set_tag(run_id, key, value)


def _experiment(client: Any) -> str:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    try:
        return client.create_experiment(name, artifact_location=_artifact_location())
    except Exception:
        # Another stage may have created it in between.
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return found.experiment_id


def _artifact_location() -> str | None:
    """Beside an embedded database; a server has a place of its own. MLflow's default would be ./mlruns."""
    store = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not store.startswith("sqlite:///"):
        return None
    return (Path(store.removeprefix("sqlite:///")).resolve().parent / "artifacts").as_uri()


def _name(key: str) -> str:
    """MLflow's alphabet for names has no "@": pass@1 becomes pass_at_1."""
    return re.sub(r"[^\w\-. :/]", "_", key.replace("@", "_at_"))


def _lines(journal: Path, offset: int) -> list[bytes]:
    """Whole lines from a byte offset on; a line that is still being written waits for the next look."""
    with journal.open("rb") as file:
        file.seek(offset)
        content = file.read()
    return content[: content.rfind(b"\n") + 1].splitlines(keepends=True)


def _progress_path(journal: Path) -> Path:
    return journal.with_suffix(".sent.json")


def _progress(journal: Path) -> dict[str, Any]:
    try:
        return json.loads(_progress_path(journal).read_text())
    except FileNotFoundError:
        return {"uri": uri(), "run_id": None, "sent": 0}


def _write_progress(journal: Path, progress: dict[str, Any]) -> None:
    path = _progress_path(journal)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(progress))
    temporary.replace(path)


@contextlib.contextmanager
def _locked(journal: Path) -> Iterator[None]:
    """One sender a journal: that of a killed stage may still be at work when the stage starts again."""
    with journal.parent.joinpath(".sender.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def quiet() -> None:
    """Short waits, and none of the notices of MLflow and its database migrations."""
    for name, value in REQUESTS.items():
        os.environ.setdefault(name, value)
    logging.disable(logging.WARNING)


def _out_of_time(signum: int, frame: Any) -> None:
    raise TimeoutError(f"no answer within {DEADLINE} s")


def _stage_ended(seconds: float) -> bool:
    """Waits for a line or the end of the pipe from the stage: it has finished, or was killed."""
    return bool(select.select([sys.stdin], [], [], seconds)[0])


def follow(journal: Path) -> int:
    """Sends the journal while the stage writes it; returns 0, or UNSENT if records remain."""
    # Ctrl-C and a stop of the flow reach the whole process group; the last records still have to go.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, _out_of_time)
    quiet()
    warned, failed, ended, pause = False, False, False, 0.0
    while not ended:
        ended = _stage_ended(pause)
        signal.alarm(DEADLINE if ended else 0)
        try:
            deliver(journal)
            failed, pause = False, FLUSH_SECONDS
        except Exception as error:
            failed, pause = True, RETRY_SECONDS
            if not warned:
                print(warning(journal, error), file=sys.stderr, flush=True)
            warned = True
    signal.alarm(0)
    return UNSENT if failed else 0


if __name__ == "__main__":
    raise SystemExit(follow(Path(sys.argv[1]) / JOURNAL))
