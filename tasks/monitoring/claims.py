"""The paper's claims beside this run: each with the rule that decides whether the run shows it.

A rule is a threshold, written beside the claim and the same for every run. "Not shown" means that this run does not meet it, which in a
miniature can be for want of room (a model that solves everything gains nothing from a vote); it does not mean that the paper is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tasks.monitoring.changepoint import takeoff
from tasks.monitoring.sources import SOURCES, STUDENTS, Source

Inputs = Mapping[str, Any]  # see sources.load
Interval = Mapping[str, float]  # mean, low, high

RISE = 0.10  # of pass@1
VOTE = 0.01  # gained by the majority
LONGER = 1.5  # times
WORDS = 5.0  # times as many reflective words; the paper counts 5 to 7
ABSENT = 0.10  # share of the steps before "wait" takes off
READABLE = 0.95  # language consistency
KEPT = 0.02  # pass@1 that may be lost
PRICE = 0.05  # pass@1 that the language reward may cost
PREFERRED = 0.5  # share of pairs, a tie as half
DISTILLED = 0.08  # pass@1 above RL at matched compute
NEAR, WORSE = 0.03, 0.05  # pass@1 between two algorithms
COSTLIER = 1.2  # times the memory


@dataclass(frozen=True)
class Finding:
    """This run's figure, and whether it meets the rule."""

    text: str
    shown: bool


@dataclass(frozen=True)
class Claim:
    """A claim of the paper: its figure and where it stands, the rule in words, the inputs that it needs, and the rule.

    `judge` gives None where the inputs are there but hold no such figure.
    """

    what: str
    paper: str
    where: str
    rule: str
    needs: tuple[str, ...]
    judge: Callable[[Inputs], Finding | None]


@dataclass(frozen=True)
class Row:
    """A claim as the table shows it; `verdict` is "shown", "not shown" or "not run", `missing` the inputs that were not there."""

    claim: Claim
    verdict: str
    text: str
    missing: tuple[Source, ...] = ()


def percent(value: Interval) -> str:
    """ "98.1 % (97.0–99.0)"; no interval where there is none."""
    around = f" ({100 * value['low']:.1f}–{100 * value['high']:.1f})" if "low" in value else ""
    return f"{100 * value['mean']:.1f} %{around}"


def plain(value: Interval) -> str:
    """ "48.6 (44.1–53.0)"."""
    return f"{value['mean']:.1f} ({value['low']:.1f}–{value['high']:.1f})"


def apart(low: Interval, high: Interval) -> bool:
    """Whether the second figure's 95 % interval lies wholly above the first's."""
    return high["low"] > low["high"]


def _arrow(before: Interval, after: Interval, shown: bool, told: Callable[[Interval], str] = percent) -> Finding:
    return Finding(f"{told(before)} → {told(after)}", shown)


def _pass1(inputs: Inputs, model: str) -> Interval:
    return inputs[f"evaluate_{model}"]["pass@1"]


def _of(inputs: Inputs, model: str, figure: str) -> Interval | None:
    """A figure with its interval; those of the open prompts are None where none could be measured."""
    found = inputs[f"evaluate_{model}"]
    return found["intervals"].get(figure) or found["open"].get(figure) or found.get(figure)


def _above(figure: str, lower: str, higher: str, told: Callable[[Interval], str] = percent, times: float = 1.0) -> Callable[..., Any]:
    """The rule that a figure's interval of one model lies above another's, and its mean is so many times as large."""

    def judge(inputs: Inputs) -> Finding | None:
        low, high = _of(inputs, lower, figure), _of(inputs, higher, figure)
        if not low or not high:
            return None
        return _arrow(low, high, apart(low, high) and high["mean"] >= times * low["mean"], told)

    return judge


def _below(figure: str, before: str, after: str, told: Callable[[Interval], str] = percent) -> Callable[..., Any]:
    """The rule that a figure's interval falls from one model to the next."""

    def judge(inputs: Inputs) -> Finding | None:
        old, new = _of(inputs, before, figure), _of(inputs, after, figure)
        return _arrow(old, new, apart(new, old), told) if old and new else None

    return judge


def points(share: float) -> str:
    """A share as "8 points" of a hundred."""
    return f"{100 * share:g} point{'s' * (share != 0.01)}"


def _rl_alone(inputs: Inputs) -> Finding:
    base, zero = _pass1(inputs, "base"), _pass1(inputs, "zero")
    return _arrow(base, zero, apart(base, zero) and zero["mean"] - base["mean"] >= RISE)


