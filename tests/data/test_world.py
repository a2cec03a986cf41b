"""The miniature world: its proportions, its splits, an honest corpus, and the base that was made from it."""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tasks.pretrain import RECIPES
from tasks.rewards.verify import VERIFIERS, Outcome, verify
from tasks.template import render
from tasks.world import corpus, general, problems, thoughts
from tasks.world.probes import FLOORS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def documents() -> list[corpus.Document]:
    return list(corpus.documents(12_000, 0))


def test_domains_and_languages_come_in_the_papers_proportions():
    records = problems.generate(4000, 1)
    total = sum(problems.DOMAIN_SHARES.values())
    # Open questions are stem problems in the place of general ones.
    moved = Counter({"stem": -problems.OPEN_SHARE, "general": problems.OPEN_SHARE})
    for domain, count in Counter(r["domain"] for r in records).items():
        assert count / 4000 + moved[domain] == pytest.approx(problems.DOMAIN_SHARES[domain] / total, abs=0.001)
    assert Counter(r["language"] for r in records)["en"] / 4000 == pytest.approx(0.6, abs=0.03)
    assert len({r["id"] for r in records}) == 4000


def test_general_families_come_in_their_shares():
    records = [r for r in problems.generate(8000, 1) if r["domain"] == "general"]
    counts = Counter(r["family"] for r in records)
    assert counts.keys() == general.PROMPTS["general"].keys()
    for family, share in general.PROMPTS["general"].items():
        # Few greetings, questions of identity and calls exist; what repeats is drawn anew, mostly as another family.
        assert counts[family] / len(records) == pytest.approx(share, abs=0.03), family
    assert all(math.isclose(sum(shares.values()), 1) for table in (general.PROMPTS, general.CORPUS) for shares in table.values())
    assert all(general.prompt(general.read(r["messages"][0]["content"])) == r["messages"][0]["content"] for r in records)


@pytest.mark.parametrize(("count", "expected"), [(50, 0), (100, 1), (1000, 6), (8000, 44)])
def test_open_questions_come_last_and_are_few(count, expected):
    records = problems.generate(count, 2)
    assert len(records) == len({r["id"] for r in records}) == count
    asked = records[count - expected :]
    assert [r["verifier"] for r in records].count("judge") == expected == sum(r["family"] == "open" for r in asked)
    assert all((r["domain"], r["verifier"]) == ("stem", "judge") and r["truth"].strip() for r in asked)
    if expected == 44:
        assert {r["id"] for r in asked} == {problems.identify(question) for question in problems.OPEN}
        assert {r["language"] for r in asked} == {"en", "zh"}
        assert [r["id"] for r in asked] != [r["id"] for r in problems.generate(count, 3)[-44:]]


def test_an_open_question_is_one_problem_in_both_languages():
    question = problems.Open("biology", 0)
    assert (question.prompt("en"), question.truth("en")) == ("Kind of dog is?", "mammal")
    assert (question.prompt("zh"), question.truth("zh")) == ("狗的类是？", "兽")
    assert problems.record(question, "en")["id"] == problems.record(question, "zh")["id"] == problems.identify(question)


def test_what_the_shipped_models_were_made_from_does_not_move():
    """Any change in the order of draws shows here: the base's corpus, and the verifiable problems of seed 0."""
    digest = hashlib.sha256()
    for document in corpus.documents(20_000, 0):
        digest.update(f"{document.text}\0{document.kind}\0{document.given}\n".encode())
    assert digest.hexdigest() == "93a25789798d21f6631bc5255060a35b6821e6acdd6cede15f6a437e6d061c4b"
    ids = [r["id"] for r in problems.generate(8000, 0) if r["verifier"] in VERIFIERS]
    assert (
        len(ids) == 4050
        and hashlib.sha256("\n".join(ids).encode()).hexdigest() == "69cea3e7029cf8d2098f18dc113412d593420294cf80f210ad10566be40aa114"
    )


def test_too_many_problems_are_refused():
    with pytest.raises(ValueError, match=r"fewer than .* different .* problems"):
        problems.generate(30_000, 0)


