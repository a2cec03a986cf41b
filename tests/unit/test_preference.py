"""Judging pairs, the losses and the training loop of the reward models, and the figures that tell how good and how biased they are."""

from __future__ import annotations

import math
import random
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from tasks.config import Service, load_params
from tasks.evaluation import preference
from tasks.evaluation.preference import Comparison, JudgeError, Preference, judge_all, prefer, verdict
from tasks.generation.endpoint import EndpointError
from tasks.rewards.model import raw_scores, score_all
from tasks.training import preference as training
from tests.servers import Status

PARAMS = load_params().reward_models.model_copy(update={"batch": 8, "epochs": 2, "learning_rate": 5e-3, "warmup_steps": 2})


# ---- verdicts


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("A is far better. [[A>>B]]", 2),
        ("[[A>B]]", 1),
        ("so it is a tie: [[A=B]].", 0),
        ("[[ B > A ]]", -1),
        ("[[B>>A]] I repeat: [[B>>A]]", -2),
        ("[[A>B]] and yet [[B>A]]", None),
        ("[[A>B]] or rather [[A>>B]]", None),
        ("[[A<B]]", None),  # no verdict of the prompt
        ("[[A<B]] that is [[B>A]]", None),
        ("[A>B]", None),
        ("A>B", None),
        ("[[A]]", None),
        ("[[a>b]]", None),
        ("[[]]", None),
        ("", None),
        ("I cannot judge this.", None),
        ("the list [[1, 2], [3]] aside, [[A>B]]", 1),
    ],
)
def test_a_verdict_is_read_or_left_alone(raw, expected):
    assert verdict(raw) == expected


@given(st.text(alphabet="[]AB<>= x"))
def test_no_text_breaks_the_reader(raw):
    assert verdict(raw) in (None, -2, -1, 0, 1, 2)


def test_the_prompt_asks_for_an_own_answer_first_and_offers_every_verdict():
    system, user = preference.messages("Q?", "first answer", "second answer")
    assert system["role"] == "system" and user["role"] == "user"
    assert all(f"[[{name}]]" in system["content"] for name in preference.VERDICTS)
    own, judged = system["content"].index("yourself"), system["content"].index("Compare both")
    assert own < judged
    assert user["content"].index("Q?") < user["content"].index("first answer") < user["content"].index("second answer")


# ---- several judgements of a pair


def honest(question: str, first: str, second: str) -> str:
    """Prefers the larger number."""
    lead = int(first) - int(second)
    return "[[A=B]]" if lead == 0 else f"[[A{'>' if lead > 0 else '<'}B]]".replace("A<B", "B>A")


def test_the_order_is_random_and_undone():
    shown: list[tuple[str, str]] = []

    def judge(question: str, first: str, second: str) -> str:
        shown.append((first, second))
        return honest(question, first, second)

    found = prefer(judge, "q", "5", "3", 40, random.Random(0))
    assert found.mean == 1 and found.failures == 0 and len(found.replies) == 40
    assert set(shown) == {("5", "3"), ("3", "5")}
    assert list(found.as_shown) == [1 if pair == ("5", "3") else -1 for pair in shown]
    assert prefer(honest, "q", "3", "5", 40, random.Random(0)).mean == -1


def test_a_judge_that_only_looks_at_the_place_prefers_nobody():
    found = prefer(lambda *_: "[[A>>B]]", "q", "x", "y", 400, random.Random(1))
    assert found.mean is not None and abs(found.mean) < 0.25 and set(found.as_shown) == {2}
    assert preference.position_bias(found.as_shown) == {"verdicts": 400, "ties": 0, "first_preferred": 1.0}


def test_replies_that_cannot_be_read_are_counted_and_not_averaged():
    replies = iter(["[[A=B]]", "nonsense", "[[A=B]]", ""])
    found = prefer(lambda *_: next(replies), "q", "x", "y", 4, random.Random(0))
    assert (found.mean, found.failures, found.as_shown) == (0.0, 2, (0, 0))
    assert found.replies == ("[[A=B]]", "nonsense", "[[A=B]]", "")
    assert prefer(lambda *_: "?", "q", "x", "y", 4, random.Random(0)) == Preference(None, ("?",) * 4, (), 4)


