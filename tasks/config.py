"""params.yaml, typed: unknown keys fail by name, sizes that follow from others are computed, conflicts show the arithmetic."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tasks.errors import SecondThoughtError

PRESETS = Path(__file__).parents[1] / "infra/students.yaml"  # the paper's students
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


class RL(Section):
    """RL of zero, dev2, r1 and the ablations. The paper's values stand in docs/paper-map.md beside the miniature's."""

    seed: int = Field(ge=0, description="seed of rollouts and mini-batches; the data keep theirs")
    domains: tuple[Literal["math", "code", "stem", "logic"], ...] = Field(description="verifiable domains to train on")
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
    language_weight: float = Field(ge=0, description="weight of the language-consistency reward; 0 leaves it out, as R1-Zero does")
    token_budget: int = Field(ge=64, description="padded tokens of a micro-batch")
    validation_every: int = Field(ge=1, description="steps between validations")
    validation_problems: int = Field(ge=1)
    checkpoint_every: int = Field(ge=1, description="rollouts between checkpoints")
    workers: int = Field(0, ge=0, description="worker processes; 0 measures at start. Changes speed only, never results")
    algorithm: Literal["grpo", "ppo"]
    gae_lambda: Share = Field(description="PPO alone, as the next three: lambda of generalized advantage estimation")
    value_learning_rate: float = Field(gt=0)
    value_clip: float | None = Field(gt=0, description="values stay this near to those before the rollout's first update; null: no clip")
    whiten: bool = Field(description="advantages get mean 0 and deviation 1 over the rollout")

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
    def _sizes(self) -> RL:
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
        if self.algorithm == "ppo" and self.ratio != "token":
            raise ValueError(f"algorithm ppo gives each token an advantage of its own: ratio must be token, not {self.ratio}")
        if not self.limits or self.limits[0].step != 0 or list(self.limits) != sorted(self.limits, key=lambda x: x.step):
            raise ValueError("limits must start at step 0 and be in the order of their steps")
        return self

    def max_new_tokens(self, step: int) -> int:
        """The length limit in force at a policy update."""
        return [limit.tokens for limit in self.limits if limit.step <= step][-1]


class Zero(RL):
    """R1-Zero: straight on a base."""

    base: str = Field(description="Hugging Face folder of the base model")


class Mix(Section):
    """Prompts of each kind in one rollout of r1's last steps (the paper does not disclose its mix)."""

    reasoning: int = Field(ge=0)
    general: int = Field(ge=0)
    borderline: int = Field(ge=0, description="harmless, but worded as harmful ones are")
    safety: int = Field(ge=0)

    @property
    def total(self) -> int:
        return self.reasoning + self.general + self.borderline + self.safety


class R1(RL):
    """RL over all prompts; general and harmlessness prompts only in the last steps."""

    preference_steps: int = Field(ge=0, description="last steps, which also draw prompts that a reward model scores (paper: 400 of 1,700)")
    preference_mix: Mix

    @model_validator(mode="after")
    def _whole_rollouts(self) -> R1:
        if self.preference_steps > self.steps or self.preference_steps % self.minibatches:
            raise ValueError(
                f"preference_steps {self.preference_steps} must be at most steps {self.steps}, and a multiple of minibatches "
                f"{self.minibatches}"
            )
        mix = self.preference_mix
        if self.preference_steps and mix.total != self.prompts_per_rollout:
            parts = " + ".join(str(count) for _, count in mix)
            raise ValueError(f"preference_mix has {parts} = {mix.total} prompts, prompts_per_rollout is {self.prompts_per_rollout}")
        return self


class Ablation(Section):
    """A run that differs in little from another; the settings of `zero` or of `dev2`, with what is given here over them."""

    title: str
    baseline: str = Field(description="name of the run that it is compared with")
    zero: Zero | None = None
    dev2: RL | None = None
    same_as: str | None = Field(None, description="a run with these very settings: its result counts, nothing is trained again")

    @model_validator(mode="after")
    def _one(self) -> Ablation:
        if (self.zero is None) == (self.dev2 is None):
            raise ValueError("give either zero or dev2: the stage whose settings it changes")
        return self

    @property
    def like(self) -> str:
        """The stage whose settings it changes, and from whose initial model it starts."""
        return "zero" if self.zero else "dev2"

    @property
    def settings(self) -> RL:
        found = self.zero or self.dev2
        assert found is not None
        return found


class AblationSteps(Section):
    """Policy updates, the same for all runs that start alike."""

    zero: int = Field(ge=1)
    dev2: int = Field(ge=1)


class Ablations(Section):
    """`make ablations`; the default run leaves them out."""

    seed: int = Field(ge=0)
    steps: AblationSteps
    runs: dict[str, Ablation]

    @model_validator(mode="after")
    def _names(self) -> Ablations:
        for name, run in self.runs.items():
            for key in (run.baseline, run.same_as or name):
                if key not in self.runs:
                    raise ValueError(f"{name} names {key!r}, and there is no such run")
            twin = self.runs[run.same_as or name]
            if twin.settings != run.settings or (run.same_as and twin.same_as):
                raise ValueError(f"{name} is not the same as {run.same_as}, which must have been trained with the same settings")
        return self

    def find(self, name: str) -> Ablation:
        """The run of a name.

        Raises:
            ParamsError: there is none.
        """
        if name not in self.runs:
            raise ParamsError(f"no run {name!r} in ablations.runs of params.yaml; it has {', '.join(self.runs)}")
        return self.runs[name]


