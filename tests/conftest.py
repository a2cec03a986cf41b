"""Settings of every test process: one thread (results and timings of a shared two-core machine), no network, no telemetry."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import torch

import tasks  # noqa: F401  (sets telemetry off and the hub offline)

torch.set_num_threads(1)