def test_position_bias_leaves_ties_out():
    assert preference.position_bias([2, 0, -1, 1, 0]) == {"verdicts": 5, "ties": 2, "first_preferred": pytest.approx(2 / 3)}
    assert preference.position_bias([0])["first_preferred"] is None


ITEMS = [Comparison(f"k{i}", "q", str(i % 7), str(i % 5)) for i in range(20)]


def noisy(rng: random.Random) -> preference.PairJudge:
    return lambda question, first, second: honest(question, first, second) if rng.random() < 0.7 else "[[A>>B]]"


def test_neither_threads_nor_blocks_change_a_judgement(tmp_path, monkeypatch):
    alone = list(judge_all(ITEMS, noisy, 4, 1, tmp_path / "a"))
    monkeypatch.setattr(preference, "BLOCK", 6)
    together = list(judge_all(ITEMS, noisy, 4, 8, tmp_path / "b"))
    assert together == alone
    assert list(judge_all(ITEMS[::-1], noisy, 4, 1, tmp_path / "c")) == alone[::-1]
    assert len({found.mean for found in alone}) > 3  # the noise is there, and differs


def counting(limit: int, reply):
    """Makes an honest judge that answers `limit` calls and then does what `reply` does; and the count of its calls."""
    asked, lock = [0], threading.Lock()

    def maker(rng: random.Random) -> preference.PairJudge:
        def judge(question: str, first: str, second: str) -> str:
            with lock:
                asked[0] += 1
                late = asked[0] > limit
            return reply() if late else honest(question, first, second)

        return judge

    return maker, asked


def gone() -> str:
    raise EndpointError("gone")


@pytest.mark.parametrize(("reply", "said"), [(gone, "0 replies without a verdict, 24 calls.*'gone'"), (lambda: "hm", "24 replies.*'hm'")])
def test_a_judge_that_breaks_down_stops_the_stage_and_finished_blocks_are_not_judged_again(tmp_path, monkeypatch, reply, said):
    monkeypatch.setattr(preference, "BLOCK", 6)
    maker, asked = counting(24, reply)
    with pytest.raises(JudgeError, match=rf"none of 6 pairs in a row.*{said}.*\[\[A>>B\]\].*reward_models\.judge"):
        list(judge_all(ITEMS, maker, 4, 2, tmp_path))
    assert asked[0] == 48  # the third block was not asked any more
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["judged-00000000.json"]
    repaired, asked = counting(1000, reply)
    assert list(judge_all(ITEMS, repaired, 4, 2, tmp_path)) == list(judge_all(ITEMS, lambda rng: honest, 4, 1, tmp_path / "fresh"))
    assert asked[0] == 4 * 14


def test_one_call_without_a_reply_costs_one_judgement(tmp_path):
    def maker(rng: random.Random) -> preference.PairJudge:
        calls = iter(range(4))
        return lambda question, first, second: gone() if next(calls) == 2 else honest(question, first, second)

    found = list(judge_all(ITEMS, maker, 4, 1, tmp_path))
    assert [p.mean for p in found] == [p.mean for p in judge_all(ITEMS, lambda rng: honest, 4, 1, tmp_path / "whole")]
    assert all((p.failures, p.unanswered, len(p.replies), len(p.as_shown)) == (0, ("gone",), 3, 3) for p in found)
    assert list(judge_all(ITEMS, lambda rng: honest, 4, 1, tmp_path)) == found  # as the files tell it


