"""Tracks a stage in MLflow without ever failing or holding up the stage.

A stage only appends lines to a journal in its state folder; a process of its own (delivery.py) reads them and talks to
MLflow. So a slow, unreachable or broken store costs a warning, a killed stage goes on in the same MLflow run, and what
could not be sent waits in `<state>/unsent.jsonl` for

    python -m tasks.monitoring.tracking resend

The store is MLFLOW_TRACKING_URI: by default SQLite in .mlflow/, a server where the variable names one. A finished stage
leaves its cost in reports/costs/<stage>.json: wall-clock, so no output of DVC's and part of no hash.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import records
from tasks.monitoring import delivery

COSTS = Path("reports/costs")
# Stages that leave .runs or the reports behind must not make the code look edited.
CODE = [".", ":!dvc.lock", ":!reports"]


class Run:
    """One tracked execution of a stage; made by `run`."""

    def __init__(self, state: Path) -> None:
        self._journal = state / delivery.JOURNAL
        self._logged: set[tuple[int, str]] = set()
        self._writable = True
        self._began, self._before, self._resumed = time.monotonic(), 0.0, 0

    def metrics(self, step: int, values: Mapping[str, float | int | None]) -> None:
        """Records values of one step; None is left out, and so is what this run holds of that step already."""
        fresh = {name: float(value) for name, value in values.items() if value is not None and (step, name) not in self._logged}
        if fresh:
            self._logged.update((step, name) for name in fresh)
            self._append("metrics", step=step, values=fresh)

    def artifact(self, path: Path | str) -> None:
        """Keeps a copy of a file or folder (plot, table) with the run."""
        self._append("artifact", path=str(path))

    def checkpoint(self, path: Path | str) -> None:
        """Points to a model folder that DVC keeps: its path and DVC's hash of its content. No bytes are copied."""
        self._append("checkpoint", path=str(path), md5=content_hash(Path(path)))

    def seconds(self) -> float:
        """Seconds of work so far, those of killed executions that this one continues included."""
        return self._before + time.monotonic() - self._began

    def _goes_on_from(self, before: list[dict[str, Any]], state: Path) -> None:
        """Takes over what a killed execution has recorded: which metrics, and how long it worked."""
        last = before[-1]
        self._logged = {(r["step"], name) for r in before if r["kind"] == "metrics" for name in r["values"]}
        self._before = last.get("seconds", 0.0) + _saved_after(state, last["time"] / 1000)
        self._resumed = 1 + sum(r["kind"] == "resume" for r in before)

    def _append(self, kind: str, **fields: Any) -> None:
        if not self._writable:
            return
        line = json.dumps({"kind": kind, "time": int(time.time() * 1000), "seconds": self.seconds(), **fields}) + "\n"
        try:
            with self._journal.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            self._writable = False
            print(
                f"warning: {self._journal} cannot be written ({error}); tracking of this run stops here",
                file=sys.stderr,
            )


@contextmanager
def run(stage: str, params: Mapping[str, Any], inputs: Mapping[str, Path | str], state: Path) -> Iterator[Run]:
    """Tracks the body as one MLflow run, marked FAILED where the body raises.

    Args:
        stage: the stage's name, which names the run.
        params: nested parameters; recorded flat, as `zero.steps`.
        inputs: datasets and models by name: a path, whose content is hashed, or a hash that the stage has already.
        state: the stage's resumable folder. A run that did not finish there goes on if parameters and inputs agree.
    """
    start = {
        "stage": stage,
        "params": flatten(params),
        "inputs": _digests(inputs),
        "tags": {"stage": stage, **_tags(commit())},
    }
    tracked, sender = _open(state, start), _start_sender(state)
    status = "FAILED"
    try:
        yield tracked
        status = "FINISHED"
        _write_cost(stage, tracked)
    finally:
        # BaseException too: a stage that was stopped by a signal or by Ctrl-C did not finish.
        tracked._append("end", status=status)
        _stop_sender(sender, state)


def _open(state: Path, start: dict[str, Any]) -> Run:
    tracked = Run(state)
    try:
        state.mkdir(parents=True, exist_ok=True)
        before = delivery.read_journal(state)
        if before and _goes_on(before, start):
            tracked._goes_on_from(before, state)
            _drop_torn_line(state / delivery.JOURNAL)
            tracked._append("resume")
        else:
            delivery.set_aside(state)
            tracked._append("start", **start)
    except OSError as error:
        tracked._writable = False
        print(f"warning: {state} cannot be written ({error}); this run is not tracked", file=sys.stderr)
    return tracked


def _goes_on(before: list[dict[str, Any]], start: dict[str, Any]) -> bool:
    first, last = before[0], before[-1]
    finished = last["kind"] == "end" and last["status"] == "FINISHED"
    return not finished and all(first.get(key) == start[key] for key in ("stage", "params", "inputs"))


