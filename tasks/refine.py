"""Refiners of the cold start: they make a sampled chain of thought readable and write its summary (recipe.md section 2).

Two implementations: any OpenAI-compatible endpoint, as in the paper, and the miniature's own deterministic rewriter.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from tasks.config import Service, fingerprint
from tasks.generation.endpoint import Endpoint, EndpointError, Messages
from tasks.records import prompt_text
from tasks.rewards.format import parse
from tasks.world import rewriter

BATCH = 32  # calls between two looks at how the endpoint does, and what a kill can lose of them


@dataclass(frozen=True)
class Refined:
    """A readable chain of thought, and the summary that the user reads."""

    thought: str
    answer: str


@dataclass(frozen=True)
class Refused:
    """Why a sample was not refined: a class of reasons, and what it was here."""

    reason: str
    detail: str


class Refiner(Protocol):
    """Refines samples (rows of ROLLOUT_SCHEMA, well formed and correct); one result for each, in order."""

    name: str
    language: float  # share of words in the question's language that its chains must reach

    def refine(self, samples: Sequence[Mapping[str, Any]]) -> list[Refined | Refused]: ...


# ---- the miniature's


class Rewriter:
    """The miniature's refiner. Its summary is the answer alone in its canonical spelling."""

    name = "rewriter"
    language = 1.0

    def refine(self, samples: Sequence[Mapping[str, Any]]) -> list[Refined | Refused]:
        return [self._one(sample) for sample in samples]

    def _one(self, sample: Mapping[str, Any]) -> Refined | Refused:
        parsed = parse(sample["text"])
        try:
            thought = rewriter.rewrite(parsed.thought, sample["language"])
        except rewriter.UnreadableError as error:
            return Refused("unreadable", str(error))
        return Refined(thought, rewriter.canonical(sample["verifier"], sample["truth"], parsed.answer))


# ---- a model behind an endpoint

LANGUAGE_NAMES = {"en": "English", "zh": "Chinese"}
REFINE = """You edit the private thinking of a student so that other people can read it.
- Write {language} from beginning to end: translate whatever is in another language.
- Keep every step with its numbers and in its order: checks, doubts and mistakes that are corrected later as well.
- Add no step and no knowledge, and do not solve the question yourself.
- Say everything once: leave out what only repeats what was said before.
- Write in the first person, as somebody who thinks aloud: plain sentences, short paragraphs, no headings, lists or code blocks.
Reply with the edited thinking and nothing else."""
SHORT = "This question is simple: a sentence or two are enough, as in the examples."
SUMMARY = """You write the solution that a reader gets to see. You are given a question and the thinking that answered it.
- Write {language}.
- Use only steps that the thinking holds. Do not solve the question again, and correct nothing.
- Give the steps that the answer depends on, formulas in LaTeX, in a few sentences; say nothing of tries that failed.
- Write as if this were all there is: do not mention any thinking, notes or draft.
- End with the final answer, in the form that the question asks for, in \\boxed{{}}.
Reply with the solution and nothing else."""
# Short thoughts for simple sums (question, thinking, edited thinking), in the spirit of the paper's Listing 3.
EXAMPLES = {
    "en": (
        ("What is 5 + 4?", "ok 5加4, so 5, 6, 7, 8, 9. it is 9. let me count again 5 6 7 8 9. yes 9.", "I add 5 and 4, which gives 9."),
        ("What is 1 + 2?", "1 + 2. 1 + 2 is 3. 所以 3.", "1 plus 2 is 3."),
    ),
    "zh": (
        ("5 + 4 等于多少？", "ok 5加4, so 5, 6, 7, 8, 9. it is 9. let me count again 5 6 7 8 9. yes 9.", "我把 5 和 4 相加，得 9。"),
        ("1 + 2 等于多少？", "1 + 2. 1 + 2 is 3. 所以 3.", "1 加 2 等于 3。"),
    ),
}


def _task(question: str, thought: str) -> str:
    return f"Question:\n{question}\n\nThinking:\n{thought}"


