"""What the report shows of the students: their bases, distilled, and trained by RL with the same operations; beside the paper's six."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tasks.monitoring import figures
from tasks.monitoring.sources import STUDENTS, VARIANTS
from tasks.monitoring.stage_table import Block, Row

Inputs = Mapping[str, Any]  # see sources.load
COLOURS = {"student": "grey", "rl": "vermilion", "distill": "green"}

# The paper's students (v1 Table 5, v2 Table 15): base, learning rate (v2 Table 6), then figures in per cent and the CodeForces rating.
PAPER_FIGURES = ("AIME 2024 pass@1", "cons@64", "MATH-500", "GPQA Diamond", "LiveCodeBench", "CodeForces")
PAPER: tuple[tuple[str, str, str, tuple[float, ...]], ...] = (
    ("Qwen 1.5B", "Qwen2.5-Math-1.5B", "1e-4", (28.9, 52.7, 83.9, 33.8, 16.9, 954)),
    ("Qwen 7B", "Qwen2.5-Math-7B", "8e-5", (55.5, 83.3, 92.8, 49.1, 37.6, 1189)),
    ("Qwen 14B", "Qwen2.5-14B", "7e-5", (69.7, 80.0, 93.9, 59.1, 53.1, 1481)),
    ("Qwen 32B", "Qwen2.5-32B", "6e-5", (72.6, 83.3, 94.3, 62.1, 57.2, 1691)),
    ("Llama 8B", "Llama-3.1-8B", "5e-5", (50.4, 80.0, 89.1, 49.0, 39.6, 1205)),
    ("Llama 70B", "Llama-3.3-70B-Instruct", "2e-5", (70.0, 86.7, 94.5, 65.2, 57.5, 1633)),
)
# Distilled against RL (v1 Table 6, v2 Table 16), the same columns but the last.
PAPER_RL: tuple[tuple[str, tuple[float, ...]], ...] = (
    ("Qwen 32B, RL on the base", (47.0, 60.0, 91.6, 55.0, 40.2)),
    ("Qwen 32B, distilled", (72.6, 83.3, 94.3, 62.1, 57.2)),
)


def columns() -> dict[str, str]:
    """Evaluated models of the students by name, with their titles."""
    return {f"{v}_{s}": f"{title}, {variant}" for s, title in STUDENTS.items() for v, variant in VARIANTS.items()}


def blocks(inputs: Inputs) -> list[Block]:
    """The distillation table: figures of each student's three models with intervals; empty without any evaluation."""
    known = {model: found for model in columns() if (found := inputs[f"evaluate_{model}"])}
    if not known:
        return []

    def row(name: str, figure: Callable[[Mapping[str, Any]], Any], percent: bool = True) -> Row:
        return Row(name, {model: figure(known[model]) if model in known else None for model in columns()}, percent=percent)

    k = next(iter(known.values()))["samples_per_problem"]
    rows = [
        row("pass@1", lambda e: e["pass@1"]),
        row(f"cons@{k}", lambda e: e["cons"]),
        row("Words in the question's language", lambda e: e["intervals"]["language_consistency"]),
        row("Chains that mix languages", lambda e: e["intervals"]["mixed_share"]),
        row("Samples that say “wait”", lambda e: e["intervals"]["wait_share"]),
        row("Length in tokens", lambda e: e["intervals"]["length"], percent=False),
    ]
    return [Block("Held-out problems", rows)]


def compute(inputs: Inputs) -> list[dict[str, Any]]:
    """What each trained student took: operations of sampling (the teacher's share for a distilled one), training, reference and in all."""
    rows = []
    for student, title in STUDENTS.items():
        for variant in ("distill", "rl"):
            summary = inputs[f"{variant}_{student}_summary"]
            if summary:
                flops = summary.get("flops") or {}
                sampling = flops.get("teacher_sampling" if variant == "distill" else "sampling")
                known = {key: flops.get(key) for key in ("training", "reference", "total", "budget")}
                rows.append(
                    {"title": f"{title}, {VARIANTS[variant]}", "parameters": summary.get("parameters"), "sampling": sampling} | known
                )
    return rows


def _dots(inputs: Inputs) -> str | None:
    rows = {
        title: {v: found["pass@1"] for v in VARIANTS if (found := inputs[f"evaluate_{v}_{student}"])} for student, title in STUDENTS.items()
    }
    if not any(rows.values()):
        return None
    alt = "Pass@1 of each student's base, of RL on it and of its distillation; the table has the numbers."
    return figures.dots(rows, COLOURS, name="students", alt=alt, xlabel="pass@1 with 95 % interval")


def _curves(inputs: Inputs) -> dict[str, str]:
    """RL of the students: accuracy over steps."""
    tables = {s: inputs[f"rl_{s}_steps"] for s in STUDENTS if inputs[f"rl_{s}_steps"] is not None}
    lines = {"small": ("small", "blue"), "tiny": ("tiny", "vermilion")}
    curves = {"students-rl": ("accuracy", "correct answers"), "students-rl-language": ("language_consistency", "language consistency")}
    return {n: figures.contrast(tables, column, lines, name=n, ylabel=y) for n, (column, y) in curves.items()} if tables else {}


def context(inputs: Inputs) -> dict[str, Any]:
    """What the template's part on the students needs; ``figure`` holds SVG by name."""
    return {
        "student_columns": columns(),
        "student_blocks": blocks(inputs),
        "student_compute": compute(inputs),
        "paper_students": PAPER,
        "paper_student_figures": PAPER_FIGURES,
        "paper_students_rl": PAPER_RL,
        "figure": {"students": _dots(inputs)} | _curves(inputs),
    }
