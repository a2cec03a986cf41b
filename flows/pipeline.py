"""The pipeline: every stage of dvc.yaml in its order, two at a time, as one Prefect flow.

    python -m flows.pipeline [stage ...]

With stages named, they and what they need. Where nothing has changed it says so without starting a server.
"""

from __future__ import annotations

import os
import sys
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException
from dvc.repo import Repo
from prefect import flow
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.stage import stage, stop_stages

GRAPH = "dvc.yaml"  # what runs where nothing is named; the ablations have a file of their own
REPORT = Path("reports/report.html")
CONCURRENCY = 2  # the embedded stages use one or two cores each


def dependencies(targets: list[str] | None = None) -> dict[str, set[str]]:
    """The stages of dvc.yaml, each with the stages that it needs; where targets are named, only they and their needs.

    Raises:
        DvcException: a target that is no stage and no pipeline file, or a pipeline file that cannot be read.
    """
    with Repo() as repo:
        graph = repo.index.graph
        wanted = {found for name in targets or [GRAPH] for found in repo.stage.collect(name, with_deps=True)}
        return {node.addressing: {need.addressing for need in graph.successors(node)} for node in graph if node in wanted}


def up_to_date(targets: list[str] | None = None) -> bool:
    """Whether `dvc repro` would have nothing to do."""
    with Repo() as repo:
        return not repo.status(targets=targets or [GRAPH], with_deps=True)


@flow(name="pipeline", task_runner=ThreadPoolTaskRunner(max_workers=CONCURRENCY))
def pipeline(targets: list[str] | None = None) -> Any:
    """Brings the stages up to date; a stage waits for what it needs, and does not run if that failed.

    Args:
        targets: stages of dvc.yaml to bring up to date, with all that they need; every stage if not given.
    """
    needs = dependencies(targets)
    futures: dict[str, Any] = {}
    try:
        # Level by level: a stage that waits holds one of the two workers, so the first to be ready must come first.
        for name in TopologicalSorter(needs).static_order():
            futures[name] = stage.submit(name, wait_for=[futures[need] for need in needs[name]])
        for future in futures.values():
            future.wait()
    finally:
        stop_stages()
    states = {name: future.state for name, future in futures.items()}
    failed = [state.message for state in states.values() if state.is_failed()]
    if failed:
        return Failed(message="\n\n".join(failed))
    if any(not state.is_completed() for state in states.values()):
        return Failed(message=f"not finished: {', '.join(n for n, s in states.items() if not s.is_completed())}")
    return Completed(message=", ".join(f"{name} {state.name.lower()}" for name, state in states.items()))


def main(targets: list[str]) -> int:
    """The command; returns its exit code."""
    try:
        if not os.environ.get("PREFECT_API_URL") and up_to_date(targets or None):
            print("all stages are up to date")
        else:
            state = pipeline(targets or None, return_state=True)
            if not state.is_completed():
                print(f"\nerror: {state.message}", file=sys.stderr)
                return 1
            print(state.message)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on where this one was", file=sys.stderr)
        return 130
    except DvcException as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if REPORT.exists():
        print(f"Report: {REPORT}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
