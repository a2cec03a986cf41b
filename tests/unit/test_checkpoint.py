"""Checkpoints: whole or not at all, verified, never mistaken for something else."""

from __future__ import annotations

import errno

import pytest
import torch
from safetensors import SafetensorError

from tasks.training import checkpoint


def write(folder, step):
    return checkpoint.save(folder, step, {"policy": {"w": torch.full((3,), float(step))}}, {"step": step})


def newest(folder):
    found = checkpoint.latest(folder)
    assert found is not None
    return found


def test_round_trip_and_only_the_last_two_are_kept(tmp_path):
    for step in (1, 2, 3):
        write(tmp_path, step)
    groups, state = newest(tmp_path)
    assert state == {"step": 3} and groups["policy"]["w"].tolist() == [3.0] * 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


def test_none_when_there_is_no_checkpoint(tmp_path):
    assert checkpoint.latest(tmp_path / "absent") is None


def test_a_damaged_newest_checkpoint_gives_the_one_before(tmp_path):
    write(tmp_path, 1)
    damaged = write(tmp_path, 2) / "policy.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x01")
    assert newest(tmp_path)[1] == {"step": 1}


def test_all_damaged_is_an_error_that_says_what_to_do(tmp_path):
    (write(tmp_path, 1) / "manifest.json").unlink()
    with pytest.raises(checkpoint.CheckpointError, match="delete the folder"):
        checkpoint.latest(tmp_path)


def test_a_half_written_one_is_not_seen(tmp_path):
    write(tmp_path, 1)
    (tmp_path / ".step-00000002.tmp").mkdir()
    assert newest(tmp_path)[1] == {"step": 1}


@pytest.mark.parametrize("file", ["policy.safetensors", "state.json", "manifest.json"])
def test_a_full_disk_leaves_the_last_checkpoint_and_says_so(tmp_path, monkeypatch, file):
    write(tmp_path, 1)
    real_sync = checkpoint._sync

    def full(path):
        if path.name == file:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real_sync(path)

    monkeypatch.setattr(checkpoint, "_sync", full)
    with pytest.raises(checkpoint.CheckpointError, match=r"disk is full.*step-00000001"):
        write(tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert newest(tmp_path)[1] == {"step": 1}


def test_a_disk_that_fills_up_inside_safetensors_gives_the_same_clear_error(tmp_path, monkeypatch):
    """safetensors raises its own error, no OSError; seen on a full tmpfs."""
    write(tmp_path, 1)

    def full(tensors, path):
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(checkpoint.CheckpointError, match=r"disk is full.*step-00000001"):
        write(tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
