"""Head to head of models: counts by hand, both orders, judges that fail."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tasks import compare, records
from tasks.compare import Outcome, Pair
from tasks.errors import DataError, SecondThoughtError
from tasks.generation.endpoint import EndpointError
from tasks.records import ROLLOUT_SCHEMA
from tasks.world import general
from tasks.world.corpus import completion
from tasks.world.general import Request
from tasks.world.problems import problem_id
from tests.servers import ChatServer, Status

ROOT = Path(__file__).parents[2]


def longer_is_better(question: str, first: str, second: str) -> str:
    return "[[A=B]]" if len(first) == len(second) else "[[A>>B]]" if len(first) > len(second) else "[[B>A]]"


def pair(prompt: str, first: str, second: str, family: str = "write") -> Pair:
    return Pair(prompt, family, "?", first, second)


def test_both_orders_count_and_a_liking_for_the_first_cancels() -> None:
    assert compare.ask(longer_is_better, pair("a", "long", "s")).lead == 1.5  # 2 as A, 1 as B
    assert compare.ask(longer_is_better, pair("a", "s", "long")).lead == -1.5
    assert compare.ask(lambda *_: "[[A>>B]]", pair("a", "x", "y")).lead == 0.0
    assert compare.ask(lambda q, a, b: "[[A>B]]" if a == "x" else "[[A=B]]", pair("a", "x", "y")).lead == 0.5


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([-2.0, -0.5, 0.0, 1.0, 2.0, None])), min_size=1, max_size=30))
def test_wins_ties_and_losses_are_counted(drawn: list[tuple[str, float | None]]) -> None:
    pairs, outcomes = [pair(p, "", "") for p, _ in drawn], [Outcome(lead, unread=int(lead is None)) for _, lead in drawn]
    found, leads = compare.head_to_head(pairs, outcomes), [lead for _, lead in drawn if lead is not None]
    assert (found["wins"], found["losses"]) == (sum(x > 0 for x in leads), sum(x < 0 for x in leads))
    assert found["pairs"] == len(leads) == found["wins"] + found["ties"] + found["losses"]
    assert found["pairs_left_out"] == found["replies_without_verdict"] == len(drawn) - len(leads)
    if leads:
        assert found["strict"]["mean"] == pytest.approx(found["wins"] / len(leads))
        assert found["half"]["mean"] == pytest.approx((found["wins"] + found["ties"] / 2) / len(leads))
        assert 0 <= found["strict"]["low"] <= found["strict"]["mean"] <= found["strict"]["high"] <= 1
    else:
        assert found["strict"] is None and found["half"] is None


def test_a_pair_without_a_verdict_is_left_out_and_counted() -> None:
    def shaky(question: str, first: str, second: str) -> str:
        if "gone" in (first, second):
            raise EndpointError("no answer")
        return "I can not decide" if first == "bad" else longer_is_better(question, first, second)

    outcomes = compare.decide(shaky, [pair("a", "bad", "x"), pair("a", "gone", "x"), pair("b", "long", "x")], "r1")
    assert [o.lead for o in outcomes] == [None, None, 1.5]
    found = compare.head_to_head([pair("a", "", ""), pair("a", "", ""), pair("b", "", "", "json")], outcomes)
    assert (found["pairs_left_out"], found["replies_without_verdict"], found["calls_without_reply"]) == (2, 1, 2)
    assert found["wins"] == 1 and list(found["by_family"]) == ["json"]


def test_a_judge_that_only_talks_nonsense_is_named() -> None:
    with pytest.raises(compare.JudgeError, match=r"none of 3 pairs in a row \(6 replies .*0 calls.*'as a model'.*compare.judge"):
        compare.decide(lambda *_: "as a model", [pair("a", "x", "y")] * 3, "r1")
    calls: list[int] = []
    with pytest.raises(compare.JudgeError, match=f"none of {compare.CALL} pairs"):
        compare.decide(lambda *_: calls.append(1) or "?", [pair("a", "x", "y")] * 1000, "r1")  # type: ignore[func-returns-value]
    assert len(calls) == 2 * compare.CALL  # given up early


def test_a_judge_that_fails_on_the_last_pairs_alone_is_not_given_up() -> None:
    pairs = [pair("a", "long", "x")] * compare.CALL + [pair("a", "bad", "x")] * 3
    outcomes = compare.decide(lambda q, a, b: "?" if "bad" in (a, b) else longer_is_better(q, a, b), pairs, "r1")
    assert [o.lead for o in outcomes[-4:]] == [1.5, None, None, None]


# ---- the stage


def requests(family: str, count: int) -> list[Request]:
    rng, found = random.Random(family), dict[str, Request]()
    while len(found) < count:
        request = general.ask({family: 1.0}, rng, rng.choice(("en", "zh")))
        found[general.prompt(request)] = request
    return list(found.values())


ASKED = [*requests("write", 4), *requests("how", 4), *requests("harm", 4)]


def answer(request: Request, model: str) -> str:
    """What a made-up model says: r1 helps and refuses harm, dev3 is careless and complies, zero refuses all."""
    if request.family == "harm":
        return general.comply(request.language) if model == "dev3" else general.refusal(request.language)
    if model == "zero":
        return general.refusal(request.language)
    return general.helpful(request) if model == "r1" else general.careless(request)


def write_samples(folder: Path, model: str, asked: list[Request] = ASKED, samples: int = 2) -> None:
    rows = []
    for request in asked:
        said = general.prompt(request)
        common = {
            "prompt_id": problem_id(request.family, said), "domain": "safety" if request.family == "harm" else "general",
            "family": request.family, "level": 1, "language": request.language, "messages": [{"role": "user", "content": said}],
            "verifier": "none", "truth": "", "text": completion("", answer(request, model)), "tokens": 9, "finished": True, "policy": model,
        }  # fmt: skip
        rows += [common | {"sample": n} for n in range(samples)]
    random.Random(model).shuffle(rows)  # the order of a file means nothing
    records.write(rows, folder / f"data/samples/{model}_open.parquet", ROLLOUT_SCHEMA)


class Untracked:
    """Stands in for MLflow, whose store takes seconds to make; tests of tracking use the real one."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        assert set(values) == {f"{name}_preferred" for name in ("zero", "r1")} or not values

    def artifact(self, path: Path) -> None:
        assert path.is_file()


