"""What a reward model reads, what it makes of a raw score, and what it refuses to load."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from tasks.errors import SecondThoughtError
from tasks.generation import model_folder
from tasks.rewards.model import RewardModel, RewardModelError, padding, text
from tasks.template import render
from tasks.training.preference import with_head
from tasks.training.workers import Workers

ROOT = Path(__file__).parents[2]
QUESTION = "As JSON: Ann 3 and Bob 4."
THOUGHTS = ("", " Sure, it is easy.", " Ann 3, Bob 4.", " wait")


def completion(thought: str, answer: str) -> str:
    return f" <think>{thought} </think> <answer> {answer} </answer>"


# ---- what is read


def test_the_helpful_model_reads_the_final_answer_alone():
    read = {text("helpful", QUESTION, completion(thought, "Ann 3, Bob 4.")) for thought in THOUGHTS}
    assert read == {render(QUESTION) + " <think> </think> <answer> Ann 3, Bob 4. </answer>"}
    assert text("helpful", QUESTION, completion("", "Bob 4.")) not in read
    assert text("helpful", "Another question?", completion("", "Ann 3, Bob 4.")) not in read


def test_the_safety_model_reads_the_whole_response():
    read = [text("safety", QUESTION, completion(thought, "I can not help with that.")) for thought in THOUGHTS]
    assert read == [render(QUESTION) + completion(thought, "I can not help with that.") for thought in THOUGHTS]


def test_a_malformed_response_is_read_for_safety_as_it_stands():
    assert text("safety", QUESTION, " Sure, it is <think> easy") == render(QUESTION) + " Sure, it is <think> easy"


# ---- scores


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """One untrained reward model of each kind on the shipped base, with a shift and a scale."""
    root, made = tmp_path_factory.mktemp("reward"), {}
    policy, tokenizer = model_folder.load(ROOT / "models/base")
    for seed, kind in enumerate(("helpful", "safety")):
        model = with_head(policy, padding(tokenizer), seed)
        with torch.no_grad():
            model.score.weight *= 20  # an untrained head barely tells texts apart
        model.config.reward_kind, model.config.reward_shift, model.config.reward_scale = kind, 0.25, 2.0
        model_folder.save(model, tokenizer, root / kind)
        made[kind] = root / kind
    return made


ANSWERS = ["Ann 3, Bob 4.", '{"Ann": 3, "Bob": 4}', "Ann 3", "Bob 4"]


def test_a_score_is_the_sigmoid_of_the_standardised_raw_score(folders):
    for kind, folder in folders.items():
        model = RewardModel(folder)
        assert model.kind == kind
        completions = [completion("", answer) for answer in ANSWERS]
        raw = model.raw([QUESTION] * 4, completions)
        assert len({round(value, 4) for value in raw}) == 4
        expected = [1 / (1 + math.exp(-(value - 0.25) / 2)) for value in raw]
        assert model.score([QUESTION] * 4, completions) == pytest.approx(expected, abs=1e-6)
    assert model.score([], []) == []


def test_a_raw_score_is_what_transformers_computes_for_the_text(folders):
    model = RewardModel(folders["safety"])
    row = torch.tensor([model.tokenizer.encode(render(QUESTION) + completion(" hm", "Bob 4"))])
    with torch.no_grad():
        expected = float(model.model.base_model(row).last_hidden_state[0, -1] @ model.model.score.weight[0])
    assert model.raw([QUESTION], [completion(" hm", "Bob 4")]) == pytest.approx([expected], abs=1e-5)


def test_batches_and_their_order_change_nothing(folders):
    model = RewardModel(folders["safety"])
    questions, completions = [QUESTION, "Hello, I am Ann."] * 60, [completion(" hm" * (i % 40), ANSWERS[i % 4]) for i in range(120)]
    together = model.raw(questions, completions)
    alone = [model.raw([q], [c])[0] for q, c in list(zip(questions, completions, strict=True))[:8]]
    assert together[:8] == pytest.approx(alone, abs=1e-5)
    assert model.raw(questions[::-1], completions[::-1])[::-1] == pytest.approx(together, abs=1e-5)


def test_a_thought_moves_the_safety_score_and_never_the_helpful_one(folders):
    for kind, folder in folders.items():
        scores = RewardModel(folder).raw([QUESTION] * 4, [completion(thought, "Ann 3, Bob 4.") for thought in THOUGHTS])
        assert (max(scores) - min(scores) > 1e-3) == (kind == "safety")


@pytest.mark.parametrize("empty", ["", " Ann 3, Bob 4.", completion(" hm", ""), "<answer> a </answer> <answer> b </answer>"])
def test_without_a_final_answer_there_is_no_helpfulness(folders, empty):
    helpful, safety = RewardModel(folders["helpful"]), RewardModel(folders["safety"])
    scores = helpful.score([QUESTION] * 2, [empty, completion("", "Ann 3")])
    assert scores[0] == 0.0 < scores[1]
    assert safety.score([QUESTION], [empty])[0] > 0.0


def test_a_score_that_is_no_number_names_the_prompt_and_the_folder(folders):
    model = RewardModel(folders["safety"])
    with torch.no_grad():
        model.model.base_model.embed_tokens.weight[model.tokenizer.encode(" Bob")] = float("nan")
    assert model.score(["Hello, I am Ann."], [completion("", "Ann 3")])[0] > 0
    with pytest.raises(RewardModelError, match=r"scores nan on the prompt 'As JSON: Ann 3 and Bob 4\.'") as error:
        model.score(["Hello, I am Ann.", QUESTION], [completion("", "Ann 3")] * 2)
    assert str(folders["safety"]) in str(error.value) and "Hello" not in str(error.value)


class _Scorer:
    def __init__(self, model: RewardModel) -> None:
        self.model = model

    def score(self) -> list[float]:
        return self.model.score([QUESTION] * 2, [completion("", answer) for answer in ANSWERS[:2]])


def test_forked_workers_score_with_the_shared_weights(folders):
    model = RewardModel(folders["helpful"]).share_memory()
    assert all(weight.is_shared() for weight in model.model.parameters())
    workers = Workers(_Scorer(model), 2)
    try:
        before = workers.map("score", [()] * 2)
        assert before == [_Scorer(model).score()] * 2
        with torch.no_grad():
            model.model.score.weight.neg_()
        assert workers.map("score", [()])[0] == _Scorer(model).score() != before[0]
    finally:
        workers.close()


# ---- folders


def test_what_is_saved_again_is_the_same_to_the_byte(folders, tmp_path):
    model = RewardModel(folders["helpful"])
    model_folder.save(model.model, model.tokenizer, tmp_path / "again")
    assert {p.name for p in (tmp_path / "again").iterdir()} == {p.name for p in folders["helpful"].iterdir()}
    for path in folders["helpful"].iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_a_language_model_is_no_reward_model():
    with pytest.raises(RewardModelError, match=r"models/base holds no reward model .*score\.weight.*python -m tasks\.reward_models"):
        RewardModel(ROOT / "models/base")


@pytest.mark.parametrize(
    ("key", "value"),
    [("reward_kind", "pretty"), ("reward_kind", None), ("reward_shift", None), ("reward_scale", 0.0), ("reward_scale", "2")],
)
def test_a_config_without_kind_or_scale_is_refused(folders, tmp_path, key, value):
    shutil.copytree(folders["safety"], tmp_path / "m")
    config = json.loads((tmp_path / "m/config.json").read_text())
    (tmp_path / "m/config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(RewardModelError, match=key):
        RewardModel(tmp_path / "m")


def test_a_damaged_or_missing_folder_is_one_clear_error(folders, tmp_path):
    with pytest.raises(SecondThoughtError, match="there is no model folder"):
        RewardModel(tmp_path / "gone")
    shutil.copytree(folders["safety"], tmp_path / "m")
    weights = tmp_path / "m/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(SecondThoughtError, match=r"model\.safetensors in .* is damaged"):
        RewardModel(tmp_path / "m")


def test_pickled_weights_are_never_read(folders, tmp_path):
    shutil.copytree(folders["safety"], tmp_path / "m")
    model = RewardModel(tmp_path / "m")
    torch.save(model.model.state_dict(), tmp_path / "m/pytorch_model.bin")
    (tmp_path / "m/model.safetensors").unlink()
    with pytest.raises(SecondThoughtError, match=r"model\.safetensors is missing"):
        RewardModel(tmp_path / "m")


def test_a_tokenizer_without_a_pad_token_fills_with_eos():
    _, tokenizer = model_folder.load(ROOT / "models/base")
    assert padding(tokenizer) == tokenizer.pad_token_id
    tokenizer.pad_token = None
    assert padding(tokenizer) == tokenizer.eos_token_id
