"""Worker processes: order, errors, death, and no orphans."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from tasks.training.workers import WorkerError, Workers, measure


class Echo:
    def __init__(self):
        self.shared = torch.zeros(3).share_memory_()

    def double(self, value):
        time.sleep(0.02 * (5 - value))  # later jobs finish first
        return 2 * value

    def see(self):
        return self.shared.tolist()

    def fail(self):
        raise ValueError("the job's own words")

    def die(self):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_results_come_in_the_order_of_the_jobs(count):
    workers = Workers(Echo(), count)
    assert workers.map("double", [(i,) for i in range(5)]) == [0, 2, 4, 6, 8]
    workers.close()


def test_workers_see_shared_weights_change():
    state = Echo()
    workers = Workers(state, 2)
    state.shared += 7
    assert workers.map("see", [()]) == [[7.0] * 3]
    workers.close()


def test_a_failing_job_tells_its_own_message():
    workers = Workers(Echo(), 1)
    with pytest.raises(WorkerError, match="ValueError: the job's own words"):
        workers.map("fail", [()])
    assert workers.map("double", [(2,)]) == [4]  # the worker lives on
    workers.close()


def test_a_killed_worker_is_an_error_not_a_hang():
    workers = Workers(Echo(), 2)
    with pytest.raises(WorkerError, match="died during 'die'"):
        workers.map("die", [()])
    workers.close()


def test_a_killed_parent_leaves_no_worker_behind(tmp_path):
    script = (
        "import os, signal\nfrom tasks.training.workers import Workers\n"
        "class S: pass\nw = Workers(S(), 2)\nprint(*[p.pid for p, _ in w._made], flush=True)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    children = [int(pid) for pid in run.stdout.split()]
    assert len(children) == 2
    deadline = time.time() + 10
    while time.time() < deadline and any(_alive(pid) for pid in children):
        time.sleep(0.1)
    assert not any(_alive(pid) for pid in children)


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_measure_stays_within_the_limit():
    assert measure(1) == 1
    assert 1 <= measure(2) <= 2