class Service(Section):
    """An OpenAI-compatible chat endpoint that refines or judges, in place of the miniature's own deterministic stand-in."""

    url: str = Field(pattern=r"^https?://", description="base URL, such as http://127.0.0.1:8000/v1")
    model: str
    key_variable: str = Field("OPENAI_API_KEY", description="environment variable that holds the key; never the key itself")
    timeout: float = Field(60, gt=0, description="seconds for one answer")
    retries: int = Field(3, ge=0, description="further attempts after a failure that may pass")
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(4096, ge=1)

    @field_validator("url")
    @classmethod
    def _no_secret(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.username or parts.password or parts.query or parts.fragment:  # errors, metrics and MLflow repeat the address
            raise ValueError("a url holds no user name, password, query or fragment: the key goes into the variable of key_variable")
        return url


class ColdStart(Section):
    """Long chains of thought for the cold start, sampled from Zero, filtered and refined."""

    seed: int = Field(ge=0)
    prompts: int = Field(ge=1, description="train problems that are sampled")
    samples: int = Field(ge=1, description="samples a problem")
    temperature: float = Field(gt=0)
    max_new_tokens: int = Field(ge=1)
    min_language: Share = Field(description="chains with a smaller share of words in the question's language are dropped unrefined")
    per_prompt: int = Field(ge=1, description="samples kept of one problem, at most")
    refiner: Service | None = Field(None, description="null: the miniature's deterministic rewriter")
    review: str = Field(description="JSON lines of a person's verdicts: {id, verdict: accept | reject, reviewer, note}")
    require_review: bool = Field(False, description="use accepted samples only; otherwise all that are not rejected")


class SFT(Section):
    """Supervised fine-tuning of a base, for dev1, dev3 and the students."""

    base: str = Field(description="Hugging Face folder of the model that is tuned, or its id on the hub if it is in the local cache")
    positions: int | None = Field(default=None, ge=1, description="positions that the base gets, where its own are too few; null: its own")
    seed: int = Field(ge=0, description="seed of the order of samples")
    epochs: int = Field(ge=1)
    batch: int = Field(ge=1, description="samples an update (paper: 128)")
    learning_rate: float = Field(gt=0)
    final_rate: Share = Field(description="share of the learning rate at the end of the cosine (paper: 5e-5 to 5e-6, a tenth)")
    warmup_steps: int = Field(ge=0)
    weight_decay: float = Field(ge=0)
    gradient_norm: float = Field(gt=0)
    context: int = Field(ge=16, description="tokens of a packed row, and of the longest sample (paper: 32,768)")
    rows: int = Field(ge=1, description="packed rows of a micro-batch")
    checkpoint_every: int = Field(ge=1, description="updates between checkpoints")
    workers: int = Field(0, ge=0, description="worker processes; 0 measures at start. Changes speed only, never results")


class Rejection(Section):
    """Rejection sampling from dev2, and the general data that join it."""

    seed: int = Field(ge=0)
    prompts: int = Field(ge=1, description="train problems that are sampled, at most")
    samples: int = Field(ge=1, description="samples a problem")
    temperature: float = Field(gt=0)
    max_new_tokens: int = Field(ge=1)
    min_language: Share = Field(description="below this share of words in the question's language a chain counts as mixed")
    max_paragraph: int = Field(ge=1, description="words (or Han characters) of the longest paragraph that is kept")
    per_prompt: int = Field(ge=1, description="samples kept of one problem, at most")
    reasoning_ratio: float = Field(gt=0, description="reasoning samples to one general sample (paper: about 3)")
    judge: Service | None = Field(None, description="decides items without a rule; null: the miniature's own judge")


class Student(SFT):
    """SFT of one student's base on the rejection-sampled mix, without RL."""

    preset: str | None = Field(None, description=f"a student of the paper, named in {PRESETS.name}; it overrides `sft` and `distill`")


class Distill(Section):
    """The students by name. What else stands here is shared by them and overrides `sft`."""

    students: dict[str, Student]

    def find(self, name: str) -> Student:
        """The settings of a student.

        Raises:
            ParamsError: there is none of that name.
        """
        if name not in self.students:
            raise ParamsError(f"no student {name!r} in distill.students of params.yaml; it has {', '.join(self.students)}")
        return self.students[name]


class DistillRL(RL):
    """GRPO straight on a student's base with the FLOPs that its distillation took; `steps` is a bound, not the end."""


class RewardModels(Section):
    """Helpfulness from pairs, safety from labelled responses."""

    seed: int = Field(ge=0)
    prompts: int = Field(ge=1, description="general prompts, and as many safety prompts, at most")
    candidates: int = Field(ge=2, description="responses sampled a prompt")
    strangers: int = Field(ge=0, description="responses to the most similar prompts of its family that join a prompt's candidates")
    pairs_per_prompt: int = Field(ge=1, description="pairs that are judged, at most")
    temperature: float = Field(gt=0)
    max_new_tokens: int = Field(ge=1)
    judgements: int = Field(ge=1, description="judgements of a pair, each in random order (paper: 4)")
    margin: float = Field(ge=0, description="a pair is kept if the mean preference exceeds it (paper: 1)")
    judge: Service | None = Field(None, description="compares two answers; null: the miniature's own judge")
    labels: str | None = Field(
        None, description="your own labelled responses (docs/data.md); null: the miniature's own guideline labels samples"
    )
    held_out: Share = Field(description="share of the prompts that measure and never train")
    epochs: int = Field(ge=1)
    batch: int = Field(ge=1, description="pairs or labelled responses an update (paper: 256)")
    learning_rate: float = Field(gt=0, description="paper: 6e-6")
    final_rate: Share
    warmup_steps: int = Field(ge=0)
    context: int = Field(ge=16, description="tokens of prompt and response together (paper: 8,192)")


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
    open_problems: int = Field(ge=1, description="held-out general prompts, and as many harmful ones, at most")
    open_samples: int = Field(ge=1, description="samples of each")


class Compare(Section):
    """Head to head of models on open prompts by a judge that no reward model was trained on."""

    judge: Service | None = Field(None, description="null: the miniature's own held-out judge")
    margin: float = Field(ge=0, description="a smaller difference of the held-out judge's scores is a tie")


class Price(Section):
    """What an hour of the machine costs."""

    amount: float = Field(ge=0)
    currency: str = Field(pattern="^[A-Z]{3}$", description="ISO 4217, as USD")


class Report(Section):
    examples: int = Field(ge=1, description="held-out problems shown side by side")
    price_per_hour: Price | None = Field(default=None, description="null: the cost ledger has no money")


class Params(Section):
    """The whole of params.yaml. `rl` and `sft` hold what their stages share; a stage's section overrides it.

    `distill_rl` starts from `zero` without its base: it is R1-Zero of another base. A student takes `sft`, then `distill`, then its
    preset, then its own values.
    """

    seed: int = Field(ge=0)
    curate: Curate
    rl: dict[str, Any]
    zero: Zero
    cold_start: ColdStart
    sft: dict[str, Any]
    dev1: SFT
    dev2: RL
    rejection: Rejection
    dev3: SFT
    distill: Distill
    distill_rl: DistillRL
    reward_models: RewardModels
    r1: R1
    evaluate: Evaluate
    compare: Compare
    ablations: Ablations
    report: Report

    @model_validator(mode="before")
    @classmethod
    def _shared(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        merged = given | {
            stage: _over(given.get(shared), given[stage])
            for shared, stages in (("rl", ("zero", "dev2", "r1")), ("sft", ("dev1", "dev3", "distill")))
            for stage in stages
            if stage in given
        }
        if "distill_rl" in given:
            merged["distill_rl"] = _over(_without(merged.get("zero"), "base"), given["distill_rl"])
        if "distill" in given:
            merged["distill"] = _students(merged["distill"])
        if "ablations" in given:
            merged["ablations"] = _ablations(given["ablations"], merged)
        return merged


def _over(shared: Any, own: Any) -> Any:
    return shared | own if isinstance(shared, dict) and isinstance(own, dict) else own


def _ablations(section: Any, merged: dict[str, Any]) -> Any:
    """`ablations` with the settings of `zero` or `dev2`, the common seed and steps handed down to each run."""
    if not isinstance(section, dict) or not isinstance(section.get("runs"), dict) or not isinstance(section.get("steps"), dict):
        return section

    def whole(run: Any) -> Any:
        if not isinstance(run, dict):
            return run
        common = {like: {"seed": section.get("seed"), "steps": section["steps"].get(like)} for like in ("zero", "dev2")}
        return run | {like: _over(_over(merged.get(like), common[like]), run[like]) for like in common if like in run}

    return section | {"runs": {name: whole(run) for name, run in section["runs"].items()}}


def _without(section: Any, key: str) -> Any:
    return {name: value for name, value in section.items() if name != key} if isinstance(section, dict) else section


def _students(section: Any) -> Any:
    """`distill` with what its students share handed down to each of them."""
    if not isinstance(section, dict) or not isinstance(section.get("students"), dict):
        return section
    shared = _without(section, "students")
    return {"students": {name: _over(shared, _over(_preset(name, own), own)) for name, own in section["students"].items()}}


def _preset(student: str, own: Any) -> dict[str, Any]:
    """The values of the preset that a student names.

    Raises:
        ValueError: there is none of that name.
    """
    name = own.get("preset") if isinstance(own, dict) else None
    if name is None:
        return {}
    known = yaml.safe_load(PRESETS.read_text())
    if name not in known:
        raise ValueError(f"distill.students.{student}.preset: {PRESETS.name} has no student {name!r}; it has {', '.join(known)}")
    return known[name]


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
