"""Prefect: where, when and how often a stage runs. Whether it has to run at all is DVC's decision."""

from tasks.environment import set_defaults

set_defaults()
