"""Resumable state of a long stage: written whole or not at all, verified by hash before it is used, and never pickled."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tasks.errors import SecondThoughtError

KEEP = 2


class CheckpointError(SecondThoughtError):
    """A checkpoint cannot be written or does not verify."""


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
    """Writes `folder/step-<n>` (one safetensors file a group, state.json, manifest.json with hashes) and drops all but the last KEEP.

    Raises:
        CheckpointError: the disk is full; earlier checkpoints are untouched.
    """
    final, temporary = folder / f"step-{step:08d}", folder / f".step-{step:08d}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        _write(temporary, tensors, state)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not _disk_full(error):
            raise
        kept = found[-1].name if (found := _all(folder)) else "none"
        raise CheckpointError(
            f"the disk is full: checkpoint {final} was not written; the last whole one is {kept}. Free some space and run the "
            "same command again: it continues from there"
        ) from error
    shutil.rmtree(final, ignore_errors=True)
    os.rename(temporary, final)
    _sync(folder)
    for old in _all(folder)[:-KEEP]:
        shutil.rmtree(old)
    return final


def _disk_full(error: Exception) -> bool:
    """safetensors raises an error of its own, whose text alone tells the system's error number."""
    full = (errno.ENOSPC, errno.EDQUOT)
    return error.errno in full if isinstance(error, OSError) else any(f"os error {number})" in str(error) for number in full)


def _write(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    for name, group in tensors.items():
        save_file({key: value.detach().contiguous() for key, value in group.items()}, folder / f"{name}.safetensors")
    (folder / "state.json").write_text(json.dumps(state))
    hashes = {path.name: _digest(path) for path in sorted(folder.iterdir())}
    (folder / "manifest.json").write_text(json.dumps(hashes, indent=1))
    for path in folder.iterdir():
        _sync(path)


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*")) if folder.exists() else []


def _verified(path: Path) -> bool:
    try:
        hashes = json.loads((path / "manifest.json").read_text())
        return all(_digest(path / name) == digest for name, digest in hashes.items())
    except (OSError, json.JSONDecodeError):
        return False


def latest(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """The newest checkpoint (tensor groups, state) or None if there is none.

    Raises:
        CheckpointError: checkpoints exist and none verifies against its manifest.
    """
    found = _all(folder)
    for path in reversed(found):
        if _verified(path):
            groups = {file.stem: load_file(file) for file in path.glob("*.safetensors")}
            return groups, json.loads((path / "state.json").read_text())
    if found:
        raise CheckpointError(f"no checkpoint in {folder} matches its manifest: delete the folder to start this stage anew")
    return None