def _vote(inputs: Inputs) -> Finding:
    one, cons, base = _pass1(inputs, "zero"), inputs["evaluate_zero"]["cons"], inputs["evaluate_base"]
    shown = cons["mean"] - one["mean"] >= VOTE
    text = f"one sample {percent(one)}, majority {percent(cons)}"
    return Finding(f"{text}; the base {percent(base['pass@1'])}, {percent(base['cons'])}", shown)


def _words(inputs: Inputs) -> Finding | None:
    before, after = (sum(inputs[f"evaluate_{m}"]["words_per_1000_samples"].values()) for m in ("base", "zero"))
    return Finding(f"{after / before:.1f} times as many as the base", after / before >= WORDS) if before else None


def _wait(inputs: Inputs) -> Finding:
    steps = inputs["zero_steps"]
    step, last = takeoff(steps["wait_share"], steps["step"], seed=inputs["zero_summary"].get("seed", 0)), int(steps["step"].iloc[-1])
    first, end = (percent({"mean": steps["wait_share"].iloc[place]}) for place in (0, -1))
    shares = f"{first} of samples in the first step, {end} in the last"
    if step is None:
        return Finding(f"no take-off; {shares}", False)
    return Finding(f"take-off at step {step} of {last}; {shares}", step >= ABSENT * last)


def _language(inputs: Inputs) -> Finding | None:
    zero, dev2 = (_of(inputs, model, "language_consistency") for model in ("zero", "dev2"))
    return _arrow(zero, dev2, dev2["mean"] >= READABLE and apart(zero, dev2)) if zero and dev2 else None


def _ablation(inputs: Inputs, name: str) -> Mapping[str, Any]:
    return inputs[f"ablation_{name}"]["evaluation"]


def _mean(value: Interval | float) -> float:
    """The figure, whether it came with an interval or without."""
    return value["mean"] if isinstance(value, Mapping) else value


def _price(inputs: Inputs) -> Finding:
    on, off = _ablation(inputs, "language_on"), _ablation(inputs, "language_off")
    cost = off["pass@1"]["mean"] - on["pass@1"]["mean"]
    gain = _mean(on["language_consistency"]) - _mean(off["language_consistency"])
    text = f"pass@1 {percent(off['pass@1'])} without, {percent(on['pass@1'])} with; consistency {100 * gain:+.1f} points"
    return Finding(text, cost <= PRICE and gain > 0)


def _kept(inputs: Inputs) -> Finding:
    two, three, one = (_pass1(inputs, model) for model in ("dev2", "dev3", "r1"))
    shown = min(three["mean"], one["mean"]) >= two["mean"] - KEPT
    return Finding(f"Dev2 {percent(two)}, Dev3 {percent(three)}, R1 {percent(one)}", shown)


def _preferred(inputs: Inputs) -> Finding | None:
    found, base = (inputs["compare"]["models"].get(model, {}).get("preferred", {}).get("half") for model in ("r1", "base"))
    beside = f"; the base: {percent(base)}" if base else ""
    return found and Finding(f"R1 preferred to Dev3: {percent(found)}, a tie as half{beside}", found["low"] > PREFERRED)


def _hacking(inputs: Inputs) -> Finding:
    alarm = inputs["r1_summary"].get("hacking")
    if not alarm:
        return Finding("no alarm: the score does not rise while the benchmark falls", False)
    fall = f"pass@1 falls by {100 * alarm['benchmark_fall']:.1f} points"
    return Finding(f"steps {alarm['first_step']} to {alarm['last_step']}: score +{alarm['reward_rise']:.3f}, {fall}", True)


def _distilled(student: str) -> Callable[[Inputs], Finding]:
    def judge(inputs: Inputs) -> Finding:
        rl, distilled = _pass1(inputs, f"rl_{student}"), _pass1(inputs, f"distill_{student}")
        shown = apart(rl, distilled) and distilled["mean"] - rl["mean"] >= DISTILLED
        return Finding(f"RL {percent(rl)}, distilled {percent(distilled)}", shown)

    return judge


def _near(inputs: Inputs) -> Finding:
    grpo, ppo = (_ablation(inputs, name)["pass@1"] for name in ("grpo", "ppo_lambda_1"))
    return Finding(f"GRPO {percent(grpo)}, PPO {percent(ppo)}", abs(grpo["mean"] - ppo["mean"]) <= NEAR)