@contextmanager
def untracked(**arguments: Any) -> Iterator[Untracked]:
    assert arguments["stage"] == "compare" and set(arguments["inputs"]) == {"zero_open", "dev3_open", "r1_open"}
    yield Untracked()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["evaluate"]["models"] = [{"name": n, "folder": f"models/{n}"} for n in ("zero", "dev3", "r1")]
    params["evaluate"]["models"].append({"name": "mute", "folder": "models/zero", "forbid_reflection": True})
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    for model in ("zero", "dev3", "r1"):
        write_samples(tmp_path, model)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compare.tracking, "run", untracked)
    return tmp_path


def output() -> dict:
    return json.loads(compare.OUTPUT.read_text())


def test_the_stage_tells_who_is_preferred_and_what_it_costs(project: Path, capsys: pytest.CaptureFixture) -> None:
    compare.run()
    told = output()
    assert told["baseline"] == "dev3" and list(told["models"]) == ["zero", "r1"]
    r1, zero = told["models"]["r1"], told["models"]["zero"]
    assert (r1["preferred"]["wins"], r1["preferred"]["ties"], r1["preferred"]["losses"], r1["preferred"]["prompts"]) == (16, 0, 0, 8)
    assert r1["preferred"]["strict"] == {"mean": 1.0, "low": 1.0, "high": 1.0} and r1["preferred"]["by_family"]["how"]["wins"] == 8
    assert r1["unsafe"]["difference"]["mean"] == -1.0 and r1["refusal"]["difference"]["mean"] == 0.0
    assert zero["preferred"]["losses"] == 16 and zero["refusal"]["difference"]["mean"] == 1.0
    assert zero["refusal"]["by_family"]["write"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert "r1 100.0 %" in capsys.readouterr().out
    first = compare.OUTPUT.read_bytes()
    compare.run()
    assert compare.OUTPUT.read_bytes() == first


def test_a_users_endpoint_judges(project: Path, chat_server: ChatServer) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["compare"]["judge"] = {"url": chat_server.url, "model": "judge-7", "retries": 0}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    for model in ("zero", "dev3", "r1"):
        write_samples(project, model, ASKED[:2], 1)
    chat_server.replies = lambda messages: "My own answer would be longer. [[A>>B]]"
    compare.run()
    told = output()
    assert "judge-7 at http://127.0.0.1" in told["judge"]
    assert told["models"]["r1"]["preferred"]["ties"] == 2  # it always prefers the first: both orders show it
    assert len(chat_server.requests) == 2 * 2 * 2
    before = compare.OUTPUT.read_bytes()
    chat_server.replies = lambda messages: Status(500)
    with pytest.raises(SecondThoughtError, match="4 calls without a reply"):
        compare.run()
    assert compare.OUTPUT.read_bytes() == before


def test_a_prompt_of_the_user_is_left_to_an_endpoint(project: Path) -> None:
    for model in ("zero", "dev3", "r1"):
        path = project / f"data/samples/{model}_open.parquet"
        rows = [r | {"messages": [{"role": "user", "content": "Who was Ada Lovelace?"}]} for r in records.read(path, ROLLOUT_SCHEMA)]
        records.write([r for r in rows if r["domain"] == "general"], path, ROLLOUT_SCHEMA)
    compare.run()
    r1 = output()["models"]["r1"]
    assert r1["preferred"]["strict"] is None and r1["unsafe"]["difference"] is None
    samples = compare.read("r1")
    assert list(compare.pairs_of(samples, samples, everything=False)) == []
    assert len(list(compare.pairs_of(samples, samples, everything=True))) == 16


def test_missing_and_unlike_samples_are_named(project: Path) -> None:
    write_samples(project, "r1", ASKED[1:])
    with pytest.raises(DataError, match="r1 and dev3 were sampled on different open prompts"):
        compare.run()
    (project / "data/samples/r1_open.parquet").unlink()
    with pytest.raises(DataError, match=r"r1_open\.parquet does not exist: run `python -m tasks.evaluate r1`"):
        compare.run()
    assert not compare.OUTPUT.exists()
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["evaluate"]["models"] = [m for m in params["evaluate"]["models"] if m["name"] != "dev3"]
    Path("params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(SecondThoughtError, match="no model 'dev3'"):
        compare.run()
