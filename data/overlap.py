"""Overlap of training problems with the test split: the paper's 10-gram filter, made to work on templated problems.

The paper removes a text that shares ten words in a row with a test problem. In problems made from a template ten words
are mostly the template ("Fill + - *, left to right, mod ten: ..."): the plain filter would remove different problems of
one family, and would never see a problem of eight words. So here a training problem overlaps with a test problem when
it contains

1. the whole test problem, as a run of words (three or more; shorter ones only as the whole text), or
2. a run of the test problem's words that holds `ngram` content words, the words of its template not counted.

A word belongs to the template when at least 90 % of its family's problems in that language (20 or more problems)
contain it. In families without a template, such as GSM8K, rule 2 is the paper's filter. See also docs/data.md.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tasks.records import Record, prompt_text

TEMPLATE_SHARE = 0.9
TEMPLATE_PROBLEMS = 20
SHORTEST = 3  # words; a shorter test problem ("1 + 1" has three) would be found everywhere

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# One Han character, a number, a run of letters, or a sign that carries meaning in a formula (no hyphen inside a word).
_WORD = re.compile(rf"[{HAN}]|\d+(?:\.\d+)?|(?:(?![{HAN}])[^\W\d_])+|[+*/=<>^%]|(?<![^\W\d_])-|-(?![^\W\d_])")
_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-"})

Words = tuple[str, ...]


class Overlap(NamedTuple):
    """What a training or validation problem shares with the test split."""

    test_id: str
    reason: str


class _Run(NamedTuple):
    words: Words
    problem: int


def words(text: str) -> Words:
    """A text's words for comparison: full-width forms and case folded, punctuation dropped, Han one by one."""
    return tuple(_WORD.findall(unicodedata.normalize("NFKC", text).translate(_SIGNS).casefold()))


def find(records: Sequence[Record], ngram: int) -> dict[int, Overlap]:
    """Index of each train or validation record that overlaps with a test record -> the overlap.

    Args:
        records: prompt records of all splits.
        ngram: content words in a row that two problems may not share (the paper: 10).
    """
    texts = [words(prompt_text(record)) for record in records]
    tests = [i for i, record in enumerate(records) if record["split"] == "test"]
    index = _TestIndex(texts, tests, _templates(records, texts), ngram)
    found = {}
    for i, record in enumerate(records):
        if record["split"] != "test" and (match := index.match(texts[i])) is not None:
            found[i] = Overlap(records[match[0]]["id"], match[1])
    return found


class _TestIndex:
    """Runs of the test problems by their first `ngram` words (all words of a shorter run)."""

    def __init__(self, texts: Sequence[Words], tests: Sequence[int], templates: Sequence[frozenset[str]], ngram: int) -> None:
        self.texts, self.ngram = texts, ngram
        self.same = {texts[i]: i for i in reversed(tests)}
        self.runs: dict[Words, list[_Run]] = defaultdict(list)
        for i in tests:
            for run in _runs(texts[i], templates[i], ngram):
                self.runs[run[:ngram]].append(_Run(run, i))
        self.lengths = sorted({len(start) for start in self.runs})

    def match(self, text: Words) -> tuple[int, str] | None:
        """(index of the first test problem found in a text, how it is found)."""
        if text in self.same:
            return self.same[text], "is a test problem"
        for length in self.lengths:
            for at in range(len(text) - length + 1):
                for run in self.runs.get(text[at : at + length], ()):
                    if text[at : at + len(run.words)] == run.words:
                        return run.problem, self._reason(run.problem, text)
        return None

    def _reason(self, problem: int, text: Words) -> str:
        whole = f" {' '.join(self.texts[problem])} " in f" {' '.join(text)} "
        return "contains a test problem" if whole else f"shares {self.ngram} content words with a test problem"


def _templates(records: Sequence[Record], texts: Sequence[Words]) -> list[frozenset[str]]:
    """The template's words of each record's family and language."""
    groups = defaultdict(list)
    for record, text in zip(records, texts, strict=True):
        groups[record["family"], record["language"]].append(text)
    templates = {group: _template(members) for group, members in groups.items()}
    return [templates[record["family"], record["language"]] for record in records]


def _template(texts: Sequence[Words]) -> frozenset[str]:
    if len(texts) < TEMPLATE_PROBLEMS:
        return frozenset()
    counts = Counter(word for text in texts for word in set(text))
    return frozenset(word for word, count in counts.items() if count >= TEMPLATE_SHARE * len(texts))


def _runs(text: Words, template: frozenset[str], ngram: int) -> Iterator[Words]:
    """The shortest runs that hold `ngram` content words; the whole text when it has fewer."""
    content = [position for position, word in enumerate(text) if word not in template]
    if len(content) < ngram:
        if len(text) >= SHORTEST:
            yield text
        return
    for first, last in zip(content, content[ngram - 1 :], strict=False):
        yield text[first : last + 1]