def _worse(better: str, worse: str) -> Callable[[Inputs], Finding]:
    """The rule that one ablation's pass@1 is clearly below another's."""

    def judge(inputs: Inputs) -> Finding:
        good, bad = _ablation(inputs, better)["pass@1"], _ablation(inputs, worse)["pass@1"]
        return Finding(f"{percent(bad)} against {percent(good)}", apart(bad, good) and good["mean"] - bad["mean"] >= WORSE)

    return judge


def _costlier(inputs: Inputs) -> Finding:
    grpo, ppo = inputs["ablation_grpo"], inputs["ablation_ppo_lambda_1"]
    memory, time = (ppo[key] / grpo[key] for key in ("state_bytes", "seconds"))
    text = f"{memory:.2f} times the memory of weights, moments and gradients, {time:.2f} times the seconds"
    return Finding(text, memory >= COSTLIER and time > 1)


def _levels(inputs: Inputs) -> Finding | None:
    """Mean over families of how many times as long R1's answers are at the highest level as at the lowest."""
    families: dict[str, dict[int, float]] = {}
    for label, found in inputs["evaluate_r1"]["by_level"].items():
        family, level = label.rsplit("-", 1)
        families.setdefault(family, {})[int(level)] = found["length"]
    ratios = [lengths[max(lengths)] / lengths[min(lengths)] for lengths in families.values() if len(lengths) > 1]
    if not ratios:
        return None
    ratio = sum(ratios) / len(ratios)
    return Finding(
        f"{ratio:.1f} times as many tokens at a family's highest level as at its lowest (mean of {len(ratios)})", ratio >= LONGER
    )


def _evaluations(*models: str) -> tuple[str, ...]:
    return tuple(f"evaluate_{model}" for model in models)


def _ablations(*names: str) -> tuple[str, ...]:
    return tuple(f"ablation_{name}" for name in names)


