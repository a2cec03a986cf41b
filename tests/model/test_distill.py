"""Students by distillation: the paper's six architectures, reduced, from checkpoint to text; and what a distillation costs."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import constants

from tasks import distill, records
from tasks.config import ParamsError, load_params
from tasks.errors import DataError
from tasks.generation import model_folder
from tasks.generation.model_folder import ModelFolderError
from tasks.generation.sampler import Sampling, TorchSampler
from tasks.monitoring import tracking
from tasks.template import render
from tasks.training import flops
from tests.architectures import CONFIGS, checkpoint
from tests.model.test_sft import dataset, here

ROOT = Path(__file__).parents[2]
# Hugging Face id, initial learning rate, positions that the base needs more: paper, Table 6.
PAPER: dict[str, tuple[str, float, int | None]] = {
    "qwen2.5-math-1.5b": ("Qwen/Qwen2.5-Math-1.5B", 1e-4, 131072),
    "qwen2.5-math-7b": ("Qwen/Qwen2.5-Math-7B", 8e-5, 131072),
    "qwen2.5-14b": ("Qwen/Qwen2.5-14B", 7e-5, None),
    "qwen2.5-32b": ("Qwen/Qwen2.5-32B", 6e-5, None),
    "llama-3.1-8b": ("meta-llama/Llama-3.1-8B", 5e-5, None),
    "llama-3.3-70b-instruct": ("meta-llama/Llama-3.3-70B-Instruct", 2e-5, None),
}
SAMPLES = 12
FEW = 3  # of an architecture: Qwen's pre-tokenizer splits the world's words into letters, and a row is as wide as all samples
TEACHER = {"sampling": {"tokens": 5, "flops": 1234567}}


@pytest.fixture(autouse=True)
def untracked(monkeypatch):
    """Spares each run the seconds of MLflow's import; tests/pipeline/test_tracking.py has tracking."""
    monkeypatch.setattr(tracking, "_start_sender", lambda state: None)


