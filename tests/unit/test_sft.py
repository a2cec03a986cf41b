"""Supervised fine-tuning piece by piece: tokens, order, schedule, and that packing changes neither loss nor gradient."""

from __future__ import annotations

import math
import random
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from tasks.config import SFT
from tasks.errors import DataError
from tasks.generation import model_folder
from tasks.template import render
from tasks.training import sft
from tasks.training.rl import LANES, DivergedError
from tasks.training.sft import LeakError, Sample, Trainer, batch_of, load, losses, order, plan, rate, sizes, updates_of

ROOT = Path(__file__).parents[2]
SHAPE = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 16, "max_position_embeddings": 64, "initializer_range": 0.4,
}  # fmt: skip
PARAMS = SFT(
    base="models/base", seed=0, epochs=2, batch=8, learning_rate=1e-2, final_rate=0.1, warmup_steps=3, weight_decay=0.0,
    gradient_norm=1.0, context=32, rows=2, checkpoint_every=2, workers=0,
)  # fmt: skip


def params(**changed: object) -> SFT:
    return PARAMS.model_copy(update=changed)


def tiny(kind: str = "llama", attention: str = "sdpa") -> PreTrainedModel:
    torch.manual_seed(0)
    if kind == "llama":
        model: PreTrainedModel = LlamaForCausalLM(LlamaConfig(**SHAPE))
    else:
        window = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1} if kind == "sliding" else {}
        model = Qwen2ForCausalLM(Qwen2Config(**SHAPE, **window))
    model.set_attn_implementation(attention)
    return model.eval()


def samples(count: int, seed: int = 0) -> list[Sample]:
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        prompt, response = rng.randint(1, 6), rng.randint(1, 14)
        made.append(Sample(np.array([rng.randrange(40) for _ in range(prompt + response)], dtype=np.int32), prompt))
    return made


def naive_loss(model: PreTrainedModel, chosen: list[Sample]) -> torch.Tensor:
    """Mean over all response tokens, one sample at a time, by the definition."""
    terms = []
    for sample in chosen:
        ids = torch.from_numpy(sample.ids).long()
        logprobs = model(ids[None]).logits[0].log_softmax(-1)
        terms += [-logprobs[at - 1, ids[at]] for at in range(sample.prompt, len(ids))]
    return torch.stack(terms).mean()


def gradient(model: PreTrainedModel, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()]).clone()


# ---- packing changes nothing


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "sliding"])
def test_packed_loss_and_gradient_are_those_of_samples_one_by_one(kind, attention):
    model, chosen = tiny(kind, attention), samples(12)
    expected = naive_loss(model, chosen)
    wanted = gradient(model, expected)
    lanes = plan(chosen, range(12), params(rows=3))
    batches = [[[chosen[i] for i in row] for row in batch] for batch in chain(*lanes)]
    assert max(len(row) for batch in batches for row in batch) > 2 and max(map(len, batches)) > 1  # something is packed
    total = sum(s.response for s in chosen)
    found = sum((losses(model, batch).sum() for batch in batches), torch.tensor(0.0)) / total
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(gradient(model, found), wanted, atol=1e-6 * wanted.abs().max().item() * 5, rtol=1e-5)


def test_what_stands_before_a_sample_in_its_row_does_not_reach_it():
    model = tiny()
    first, other, second = samples(3)
    for company in (first, other):
        packed = losses(model, [[company, second], [second]])
        alone = losses(model, [[second]])[0]
        assert torch.allclose(packed[0, len(company.ids) :], alone, atol=1e-5)
        assert alone.abs().sum() > 0