CLAIMS: tuple[Claim, ...] = (
    Claim("RL on the base alone, without SFT, teaches reasoning", "AIME 2024 pass@1 15.6 → 77.9 (v1: 71.0)", "2.3, Nature Fig. 1",
          f"Zero's interval above the base's, means at least {points(RISE)} apart", _evaluations("base", "zero"), _rl_alone),
    Claim("A majority vote of Zero's answers solves more than one answer", "77.9 → 86.7 on AIME 2024",
          "Nature Fig. 1: 16 votes; v1 Table 2: 64",
          f"the vote solves at least {points(VOTE)} more", _evaluations("base", "zero"), _vote),
    Claim("Answers grow longer by themselves", "hundreds to about 20,000 tokens", "Nature Fig. 1",
          f"Zero's interval above the base's, the mean at least {LONGER:g} times",
          _evaluations("base", "zero"), _above("length", "base", "zero", plain, LONGER)),
    Claim("Reflective words multiply", "5 to 7 times as many", "v2 C.2",
          f"at least {WORDS:g} times as many", _evaluations("base", "zero"), _words),
    Claim("“Wait” becomes a habit", "almost absent at first, frequent at last", "v2 C.2",
          "Zero's interval of samples that say it above the base's",
          _evaluations("base", "zero"), _above("wait_share", "base", "zero")),
    Claim("“Wait” is absent for long, then takes off suddenly", "after step 8,000 of 10,400", "v2 C.2",
          f"the detector finds a take-off after the first {100 * ABSENT:g} % of the steps", ("zero_steps", "zero_summary"), _wait),
    Claim("Zero mixes languages", "no figure is printed", "2.3",
          "Zero's interval of mixed chains above the base's",
          _evaluations("base", "zero"), _above("mixed_share", "base", "zero")),
    Claim("The cold start costs reasoning", "AIME 2024, Zero → Dev1: 77.9 → 59.0", "Nature Table 2",
          "Dev1's interval of pass@1 below Zero's", _evaluations("zero", "dev1"), _below("pass@1", "zero", "dev1")),
    Claim("Reasoning RL brings it back", "AIME 2024, Dev1 → Dev2: 59.0 → 74.0", "Nature Table 2",
          "Dev2's interval of pass@1 above Dev1's", _evaluations("dev1", "dev2"), _above("pass@1", "dev1", "dev2")),
    Claim("The language reward makes chains readable", "stable with it, decaying without", "v2 B.6",
          f"Dev2's consistency at least {100 * READABLE:g} %, its interval above Zero's", _evaluations("zero", "dev2"), _language),
    Claim("The language reward costs little accuracy", "mathematics level, code slightly worse", "v2 B.6",
          f"consistency gained, at most {points(PRICE)} of pass@1 lost", _ablations("language_on", "language_off"), _price),
    Claim("SFT on the mix and RL on all prompts keep the reasoning", "AIME 2024, Dev2 → Dev3 → R1: 74.0 → 78.1 → 79.8",
          "Nature Table 2", f"neither is more than {points(KEPT)} of pass@1 below Dev2", _evaluations("dev2", "dev3", "r1"), _kept),
    Claim("Preference RL raises preference", "AlpacaEval 62.1 → 87.6, Arena-Hard 75.6 → 92.3", "Nature Table 2, Dev3 → R1",
          f"the interval above {100 * PREFERRED:g} %", ("compare",), _preferred),
    Claim("Safety RL lowers harm", "R1 unsafe on 25.2 % of the in-house set; no figure before it", "v2 Table 10",
          "R1's interval of unsafe responses below Dev3's", _evaluations("dev3", "r1"), _below("unsafe", "dev3", "r1")),
    Claim("Safety RL makes it refuse some harmless questions", "Chinese SimpleQA: over 70 % without it, 63.7 % with", "v1 3.1",
          "R1's interval of refusals of harmless prompts above Dev3's",
          _evaluations("dev3", "r1"), _above("refusal", "dev3", "r1")),
    Claim("A helpfulness reward model gets hacked when trained on for long", "reward up, CodeForces down", "v2 Fig. 6",
          "the monitor's alarm: a significant rise of the score with a significant fall of the benchmark", ("r1_summary",), _hacking),
    Claim("Thinking adapts to difficulty", "under 7,000 tokens on easy problems, over 18,000 on the hardest", "v2 E.3",
          f"R1's answers at least {LONGER:g} times as long at the highest level", _evaluations("r1"), _levels),
    Claim("Trivial prompts get short thoughts", "under 100 tokens for 1 + 1; overthinking is named a limit", "v2 E.4, 6",
          "R1's interval of words thought on trivial prompts below Zero's",
          _evaluations("zero", "r1"), _below("trivial_thought", "zero", "r1", plain)),
    *(Claim(f"Distillation beats RL at the same compute ({title.lower()} student)", "Qwen 32B, AIME 2024: RL 47.0, distilled 72.6",
            "v1 Table 6", f"the distilled student's interval above, means at least {points(DISTILLED)} apart",
            _evaluations(f"rl_{student}", f"distill_{student}"), _distilled(student)) for student, title in STUDENTS.items()),
    Claim("PPO at lambda 1 comes near GRPO", "curves on MATH; no figure is printed", "v2 A.3",
          f"pass@1 at most {points(NEAR)} apart", _ablations("grpo", "ppo_lambda_1"), _near),
    Claim("PPO at the usual lambda of 0.95 is clearly worse", "curves on MATH; no figure is printed", "v2 A.3",
          f"its interval below GRPO's, means at least {points(WORSE)} apart",
          _ablations("grpo", "ppo_lambda_095"), _worse("grpo", "ppo_lambda_095")),
    Claim("PPO costs more memory and time", "a value model of the policy's size", "v2 A.3",
          f"at least {COSTLIER:g} times the memory, and more seconds", _ablations("grpo", "ppo_lambda_1"), _costlier),
    Claim("A small clip value is worse than a large one", "“truncates gradients for a significant number of tokens”", "3.2.1",
          f"pass@1 at 0.2 below that at 10, intervals apart, means at least {points(WORSE)}",
          _ablations("clip_02", "clip_10"), _worse("clip_10", "clip_02")),
    Claim("Ratios of tokens train better than ratios of whole outputs",
          "not claimed: the latter is printed, the remark on clipping implies the former", "eq. 1; DeepSeekMath eq. 3",
          f"the whole-output ratio's interval below, means at least {points(WORSE)} apart",
          _ablations("grpo", "sequence_level"), _worse("grpo", "sequence_level")),
)  # fmt: skip


def _row(claim: Claim, inputs: Inputs) -> Row:
    missing = tuple(SOURCES[name] for name in claim.needs if inputs[name] is None)
    if missing:
        return Row(claim, "not run", "", missing)
    found = claim.judge(inputs)
    if found is None:
        return Row(claim, "not run", "this run's prompts give no such figure")
    return Row(claim, "shown" if found.shown else "not shown", found.text)


def table(inputs: Inputs) -> list[Row]:
    """Every claim with this run's figure and verdict, in the order of the paper's stages."""
    return [_row(claim, inputs) for claim in CLAIMS]