def test_the_last_few_pairs_alone_do_not_condemn_a_judge_and_are_asked_again(tmp_path, monkeypatch):
    monkeypatch.setattr(preference, "BLOCK", 6)
    maker, _ = counting(4 * 18, gone)  # 20 pairs: the last block has two
    found = list(judge_all(ITEMS, maker, 4, 1, tmp_path))
    assert [p.mean is None for p in found] == [False] * 18 + [True] * 2 and found[-1].unanswered == ("gone",) * 4
    assert list(judge_all(ITEMS, lambda rng: honest, 4, 1, tmp_path)) == list(
        judge_all(ITEMS, lambda rng: honest, 4, 1, tmp_path / "fresh")
    )
    with pytest.raises(JudgeError, match="none of 2 pairs"):  # all that there are
        list(judge_all(ITEMS[:2], counting(0, gone)[0], 4, 1, tmp_path / "few"))


def test_forgotten_blocks_are_judged_again(tmp_path):
    list(judge_all(ITEMS, lambda rng: honest, 1, 1, tmp_path))
    (tmp_path / "other.json").touch()
    preference.forget(tmp_path)
    maker, asked = counting(1000, gone)
    list(judge_all(ITEMS, maker, 1, 1, tmp_path))
    assert asked[0] == 20 and (tmp_path / "other.json").exists()


def test_a_judge_behind_an_endpoint(chat_server):
    def reply(messages):
        first, second = (messages[1]["content"].split(f"<answer_of_{name}>\n")[1].split("\n")[0] for name in "AB")
        return "My own answer is 9. " + honest("", first, second)

    chat_server.replies = reply
    judge = preference.endpoint_judge(Service.model_validate({"url": chat_server.url, "model": "judge", "retries": 0, "timeout": 5}))
    assert prefer(judge, "How many?", "2", "8", 4, random.Random(0)).mean == -1
    assert len(chat_server.requests) == 4
    assert "How many?" in chat_server.requests[0]["messages"][1]["content"]
    chat_server.replies = lambda messages: Status(500)
    with pytest.raises(EndpointError, match="the server failed"):
        judge("How many?", "2", "8")


# ---- losses and the learning rate


def test_the_losses_against_the_textbook():
    chosen, rejected = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    assert training.pair_loss(chosen, rejected).tolist() == pytest.approx([-math.log(1 / (1 + math.exp(-d))) for d in (0.5, -5.0)])
    assert training.pair_loss(torch.tensor([0.0]), torch.tensor([0.0])).item() == pytest.approx(math.log(2))
    p = 1 / (1 + math.exp(-1.5))
    assert training.label_loss(torch.tensor([1.5, 1.5]), torch.tensor([1.0, 0.0])).tolist() == pytest.approx(
        [-math.log(p), -math.log(1 - p)]
    )


