"""The reward-model stage as a user runs it: whole, killed and resumed, with a judge behind an endpoint, and on bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tasks import records, reward_models
from tasks.config import load_params
from tasks.errors import DataError, SecondThoughtError
from tasks.evaluation.preference import JudgeError
from tasks.labels import split_of
from tasks.records import LABEL_SCHEMA, PAIR_SCHEMA
from tasks.rewards.format import parse
from tasks.rewards.model import RewardModel
from tasks.world import problems
from tests.servers import Status

ROOT = Path(__file__).parents[2]
SETTINGS = load_params(ROOT / "params.yaml").reward_models
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
    assert counted["judge"]["verdicts"] == 4 * counted["judged"] and counted["judge"]["unread"] == counted["judge"]["unanswered"] == 0
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
    assert max(Counter(row["prompt_id"] for row in pairs).values()) <= load_params(ROOT / "params.yaml").reward_models.pairs_per_prompt


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


def longer(messages: list[dict[str, str]]) -> str:
    first, second = map(len, shown(messages))
    return "[[A=B]]" if first == second else "[[A>>B]]" if first > second else "[[B>>A]]"


def test_a_judge_behind_an_endpoint_decides_who_is_chosen(build, chat_server, tmp_path):
    chat_server.replies = longer
    told = build(judge={"url": chat_server.url, "model": "judge", "retries": 0}, judgements=2)["pairs"]
    pairs = records.read(tmp_path / "p" / PAIRS, PAIR_SCHEMA)
    assert pairs and all(len(parse(row["chosen"]).answer) > len(parse(row["rejected"]).answer) for row in pairs)
    assert len(chat_server.requests) == 2 * told["judged"] == told["judge"]["verdicts"]
    assert told["dropped_for_length"] > 0 and 1 <= told["length_ratio"] < told["length_ratio_before"]


def again(folder: Path) -> dict:
    """All steps once more, as the same command would go on."""
    return reward_models.build(load_params().reward_models, folder / "work")


def test_a_judge_that_answers_nonsense_stops_the_stage_at_once_and_is_asked_again_when_repaired(build, chat_server, tmp_path):
    chat_server.replies = lambda messages: "I like both. [[A>B]] [[B>A]]"
    with pytest.raises(JudgeError, match=r"none of 32 pairs in a row \(32 replies without a verdict, 0 calls.*I like both"):
        build(judge={"url": chat_server.url, "model": "judge", "retries": 0}, judgements=1)
    assert len(chat_server.requests) == 32 and outputs(tmp_path / "p") == {}
    chat_server.replies = longer
    assert again(tmp_path / "p")["pairs"]["unjudged"] == 0


def test_a_judge_that_cannot_be_reached_leaves_nothing_half_written(build, tmp_path):
    with pytest.raises(JudgeError, match=r"127\.0\.0\.1:9.*no connection"):
        build(judge={"url": "http://127.0.0.1:9/v1", "model": "judge", "retries": 0})
    assert outputs(tmp_path / "p") == {} and not list((tmp_path / "p/work").glob("judged-*"))


def test_one_failing_call_does_not_stop_the_stage(build, chat_server):
    failing = iter([Status(500)])
    chat_server.replies = lambda messages: next(failing, None) or longer(messages)
    told = build(judge={"url": chat_server.url, "model": "judge", "retries": 0}, judgements=1)["pairs"]
    assert (told["judge"]["unanswered"], told["judge"]["unread"], told["unjudged"]) == (1, 0, 1)
    assert told["judge"]["verdicts"] == told["judged"] - 1


def test_pairs_without_a_winner_are_counted_and_the_judge_is_asked_again_when_repaired(build, chat_server, tmp_path):
    chat_server.replies = lambda messages: "[[A=B]]"
    with pytest.raises(
        DataError, match=r"0 had no reply that could be read, (\d+) no winner by more than 1.*check judge and margin of reward_models"
    ):
        build(judge={"url": chat_server.url, "model": "judge", "retries": 0}, judgements=1)
    chat_server.replies = longer
    assert again(tmp_path / "p")["pairs"]["kept"] > 0


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


def test_labels_that_pandas_wrote_are_read(tmp_path):
    rows = [label(i, i % 2 > 0) for i in range(60)]
    frame = pd.DataFrame(rows).drop(columns="split").astype({"prompt_id": "category"})
    frame.set_index(frame.index + 7).to_parquet(tmp_path / "mine.parquet")  # with a column for its index
    assert reward_models.labels.of_file(tmp_path / "mine.parquet", SETTINGS) == [
        row | {"split": split_of(row["prompt_id"], SETTINGS)} for row in rows
    ]


@pytest.mark.parametrize(
    ("number", "spoilt", "message"),
    [
        (3, {"safe": None}, r"1 malformed of 60 rows: row 4: safe: .*valid boolean\. Correct"),
        (0, {"response": None}, "row 1: response: .*valid string"),
        (0, {"response": " "}, "row 1: response: "),
        (59, {"messages": []}, "row 60: messages: .*must end with what the user says"),
        (1, {"messages": None}, "row 2: messages: .*valid list"),
        (1, {"messages": [{"role": "user", "content": None}]}, r"row 2: messages\.0\.content: .*valid string"),
        (1, {"messages": [{"role": "assistant", "content": "Yes"}]}, "row 2: messages: .*must end with what the user says"),
        (1, {"prompt_id": None, "safe": None}, "row 2: prompt_id: .*, safe: "),
    ],
)
def test_labels_with_a_hole_are_one_error_before_anything_is_sampled(build, tmp_path, number, spoilt, message):
    rows = [label(i, i % 2 > 0) for i in range(60)]
    rows[number] |= spoilt
    with pytest.raises(DataError, match=message):
        build(lambda folder: records.write(rows, folder / "mine.parquet", LABEL_SCHEMA), labels="mine.parquet")
    assert not (tmp_path / "p/work").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.drop(columns=["safe", "family"]), r"mine\.parquet: missing column family, safe; docs/data\.md"),
        (lambda frame: frame.astype({"safe": float}), "60 malformed of 60 rows: row 1: safe: .*row 20: [^;]*$"),
    ],
)
def test_labels_in_other_columns_are_named(tmp_path, change, message):
    change(pd.DataFrame([label(i, i % 2 > 0) for i in range(60)])).to_parquet(tmp_path / "mine.parquet")
    with pytest.raises(DataError, match=message):
        reward_models.labels.of_file(tmp_path / "mine.parquet", SETTINGS)


def test_labelled_responses_that_are_too_long_are_named_before_anything_is_sampled(build, tmp_path):
    rows = [label(i, i % 2 > 0) for i in range(60)]
    rows[7]["response"] += " hm" * 400
    with pytest.raises(DataError, match=rf"1 prompts .*reward_models\.context 384: {rows[7]['prompt_id']}"):
        build(lambda folder: records.write(rows, folder / "mine.parquet", LABEL_SCHEMA), labels="mine.parquet")
    assert not (tmp_path / "p/work").exists()


@pytest.mark.parametrize("safe", [True, False])
def test_a_missing_class_is_named(build, safe, tmp_path):
    rows = [label(i, safe) for i in range(60)]
    kind = "unsafe" if safe else "safe"
    with pytest.raises(DataError, match=rf"of 60 labelled responses there are no {kind} responses that are train and no {kind} .*held_out"):
        build(lambda folder: records.write(rows, folder / "mine.parquet", LABEL_SCHEMA), labels="mine.parquet")
    assert not (tmp_path / "p/work").exists()


def foreign(folder: Path, domain: str) -> None:
    """Prompts that the miniature world did not write, in the place of two."""
    path = folder / "data/curated/train.parquet"
    rows = records.read(path)
    for row in [row for row in rows if row["domain"] == domain and row["verifier"] == "none" and row["family"] != "how"][:2]:
        row["messages"] = [{"role": "user", "content": "What is forbidden?"}]
    records.write(rows, path)


def without(folder: Path, domain: str) -> None:
    path = folder / "data/curated/train.parquet"
    records.write([row for row in records.read(path) if row["domain"] != domain], path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda folder: foreign(folder, "safety"),
            r"guideline reads .* 2 of \d+ .*harm-\w+, which it cannot label: .*reward_models\.labels",
        ),
        (lambda folder: foreign(folder, "general"), r"judge reads .* 2 of 60 .*, which it cannot judge: .*reward_models\.judge"),
        (lambda folder: without(folder, "safety"), r"no prompt of the domain safety.*reward_models\.labels"),
        (lambda folder: without(folder, "general"), "no prompt of the domain general"),
    ],
)
def test_prompts_that_nobody_can_judge_or_label_are_named_before_anything_is_sampled(build, tmp_path, spoil, message):
    with pytest.raises(DataError, match=message):
        build(spoil)
    assert not (tmp_path / "p/work").exists()


def test_own_prompts_are_sampled_where_an_endpoint_judges_and_a_file_labels(build, chat_server, tmp_path):
    def spoil(folder: Path) -> None:
        foreign(folder, "general")
        foreign(folder, "safety")
        records.write([label(i, i % 2 > 0) for i in range(60)], folder / "mine.parquet", LABEL_SCHEMA)

    chat_server.replies = longer
    told = build(spoil, judge={"url": chat_server.url, "model": "judge", "retries": 0}, judgements=1, labels="mine.parquet")
    assert told["prompts"]["general"] == 60 and told["pairs"]["kept"] > 0


@pytest.mark.parametrize(
    ("spoil", "own", "message"),
    [
        (lambda folder: None, {"context": 30}, r"prompts are too long: prompt \+ 24 new tokens must be at most 30"),
        (
            lambda folder: None,
            {"temperature": 1e-6, "strangers": 0},
            r"no prompt has two different final answers.*reward_models\.candidates",
        ),
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
