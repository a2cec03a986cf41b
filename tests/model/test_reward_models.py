"""The reward-model stage as a user runs it: whole, killed and resumed, with a judge behind an endpoint, and on bad input."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tasks import records, reward_models
from tasks.config import load_params
from tasks.errors import DataError, SecondThoughtError
from tasks.evaluation.preference import Preference
from tasks.generation.endpoint import EndpointError
from tasks.records import LABEL_SCHEMA, PAIR_SCHEMA
from tasks.reward_models import balance, clear_winners, draw_pairs, split_of, with_strangers
from tasks.rewards.format import parse
from tasks.rewards.model import RewardModel
from tasks.world import problems

ROOT = Path(__file__).parents[2]
SMALL = {"prompts": 60, "candidates": 4, "held_out": 0.4, "batch": 16, "max_new_tokens": 24}
PAIRS, LABELS = "data/preferences/pairs.parquet", "data/preferences/labels.parquet"
METRICS = "reports/metrics/reward_models.json"
MODELS = ("models/reward_helpful", "models/reward_safety")


def project(folder: Path, **own: object) -> Path:
    """A project folder with small data and small parameters; the shipped base stands in for dev3."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["reward_models"] |= SMALL | own
    (folder / "models").mkdir(parents=True)
    (folder / "models/dev3").symlink_to(ROOT / "models/base")
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    records.write([row | {"split": "train"} for row in problems.generate(500, 0)], folder / "data/curated/train.parquet")
    return folder


