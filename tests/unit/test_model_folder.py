"""Model folders: every missing or damaged file is named, saving is reproducible and never harms the old folder."""

from __future__ import annotations

import errno
import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from tasks.generation.model_folder import ModelFolderError, check, load, save

FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


def tiny_model(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    shape = {"vocab_size": 12, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8}
    config = Qwen3Config(**shape, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True)
    return Qwen3ForCausalLM(config).eval()


def tiny_tokenizer() -> Any:
    words = {"<unk>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, 12)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>", chat_template="{{ messages[0].content }}"
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tiny_model(), tiny_tokenizer(), tmp_path / "model")
    return tmp_path / "model"


def test_round_trip_without_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    model, tokenizer = load(folder)
    assert not model.training
    ids = tokenizer("w3 w4 <eos>").input_ids
    assert ids == [3, 4, 1]
    torch.testing.assert_close(model(torch.tensor([ids])).logits, tiny_model()(torch.tensor([ids])).logits)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "w5"}], tokenize=False) == "w5"


def test_load_gives_the_asked_dtype(folder: Path) -> None:
    assert load(folder)[0].dtype == torch.float32
    assert load(folder, dtype=torch.bfloat16)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelFolderError) as caught:
        load(folder)
    message = str(caught.value)
    assert f"{name} is missing in {folder}" in message
    assert "restore it" in message and "\n" not in message


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage"])
def test_damaged_file_is_named(folder: Path, name: str, damage: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes({"truncated": content[:-9], "empty": b"", "garbage": b"\x00\xff garbage"}[damage])
    with pytest.raises(ModelFolderError) as caught:
        check(folder)
    assert f"{name} in {folder} is damaged" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match=f"no model folder {tmp_path / 'none'}"):
        check(tmp_path / "none")


def test_missing_shard_is_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:4], "model-00002-of-00002.safetensors": names[4:]}
    for part, members in parts.items():
        save_file({name: tensors[name] for name in members}, folder / part, metadata={"format": "pt"})
    weight_map = {name: part for part, members in parts.items() for name in members}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert torch.equal(load(folder)[0].model.norm.weight, tensors["model.norm.weight"])
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelFolderError, match=r"model-00002-of-00002\.safetensors is missing"):
        check(folder)


def test_config_without_model_type_is_named(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    with pytest.raises(ModelFolderError, match=r"config\.json .* no model_type"):
        check(folder)


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_weights_that_do_not_fit_are_named(folder: Path, change: str) -> None:
    """transformers would fill a missing tensor with random numbers and ignore an unknown one."""
    tensors = load_file(folder / "model.safetensors")
    tensor = tensors.pop("model.layers.1.mlp.up_proj.weight")
    if change == "unknown":
        tensors |= {"model.layers.1.mlp.up_proj.weight": tensor, "model.layers.9.mlp.up_proj.weight": tensor.clone()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFolderError, match=r"do not fit .*model\.layers\.[19]\.mlp\.up_proj"):
        load(folder)


def test_same_model_same_bytes(folder: Path, tmp_path: Path) -> None:
    save(tiny_model(), tiny_tokenizer(), tmp_path / "again")
    assert contents(tmp_path / "again") == contents(folder)
    save(*load(folder), tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(folder)


def test_save_replaces_the_whole_folder(folder: Path) -> None:
    (folder / "stale.txt").write_text("of an older version")
    save(tiny_model(seed=1), tiny_tokenizer(), folder)
    assert not (folder / "stale.txt").exists()
    torch.testing.assert_close(load(folder)[0].model.norm.weight, tiny_model(seed=1).model.norm.weight)
    assert [path.name for path in folder.parent.iterdir()] == ["model"], "no temporary folder is left"


def test_leftovers_of_a_killed_save_do_no_harm(folder: Path) -> None:
    for name in (".model.partial", ".model.previous"):
        (folder.parent / name).mkdir()
        (folder.parent / name / "stale.txt").write_text("half")
    save(tiny_model(seed=1), tiny_tokenizer(), folder)
    assert "stale.txt" not in contents(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("part", ["model", "tokenizer", "safetensors"])
def test_full_disk_leaves_the_old_folder_whole(folder: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    before = contents(folder)
    model, tokenizer = tiny_model(seed=1), tiny_tokenizer()
    # What transformers, tokenizers and safetensors were seen to raise on a full file system.
    error: Exception = {
        "model": OSError(errno.ENOSPC, "No space left on device"),
        "tokenizer": Exception("No space left on device (os error 28)"),
        "safetensors": SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    }[part]

    def full(target: Path, **_: Any) -> None:
        target.mkdir(exist_ok=True)
        (target / "half.bin").write_bytes(b"half")
        raise error

    monkeypatch.setattr(tokenizer if part == "tokenizer" else model, "save_pretrained", full)
    with pytest.raises(ModelFolderError, match=r"(?s)could not write .*No space left on device.*free some disk space"):
        save(model, tokenizer, folder)
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_other_errors_while_saving_are_not_disguised(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, model = contents(folder), tiny_model()

    def broken(*_: Any, **__: Any) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr(model, "save_pretrained", broken)
    with pytest.raises(TypeError, match="a bug"):
        save(model, tiny_tokenizer(), folder)
    assert contents(folder) == before
