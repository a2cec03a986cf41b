"""Settings of every test process: one thread (results and timings of a shared two-core machine), no network, no telemetry."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

import tasks  # noqa: F401  (sets telemetry off and the hub offline)
from tests.servers import ChatServer, serve

torch.set_num_threads(1)


@pytest.fixture
def chat_server() -> Iterator[ChatServer]:
    """An OpenAI-compatible chat server on this machine; a test sets its `replies`."""
    with serve() as server:
        yield server
