"""Stage `dev1`: SFT of the base on the cold-start data: long, readable chains of thought.

    python -m tasks.dev1

Reads `sft` and `dev1` of params.yaml, data/cold_start/sft.parquet and the base. Writes models/dev1,
reports/metrics/dev1_steps.csv and reports/metrics/dev1.json.
"""

from __future__ import annotations

from pathlib import Path

from tasks import errors
from tasks.config import load_params
from tasks.training import sft_stage

DATA = Path("data/cold_start/sft.parquet")


def main() -> None:
    sft_stage.train("dev1", DATA, load_params().dev1)


if __name__ == "__main__":
    errors.main(main)
