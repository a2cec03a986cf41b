"""Defaults of the process environment: telemetry of every tool off, no model hub, MLflow in an embedded store.

Importing `tasks` or `flows` sets them, so that `dvc repro` and `python -m tasks.zero` behave as `make run` does. A
variable that the user has set stays as it is.
"""

from __future__ import annotations

import os

DEFAULTS = {
    # No value of DO_NOT_TRACK suits all: vLLM wants 1, MLflow wants true. Hence one variable for each tool as well.
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_TRACKING_URI": "sqlite:///.mlflow/mlflow.db",
}


def set_defaults() -> None:
    """Sets every variable of DEFAULTS that is not set yet."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