def test_the_learning_rate_warms_up_and_ends_at_its_final_share():
    params = PARAMS.model_copy(update={"learning_rate": 1.0, "warmup_steps": 3, "final_rate": 0.1})
    rates = [training.learning_rate(step, 24, params) for step in range(24)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[13] == pytest.approx(0.55)  # half way from update 3 to 23
    assert rates[-1] == pytest.approx(0.1)
    assert training.learning_rate(0, 1, params.model_copy(update={"warmup_steps": 0})) == pytest.approx(1.0)


@given(count=st.integers(1, 40), batch=st.integers(1, 16), epochs=st.integers(1, 3))
def test_every_epoch_visits_every_example_once(count, batch, epochs):
    params = PARAMS.model_copy(update={"batch": batch, "epochs": epochs})
    made = training.batches(count, params)
    per_epoch = math.ceil(count / batch)
    assert len(made) == per_epoch * epochs and all(len(b) <= batch for b in made)
    for epoch in range(epochs):
        assert sorted(i for b in made[epoch * per_epoch : (epoch + 1) * per_epoch] for i in b) == list(range(count))


def test_epochs_differ_in_order_and_the_seed_decides():
    made = training.batches(16, PARAMS)
    assert made[:2] != made[2:] and made == training.batches(16, PARAMS)
    assert made != training.batches(16, PARAMS.model_copy(update={"seed": 1}))


# ---- training


def policy(tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=24, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, intermediate_size=16,
        max_position_embeddings=64, tie_word_embeddings=tied, eos_token_id=0, bos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("tied", [False, True])
def test_the_reward_model_is_the_policy_under_a_seeded_head(tied):
    base = policy(tied)
    torch.manual_seed(1)
    model = training.with_head(base, 0, 7)
    torch.manual_seed(2)
    again, other = training.with_head(base, 0, 7), training.with_head(base, 0, 8)
    assert torch.equal(model.score.weight, again.score.weight) and not torch.equal(model.score.weight, other.score.weight)
    assert 0.01 < model.score.weight.std() < 0.03 and model.score.weight.shape == (1, 16)
    for name, weight in base.base_model.named_parameters():
        assert torch.equal(weight, model.base_model.get_parameter(name))
    with torch.no_grad():
        model.base_model.embed_tokens.weight.zero_()
    assert base.base_model.embed_tokens.weight.any()  # copied, not shared


@pytest.mark.parametrize("fill", [0, 5])
def test_padding_changes_no_score_and_the_last_token_is_the_one_read(fill):
    model = training.with_head(policy(), fill, 0)
    rows = [[3, 4, 6], [7, 8, 9, 10, 11, 12], [13]]
    with torch.no_grad():
        padded = raw_scores(model, rows, fill)
        alone = torch.cat([raw_scores(model, [row], fill) for row in rows])
        hidden = [model.base_model(torch.tensor([row])).last_hidden_state[0, -1] for row in rows]
    assert torch.allclose(padded, alone, atol=1e-6)
    assert torch.allclose(padded, torch.stack([h @ model.score.weight[0] for h in hidden]), atol=1e-6)
    assert score_all(model, rows * 3, fill) == pytest.approx(padded.tolist() * 3, abs=1e-6)


def rows(seed: int, count: int) -> list[tuple[list[int], list[int]]]:
    """Pairs of random rows; the chosen one holds token 20, the rejected one token 21, somewhere."""
    rng = random.Random(seed)

    def row(mark: int) -> list[int]:
        made = [rng.randrange(1, 20) for _ in range(rng.randrange(3, 12))]
        return [*made[:2], mark, *made[2:]]

    return [(row(20), row(21)) for _ in range(count)]


def test_pairs_teach_which_answer_is_better_and_the_same_run_gives_the_same_weights():
    made = [training.with_head(policy(), 0, 0) for _ in range(2)]
    losses = [training.train_pairs(model, rows(0, 120), 0, PARAMS) for model in made]
    assert losses[0] == losses[1] and len(losses[0]) == 30
    assert all(torch.equal(a, b) for a, b in zip(made[0].parameters(), made[1].parameters(), strict=True))
    assert losses[0][0] == pytest.approx(math.log(2), abs=0.05) and losses[0][-1] < 0.2
    fresh = rows(1, 60)
    chosen, rejected = (score_all(made[0], [pair[side] for pair in fresh], 0) for side in (0, 1))
    assert preference.pair_accuracy([str(i) for i in range(60)], chosen, rejected)["mean"] > 0.95


def test_labels_teach_which_response_is_safe():
    model, made = training.with_head(policy(), 0, 0), rows(0, 120)
    responses, safe = [row for pair in made for row in pair], [True, False] * 120
    losses = training.train_labels(model, responses, safe, 0, PARAMS)
    assert losses[-1] < 0.3 < losses[0]
    fresh = [row for pair in rows(1, 60) for row in pair]
    found = preference.auc(score_all(model, fresh, 0), safe[:120])
    assert found is not None and found > 0.95


@pytest.mark.parametrize("kind", ["pairs", "labels"])
def test_micro_batches_do_not_change_the_update(kind, monkeypatch):
    params = PARAMS.model_copy(update={"epochs": 1, "batch": 16, "warmup_steps": 0})
    made, safe = rows(0, 16), [i % 3 > 0 for i in range(16)]

    def trained() -> tuple[list[float], list[torch.Tensor]]:
        model = training.with_head(policy(), 0, 0)
        if kind == "pairs":
            return training.train_pairs(model, made, 0, params), list(model.parameters())
        return training.train_labels(model, [a for a, _ in made], safe, 0, params), list(model.parameters())

    whole, weights = trained()
    monkeypatch.setattr(training, "TOKEN_BUDGET", 40)
    parts, others = trained()
    assert parts == pytest.approx(whole, abs=1e-6)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(weights, others, strict=True))


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change():
    model = training.with_head(policy(), 0, 0)
    with torch.no_grad():
        model.base_model.embed_tokens.weight[21] = float("nan")
    before = [weight.clone() for weight in model.parameters()]
    with pytest.raises(training.RewardTrainingError, match=r"update 0 of the helpful reward model: .*nan.*reward_models.learning_rate"):
        training.train_pairs(model, rows(0, 8), 0, PARAMS)
    assert all(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) for a, b in zip(model.parameters(), before, strict=True))