def test_a_loss_on_each_response_token_and_on_no_other():
    model = tiny()
    a, b = Sample(np.array([1, 2, 3, 4, 5], dtype=np.int32), 3), Sample(np.array([6, 7, 8], dtype=np.int32), 1)
    assert (losses(model, [[a, b], [b]]) > 0).tolist() == [
        [False, False, True, True, False, True, True, False],
        [True, True, False, False, False, False, False, False],
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_updates_are_adamw_steps_on_the_mean_over_all_response_tokens(workers):
    chosen, settings = samples(8), params(epochs=5, warmup_steps=0, weight_decay=0.1, gradient_norm=0.5)
    model, twin = tiny(), tiny()
    trainer = Trainer(model, chosen, settings, "dev1", workers)
    optimizer = torch.optim.AdamW(twin.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(3):  # the first alone would not show the betas
        row = trainer.update()
        loss = naive_loss(twin, chosen)
        gradient(twin, loss)
        norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        assert norm > 0.5
        optimizer.param_groups[0]["lr"] = rate(step, 5, settings)
        optimizer.step()
        assert row["loss"] == pytest.approx(loss.item(), rel=1e-4) and row["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)
        assert row["learning_rate"] == rate(step, 5, settings) and row["response_tokens"] == sum(s.response for s in chosen)
        assert (row["step"], row["epoch"], trainer.state.step) == (step, step + 1, step + 1)
    trainer.workers.close()
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-4)


def test_the_number_of_workers_changes_no_byte():
    def train(workers: int) -> list[torch.Tensor]:
        trainer = Trainer(tiny(), samples(20), PARAMS, "dev1", workers)
        for _ in range(3):
            trainer.update()
        trainer.workers.close()
        return [weight.detach().clone() for weight in trainer.weights]

    alone = train(0)
    for count in (1, 3):
        assert all(torch.equal(a, b) for a, b in zip(alone, train(count), strict=True))


def test_every_lane_gets_work_when_there_are_rows_enough():
    chosen = samples(40)
    dealt = plan(chosen, range(5, 40), PARAMS)
    assert len(dealt) == LANES
    assert sorted(i for lane in dealt for batch in lane for row in batch for i in row) == list(range(5, 40))
    counts = [sum(len(batch) for batch in lane) for lane in dealt]
    assert max(counts) - min(counts) <= 1 and min(counts) > 0
    assert all(len(batch) <= 2 for lane in dealt for batch in lane)
    assert all(sum(len(chosen[i].ids) for i in row) <= 32 for lane in dealt for batch in lane for row in batch)


# ---- guards


def test_a_model_that_lets_packed_samples_see_each_other_is_refused(monkeypatch):
    trainer = Trainer(tiny(), samples(4), PARAMS, "dev1", 0)
    trainer.check_separation()
    collate = sft.collate

    def one_sequence(rows):  # what attention without masks sees
        ids, _, labels = collate(rows)
        return ids, torch.arange(ids.shape[1]).expand_as(ids), labels

    monkeypatch.setattr(sft, "collate", one_sequence)
    with pytest.raises(LeakError, match=r"dev1: .* nats .* this llama model does not keep packed samples apart"):
        trainer.check_separation()


def test_a_model_that_keeps_them_apart_only_in_a_batch_of_one_row_is_refused(monkeypatch):
    """As flash attention in transformers does."""
    trainer = Trainer(tiny(), samples(4), PARAMS, "dev1", 0)
    collate = sft.collate

    def flash(rows):
        ids, positions, labels = collate(rows)
        return ids, positions if len(rows) == 1 else torch.arange(ids.shape[1]).expand_as(ids), labels

    monkeypatch.setattr(sft, "collate", flash)
    with pytest.raises(LeakError):
        trainer.check_separation()


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change():
    trainer = Trainer(tiny(), samples(8), PARAMS, "dev3", 0)
    with torch.no_grad():
        trainer.weights[0][5] = float("inf")
    before = [weight.clone() for weight in trainer.weights]
    with pytest.raises(DivergedError, match=r"dev3, update 0: .* nan; nothing was updated\. Lower dev3.learning_rate \(now 0.01\)"):
        trainer.update()
    assert all(torch.equal(a, b) for a, b in zip(trainer.weights, before, strict=True))
    assert trainer.state.step == 0 and not trainer.state.rows


# ---- schedule and order


def test_the_rate_rises_linearly_falls_as_a_cosine_and_ends_at_the_final_share_exactly():
    rates = [rate(step, 23, PARAMS) for step in range(23)]
    assert rates[:4] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    assert rates[-1] == 0.1 * 1e-2 and max(rates) == rates[3] == 1e-2
    assert rates[3:] == sorted(rates[3:], reverse=True)
    halfway = 3 + 19 / 2
    assert (rates[12] + rates[13]) / 2 == pytest.approx(0.0055) and 12 < halfway < 13  # a cosine is odd about its middle
    assert rates[4] > 1e-2 - 0.3 * (1e-2 - rates[5])  # flat at the top, as a straight line is not


@given(st.integers(1, 60), st.integers(0, 80), st.sampled_from([0.0, 0.1, 0.3, 1.0]))
def test_any_run_reaches_peak_and_end(updates, warmup, final):
    settings = params(warmup_steps=warmup, final_rate=final)
    rates = [rate(step, updates, settings) for step in range(updates)]
    assert rates[-1] == final * 1e-2
    assert updates == 1 or max(rates) == 1e-2
    assert all(0 <= r <= 1e-2 for r in rates)


@given(st.integers(1, 40), st.integers(1, 50))
def test_an_epoch_is_every_sample_once_and_epochs_differ(count, size):
    settings = params(batch=size)
    walked = [batch_of(step, count, settings) for step in range(updates_of(count, settings))]
    assert len(walked) == 2 * math.ceil(count / size)
    for epoch in (0, 1):
        batches = [chosen for number, chosen in walked if number == epoch]
        assert [len(b) for b in batches[:-1]] == [size] * (len(batches) - 1)
        assert tuple(i for b in batches for i in b) == order(count, 0, epoch)
        assert sorted(order(count, 0, epoch)) == list(range(count))


def test_the_order_depends_on_seed_and_epoch():
    assert len({order(30, 0, 0), order(30, 1, 0), order(30, 0, 1), tuple(range(30))}) == 4


def test_sizes_worked_by_hand():
    def sample(length: int) -> Sample:
        return Sample(np.zeros(length, dtype=np.int32), 2)

    # One update an epoch: rows 20 + 12 and 15 + 10, a lane each, so nothing is padded; unpacked, 64 positions hold three rows of 20.
    found = sizes([sample(n) for n in (20, 15, 12, 10)], params(batch=4))
    assert (found.samples, found.tokens, found.response_tokens, found.epochs, found.updates, found.rows) == (4, 57, 49, 2, 2, 4)
    assert found.padding == 0.0 and found.padding_unpacked == pytest.approx(1 - 57 / (3 * 20 + 10))


def test_the_padding_of_the_run_is_that_of_its_updates():
    chosen, settings = samples(21), params(context=20)
    trainer = Trainer(tiny(), chosen, settings, "dev1", 0)
    rows = [trainer.update() for _ in range(trainer.updates)]
    tokens = [sum(len(chosen[i].ids) for i in batch_of(step, 21, settings)[1]) for step in range(trainer.updates)]
    computed = sum(n / (1 - row["padding"]) for n, row in zip(tokens, rows, strict=True))
    assert sizes(chosen, settings).padding == pytest.approx(1 - sum(tokens) / computed) and computed > sum(tokens)


# ---- data


def record(key: str, question: str = "What is 3 plus 4?", response: str = " <think> </think> <answer> 7 </answer>") -> dict:
    return {"id": key, "messages": [{"role": "user", "content": question}], "response": response}


@pytest.fixture(scope="module")
def tokenizer():
    return model_folder.load(ROOT / "models/base")[1]


def test_a_sample_is_the_rendered_prompt_the_response_and_the_end_token(tokenizer):
    made = load([[record("a")], [record("b", "Start 3. Plus 4?")]], tokenizer, 384, 512, "x")
    for sample, question in zip(made, ("What is 3 plus 4?", "Start 3. Plus 4?"), strict=True):
        prompt, response = tokenizer.encode(render(question)), tokenizer.encode(record("a")["response"])
        assert sample.ids.tolist() == [*prompt, *response, tokenizer.eos_token_id]
        assert (sample.prompt, sample.response) == (len(prompt), len(response) + 1)


def test_a_tokenizer_that_starts_every_text_with_a_token_starts_the_response_with_none(tokenizer):
    class Llama:
        eos_token_id = 0

        def __call__(self, texts, add_special_tokens=True):
            return {"input_ids": [[99] * add_special_tokens + [len(text)] for text in texts]}

    (made,) = sft.encode([record("a")], Llama())
    assert made.ids.tolist() == [99, len(render("What is 3 plus 4?")), len(record("a")["response"]), 0] and made.prompt == 2


def test_samples_that_do_not_fit_are_named_with_the_arithmetic(tokenizer):
    prompt = len(tokenizer.encode(render("What is 3 plus 4?")))
    whole = len(load([[record("a")]], tokenizer, 384, 512, "x")[0].ids)
    assert len(load([[record("a")]], tokenizer, whole, 512, "x")) == 1
    for context, positions in ((whole - 1, 512), (384, whole - 1)):
        with pytest.raises(
            DataError,
            match=rf"sft.parquet: 1 of 2 samples have more tokens than fit, {whole - 1} \(context {context}, positions of the model "
            rf"{positions}\): big \(prompt {prompt} \+ response {whole - prompt - 1} \+ end 1 = {whole}\); remove them or raise context",
        ):
            load([[record("small", response="")], [record("big")]], tokenizer, context, positions, "sft.parquet")
    with pytest.raises(DataError, match=r"25 of 25 .* s19 \([^)]*\) and 5 more; remove"):
        load([[record(f"s{i}") for i in range(25)]], tokenizer, whole - 1, 512, "x")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "x holds no sample"),
        ([record("a"), record("b") | {"messages": []}], "without a message or a response: b;"),
        ([record("c") | {"response": None}], "without a message or a response: c;"),
    ],
)
def test_data_without_anything_to_learn_is_named(tokenizer, rows, message):
    with pytest.raises(DataError, match=message):
        load([rows] * bool(rows), tokenizer, 384, 512, "x")  # Parquet yields no empty batch