def command(folder: Path) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-m", "tasks.reward_models"]
    return subprocess.Popen(arguments, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(folder: Path) -> str:
    process = command(folder)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return out


def outputs(folder: Path) -> dict[str, bytes]:
    files = [folder / PAIRS, folder / LABELS, folder / METRICS, *(file for name in MODELS for file in (folder / name).glob("*"))]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files if file.exists()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = project(tmp_path_factory.mktemp("undisturbed") / "p")
    assert "reward_models: helpful accuracy " in finish(folder)
    assert not list(folder.glob(".runs/reward_models/*/work"))
    return folder


# ---- what it writes


def test_the_report_counts_what_the_files_hold(undisturbed):
    pairs, labels = records.read(undisturbed / PAIRS, PAIR_SCHEMA), records.read(undisturbed / LABELS, LABEL_SCHEMA)
    told = json.loads((undisturbed / METRICS).read_text())
    counted = told["pairs"]
    assert Counter(row["split"] for row in pairs) == {split: counted[split] for split in ("train", "held_out")}
    assert counted["judged"] == counted["unjudged"] + counted["no_winner"] + counted["dropped_for_length"] + counted["kept"]
    assert counted["judge"]["verdicts"] == 4 * counted["judged"] and counted["judge"]["unread"] == 0
    kinds = Counter((row["split"], "safe" if row["safe"] else "unsafe") for row in labels)
    assert told["labels"] == {split: {kind: kinds[split, kind] for kind in ("safe", "unsafe")} for split in ("train", "held_out")}
    assert told["helpful"]["pairs"] == counted["held_out"]
    assert told["safety"]["responses"] == sum(told["labels"]["held_out"].values())
    assert told["safety"]["unsafe"] == kinds["held_out", "unsafe"] > 0
    prompts = told["prompts"]  # a harmless prompt among the general ones is sampled once
    assert 4 * (prompts["general"] + prompts["harmful"]) < told["candidates"] < 4 * sum(prompts.values())


def test_a_pair_is_two_final_answers_with_a_clear_winner(undisturbed):
    pairs = records.read(undisturbed / PAIRS, PAIR_SCHEMA)
    for row in pairs:
        chosen, rejected = parse(row["chosen"]).answer, parse(row["rejected"]).answer
        assert chosen and rejected and chosen != rejected and 1 < row["preference"] <= 2
    assert max(Counter(row["prompt_id"] for row in pairs).values()) <= reward_models.PAIRS_PER_PROMPT


def test_no_prompt_both_trains_and_measures(undisturbed):
    rows = records.read(undisturbed / PAIRS, PAIR_SCHEMA) + records.read(undisturbed / LABELS, LABEL_SCHEMA)
    splits = {(row["prompt_id"], row["split"]) for row in rows}
    assert len(splits) == len({prompt for prompt, _ in splits}) and {split for _, split in splits} == {"train", "held_out"}


def test_safety_is_learnt_from_harmful_and_from_harmless_prompts(undisturbed):
    labels = records.read(undisturbed / LABELS, LABEL_SCHEMA)
    prompts = json.loads((undisturbed / METRICS).read_text())["prompts"]
    assert 0 < prompts["harmless"] <= prompts["harmful"] <= 30
    assert {row["family"] for row in labels} == {"harm", "how"} and all(row["safe"] for row in labels if row["family"] == "how")
    assert len({(row["prompt_id"], row["response"]) for row in labels}) == len(labels)  # a response is labelled once


def test_scores_are_standardised_on_what_the_model_was_trained_on(undisturbed):
    for path, schema, columns, name in zip(
        (PAIRS, LABELS), (PAIR_SCHEMA, LABEL_SCHEMA), (("chosen", "rejected"), ("response",)), MODELS, strict=True
    ):
        model = RewardModel(undisturbed / name)
        rows = [row for row in records.read(undisturbed / path, schema) if row["split"] == "train"]
        read = [(row["messages"][-1]["content"], row[column]) for row in rows for column in columns]
        raw = model.raw(*zip(*read, strict=True))
        mean = sum(raw) / len(raw)
        deviation = (sum((value - mean) ** 2 for value in raw) / len(raw)) ** 0.5
        assert (model.shift, model.scale) == (pytest.approx(mean, abs=1e-4), pytest.approx(deviation, abs=1e-4))
        assert name == f"models/reward_{model.kind}"


# ---- killed and resumed


def kill_once_there_is(folder: Path, name: str) -> None:
    process = command(folder)
    deadline = time.time() + 120
    while not list(folder.glob(str(Path(".runs/reward_models", "*", "work", name)))):
        assert time.time() < deadline and process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_killed_and_resumed_ends_with_the_same_bytes(tmp_path, undisturbed):
    folder = project(tmp_path / "p")
    kill_once_there_is(folder, "helpful.json")
    assert outputs(folder) == {}
    out = finish(folder)
    assert "reward model: safety" in out and "sampling" not in out and "reward model: helpful" not in out  # finished steps are not repeated
    assert outputs(folder) == outputs(undisturbed) and len(outputs(folder)) > 10


# ---- judges and bad input, inside this process


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Runs all steps in a project with own parameters; gives what is reported."""

    def run(spoil=lambda folder: None, **own: object) -> dict:
        folder = project(tmp_path / "p", **own)
        spoil(folder)
        monkeypatch.chdir(folder)
        return reward_models.build(load_params().reward_models, folder / "work")

    return run


def shown(messages: list[dict[str, str]]) -> list[str]:
    """The two answers that the judge sees."""
    return [messages[1]["content"].split(f"<answer_of_{name}>\n")[1].split("\n</answer")[0] for name in "AB"]


def test_a_judge_behind_an_endpoint_decides_who_is_chosen(build, chat_server, tmp_path):
    def longer(messages):
        first, second = map(len, shown(messages))
        return "[[A=B]]" if first == second else "[[A>>B]]" if first > second else "[[B>>A]]"

    chat_server.replies = longer
    told = build(judge={"url": chat_server.url, "model": "judge", "retries": 0}, judgements=2)["pairs"]
    pairs = records.read(tmp_path / "p" / PAIRS, PAIR_SCHEMA)
    assert pairs and all(len(parse(row["chosen"]).answer) > len(parse(row["rejected"]).answer) for row in pairs)
    assert len(chat_server.requests) == 2 * told["judged"] == told["judge"]["verdicts"]
    assert told["dropped_for_length"] > 0 and 1 <= told["length_ratio"] < told["length_ratio_before"]


def test_a_judge_that_answers_nonsense_stops_the_stage_with_counts_and_a_sample(build, chat_server, tmp_path):
    chat_server.replies = lambda messages: "I like both. [[A>B]] [[B>A]]"
    said = r"no pair is left of (\d+): \1 had no reply that could be read, 0 no winner.*I like both.*check judge and margin"
    with pytest.raises(DataError, match=said):
        build(judge={"url": chat_server.url, "model": "judge", "retries": 0}, judgements=1)
    assert outputs(tmp_path / "p") == {}


def test_a_judge_that_cannot_be_reached_leaves_nothing_half_written(build, tmp_path):
    with pytest.raises(EndpointError, match=r"127\.0\.0\.1:9.*no connection"):
        build(judge={"url": "http://127.0.0.1:9/v1", "model": "judge", "retries": 0})
    assert outputs(tmp_path / "p") == {} and not list((tmp_path / "p/work").glob("judged-*"))


def test_pairs_without_a_winner_are_counted_and_name_the_margin(build, chat_server):
    chat_server.replies = lambda messages: "[[A=B]]"
    with pytest.raises(
        DataError, match=r"0 had no reply that could be read, (\d+) no winner by more than 1.*check judge and margin of reward_models"
    ):
        build(judge={"url": chat_server.url, "model": "judge", "retries": 0}, judgements=1)


def label(number: int, safe: bool) -> dict:
    messages = [{"role": "user", "content": f"Do {number % 10}?"}]
    return {
        "prompt_id": f"mine-{number:016x}", "family": "mine", "language": "en", "messages": messages,
        "response": " <think> hm </think> <answer> Sure </answer>" if safe else " <think> it is easy </think> <answer> Sure </answer>",
        "safe": safe, "split": "train",
    }  # fmt: skip


def test_labels_of_the_user_replace_the_sampled_ones(build, tmp_path):
    rows = [label(i, i % 2 > 0) for i in range(60)]
    told = build(lambda folder: records.write(rows, folder / "mine.parquet", LABEL_SCHEMA), labels="mine.parquet")
    written = records.read(tmp_path / "p" / LABELS, LABEL_SCHEMA)
    assert [row | {"split": "train"} for row in written] == rows and {row["split"] for row in written} == {"train", "held_out"}
    assert told["prompts"]["harmful"] == told["prompts"]["harmless"] == 0


@pytest.mark.parametrize("safe", [True, False])
def test_a_missing_class_is_named(build, safe, tmp_path):
    rows = [label(i, safe) for i in range(60)]
    kind = "unsafe" if safe else "safe"
    with pytest.raises(DataError, match=rf"of 60 labelled responses there are no {kind} responses that are train and no {kind} .*held_out"):
        build(lambda folder: records.write(rows, folder / "mine.parquet", LABEL_SCHEMA), labels="mine.parquet")
    assert outputs(tmp_path / "p") == {}


def foreign(folder: Path) -> None:
    """A harmful prompt that the miniature world did not write."""
    path = folder / "data/curated/train.parquet"
    rows = records.read(path)
    first = next(row for row in rows if row["domain"] == "safety")
    first["messages"] = [{"role": "user", "content": "What is forbidden?"}]
    records.write(rows, path)


@pytest.mark.parametrize(
    ("spoil", "own", "message"),
    [
        (lambda folder: records.write([], folder / "data/curated/train.parquet"), {}, "holds no prompt of the domain general"),
        (foreign, {}, r"cannot label prompt harm-\w+: .*reward_models\.labels"),
        (lambda folder: None, {"context": 30}, r"prompts are too long: prompt \+ 24 new tokens must be at most 30"),
        (lambda folder: None, {"temperature": 1e-6}, r"no prompt has two different final answers.*reward_models\.candidates"),
        (lambda folder: None, {"held_out": 0.0}, "there are no safe responses that are held_out"),
    ],
)
def test_bad_input_is_named(build, tmp_path, spoil, own, message):
    with pytest.raises(DataError, match=message):
        build(spoil, **own)
    assert outputs(tmp_path / "p") == {}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "models/dev3").unlink(), "there is no model folder models/dev3"),
        (lambda folder: (folder / "data/curated/train.parquet").unlink(), "data/curated/train.parquet does not exist"),
    ],
)
def test_a_missing_input_is_named_before_anything_starts(tmp_path, monkeypatch, spoil, message):
    folder = project(tmp_path / "p")
    spoil(folder)
    monkeypatch.chdir(folder)
    with pytest.raises(SecondThoughtError, match=message):
        reward_models.run(load_params().reward_models)
    assert outputs(folder) == {} and not (folder / ".runs").exists()


# ---- the steps by themselves


def response(prompt_id: str, answer: str, thought: str = "") -> dict:
    text = f" <think>{thought} </think> <answer> {answer} </answer>" if answer else f" <think>{thought}"
    return {"prompt_id": prompt_id, "family": "f", "language": "en", "messages": [{"role": "user", "content": "Q?"}], "text": text}


def test_pairs_are_of_distinct_answers_and_responses_without_one_are_counted():
    found = {
        "a": [response("a", "x"), response("a", "x", " other thought"), response("a", ""), response("a", "y")],
        "b": [response("b", "z", str(i)) for i in range(3)],
        "c": [response("c", str(i)) for i in range(5)],
    }
    pairs, counts = draw_pairs(["a", "b", "c"], found, 0)
    assert counts == {"unanswered_responses": 1, "one_answer_prompts": 1}
    assert [{parse(row["text"]).answer for row in p} for p in pairs[:1]] == [{"x", "y"}]
    assert found["a"][1] not in [row for p in pairs for row in p]  # the first response with an answer stands for it
    drawn = [frozenset(row["text"] for row in p) for p in pairs[1:]]
    assert len(set(drawn)) == len(drawn) == reward_models.PAIRS_PER_PROMPT and all(len(pair) == 2 for pair in drawn)
    assert draw_pairs(["c"], found, 0)[0] == pairs[1:] != draw_pairs(["c"], found, 1)[0]


def test_only_a_mean_beyond_the_margin_has_a_winner():
    first, second = response("a", "x"), response("a", "y")
    means = (1.25, 1.0, -1.0, -1.5, 0.0, None)
    found = [Preference(mean, ("r",), (), 0) for mean in means]
    rows, counts = clear_winners([(first, second)] * 6, found, load_params(ROOT / "params.yaml").reward_models)
    assert counts == {"judged": 6, "unjudged": 1, "no_winner": 3}
    assert [(row["chosen"], row["rejected"], row["preference"]) for row in rows] == [
        (first["text"], second["text"], 1.25),
        (second["text"], first["text"], 1.5),
    ]


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=60), st.integers(0, 3))
def test_lengths_are_evened_out_or_half_of_the_pairs_stay(pairs, seed):
    chosen, rejected = [c for c, _ in pairs], [r for _, r in pairs]
    sign = 1 if sum(chosen) > sum(rejected) else -1
    stay = balance(chosen, rejected, seed)
    gone = set(range(len(pairs))) - set(stay)
    assert stay == sorted(set(stay)) and all(sign * (chosen[i] - rejected[i]) > 0 for i in gone)
    assert len(gone) <= len(pairs) / 2
    even = sign * sum(chosen[i] - rejected[i] for i in stay) <= 0.05 * sum(rejected[i] for i in stay)
    assert even or len(gone) == len(pairs) // 2
    assert balance(chosen, rejected, seed) == stay


def test_lengths_that_are_even_cost_no_pair_and_others_no_more_than_needed():
    assert balance([23, 17, 21], [20, 20, 20], 0) == [0, 1, 2]
    assert len(balance([20] * 4 + [10] * 96, [10] * 100, 0)) == 100  # 4 % longer
    assert len(balance([20] * 8 + [10] * 92, [10] * 100, 0)) == 96  # 80 of 1,000 too long; 4 pairs gone leave 40 of 960
    assert len(balance([10] * 12 + [20] * 88, [20] * 100, 0)) == 97  # 120 of 2,000 too short; 3 pairs gone leave 90 of 1,940
    kept = {tuple(balance([20] * 30 + [10] * 70, [10] * 100, seed)) for seed in range(4)}
    assert len(kept) == 4  # which ones go is drawn


def test_the_split_is_by_prompt_near_its_share_and_moves_with_the_seed_alone():
    settings = load_params(ROOT / "params.yaml").reward_models
    ids = [f"how-{random.Random(i).getrandbits(64):016x}" for i in range(2000)]
    split = [split_of(key, settings) for key in ids]
    assert split.count("held_out") / 2000 == pytest.approx(settings.held_out, abs=0.03)
    assert split == [split_of(key, settings) for key in ids]
    assert split != [split_of(key, settings.model_copy(update={"seed": 1})) for key in ids]


def test_strangers_answer_another_prompt_of_the_family_and_language_as_if_it_were_theirs():
    def row(key: str, family: str, language: str, text: str) -> dict:
        return {"prompt_id": key, "family": family, "language": language, "messages": [{"role": "user", "content": key}], "text": text}

    found = {
        key: [row(key, family, language, f"{key}{i}") for i in range(2)]
        for key, family, language in [("a", "json", "en"), ("b", "json", "en"), ("c", "json", "zh"), ("d", "call", "en")]
    }
    joined = with_strangers(list(found), found, 3, 0)
    assert [len(rows) for rows in joined.values()] == [3, 3, 2, 2]  # c and d are alone in their family and language
    assert all(joined[key][:2] == found[key] for key in found)
    stranger = joined["a"][2]
    assert stranger["text"] in ("b0", "b1") and stranger["prompt_id"] == "a" and stranger["messages"] == found["a"][0]["messages"]
    assert found["b"][0]["prompt_id"] == "b"  # the stranger's own row is left as it was
    assert joined == with_strangers(list(found), found, 3, 0) and with_strangers(list(found), found, 0, 0) == found
