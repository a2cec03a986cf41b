"""Stage `dev3`: SFT of the base on the samples that dev2 got right and general data, from the base again.

    python -m tasks.dev3

Reads `sft` and `dev3` of params.yaml, data/rejection/sft.parquet and the base. Writes models/dev3,
reports/metrics/dev3_steps.csv and reports/metrics/dev3.json.
"""

from __future__ import annotations

from pathlib import Path

from tasks import errors
from tasks.config import load_params
from tasks.training import sft_stage

DATA = Path("data/rejection/sft.parquet")


def main() -> None:
    sft_stage.train("dev3", DATA, load_params().dev3)


if __name__ == "__main__":
    errors.main(main)