def refine_messages(sample: Mapping[str, Any]) -> Messages:
    """The conversation that asks for a readable chain; simple sums get examples of short ones."""
    language, shown = sample["language"], []
    simple = sample["domain"] == "math" and sample["level"] <= 1
    for question, before, after in EXAMPLES[language] if simple else ():
        shown += [{"role": "user", "content": _task(question, before)}, {"role": "assistant", "content": after}]
    system = REFINE.format(language=LANGUAGE_NAMES[language]) + (f"\n{SHORT}" if simple else "")
    task = _task(prompt_text(dict(sample)), parse(sample["text"]).thought)
    return [{"role": "system", "content": system}, *shown, {"role": "user", "content": task}]


def summary_messages(sample: Mapping[str, Any], thought: str) -> Messages:
    """The conversation that asks for the summary of a refined chain."""
    system = SUMMARY.format(language=LANGUAGE_NAMES[sample["language"]])
    return [{"role": "system", "content": system}, {"role": "user", "content": _task(prompt_text(dict(sample)), thought)}]


class EndpointRefiner:
    """Asks a model twice for each sample: for the chain, then for the summary of that chain.

    Answers are kept in `kept` (JSON lines, by what was asked), so that neither a kill nor a person's later verdict asks, pays and
    words anything anew. What was refused while the endpoint worked (a content filter, an answer cut off) is kept as null: it is asked
    again, but says nothing of the endpoint any more.
    """

    language = 0.9  # a formula's name or a quotation may stay in another language

    def __init__(self, service: Service, kept: Path) -> None:
        self.name = f"{service.model} at {service.url}"
        self._endpoint, self._kept = Endpoint(service), kept
        self._service = service.model_dump(mode="json", include={"url", "model", "temperature", "max_tokens"})

    def refine(self, samples: Sequence[Mapping[str, Any]]) -> list[Refined | Refused]:
        """A failed call refuses its sample.

        Raises:
            EndpointError: the endpoint has answered nothing yet, or none of BATCH calls in a row that were not refused before: it is the
                endpoint, not the samples.
        """
        thoughts = self._ask("chains", [refine_messages(sample) for sample in samples])
        whole = [i for i, thought in enumerate(thoughts) if isinstance(thought, str)]
        asked = [summary_messages(samples[i], str(thoughts[i])) for i in whole]
        summaries = dict(zip(whole, self._ask("summaries", asked), strict=True))
        return [_refined(thought, summaries.get(i, thought)) for i, thought in enumerate(thoughts)]

    def _ask(self, what: str, conversations: Sequence[Messages]) -> list[str | EndpointError]:
        keys = [fingerprint(self._service, messages) for messages in conversations]
        kept = _read_kept(self._kept)
        known: dict[str, str | EndpointError] = {key: answer for key, answer in kept.items() if answer is not None}
        missing = {key: messages for key, messages in zip(keys, conversations, strict=True) if key not in known}
        todo, worked = sorted(missing.items(), key=lambda item: item[0] in kept), any(key in known for key in keys)
        for at in tqdm(range(0, len(todo), BATCH), desc=f"cold_start: refining {what}", unit="batch", mininterval=1):
            batch = todo[at : at + BATCH]
            answers = dict(zip(dict(batch), self._endpoint.complete_all([messages for _, messages in batch]), strict=True))
            failed = {key: answer for key, answer in answers.items() if isinstance(answer, EndpointError)}
            new = [key for key in failed if key not in kept]
            if len(failed) == len(batch) and new and (len(new) == BATCH or not worked):
                raise failed[new[-1]]
            good = {key: answer for key, answer in answers.items() if isinstance(answer, str)}
            _keep(self._kept, {**good, **dict.fromkeys(new)})
            worked = worked or bool(good)
            known |= answers
        return [known[key] for key in keys]


def _refined(thought: str | EndpointError, summary: str | EndpointError) -> Refined | Refused:
    if isinstance(thought, EndpointError) or isinstance(summary, EndpointError):
        return Refused("endpoint", str(thought if isinstance(thought, EndpointError) else summary))
    return Refined(f" {thought}" if thought[0].isascii() else thought, summary)


def _read_kept(path: Path) -> dict[str, str | None]:
    """Answers by what was asked, None for a refusal; the half line that a kill may leave is skipped."""
    known = {}
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []:
        with suppress(ValueError, KeyError, TypeError):
            entry = json.loads(line)
            known[entry["key"]] = entry["answer"]
    return known


def _keep(path: Path, answers: Mapping[str, str | None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join("\n" + json.dumps({"key": key, "answer": answer}) for key, answer in answers.items())  # a half line ends here
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