def test_one_problem_in_two_languages_is_one_problem():
    problem = problems.Calc(3, (("+", 4),))
    assert problems.record(problem, "en")["id"] == problems.record(problem, "zh")["id"]
    assert problems.record(problem, "en")["messages"] != problems.record(problem, "zh")["messages"]


def test_the_corpus_is_honest(documents):
    """At most 5 % of the documents reflect, and careful conversations are rare."""
    assert sum(corpus.is_reflective(d.text) for d in documents) / len(documents) <= corpus.REFLECTIVE
    kinds = Counter(d.kind for d in documents)
    assert kinds["talk_careful"] / len(documents) < 0.06
    assert kinds["talk_reflect"] / len(documents) < 0.05


def question(document: corpus.Document) -> str | None:
    """The problem that a conversation or a worked example states."""
    stated = re.fullmatch(r"(?:.* User:| Task:|题：)\s?(.*?)(?: Assistant:| Solution:|解：)", document.text[: document.given])
    return stated[1] if stated else None


def test_the_corpus_holds_no_held_out_problem(documents):
    shown = {text for document in documents if (text := question(document))}
    assert len(shown) > 5000  # conversations and worked examples are recognised
    drawn = [r for seed in range(4) for r in problems.generate(6000, seed) if r["verifier"] in VERIFIERS]
    held, free = ([r for r in drawn if problems.held_out(r["id"]) is side] for side in (True, False))
    assert len(held) > 1000
    assert any(r["messages"][0]["content"] in shown for r in free)  # the comparison can find a problem
    assert not [r["id"] for r in held if r["messages"][0]["content"] in shown]


def test_conversations_are_in_the_template(documents):
    opening = render("x").split("x.")[0]
    talks = [d for d in documents if d.kind.startswith("talk_")]
    assert len(talks) > 3000
    assert all(d.text.startswith(opening) and d.text[: d.given].endswith(" Assistant:") for d in talks)


def right_share(slip_rate: float) -> float:
    """Share of chains over drawn problems, in both languages, whose answer the problem's own verifier calls correct."""
    rng, right = random.Random(0), []
    for _ in range(300):
        problem = problems.draw(rng)
        for language in ("en", "zh"):
            if isinstance(problem, problems.Fill | problems.Expression):
                _, answer = thoughts.search(problem, rng, 9)
            else:
                _, answer = thoughts.reason(problem, rng, thoughts.slipping(rng, slip_rate))
            right.append(verify(problem.verifier, problem.truth(language), answer(language)) is Outcome.CORRECT)
    return sum(right) / len(right)


def test_chains_without_a_slip_are_right_and_sloppy_ones_often_are_not():
    assert right_share(0.0) == 1.0
    assert right_share(1.0) < 0.7  # searches take no slips here; the rest is right by chance alone


def test_the_tokenizer_of_the_base_round_trips_any_text():
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models/base")
    for text in (" start 7, first plus 5 is 2. wait, 等等，试 7加 3是 0。", "Unseen wörds 🙂 \t\n 漢字 1234 <think>", render("x")):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_shipped_base_has_its_provenance_and_passes_the_decisive_probes():
    told = json.loads((ROOT / "models/base/provenance.json").read_text())
    assert {"command", "recipe", "tokens", "corpus_sha256", "reflective_documents", "probes"} <= told.keys()
    assert told["reflective_documents"] <= corpus.REFLECTIVE
    for probe, floor in FLOORS.items():
        below = {name: value for name, value in told["probes"][probe].items() if value < floor}
        assert not below, f"{probe}: {below}"


def test_the_shipped_bases_are_small_and_as_their_recipes_say():
    parameters = []
    for name, recipe in RECIPES.items():  # the teacher's first, the students' by size
        told = json.loads((ROOT / "models" / name / "provenance.json").read_text())
        assert told["recipe"] == asdict(recipe) and told["documents"] == recipe.documents and told["command"].endswith(f" {name}")
        parameters.append(told["parameters"])
        assert (ROOT / "models" / name / "model.safetensors").stat().st_size < 5 * told["parameters"] < 4e6
    assert parameters == sorted(parameters, reverse=True) and parameters[0] > 2 * parameters[1]
