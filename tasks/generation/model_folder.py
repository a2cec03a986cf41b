"""Hugging Face model folders: checked before use, loaded without the network, replaced in one piece.

A folder holds config.json, model.safetensors (or an index and its shards), tokenizer.json and tokenizer_config.json.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants as hub
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from tasks.errors import SecondThoughtError

# As HF_HUB_OFFLINE=1, which huggingface_hub reads only when it is first imported.
hub.HF_HUB_OFFLINE = hub.HF_HUB_DISABLE_TELEMETRY = True
disable_progress_bar()  # stages show their own

INDEX = "model.safetensors.index.json"
REMEDY = "restore it from git or DVC, or write the folder again"


class ModelFolderError(SecondThoughtError):
    """A model folder that cannot be read or written; one line that names the file, the folder and the remedy."""


def find(base: str) -> Path:
    """The folder of a model that is named by a path, or by an id of the Hugging Face hub (owner/name) that is in this machine's cache.

    Nothing is downloaded.

    Raises:
        ModelFolderError: there is neither.
    """
    if Path(base).is_dir():
        return Path(base)
    try:
        return Path(snapshot_download(base, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError) as error:
        raise ModelFolderError(
            f"there is no model folder {base}, and no model of that id in the Hugging Face cache: {REMEDY}, or fetch the model once with "
            f"`HF_HUB_OFFLINE=0 hf download {base}`"
        ) from error


def check(folder: Path) -> None:
    """Reads every part of a model folder but the weights' values.

    Raises:
        ModelFolderError: the folder or one of its files is missing or damaged.
    """
    if not folder.is_dir():
        raise ModelFolderError(f"there is no model folder {folder}: {REMEDY}")
    if "model_type" not in _json(folder, "config.json"):
        raise ModelFolderError(f"config.json in {folder} names no model_type: {REMEDY}")
    for name in _weight_files(folder):
        _check_weights(folder, name)
    _json(folder, "tokenizer_config.json")
    tokenizer = _present(folder, "tokenizer.json")
    try:
        Tokenizer.from_file(str(tokenizer))
    except Exception as error:  # tokenizers raises plain Exception
        raise ModelFolderError(f"tokenizer.json in {folder} is damaged ({_line(error)}): {REMEDY}") from error


def load(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """The model (in eval mode) and its tokenizer, from local files alone; code in the folder is never run.

    Raises:
        ModelFolderError: as `check`, or the weights have other tensors or other shapes than config.json asks for.
    """
    check(folder)
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        # Its annotation knows nothing of the pair that output_loading_info makes it return.
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True, **local)
        tokenizer = AutoTokenizer.from_pretrained(folder, **local)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise ModelFolderError(f"transformers cannot load {folder} ({_line(error)}): {REMEDY}") from error
    # transformers fills a missing tensor with random numbers and only warns.
    model, report = loaded
    wrong = {kind: sorted(map(str, names)) for kind, names in report.items() if names}
    if wrong:
        raise ModelFolderError(f"the weights in {folder} do not fit its config.json ({wrong}): {REMEDY}")
    for key in ("is_local", "local_files_only"):  # else they are saved, and a copy's tokenizer_config.json differs
        tokenizer.init_kwargs.pop(key, None)
    return model.eval(), tokenizer


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Writes and syncs a folder beside `folder`, then puts it in place of the old one; same model, same bytes.

    Raises:
        ModelFolderError: it could not be written (a full disk, for one); the old folder is whole.
    """
    partial = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # of a killed run
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        _sync(partial)
    except Exception as error:  # a full disk is an OSError, a SafetensorError or, from tokenizers, a plain Exception
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError | SafetensorError) or "os error" in str(error):
            what = f"could not write the model folder {folder} ({_line(error)})"
            raise ModelFolderError(f"{what}: free some disk space and run again; an older folder is unchanged") from error
        raise
    _replace(partial, folder)


def _sync(folder: Path) -> None:
    """fsync of every file and of the folder itself."""
    for path in [*sorted(folder.iterdir()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _replace(new: Path, folder: Path) -> None:
    """Renames `new` to `folder`. The old one steps aside first: only an empty folder can be renamed over."""
    previous = folder.parent / f".{folder.name}.previous"
    shutil.rmtree(previous, ignore_errors=True)
    if folder.exists():
        os.rename(folder, previous)
    os.rename(new, folder)
    shutil.rmtree(previous, ignore_errors=True)


def _present(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise ModelFolderError(f"{name} is missing in {folder}: {REMEDY}")
    return folder / name


def _json(folder: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        content = json.loads(_present(folder, name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFolderError(f"{name} in {folder} is damaged ({_line(error)}): {REMEDY}") from error
    if not isinstance(content, dict):
        raise ModelFolderError(f"{name} in {folder} is damaged (not a JSON object): {REMEDY}")
    return content


def _weight_files(folder: Path) -> list[str]:
    """Names of the safetensors files: one, or those of the index."""
    if not (folder / INDEX).exists():
        return ["model.safetensors"]
    shards = _json(folder, INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ModelFolderError(f"{INDEX} in {folder} is damaged (no weight_map): {REMEDY}")
    return sorted(set(shards.values()))


def _check_weights(folder: Path, name: str) -> None:
    """Reads the header, which also tells whether the file is as long as it says."""
    path = _present(folder, name)
    try:
        with safe_open(path, framework="pt") as tensors:
            names = list(tensors.keys())
    except (OSError, SafetensorError) as error:
        raise ModelFolderError(f"{name} in {folder} is damaged ({_line(error)}): {REMEDY}") from error
    if not names:
        raise ModelFolderError(f"{name} in {folder} is damaged (it holds no tensor): {REMEDY}")


def _line(error: Exception) -> str:
    """The message on one line."""
    return " ".join(str(error).split())
