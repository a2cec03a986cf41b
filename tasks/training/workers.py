"""One-thread worker processes that share the policy's weights.

Work is cut into jobs whose results do not depend on how many workers share them: a chunk of prompts has its own seeded generator,
and gradients are summed lane by lane in a fixed order. So the number of workers is a matter of speed alone, measured at start.
Two processes of one thread beat one process of two threads here, and do not collapse on a busy machine (docs/log.md).
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch

from tasks.errors import SecondThoughtError


class WorkerError(SecondThoughtError):
    """A worker process died or its job failed."""


def _serve(connection: Connection, state: Any, parent: int) -> None:
    torch.set_num_threads(1)
    while True:
        while not connection.poll(1.0):
            if os.getppid() != parent:  # the stage was killed: leave no orphan behind
                return
        try:
            method, arguments = connection.recv()
            if method is None:
                return
            connection.send((True, getattr(state, method)(*arguments)))
        except (EOFError, OSError, KeyboardInterrupt):
            return
        except Exception as error:
            connection.send((False, (f"{type(error).__name__}: {error}", traceback.format_exc())))


class Workers:
    """`count` forked processes around one `state`, whose methods they run; with `count` 0 the jobs run here.

    Tensors that workers must see changing (weights) or fill (gradients) have to be in shared memory before this is made.
    """

    def __init__(self, state: Any, count: int) -> None:
        self.state = state
        self._made: list[tuple[Any, Connection]] = []
        context = get_context("fork")  # the weights are inherited; nothing here has started threads yet
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, state, os.getpid()), daemon=True)
            process.start()
            theirs.close()
            self._made.append((process, ours))

    def __len__(self) -> int:
        return len(self._made)

    def map(self, method: str, jobs: Sequence[tuple]) -> list[Any]:
        """Runs `state.method(*job)` for each job and returns the results in the order of the jobs.

        Raises:
            WorkerError: a job raised (the message is the job's own), or a worker died.
        """
        if not self._made:
            return [getattr(self.state, method)(*job) for job in jobs]
        results: list[Any] = [None] * len(jobs)
        waiting = list(range(len(jobs)))[::-1]
        running: dict[Connection, tuple[Any, int]] = {}
        while waiting or running:
            for process, connection in self._made:
                if waiting and connection not in running:
                    index = waiting.pop()
                    self._send(process, connection, (method, jobs[index]))
                    running[connection] = (process, index)
            for connection in _ready(list(running)):
                process, index = running.pop(connection)
                results[index] = self._receive(process, connection, method)
        return results

    def _send(self, process: Any, connection: Connection, message: tuple) -> None:
        try:
            connection.send(message)
        except OSError as error:
            raise WorkerError(f"worker process {process.pid} is gone (exit code {process.exitcode}): run the command again") from error

    def _receive(self, process: Any, connection: Connection, method: str) -> Any:
        try:
            good, value = connection.recv()
        except (EOFError, OSError) as error:
            process.join(5)
            raise WorkerError(
                f"worker process {process.pid} died during {method!r} "
                f"(exit code {process.exitcode}; -9 usually means that memory ran out): "
                "run the command again, it continues from the last checkpoint"
            ) from error
        if not good:
            raise WorkerError(f"{method} failed in a worker: {value[0]}") from RuntimeError(value[1])
        return value

    def close(self) -> None:
        """Ends the processes."""
        for process, connection in self._made:
            connection.close()
            process.terminate()
            process.join(5)
        self._made = []


def _ready(connections: list[Connection]) -> list[Connection]:
    from multiprocessing.connection import wait

    return [c for c in wait(connections) if isinstance(c, Connection)]


def _spin(size: int = 192, rounds: int = 60) -> float:
    """Seconds for a fixed amount of the kind of arithmetic that training does."""
    matrix, began = torch.ones(size, size) / size, time.perf_counter()
    for _ in range(rounds):
        matrix = matrix @ matrix
    return time.perf_counter() - began


class _Probe:
    def spin(self) -> float:
        return _spin()


def measure(limit: int) -> int:
    """Number of workers, 1 to `limit`, that gets most arithmetic done on this machine now; takes about 0.1 s.

    A near tie (10 %) goes to the larger number: another stage may be using the machine now and not in a minute.
    """
    best, best_rate = 1, 0.0
    for count in range(1, max(1, limit) + 1):
        workers = Workers(_Probe(), count)
        workers.map("spin", [()] * count)
        began = time.perf_counter()
        workers.map("spin", [()] * (2 * count))
        rate = 2 * count / (time.perf_counter() - began)
        workers.close()
        if rate > 0.9 * best_rate:
            best, best_rate = count, max(rate, best_rate)
    return best