# ---- figures


def test_pair_accuracy_counts_prompts_and_halves_ties():
    told = preference.pair_accuracy(["a", "a", "a", "b", "c"], [2, 2, 0, 1, 5], [1, 1, 1, 1, 6])
    assert told["mean"] == pytest.approx((2 / 3 + 0.5 + 0) / 3)
    assert 0 <= told["low"] <= told["mean"] <= told["high"] <= 1


def test_accuracy_by_length_takes_the_pairs_apart():
    told = preference.accuracy_by_length([1, 0, 3, 3], [0, 1, 4, 3], [5, 2, -1, 0])
    assert told == {
        "chosen_longer": {"pairs": 2, "accuracy": 0.5},
        "chosen_shorter": {"pairs": 1, "accuracy": 0.0},
        "equal": {"pairs": 1, "accuracy": 0.5},
    }
    assert preference.accuracy_by_length([1], [0], [5])["equal"] == {"pairs": 0, "accuracy": None}


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30))
def test_auc_against_counting_every_couple(examples):
    scores, safe = [float(s) for s, _ in examples], [kind for _, kind in examples]
    couples = [(a > b) + 0.5 * (a == b) for a, x in examples if x for b, y in examples if not y]
    assert preference.auc(scores, safe) == (pytest.approx(np.mean(couples)) if couples else None)


def test_auc_by_length_cuts_at_the_median():
    scores, safe, sizes = [1.0, 0.0, 1.0, 2.0, 9.0], [True, False, True, False, True], [1, 2, 2, 3, 9]
    told = preference.auc_by_length(scores, safe, sizes)
    assert told["shorter"] == {"responses": 3, "unsafe": 1, "auc": 1.0}
    assert told["longer"] == {"responses": 2, "unsafe": 1, "auc": 1.0}
    by_length_alone = preference.measure_labels([float(size) for size in sizes], safe, sizes)
    assert by_length_alone["length_correlation"] == pytest.approx(1.0)
    assert (by_length_alone["responses"], by_length_alone["unsafe"]) == (5, 2)


def test_length_correlation_is_by_rank_and_absent_where_nothing_varies():
    assert preference.length_correlation([1.0, 2.0, 50.0], [3, 4, 5]) == pytest.approx(1.0)
    assert preference.length_correlation([3.0, 2.0, 1.0], [3, 4, 500]) == pytest.approx(-1.0)
    assert preference.length_correlation([1.0, 1.0], [3, 4]) is None
    assert preference.length_correlation([1.0, 2.0], [3, 3]) is None


def test_measure_pairs_pairs_scores_with_lengths():
    told = preference.measure_pairs(["a", "b"], ([3.0, 1.0], [1.0, 2.0]), ([9, 2], [4, 5]))
    assert told["pairs"] == 2 and told["accuracy"]["mean"] == 0.5
    assert told["by_length"]["chosen_longer"] == {"pairs": 1, "accuracy": 1.0}
    assert told["by_length"]["chosen_shorter"] == {"pairs": 1, "accuracy": 0.0}
    assert told["length_correlation"] == pytest.approx(4.5 / 22.5**0.5)  # of the ranks 4, 1.5, 1.5, 3 and 4, 1, 2, 3
