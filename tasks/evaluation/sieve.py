"""The filters of rejection sampling: which sampled completions are good enough to be trained on (recipe.md section 4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tasks.config import Rejection
from tasks.evaluation.correctness import JUDGE, Item, Verdicts
from tasks.records import Record
from tasks.rewards.format import Parsed, parse
from tasks.rewards.language import consistency
from tasks.rewards.readable import has_code_block, longest_paragraph
from tasks.rewards.total import UnscorableError
from tasks.rewards.verify import Outcome, verify
from tasks.world.problems import VERIFIABLE

# What drops a candidate, in the order in which it is looked for; the first that applies counts.
FILTERS = {
    "unfinished": "hit the length limit",
    "malformed": "not one thought and one answer in their tags",
    "wrong": "wrong by rule",
    "mixed_language": "mixed languages in the thought",
    "long_paragraph": "a long paragraph in the thought",
    "code_block": "a code block in the thought",
    "repeated": "the same response to the same prompt again",
    "judged_wrong": "judged incorrect",
    "unparsed": "the judge's reply holds no verdict",
    "unanswered": "the judge gave no reply",
    "over_cap": "more than `per_prompt` of one prompt",
}
JUDGED = {"correct": "", "incorrect": "judged_wrong", "unparsed": "unparsed", "unanswered": "unanswered"}


def fault(row: Mapping[str, Any], parsed: Parsed, settings: Rejection) -> str:
    """The first filter that drops a candidate for itself alone, or "".

    Raises:
        UnscorableError: no verifier can read the truth.
    """
    if not row["finished"]:
        return "unfinished"
    if not parsed.well_formed:
        return "malformed"
    if row["verifier"] != JUDGE and not _right(row, parsed.answer):
        return "wrong"
    share = consistency(parsed.thought, row["language"])
    if share is not None and share < settings.min_language:
        return "mixed_language"
    if longest_paragraph(parsed.thought) > settings.max_paragraph:
        return "long_paragraph"
    return "code_block" if has_code_block(parsed.thought) else ""


def _right(row: Mapping[str, Any], answer: str) -> bool:
    outcome = verify(row["verifier"], row["truth"], answer)
    if outcome is Outcome.UNSCORABLE:
        raise UnscorableError(
            f"prompt {row['prompt_id']}: the {row['verifier']} verifier cannot read its truth {row['truth']!r}; "
            "run `python -m tasks.curate`"
        )
    return outcome is Outcome.CORRECT


class Sieve:
    """All filters with their counts. Takes candidates batch by batch; the rows of a prompt must follow each other."""

    def __init__(self, settings: Rejection, verdicts: Verdicts) -> None:
        self.settings, self.verdicts = settings, verdicts
        self.candidates: Counter[str] = Counter()  # domain -> rows
        self.dropped: Counter[tuple[str, str]] = Counter()  # (filter, domain) -> rows
        self._said: tuple[str, set[str]] = ("", set())  # current prompt, its responses so far
        self._kept: tuple[str, int] = ("", 0)  # current prompt, how many of it are kept

    def keep(self, rows: Sequence[Record]) -> Iterator[tuple[Record, bool]]:
        """The candidates that pass every filter, in order, and whether a judge accepted them; it is asked last, so about as few as can be.

        Raises:
            JudgeError: see `Verdicts.of`. UnscorableError: see `fault`.
        """
        passed = [(row, parsed) for row in rows if (parsed := self._readable(row))]
        items = [Item(row["messages"][-1]["content"], row["truth"], parsed.answer) for row, parsed in passed if row["verifier"] == JUDGE]
        outcomes = self.verdicts.of(items)
        for row, _ in passed:
            judged = row["verifier"] == JUDGE
            found = (JUDGED[next(outcomes)] if judged else "") or self._over_cap(row["prompt_id"])
            if found:
                self.dropped[found, row["domain"]] += 1
            else:
                yield row, judged

    def _readable(self, row: Record) -> Parsed | None:
        self.candidates[row["domain"]] += 1
        parsed = parse(row["text"])
        if found := fault(row, parsed, self.settings) or self._repeated(row):
            self.dropped[found, row["domain"]] += 1
            return None
        return parsed

    def _repeated(self, row: Record) -> str:
        if self._said[0] != row["prompt_id"]:
            self._said = (row["prompt_id"], set())
        text = " ".join(row["text"].split())
        if text in self._said[1]:
            return "repeated"
        self._said[1].add(text)
        return ""

    def _over_cap(self, prompt: str) -> str:
        count = self._kept[1] if self._kept[0] == prompt else 0
        self._kept = (prompt, min(count + 1, self.settings.per_prompt))
        return "over_cap" if count == self.settings.per_prompt else ""

    def counts(self) -> dict[str, dict[str, int]]:
        """Candidates, drops by filter and what is kept, each by domain and in total."""
        dropped = {name: _by_domain({d: n for (f, d), n in self.dropped.items() if f == name}) for name in FILTERS}
        candidates = _by_domain(self.candidates)
        kept = {d: n - sum(row[d] for row in dropped.values()) for d, n in candidates.items()}
        return {"candidates": candidates, **dropped, "kept": kept}


def _by_domain(counts: Mapping[str, int]) -> dict[str, int]:
    return {**{domain: counts.get(domain, 0) for domain in VERIFIABLE}, "total": sum(counts.values())}
