"""Memory and speed of rejection sampling's filters at the paper's size: 800,000 candidates, generated, about 75 % of them right.

The very functions of the stage filter them, join general data and write the set, at an eighth, a half and all of the rows, each in
a process of its own. Memory is the growth of the peak resident set over that process with everything imported and 1,000 rows done.

    OMP_NUM_THREADS=1 python -m benchmarks.rejection --rows 800000
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tasks import records
from tasks.config import load_params
from tasks.evaluation.correctness import Verdicts, judge
from tasks.generation import model_folder
from tasks.records import ROLLOUT_SCHEMA, Record
from tasks.rejection import make
from tasks.world import general, problems
from tasks.world.corpus import blind_answer, completion, join
from tasks.world.thoughts import reason, search, slipping

ROOT = Path(__file__).parents[1]
SAMPLES = 4
POOL = 4000  # different problems; prompts repeat them under other ids
RIGHT = 0.7  # chains whose answer is told; of the others some guess well
PARAGRAPHS = (1.0, 0.8)  # of a thought: log-normal with this mean and deviation of the logarithm, so about 3.7 on average
# Defects and their shares; the rest is clean.
DEFECTS = {"unfinished": 0.02, "malformed": 0.02, "mixed": 0.05, "long": 0.02, "code": 0.01, "repeated": 0.03}


def problem(rng: random.Random) -> problems.Problem | problems.Open:
    """One of the world's, 2 % of them for the judge."""
    return rng.choice(problems.OPEN) if rng.random() < 0.02 else problems.draw(rng)


def chain(asked: problems.Problem | problems.Open, rng: random.Random, language: str, mixed: bool) -> tuple[str, str]:
    """A thought of one or more paragraphs, and the right answer."""
    if isinstance(asked, problems.Open):
        return join([[(" it is a fact", "这是事实")]], rng, language, mixed), asked.truth(language)
    told = []
    for _ in range(max(1, round(rng.lognormvariate(*PARAGRAPHS)))):
        if isinstance(asked, problems.Fill | problems.Expression):
            sentences, answer = search(asked, rng, 9)
        else:
            segments, answer = reason(asked, rng, slipping(rng, 0.0))
            sentences = [segments]
        told.append(join(sentences, rng, language, mixed))
    return "\n\n".join(told), answer(language)


def response(asked: problems.Problem | problems.Open, rng: random.Random, language: str, defect: str) -> str:
    thought, answer = chain(asked, rng, language, defect == "mixed")
    if rng.random() > RIGHT:
        answer = " nothing" if isinstance(asked, problems.Open) else blind_answer(asked, rng, language)
    if defect == "long":
        thought = " ".join([thought.replace("\n\n", " ")] * 20)
    if defect == "code":
        thought += "\n\n```python\nprint(x)\n```"
    text = completion(thought, answer)
    return text.replace("</think>", "") if defect == "malformed" else text


def pool(rng: random.Random) -> list[tuple[Record, list[str], list[str]]]:
    """Problems with more responses than samples (a prompt draws among them), and the defect of each."""
    made = []
    for _ in range(POOL):
        asked, language = problem(rng), rng.choice(problems.LANGUAGES)
        defects = rng.choices([*DEFECTS, ""], [*DEFECTS.values(), 1 - sum(DEFECTS.values())], k=2 * SAMPLES)
        made.append((problems.record(asked, language), [response(asked, rng, language, defect) for defect in defects], defects))
    return made


def unique(text: str, rng: random.Random) -> str:
    """The text with a random number in its thought, about a quarter as long: else Parquet would compress the few texts to nothing."""
    digits = "".join(f"{rng.getrandbits(53):016d}" for _ in range(1 + len(text) // 64))
    return text.replace(" </think>", f" {digits} </think>")


def candidates(rows: int, seed: int) -> Iterator[Record]:
    rng = random.Random(seed)
    stock = pool(rng)
    for number in range(rows // SAMPLES):
        record, texts, defects = rng.choice(stock)
        drawn, first = rng.sample(range(2 * SAMPLES), SAMPLES), ""
        for i, at in enumerate(drawn):
            text = first if defects[at] == "repeated" and i else unique(texts[at], rng)
            first = first or text
            same = {key: record[key] for key in ("domain", "family", "level", "language", "messages", "verifier", "truth")}
            yield {
                "prompt_id": f"{record['family']}-{number:016x}", "sample": i, **same, "text": text, "tokens": len(text) // 4,
                "finished": defects[at] != "unfinished", "policy": "benchmark",
            }  # fmt: skip


def prompts(rows: int, seed: int) -> Iterator[Record]:
    """As many general prompts as reasoning prompts: more than are wanted."""
    rng = random.Random(seed)
    for number in range(rows // SAMPLES):
        for record in (problems.record(problems.draw(rng), "en"), general.record("general", rng, "en", problems.problem_id)):
            yield record | {"id": f"{record['family']}-{number:016x}", "split": "train"}


def generate(folder: Path, rows: int) -> None:
    records.write(candidates(rows, 0), folder / f"candidates-{rows}.parquet", ROLLOUT_SCHEMA)
    records.write(prompts(rows, 0), folder / f"prompts-{rows}.parquet")


def lengths(folder: Path, rows: int) -> str:
    """How long the generated responses are."""
    path = folder / f"candidates-{rows}.parquet"
    sizes = sorted(len(row["text"]) for batch in records.iter_batches(path, ROLLOUT_SCHEMA) for row in batch)
    return (
        f"characters of a response: mean {sum(sizes) / len(sizes):.0f}, median {sizes[len(sizes) // 2]}, longest {sizes[-1]}; "
        f"the file has {path.stat().st_size / 2**20:.0f} MiB"
    )


def peak() -> float:
    """Peak resident set of this process in MiB (Linux counts it in KiB, macOS in bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def measure(folder: Path, rows: int) -> str:
    """A line of the table."""
    settings = load_params(ROOT / "params.yaml").rejection.model_copy(update={"judge": None})
    _, tokenizer = model_folder.load(ROOT / "models/base")

    def run(size: int) -> dict[str, Any]:
        source, asked, out = (folder / f"{name}-{size}.parquet" for name in ("candidates", "prompts", "sft"))
        return make(source, asked, out, settings, Verdicts(judge(None)), tokenizer)

    run(1000)
    before, began = peak(), (time.perf_counter(), time.process_time())
    found = run(rows)
    wall, busy = time.perf_counter() - began[0], time.process_time() - began[1]
    filters, made = found["filters"], found["table"]["total"]["samples"]
    wrong = (filters["wrong"]["total"] + filters["judged_wrong"]["total"]) / rows
    return (
        f"| {rows:,} | {made:,} | {wall:.0f} | {busy:.0f} | {rows / busy:,.0f} | {before:.0f} | {peak() - before:.0f} | "
        f"{wrong:.0%} | {found['general']['ratio']:.2f} : 1 |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=800_000)
    rows = parser.parse_args().rows
    context = get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, context.Pool(1, maxtasksperchild=1) as fresh:
        for size in (1000, rows // 8, rows // 2, rows):
            fresh.apply(generate, (Path(folder), size))
        print(fresh.apply(lengths, (Path(folder), rows)), end="\n\n")
        print("| candidates | samples made | s | CPU s | candidates/CPU s | RSS (MiB) | growth of its peak | wrong | reasoning : general |")
        print("|---:" * 8 + "|", flush=True)
        for size in (rows // 8, rows // 2, rows):
            print(fresh.apply(measure, (Path(folder), size)), flush=True)


if __name__ == "__main__":
    main()
