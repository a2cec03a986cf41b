"""Stage `distill`: SFT of a student's base on the rejection-sampled mix, no RL (paper, section 2.4 and B.4.3).

    python -m tasks.distill small

Reads `sft` and `distill` of params.yaml, data/rejection/sft.parquet, reports/metrics/rejection.json and the student's base. Writes
models/distill_<student>, reports/metrics/distill_<student>_steps.csv and reports/metrics/distill_<student>.json. Killed at any moment,
the same command continues from .runs/distill_<student> and ends with the same bytes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tasks import errors
from tasks.config import Params, load_params
from tasks.errors import DataError
from tasks.training import sft_stage

DATA = Path("data/rejection/sft.parquet")
TEACHER = Path("reports/metrics/rejection.json")


def teacher_sampling() -> int:
    """FLOPs of sampling the candidates that the set was made from.

    Raises:
        DataError: the figures of rejection sampling are missing, or from before they held it.
    """
    try:
        return json.loads(TEACHER.read_text())["sampling"]["flops"]
    except (FileNotFoundError, json.JSONDecodeError, KeyError) as error:
        raise DataError(f"{TEACHER} does not tell what the teacher's sampling cost: run `python -m tasks.rejection` again") from error


def distill(params: Params, name: str) -> None:
    """Tunes one student and publishes it."""
    own, sampling = params.distill.find(name), teacher_sampling()

    def findings(summary: dict[str, Any]) -> dict[str, Any]:
        training = summary["flops"]["training"]
        flops = {"training": training, "teacher_sampling": sampling, "total": training + sampling}
        return {"student": name, "base": own.base, "flops": flops}

    sft_stage.train(f"distill_{name}", DATA, own, findings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", help="a name of distill.students in params.yaml")
    name = parser.parse_args().student
    distill(load_params(), name)


if __name__ == "__main__":
    errors.main(main)
