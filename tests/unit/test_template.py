"""R1-Zero's template to the letter, in text and through the tokenizer that ships with the base."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from tasks.template import render

ROOT = Path(__file__).parents[2]
PRINTED = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant first thinks about "
    "the reasoning process in the mind and then provides the user with the answer. The reasoning process and answer are enclosed within "
    "<think> </think> and <answer> </answer> tags, respectively, i.e., <think> reasoning process here </think> <answer> answer here "
    "</answer>. User: prompt. Assistant:"
)


def test_the_template_is_the_papers():
    assert render("prompt") == PRINTED


def test_a_question_keeps_its_own_stop():
    assert render("Why?").endswith("User: Why? Assistant:")
    assert render("为何？").endswith("User: 为何？ Assistant:")


def test_the_chat_template_of_the_base_gives_the_same_text_and_tokens():
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models/base")
    for question in ("prompt", "Why?", "为何？"):
        messages = [{"role": "user", "content": question}]
        assert tokenizer.apply_chat_template(messages, tokenize=False) == render(question)
    ids = tokenizer.encode(render("prompt"))
    assert len(tokenizer.decode(ids[:1])) > 400  # the preamble is one token