def project(folder: Path, student: dict[str, Any], samples: int = SAMPLES) -> Path:
    """A project folder with a small set and one student, `s`."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["distill"] = {"students": {"s": {"workers": 1} | student}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    records.write(dataset()[:samples], folder / distill.DATA, records.SFT_SCHEMA)
    (folder / distill.TEACHER).parent.mkdir(parents=True, exist_ok=True)
    (folder / distill.TEACHER).write_text(json.dumps(TEACHER))
    return folder


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str = "s") -> str:
    monkeypatch.setattr(sys, "argv", ["distill", name])
    return here(folder, distill)


def test_the_presets_are_the_papers_table(tmp_path):
    assert PAPER.keys() == CONFIGS.keys() == yaml.safe_load((ROOT / "infra/students.yaml").read_text()).keys()
    for name, (base, rate, positions) in PAPER.items():
        own = load_params(project(tmp_path / name, {"preset": name}) / "params.yaml").distill.students["s"]
        assert (own.base, own.learning_rate, own.positions) == (base, rate, positions)
        assert (own.final_rate, own.context, own.batch) == (0.1, 32768, 64) and own.epochs in (2, 3)
        # Packed rows of the whole context need as many positions, from the base or from the preset.
        assert (positions or CONFIGS[name]["max_position_embeddings"]) >= own.context


@pytest.mark.parametrize("name", PAPER)
def test_a_student_of_the_papers_architecture_from_checkpoint_to_text(tmp_path, monkeypatch, name):
    config = checkpoint(name, tmp_path / "p/models/reduced")
    folder = project(tmp_path / "p", {"preset": name, "base": "models/reduced"}, FEW)
    before, _ = model_folder.load(folder / "models/reduced")
    assert f"{FEW} samples of " in run(folder, monkeypatch)
    student, tokenizer = model_folder.load(folder / "models/distill_s")

    # What config.json said of the architecture is still said, and positions suffice.
    assert student.config.model_type == config["model_type"]
    for key in ("rms_norm_eps", "tie_word_embeddings", "num_key_value_heads", "eos_token_id", "bos_token_id", "hidden_size"):
        assert getattr(student.config, key) == config[key], key
    rope = student.config.rope_parameters
    assert rope["rope_theta"] == config["rope_theta"] and rope == {**rope, **config.get("rope_scaling", {"rope_type": "default"})}
    assert student.config.max_position_embeddings == 131072
    if config["model_type"] == "qwen2":
        assert set(student.config.layer_types) == {"full_attention"}  # the sliding window is named and not used
    assert all(f"model.layers.0.self_attn.{n}_proj.bias" in student.state_dict() for n in "qkv") == (config["model_type"] == "qwen2")

    # It was trained, with the paper's rate and a tenth of it at the end.
    changed = [not torch.equal(a, b) for a, b in zip(before.parameters(), student.parameters(), strict=True)]
    assert all(changed)
    rates = [float(row["learning_rate"]) for row in csv.DictReader((folder / "reports/metrics/distill_s_steps.csv").open())]
    assert rates == pytest.approx([PAPER[name][1], PAPER[name][1] / 10])

    # transformers and the embedded decoder agree on what it says.
    ids = tokenizer.encode(render("Start with 7, add 3."))
    assert (ids[0] == tokenizer.bos_token_id) == (config["model_type"] == "llama")
    said = student.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, pad_token_id=0)[0, len(ids) :].tolist()
    sampler = TorchSampler(student.config, [tokenizer.eos_token_id])
    sampler.load(dict(student.state_dict()))
    with torch.no_grad():
        expected = student(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(sampler.logits(ids), expected, atol=1e-4, rtol=1e-4)
    ours = sampler.generate([ids], Sampling(temperature=0.0, max_new_tokens=12), torch.Generator())[0][0].token_ids
    assert ours[: len(said)] == said and tokenizer.decode(said)


@pytest.fixture
def cheap(tmp_path) -> Path:
    """A project whose student is the smallest base that ships."""
    folder = project(tmp_path / "p", {"base": "models/student_tiny", "batch": 8, "epochs": 2})
    (folder / "models").mkdir()
    (folder / "models/student_tiny").symlink_to(ROOT / "models/student_tiny")
    return folder


def test_the_summary_counts_training_and_the_teachers_sampling(cheap, monkeypatch):
    run(cheap, monkeypatch)
    told = json.loads((cheap / "reports/metrics/distill_s.json").read_text())
    student, tokenizer = model_folder.load(cheap / "models/distill_s")
    cost = flops.cost(student.config)
    texts = [(render(r["messages"][-1]["content"]), r["response"]) for r in dataset()[:SAMPLES]]
    lengths = [len(tokenizer.encode(prompt)) + len(tokenizer.encode(response)) + 1 for prompt, response in texts]
    training = 2 * sum(cost.training(n) for n in lengths)  # epochs
    assert told["flops"] == {"training": training, "teacher_sampling": 1234567, "total": training + 1234567}
    assert (told["student"], told["base"]) == ("s", "models/student_tiny")
    assert told["parameters"] == sum(p.numel() for p in student.parameters()) and told["samples"] == SAMPLES
    assert told["last_loss"] < told["first_loss"]


def test_what_is_missing_is_named(cheap, monkeypatch):
    with pytest.raises(ParamsError, match=r"no student 'gone' in distill.students of params.yaml; it has s"):
        run(cheap, monkeypatch, "gone")
    (cheap / distill.TEACHER).write_text("{}")
    with pytest.raises(DataError, match=r"rejection.json does not tell what the teacher's sampling cost"):
        run(cheap, monkeypatch)
    assert not (cheap / "models/distill_s").exists()


def test_a_hub_id_is_looked_for_in_the_local_cache_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelFolderError, match=r"Qwen/Some-1B.*HF_HUB_OFFLINE=0 hf download Qwen/Some-1B"):
        model_folder.find("Qwen/Some-1B")
    with pytest.raises(ModelFolderError, match="there is no model folder models/some/where"):
        model_folder.find("models/some/where")
    stored = tmp_path / "models--Qwen--Some-1B"
    (stored / "refs").mkdir(parents=True)
    (stored / "refs/main").write_text("abc123")
    (stored / "snapshots/abc123").mkdir(parents=True)
    assert model_folder.find("Qwen/Some-1B") == stored / "snapshots/abc123"
