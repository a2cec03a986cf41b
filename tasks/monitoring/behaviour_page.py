"""What the report shows of behaviour: tokens against difficulty, thoughts on trivial prompts, harm and refusals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tasks.monitoring import figures
from tasks.monitoring.sources import STUDENTS
from tasks.monitoring.stage_table import STAGES, Block, Evaluation, Interval, Row

Inputs = Mapping[str, Any]  # see sources.load
MODELS = {**STAGES, **{f"distill_{s}": f"{title}, distilled" for s, title in STUDENTS.items()}}
THINKERS = {
    "zero": ("Zero", "blue"), "dev2": ("Dev2", "purple"), "r1": ("R1", "green"),
    "distill_small": ("small", "vermilion"), "distill_tiny": ("tiny", "grey"),
}  # fmt: skip
LANGUAGES = {"all": ("both languages", "ink"), "en": ("English", "blue"), "zh": ("Chinese", "vermilion")}


def _known(inputs: Inputs) -> dict[str, Evaluation]:
    return {model: found for model in MODELS if (found := inputs[f"evaluate_{model}"])}


def _row(name: str, known: Mapping[str, Evaluation], figure: Callable[[Evaluation], Interval | None], percent: bool = True) -> Row:
    return Row(name, {model: figure(known[model]) if model in known else None for model in MODELS}, percent=percent)


def _part(kind: str, name: str, figure: str) -> Callable[[Evaluation], Interval | None]:
    return lambda e: e["open"].get(f"by_{kind}", {}).get(name, {}).get(figure)


def _names(known: Mapping[str, Evaluation], kind: str, figure: str) -> list[str]:
    """Families or languages for which any model has the figure."""
    return sorted({name for e in known.values() for name, found in e["open"].get(f"by_{kind}", {}).items() if figure in found})


def safety(known: Mapping[str, Evaluation]) -> list[Block]:
    """Unsafe responses and refusals, over all, by language and by family, of every model; empty without any evaluation."""
    if not known:
        return []
    languages = {"en": "in English", "zh": "in Chinese"}
    made = []
    for figure, title in (("unsafe", "Unsafe responses to harmful prompts"), ("refusal", "Refusals of harmless prompts")):
        rows = [_row("All", known, lambda e, f=figure: e["open"].get(f))]  # type: ignore[misc]
        rows += [_row(languages.get(n, n), known, _part("language", n, figure)) for n in _names(known, "language", figure)]
        rows += [_row(f"family {n}", known, _part("family", n, figure)) for n in _names(known, "family", figure)]
        made.append(Block(title, rows))
    return made


def trivial(known: Mapping[str, Evaluation]) -> list[Block]:
    """Thoughts on trivial prompts beside the length of answers to problems."""
    if not known:
        return []
    rows = [
        _row("Words, numbers and signs of thought", known, lambda e: e["open"].get("trivial_thought"), percent=False),
        _row("Empty thoughts", known, lambda e: e["open"].get("trivial_empty")),
    ]
    beside = _row("Tokens of the response", known, lambda e: e["intervals"]["length"], percent=False)
    return [Block("Trivial prompts", rows), Block("Problems", [beside])]


def _trivial_dots(known: Mapping[str, Evaluation]) -> str | None:
    told = {MODELS[m]: {"thought": found} for m, e in known.items() if (found := e["open"].get("trivial_thought"))}
    alt = "Length of thoughts on trivial prompts by model; the table has the numbers."
    xlabel = "words of thought on trivial prompts, with 95 % interval"
    return figures.dots(told, {"thought": "blue"}, name="trivial", alt=alt, xlabel=xlabel, percent=False) if told else None


def _safety_dots(known: Mapping[str, Evaluation], figure: str, xlabel: str) -> str | None:
    told: dict[str, dict[str, Interval]] = {}
    for model, e in known.items():
        parts = {"all": e["open"].get(figure)} | {n: _part("language", n, figure)(e) for n in ("en", "zh")}
        if found := {name: value for name, value in parts.items() if value}:
            told[MODELS[model]] = found
    colours = {name: colour for name, (_, colour) in LANGUAGES.items()}
    alt = f"{xlabel}, by model and language; the table has the numbers."
    return figures.dots(told, colours, name=figure, alt=alt, xlabel=f"{xlabel}, with 95 % interval") if told else None


def context(inputs: Inputs) -> dict[str, Any]:
    """What the template's part on behaviour needs; ``figure`` holds SVG by name, ``level_figure`` by family."""
    known = _known(inputs)
    return {
        "behaviour_models": MODELS,
        "behaviour_languages": LANGUAGES,
        "safety_blocks": safety(known),
        "safety_parts": any("by_language" in e["open"] for e in known.values()),
        "trivial_blocks": trivial(known),
        "level_figure": figures.length_by_level(known, THINKERS),
        "figure": {
            "trivial": _trivial_dots(known),
            "unsafe": _safety_dots(known, "unsafe", "unsafe responses"),
            "refusal": _safety_dots(known, "refusal", "refusals of harmless prompts"),
        },
    }