def _saved_after(state: Path, moment: float) -> float:
    """Seconds from a moment to the last checkpoint in the state folder: a stage records nothing while it samples, but saves its work."""
    own = ("unsent", ".sender")  # the journal and its sender, who may outlive the stage
    saved = [path.stat().st_mtime for path in state.rglob("*") if path.is_file() and not path.name.startswith(own)]
    return max(max(saved, default=moment) - moment, 0.0)


def _write_cost(stage: str, tracked: Run) -> None:
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    cost = {"stage": stage, "seconds": round(tracked.seconds(), 1), "resumed": tracked._resumed, "machine": machine}
    path = COSTS / f"{stage}.json"
    try:
        with records.atomic(path) as temporary:
            temporary.write_text(json.dumps(cost, indent=2) + "\n")
    except OSError as error:
        print(f"warning: {path} cannot be written ({error}); the report's cost ledger lacks this stage", file=sys.stderr)


def _drop_torn_line(journal: Path) -> None:
    """Removes the half line that a kill in the middle of a write may leave."""
    content = journal.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with journal.open("r+b") as file:
            file.truncate(whole)


def _start_sender(state: Path) -> subprocess.Popen[bytes] | None:
    """A process, not a thread: stages fork workers, and a hung store can then be killed."""
    command = [sys.executable, "-W", "ignore", "-m", "tasks.monitoring.delivery", str(state.resolve())]
    try:
        return subprocess.Popen(command, stdin=subprocess.PIPE, env=delivery.environment())
    except OSError as error:
        print(f"warning: the MLflow sender does not start ({error}); {delivery.remedy(state)}", file=sys.stderr)
        return None


def _stop_sender(sender: subprocess.Popen[bytes] | None, state: Path) -> None:
    if sender is None:
        return
    try:
        # A line, not only the end of the pipe: forked workers may still hold the pipe open.
        sender.communicate(b"end\n", timeout=delivery.DEADLINE + 15)
    except (subprocess.TimeoutExpired, OSError):
        sender.kill()
        sender.wait()
    if sender.returncode not in (0, delivery.UNSENT):
        print(
            f"warning: the MLflow sender stopped (exit code {sender.returncode}); {delivery.remedy(state)}",
            file=sys.stderr,
        )


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested parameters as MLflow takes them: {"zero": {"clip": [0.2, 0.3]}} -> {"zero.clip": "[0.2, 0.3]"}."""
    flat: dict[str, str] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat


def content_hash(path: Path) -> str:
    """DVC's hash of a file or folder, as in dvc.lock; "missing" where there is none."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    if not path.is_dir():
        return "missing"
    files = sorted(p for p in path.rglob("*") if p.is_file())
    entries = [{"md5": content_hash(file), "relpath": file.relative_to(path).as_posix()} for file in files]
    listing = json.dumps(sorted(entries, key=lambda entry: entry["relpath"]))
    return hashlib.md5(listing.encode()).hexdigest() + ".dir"


def _digests(inputs: Mapping[str, Path | str]) -> dict[str, str]:
    return {name: content_hash(value) if isinstance(value, Path) else value for name, value in inputs.items()}


@dataclass(frozen=True)
class Commit:
    """The code's version: the commit, None outside git, and whether files that decide a result differ from it."""

    name: str | None
    dirty: bool


def commit(root: Path = Path()) -> Commit:
    """The version of the code in a folder."""
    name = _git(root, "rev-parse", "HEAD")
    return Commit(name, bool(name and _git(root, "status", "--porcelain", "--", *CODE)))


def _tags(code: Commit) -> dict[str, str]:
    """Prefect and DVC hide the main file from MLflow, so it would not find the commit by itself."""
    if code.name is None:
        return {"git.commit": "none", "git.dirty": "unknown"}
    return {"git.commit": code.name, "git.dirty": str(code.dirty).lower(), "mlflow.source.git.commit": code.name}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def resend(folder: Path = Path(".runs")) -> int:
    """Sends every journal under the folder that is not wholly delivered; returns the number of records that remain."""
    delivery.quiet()
    remaining = 0
    for journal in sorted(folder.rglob(delivery.JOURNAL_PATTERN)):
        waiting = delivery.unsent(journal)
        if not waiting:
            continue
        try:
            delivery.deliver(journal)
            print(f"{journal}: {waiting} records sent to {delivery.uri()}")
        except Exception as error:  # MLflow raises whatever its stores raise
            remaining += delivery.unsent(journal)
            print(delivery.warning(journal, error), file=sys.stderr)
    return remaining


def main(arguments: list[str]) -> int:
    """`resend [folder]`: exit code 0 when nothing remains unsent."""
    if arguments[:1] != ["resend"] or len(arguments) > 2:
        print("usage: python -m tasks.monitoring.tracking resend [folder, by default .runs]", file=sys.stderr)
        return 2
    remaining = resend(Path(arguments[1]) if len(arguments) == 2 else Path(".runs"))
    print("all records are sent" if remaining == 0 else f"{remaining} records remain unsent")
    return min(remaining, 1)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
