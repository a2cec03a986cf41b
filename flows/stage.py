"""One stage of dvc.yaml as a Prefect task: `dvc repro --single-item <stage>` in a process group of its own.

DVC decides whether the stage has to run; the task shows its lines as they come, names the state Executed or Cached,
and leaves no process behind, however it ends.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, Failed

PROGRESS_SECONDS = 30.0  # a progress bar reaches the log this often; a terminal sees all of it
GRACE_SECONDS = 10.0  # between asking a process group to end and killing it
TAIL = 20  # lines of a failed stage that its error repeats

# A traceback's last line, or the one line in which a command reports what the user can put right.
REASON = re.compile(r"^(error: |[\w.]*(Error|Exception|Exit|Interrupt)\b)")
DVC_VERDICT = re.compile(r"^ERROR: failed to reproduce ")
# DVC's advice after every stage, which would be half of the log.
ADVICE = re.compile(r"^(To track the changes with git|git add |To enable auto staging|dvc config core.autostage|Use `dvc push`)")

_groups: set[int] = set()


class StageError(Exception):
    """A stage that failed; the first line of the message is the stage's own reason."""


def repro_stage(name: str, log: Callable[[str], Any]) -> bool:
    """Brings one stage up to date; True if its command ran, False if DVC had the result already.

    Raises:
        StageError: the stage, or DVC itself, failed.
    """
    process = _start(name)
    lines: deque[str] = deque(maxlen=TAIL)
    executed = False
    try:
        for line in _log_lines(process, name, log):
            log(line)
            lines.append(line)
            executed |= line.startswith("Running stage ")
        process.wait()
    finally:
        _end_group(process)
    if process.returncode:
        raise StageError(_explain(name, process.returncode, list(lines)))
    return executed


def stop_stages() -> None:
    """Asks every stage of this process to end; for the thread that gets Ctrl-C or a cancellation."""
    for group in list(_groups):
        _signal_group(group, signal.SIGTERM)


def _start(name: str) -> subprocess.Popen[bytes]:
    # The commands in dvc.yaml say `python`: that must be this interpreter, also where the environment is not activated.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    # Two stages may run at once; DVC holds its lock only while it looks, so waiting for it is short.
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", name]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )
    _groups.add(process.pid)
    return process


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends what is left: nothing after a success, workers after a failure, the whole stage after a cancellation."""
    deadline = time.monotonic() + GRACE_SECONDS
    alive = _signal_group(process.pid, signal.SIGTERM)
    while alive and time.monotonic() < deadline:
        time.sleep(0.05)
        process.poll()
        alive = _signal_group(process.pid, 0)
    if alive:
        _signal_group(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout:
        process.stdout.close()
    _groups.discard(process.pid)


def _signal_group(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # macOS answers a group of zombies with the latter
        return False
    return True


def _log_lines(process: subprocess.Popen[bytes], name: str, log: Callable[[str], Any]) -> Iterator[str]:
    """Whole lines; the states of a progress bar (ended by a carriage return) go to the terminal, some to the log."""
    shown = time.monotonic()
    for text, progress in _split(process):
        if not progress:
            _terminal("")
            if not ADVICE.match(text):
                yield text
            continue
        _terminal(f"{name}: {text}")
        if time.monotonic() - shown > PROGRESS_SECONDS:
            shown = time.monotonic()
            log(text)


def _split(process: subprocess.Popen[bytes]) -> Iterator[tuple[str, bool]]:
    """(text, is a state of a progress bar) for each non-empty piece of the output."""
    rest = b""
    for chunk in _chunks(process):
        *pieces, rest = re.split(rb"(?<=[\r\n])", rest + chunk)
        for piece in pieces:
            text = piece.decode(errors="replace").strip()
            if text:
                yield text, piece.endswith(b"\r")
    if rest.strip():
        yield rest.decode(errors="replace").strip(), False


def _chunks(process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    """What the process writes until it has ended; a child that it leaves behind may hold the pipe open for ever."""
    assert process.stdout is not None
    while True:
        ended = process.poll() is not None
        if select.select([process.stdout], [], [], 0.0 if ended else 0.2)[0]:
            chunk = os.read(process.stdout.fileno(), 65536)
            if not chunk:
                return
            yield chunk
        elif ended:
            return


def _terminal(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K" + text[: shutil.get_terminal_size().columns - 1])
        sys.stderr.flush()


def _explain(name: str, code: int, lines: list[str]) -> str:
    own = [line for line in lines if not DVC_VERDICT.match(line)]
    verdict = [line for line in lines if DVC_VERDICT.match(line)]
    reasons = [line for line in own if REASON.match(line)]
    # A killed stage gives no reason, and a missing input is found before the stage starts: then DVC's verdict tells.
    killed = [f"stopped by signal {-code}"] if code < 0 else []
    first = (killed or reasons or verdict or own or [f"exit code {code}"])[-1]
    return "\n".join([f"{name}: {first}", f"The last lines of stage {name}:", *(f"  {line}" for line in lines)])


@task(name="stage", task_run_name="{name}", cache_policy=NO_CACHE)
def stage(name: str) -> Any:
    """Brings one stage of dvc.yaml up to date (its needs must be): Completed as Executed or Cached, or Failed."""
    logger = get_run_logger()
    try:
        executed = repro_stage(name, logger.info)
    except StageError as error:
        # Returned, not raised: the engine would bury the reason under thirty lines of its own traceback.
        return Failed(message=str(error))
    word = "Executed" if executed else "Cached"
    return Completed(name=word, message=f"{name}: {word.lower()}", data=word)
