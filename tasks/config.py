"""params.yaml, typed: unknown keys fail by name, sizes that follow from others are computed, conflicts show the arithmetic."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tasks.errors import SecondThoughtError

Share = Annotated[float, Field(ge=0, le=1)]


class ParamsError(SecondThoughtError):
    """params.yaml has an unknown key, a value out of range, or sizes that do not fit together."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Curate(Section):
    """Prompts: the generated world, the user's own files, and the split."""

    problems: int = Field(ge=50, le=20_000, description="generated problems of all domains")
    train: Share
    validation: Share
    test: Share
    sources: tuple[str, ...] = Field((), description="the user's problems: JSONL or Parquet (docs/data.md)")
    ngram: int = Field(ge=2, description="words of the overlap filter against the test split")

    @model_validator(mode="after")
    def _whole(self) -> Curate:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"train {self.train} + validation {self.validation} + test {self.test} = {total:g}, not 1")
        return self


class Limit(Section):
    """From policy update `step` on, completions may have `tokens` new tokens."""

    step: int = Field(ge=0)
    tokens: int = Field(ge=1)


class Zero(Section):
    """GRPO straight on a base. The paper's values stand in docs/paper-map.md beside the miniature's."""

    base: str = Field(description="Hugging Face folder of the base model")
    seed: int = Field(ge=0, description="seed of rollouts and mini-batches; the data keep theirs")
    domains: tuple[Literal["math", "code", "stem", "logic"], ...]
    steps: int = Field(ge=1, description="policy updates")
    prompts_per_rollout: int = Field(ge=1)
    group_size: int = Field(ge=2)
    minibatches: int = Field(ge=1, description="policy updates a rollout")
    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(ge=0)
    final_rate: Share = Field(description="share of the learning rate that is left at the last step (linear decay)")
    weight_decay: float = Field(ge=0)
    gradient_norm: float = Field(gt=0, description="gradients are clipped to this norm")
    temperature: float = Field(gt=0)
    limits: tuple[Limit, ...] = Field(description="length limit by step")
    normalize_std: bool
    ratio: Literal["token", "sequence"]
    denominator: Literal["own_length", "batch_tokens", "max_new_tokens"]
    clip_low: float = Field(ge=0)
    clip_high: float = Field(gt=0)
    beta: float = Field(ge=0, description="weight of the KL term in the loss; 0 skips the reference pass")
    reference_every: int = Field(ge=1, description="the reference becomes the policy every so many steps")
    format_weight: float = Field(ge=0)
    token_budget: int = Field(ge=64, description="padded tokens of a micro-batch")
    validation_every: int = Field(ge=1, description="steps between validations")
    validation_problems: int = Field(ge=1)
    checkpoint_every: int = Field(ge=1, description="rollouts between checkpoints")
    workers: int = Field(0, ge=0, description="worker processes; 0 measures at start. Changes speed only, never results")

    @property
    def outputs_per_rollout(self) -> int:
        return self.prompts_per_rollout * self.group_size

    @property
    def outputs_per_step(self) -> int:
        return self.outputs_per_rollout // self.minibatches

    @property
    def rollouts(self) -> int:
        return self.steps // self.minibatches

    @model_validator(mode="after")
    def _sizes(self) -> Zero:
        if self.outputs_per_rollout % self.minibatches:
            raise ValueError(
                f"prompts_per_rollout {self.prompts_per_rollout} x group_size {self.group_size} = {self.outputs_per_rollout} outputs "
                f"do not split into {self.minibatches} minibatches: {self.outputs_per_rollout} / {self.minibatches} = "
                f"{self.outputs_per_rollout / self.minibatches:g}"
            )
        if self.steps % self.minibatches:
            raise ValueError(
                f"steps {self.steps} is no multiple of minibatches {self.minibatches}: a rollout gives {self.minibatches} steps"
            )
        if not self.limits or self.limits[0].step != 0 or list(self.limits) != sorted(self.limits, key=lambda x: x.step):
            raise ValueError("limits must start at step 0 and be in the order of their steps")
        return self

    def max_new_tokens(self, step: int) -> int:
        """The length limit in force at a policy update."""
        return [limit.tokens for limit in self.limits if limit.step <= step][-1]


class Evaluated(Section):
    """One model under evaluation."""

    name: str
    folder: str
    forbid_reflection: bool = False


class Evaluate(Section):
    """Sampling of the held-out problems (paper: temperature 0.6, top-p 0.95)."""

    models: tuple[Evaluated, ...]
    problems: int = Field(ge=1, description="held-out problems with a rule-based verifier, at most")
    samples: int = Field(ge=1, description="samples a problem: k of pass@k and cons@k")
    temperature: float = Field(gt=0)
    top_p: float = Field(gt=0, le=1)
    max_new_tokens: int = Field(ge=1)


class Report(Section):
    examples: int = Field(ge=1, description="held-out problems shown side by side")


class Params(Section):
    """The whole of params.yaml."""

    seed: int = Field(ge=0)
    curate: Curate
    zero: Zero
    evaluate: Evaluate
    report: Report


def _message(path: Path, error: ValidationError) -> str:
    problems = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        what = "unknown parameter: remove it or correct its name" if item["type"] == "extra_forbidden" else item["msg"]
        problems.append(f"{where}: {what}" if where else what)
    return f"{path}: " + "; ".join(problems)


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Reads and checks params.yaml.

    Raises:
        ParamsError: the file is missing or malformed, holds an unknown key, or its sizes conflict; names each.
    """
    try:
        return Params.model_validate(yaml.safe_load(path.read_text()))
    except FileNotFoundError as error:
        raise ParamsError(f"{path} does not exist: run from the project's root") from error
    except yaml.YAMLError as error:
        raise ParamsError(f"{path} is not YAML: {error}") from error
    except ValidationError as error:
        raise ParamsError(_message(path, error)) from error


def fingerprint(*parts: Any) -> str:
    """16 hex digits that name a combination of JSON-able settings and hashes: the key of a stage's resumable state."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
