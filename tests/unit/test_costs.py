"""The seconds of a stage: monotonic, added up over kills, written where the report finds them, and in no hash."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tasks.monitoring import delivery, tracking

STATE, COST = Path(".runs/zero"), Path("reports/costs/zero.json")


@pytest.fixture(autouse=True)
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A folder of its own, no MLflow, and clocks that stand still until a test moves them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracking, "_start_sender", lambda state: None)
    now = {"monotonic": 100.0, "time": 1e9}
    monkeypatch.setattr(tracking.time, "monotonic", lambda: now["monotonic"])
    monkeypatch.setattr(tracking.time, "time", lambda: now["time"])
    return now


def work(clock: dict[str, float], *seconds: float, killed: bool = False, params: int = 1) -> None:
    """A stage that records a metric after each stretch of work; a kill leaves no "end" in its journal."""
    with tracking.run("zero", {"steps": params}, {}, STATE) as run:
        for spent in seconds:
            clock["monotonic"] += spent
            clock["time"] += spent
            run.metrics(int(clock["time"]), {"reward": 0.5})
        journal = (STATE / delivery.JOURNAL).read_bytes()
    if killed:
        (STATE / delivery.JOURNAL).write_bytes(journal)
        COST.unlink()


def cost() -> dict:
    return json.loads(COST.read_text())


def test_a_finished_stage_leaves_its_seconds(clock: dict[str, float]) -> None:
    work(clock, 2.0, 3.5)
    assert (cost()["stage"], cost()["seconds"], cost()["resumed"]) == ("zero", 5.5, 0)
    assert cost()["machine"]["cores"] == os.cpu_count() and set(cost()["machine"]) == {"cores", "python", "platform"}
    assert not list(COST.parent.glob(".*"))


def test_seconds_add_up_over_kills(clock: dict[str, float]) -> None:
    work(clock, 2.0, killed=True)
    clock["monotonic"] = 7.0  # another boot: monotonic clocks start anywhere
    work(clock, 4.0, killed=True)
    work(clock, 1.0)
    assert (cost()["seconds"], cost()["resumed"]) == (7.0, 2)


def test_checkpoints_after_the_last_record_count(clock: dict[str, float]) -> None:
    work(clock, 2.0, killed=True)
    for name, late in (("chunks/0.parquet", 30.0), ("unsent.sent.json", 500.0), (".sender.lock", 500.0)):
        path = STATE / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (clock["time"] + late,) * 2)
    work(clock, 1.0)
    assert cost()["seconds"] == 33.0


def test_a_failed_stage_leaves_none_and_what_it_worked_is_counted_when_it_finishes(clock: dict[str, float]) -> None:
    with pytest.raises(ValueError), tracking.run("zero", {"steps": 1}, {}, STATE):
        clock["monotonic"] += 9.0
        raise ValueError("stop")
    assert not COST.exists()
    work(clock, 1.0)
    assert (cost()["seconds"], cost()["resumed"]) == (10.0, 1)


def test_other_parameters_start_at_zero(clock: dict[str, float]) -> None:
    work(clock, 5.0, killed=True)
    work(clock, 1.0, params=2)
    assert (cost()["seconds"], cost()["resumed"]) == (1.0, 0)


def test_costs_that_cannot_be_written_cost_a_warning(clock: dict[str, float], capfd: pytest.CaptureFixture[str]) -> None:
    Path("reports").touch()
    work(clock, 1.0)
    assert "warning: reports/costs/zero.json cannot be written" in capfd.readouterr().err
