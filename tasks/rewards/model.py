"""The two reward models of preference RL (paper, section 3.1): the policy's architecture with a scalar head in place of the vocabulary's.

A folder is a plain Hugging Face sequence classifier with one label; config.json also tells what it reads (`reward_kind`) and how its raw
scores become rewards (`reward_shift`, `reward_scale`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tasks.errors import SecondThoughtError
from tasks.generation import model_folder
from tasks.rewards.format import parse
from tasks.template import render
from tasks.training.batching import micro_batches

KINDS = ("helpful", "safety")
TOKEN_BUDGET = 4096  # padded tokens of a micro-batch
REMEDY = "run `python -m tasks.reward_models`"


class RewardModelError(SecondThoughtError):
    """A reward model that cannot be loaded, or that gives a score which is no number."""


def text(kind: str, question: str, completion: str) -> str:
    """What a reward model reads: the prompt, and of the completion the final answer alone ("helpful") or all of it ("safety").

    The helpful model must not be swayed by how a chain of thought sounds; the safety model must see harm in it (paper, section 3.1).
    """
    if kind == "helpful":
        completion = f" <think> </think> <answer> {parse(completion).answer} </answer>"
    return render(question) + completion


def raw_scores(model: Any, rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Scalar scores [rows] of token rows, with gradient if it is enabled.

    Right padding; transformers reads the score at the last token that is not `fill`, hence no row ends with EOS, which may be the fill.
    """
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])
    attention = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return model(input_ids=ids, attention_mask=attention, use_cache=False).logits.squeeze(-1).float()


@torch.no_grad()
def score_all(model: Any, rows: Sequence[Sequence[int]], fill: int) -> list[float]:
    """Raw scores of any number of rows, in order."""
    scores = torch.zeros(len(rows))
    for batch in micro_batches([len(row) for row in rows], TOKEN_BUDGET):
        scores[batch] = raw_scores(model, [rows[i] for i in batch], fill)
    return scores.tolist()


def padding(tokenizer: Any) -> int:
    """The token that fills rows up: Llama 3 has no pad token, and EOS does as well."""
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)


class RewardModel:
    """Scores completions on the CPU, by one thread's worth of work; after `share_memory` forked workers share its weights."""

    def __init__(self, folder: Path) -> None:
        """Loads a folder that stage `reward_models` wrote; safetensors alone, and code in the folder is never run.

        Raises:
            ModelFolderError: the folder or a file in it is missing or damaged.
            RewardModelError: it holds another kind of model.
        """
        self.folder = folder
        self.model, self.tokenizer = _load(folder)
        config = self.model.config
        kind, shift, scale = (getattr(config, f"reward_{name}", None) for name in ("kind", "shift", "scale"))
        if kind not in KINDS or not isinstance(shift, float) or not isinstance(scale, float) or not scale > 0:
            raise RewardModelError(
                f"config.json in {folder} has reward_kind {kind!r}, reward_shift {shift!r} and reward_scale {scale!r}, expected one of "
                f"{', '.join(KINDS)}, a number and a number above 0: {REMEDY}"
            )
        self.kind, self.shift, self.scale = str(kind), shift, scale

    def share_memory(self) -> RewardModel:
        """Moves the weights to shared memory, before workers are forked."""
        self.model.share_memory()
        return self

    def raw(self, questions: Sequence[str], completions: Sequence[str]) -> list[float]:
        """Scores as the head gives them.

        Raises:
            RewardModelError: a score is NaN or infinite; names the prompt.
        """
        rows = [self.tokenizer.encode(text(self.kind, q, c)) for q, c in zip(questions, completions, strict=True)]
        scores = score_all(self.model, rows, padding(self.tokenizer)) if rows else []
        for question, score in zip(questions, scores, strict=True):
            if not math.isfinite(score):
                raise RewardModelError(f"the reward model in {self.folder} scores {score} on the prompt {question[:200]!r}: {REMEDY}")
        return scores

    def score(self, questions: Sequence[str], completions: Sequence[str]) -> list[float]:
        """Rewards in [0, 1]: the sigmoid of the raw score, standardised by its mean and deviation over the training responses.

        Bounded, so that a preference weighs no more than a verified answer does. A completion without a final answer earns 0 from the
        helpful model, which would otherwise judge an input that it was never trained on.

        Raises:
            RewardModelError: see `raw`.
        """
        found = [self.kind != "helpful" or bool(parse(c).answer) for c in completions]
        scores = (torch.tensor(self.raw(questions, completions)) - self.shift) / self.scale
        return [value if there else 0.0 for value, there in zip(scores.sigmoid().tolist(), found, strict=True)]


def _load(folder: Path) -> tuple[Any, Any]:
    model_folder.check(folder)
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **local
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, **local)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise RewardModelError(f"transformers cannot load {folder} ({' '.join(str(error).split())}): {REMEDY}") from error
    model, report = loaded
    wrong = {kind: sorted(map(str, names)) for kind, names in report.items() if names}
    if wrong:  # a language model, for one: transformers would give it a random head and only warn
        raise RewardModelError(f"{folder} holds no reward model ({wrong}): {REMEDY}")
    for key in ("is_local", "local_files_only"):  # else a saved copy's tokenizer_config.json differs
        tokenizer.init_kwargs.pop(key, None)
    return model.eval(), tokenizer
