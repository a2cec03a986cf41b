"""R1-Zero's prompt template, to the letter of the paper's Table 1 (arXiv 2501.12948)."""

from __future__ import annotations

PREAMBLE = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant first "
    "thinks about the reasoning process in the mind and then provides the user with the answer. The reasoning process and "
    "answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., <think> reasoning process "
    "here </think> <answer> answer here </answer>. User:"
)
ASSISTANT = " Assistant:"
# The same as a chat template, so that `tokenizer.apply_chat_template` and vLLM's chat endpoint give the same text.
CHAT_TEMPLATE = (
    PREAMBLE + " {%- for message in messages %}{%- if message['role'] == 'user' %}"
    "{{- ' ' + message['content'] }}{%- if message['content'][-1] not in '.?!。？！' %}{{- '.' }}{%- endif %}"
    "{%- endif %}{%- endfor %}{{- ' Assistant:' }}"
)


def render(question: str) -> str:
    """The whole prompt for one question. The paper prints "User: prompt. Assistant:"; a question that already ends with a
    full stop, question or exclamation mark (Latin or Chinese) gets no second one."""
    stop = "" if question.endswith((".", "?", "!", "。", "？", "！")) else "."
    return f"{PREAMBLE} {question}{stop}{ASSISTANT}"
