"""The contracts of the datasets: Great Expectations suites as code.

`check(dataset, table)` first compares the columns, then runs the dataset's expectations, and raises `ContractError`
naming every expectation that does not hold, its column, how many rows break it, and up to 50 of them. What Great
Expectations has no expectation for (does the verifier accept the gold answer? does a problem overlap with the test
split?) is computed into a column of its own, which the suite then judges like any other.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import sqrt
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from data import overlap
from tasks.errors import DataError
from tasks.records import FAMILY_PATTERN, ID_PATTERN, SAMPLE_SCHEMA, SCHEMA, SPLITS, Record, check_schema, prompt_text
from tasks.rewards.verify import VERIFIERS, Outcome, gold_answer, verify
from tasks.world import general, problems

if TYPE_CHECKING:  # importing Great Expectations takes 4 s
    from great_expectations.expectations import Expectation

DOMAINS = tuple(problems.DOMAIN_SHARES)
WORLD_FAMILIES = (*(kind.family for kinds in problems.FAMILIES.values() for kind, _ in kinds), problems.Open.family, *general.FAMILIES)
UNRULED = ("judge", "none")  # no rule reads these: a judge compares with the truth, or there is none
ROLES = ("system", "user", "assistant")

OFFENDERS = 50  # rows that an error names
# A split's shares of domains and languages may be off by two points and by four standard errors of a random split.
TOLERANCE = 0.02
STANDARD_ERRORS = 4.0
# Of the gold answers of other problems of a family, at least this share must be wrong. In the world the search problem
# `fill` accepts about a sixth of them by right: several patterns reach a target.
SWAPPED_WRONG = 0.6
SWAPPED_PAIRS = (
    20,
    200,
)  # families with fewer pairs tell nothing; more pairs than the maximum cost time and tell no more


@dataclass(frozen=True)
class Check:
    """One expectation and what came of it."""

    what: str
    expectation: str
    column: str
    rows: int
    passed: bool
    observed: str
    failures: int = 0
    offenders: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """All that was checked on a dataset."""

    dataset: str
    rows: int
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every expectation holds."""
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """The report in JSON's types."""
        checks = [asdict(check) | {"offenders": list(check.offenders)} for check in self.checks]
        return {"dataset": self.dataset, "rows": self.rows, "passed": self.passed, "checks": checks}

    def to_markdown(self) -> str:
        """The report as a Markdown table."""
        lines = ["| checked | column | rows | result | observed |", "|---|---|---:|---|---|"]
        for check in self.checks:
            result = "holds" if check.passed else "**broken**"
            cells = (check.what, f"`{check.column}`", f"{check.rows:,}", result, check.observed)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        return "\n".join(lines) + "\n"


class ContractError(DataError):
    """A dataset breaks its contract; `report` holds all that was checked."""

    def __init__(self, report: Report) -> None:
        self.report = report
        faults = "; ".join(_fault(check) for check in report.checks if not check.passed)
        super().__init__(f"the {report.dataset} dataset breaks its contract: {faults}. Correct or remove what is named")


def _fault(check: Check) -> str:
    more = ", ..." if check.failures > len(check.offenders) > 0 else ""
    named = f": {', '.join(check.offenders)}{more}" if check.offenders else ""
    return f"{check.what} ({check.expectation}, column {check.column}, {check.observed}{named})"


# ---- running a suite


def check(dataset: str, table: pa.Table, rows: Sequence[str] | None = None, **options: Any) -> Report:
    """Check a whole dataset against its contract.

    Args:
        dataset: "prompts" (option `ngram`; all splits in one table) or "samples" (option `samples_per_prompt`).
        table: the dataset.
        rows: what to call each row in an error, such as "mine.jsonl row 7"; by default "row 7".

    Raises:
        ContractError: an expectation does not hold.
    """
    schema, identifier, phases = DATASETS[dataset]
    columns = "columns and their types"
    try:
        check_schema(table.schema, schema, dataset)
    except DataError as error:
        fault = Check(columns, "schema", "all", table.num_rows, False, str(error))
        raise ContractError(Report(dataset, table.num_rows, (fault,))) from error
    checks = [Check(columns, "schema", "all", table.num_rows, True, f"{len(schema)} columns")]
    names = list(rows) if rows is not None else [f"row {i}" for i in range(1, table.num_rows + 1)]
    # A later phase may rely on what an earlier one has found to hold.
    for phase in phases:
        frame, expectations = phase(table, **options)
        checks += _run(frame.assign(row=names), expectations, ["row", identifier])
        if not all(c.passed for c in checks):
            break
    report = Report(dataset, table.num_rows, tuple(checks))
    if not report.passed:
        raise ContractError(report)
    return report


def _run(frame: pd.DataFrame, expectations: list[Expectation], name_columns: list[str]) -> Iterator[Check]:
    """Run expectations on a frame in an ephemeral context: nothing is written, printed or sent."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    batch = context.data_sources.add_pandas("pandas").add_dataframe_asset("frame").add_batch_definition_whole_dataframe("all")
    for order, expectation in enumerate(expectations):
        expectation.meta = {"order": order}  # results come back in another order
    suite = context.suites.add(gx.ExpectationSuite(name="contract", expectations=expectations))
    definition = context.validation_definitions.add(gx.ValidationDefinition(name="contract", data=batch, suite=suite))
    outcome = definition.run(
        batch_parameters={"dataframe": frame},
        result_format={"result_format": "COMPLETE", "unexpected_index_column_names": name_columns},
    )
    for result in sorted(outcome.results, key=lambda r: r.expectation_config.meta["order"]):
        yield _to_check(result, frame, name_columns)


def _to_check(result: Any, frame: pd.DataFrame, name_columns: list[str]) -> Check:
    config, found = result.expectation_config, result.result
    columns = config.kwargs.get("column_list") or [config.kwargs.get("column", "row")]
    rows, failures = int(frame[columns].notna().all(axis=1).sum()), int(found.get("unexpected_count", 0))
    if "unexpected_count" in found:
        observed = f"{failures} rows" if failures else "no exception"
        rows = max(rows, failures)  # missing values are what a not-null expectation counts
    elif "observed_value" in found:
        value, missing = found["observed_value"], found.get("partial_missing_list") or []
        observed = f"{value:.3f}" if isinstance(value, float) else f"no {', '.join(missing)}" if missing else str(value or "no exception")
    else:  # the expectation could not be computed; what it raised is the only news
        observed = " ".join(str(result.exception_info).split())[:500]
    offenders = tuple(_offender(row, name_columns) for row in found.get("unexpected_index_list", [])[:OFFENDERS])
    name = "+".join(columns) if "row" not in columns else "all"
    return Check(config.description, config.type, name, rows, bool(result.success), observed, failures, offenders)


def _offender(row: dict[str, Any], name_columns: list[str]) -> str:
    """`mine.jsonl row 7 gsm8k-0123456789abcdef (gold: UNSCORABLE)`."""
    names = " ".join(str(row[column]) for column in name_columns)
    values = ", ".join(f"{column}: {value!s:.80}" for column, value in row.items() if column not in name_columns)
    return f"{names} ({values})" if values else names


# ---- expectations, each with the words for the table


def _expect(kind: str, what: str, **arguments: Any) -> Expectation:
    from great_expectations import expectations

    return getattr(expectations, kind)(description=what, **arguments)


def _not_null(columns: Sequence[str]) -> list[Expectation]:
    return [_expect("ExpectColumnValuesToNotBeNull", f"{column} is never missing", column=column) for column in columns]


def _in_set(column: str, values: Sequence[Any], what: str = "") -> Expectation:
    what = what or f"{column} is one of {', '.join(map(str, values))}"
    return _expect("ExpectColumnValuesToBeInSet", what, column=column, value_set=list(values))


def _between(column: str, low: float | None, high: float | None, what: str) -> Expectation:
    return _expect("ExpectColumnValuesToBeBetween", what, column=column, min_value=low, max_value=high)


def _matches(column: str, pattern: str, what: str) -> Expectation:
    return _expect("ExpectColumnValuesToMatchRegex", what, column=column, regex=pattern)


def _mean(column: str, low: float, high: float, what: str) -> Expectation:
    return _expect("ExpectColumnMeanToBeBetween", what, column=column, min_value=low, max_value=high)


Phase = tuple[pd.DataFrame, "list[Expectation]"]


# ---- the prompt dataset (docs/data.md)


def _prompt_columns(table: pa.Table, ngram: int = 10) -> Phase:
    """What each column may hold."""
    frame = table.drop_columns(["messages"]).to_pandas()
    frame["prompt"] = [_prompt_or_none(messages) for messages in table["messages"].to_pylist()]
    frame["world_family"] = frame["family"].where(frame["source"] == "world")
    return frame, [
        _expect("ExpectTableRowCountToBeBetween", "there are rows", min_value=1),
        *_not_null([name for name in SCHEMA.names if name != "messages"]),
        _expect("ExpectColumnValuesToBeUnique", "ids are unique over all splits", column="id"),
        _matches("id", ID_PATTERN, "an id is <family>-<16 hex digits>"),
        _in_set("domain", DOMAINS),
        _matches("family", FAMILY_PATTERN, "a family is lower-case letters, digits and _"),
        _in_set("world_family", WORLD_FAMILIES, "the world's families are the known ones"),
        _between("level", 1, 5, "level is 1 to 5"),
        _in_set("language", problems.LANGUAGES),
        _in_set("verifier", [*VERIFIERS, *UNRULED]),
        _in_set("split", SPLITS),
        _expect("ExpectColumnDistinctValuesToContainSet", "no split is empty", column="split", value_set=list(SPLITS)),
        *_not_null(["prompt"]),
        _matches("prompt", r"\S", "the user says something"),
    ]


def _prompt_or_none(messages: list[dict[str, str | None]] | None) -> str | None:
    turns = messages or []
    if any(turn is None or turn["role"] not in ROLES or turn["content"] is None for turn in turns):
        return None
    return prompt_text({"messages": turns}) if turns and turns[-1]["role"] == "user" else None


def _prompt_golds(table: pa.Table, ngram: int = 10) -> Phase:
    """Whether the verifiers can work with the rows."""
    records = table.to_pylist()
    frame = pd.DataFrame({"id": table["id"].to_pylist(), "gold": [_gold(record) for record in records]})
    what = "every gold answer is verified as correct against itself"
    return frame, [_in_set("gold", ["CORRECT", "no verifier"], what)]


def _prompt_relations(table: pa.Table, ngram: int = 10) -> Phase:
    """What the rows are to each other: overlap, other problems' golds, shares."""
    records = table.to_pylist()
    found = overlap.find(records, ngram)
    frame = pd.DataFrame({"id": table["id"].to_pylist()})
    frame["overlap"] = [f"{o.reason}: {o.test_id}" if (o := found.get(i)) else "" for i in range(len(records))]
    what = f"no train or validation problem holds a test problem or {ngram} content words of one"
    expectations = [_in_set("overlap", [""], what)]
    for column, low, high, what, values in [*_swapped(records), *_shares(records)]:
        frame[column] = pd.Series(values, dtype="float64")
        expectations.append(_mean(column, low, high, what))
    return frame, expectations


def _gold(record: Record) -> str:
    """Name of the outcome of the gold answer, with the truth when it is not as it must be."""
    if record["verifier"] in UNRULED:
        needed = record["verifier"] == "judge"  # the reference answer
        fault = f"verifier {record['verifier']}, yet truth {record['truth']!r}"
        return "no verifier" if bool(record["truth"].strip() if needed else record["truth"]) is needed else fault
    try:
        outcome = verify(record["verifier"], record["truth"], gold_answer(record))
    except (TypeError, ValueError, LookupError):  # JSON whose values are of other types than the verifier reads
        outcome = Outcome.UNSCORABLE
    if outcome is Outcome.CORRECT:
        return outcome.name
    return f"{outcome.name}, verifier {record['verifier']}, truth {record['truth']!r}"


Mean = tuple[str, float, float, str, dict[int, float]]


def _swapped(records: list[Record]) -> Iterator[Mean]:
    """Each problem against the gold answer of its family's next one: a verifier that accepts most would be vacuous."""
    families = defaultdict(list)
    for i, record in enumerate(records):
        if record["verifier"] in VERIFIERS:
            families[record["family"], record["language"], record["verifier"]].append(i)
    verdicts: dict[str, dict[int, float]] = defaultdict(dict)
    for (family, _, _), members in families.items():
        members = sorted(members, key=lambda i: records[i]["id"])
        pairs = [(a, b) for a, b in pairwise(members) if records[a]["truth"] != records[b]["truth"]]
        for a, b in pairs[: SWAPPED_PAIRS[1]]:
            outcome = verify(records[a]["verifier"], records[a]["truth"], gold_answer(records[b]))
            verdicts[family][a] = float(outcome is Outcome.WRONG)
    for family, values in sorted(verdicts.items()):
        if len(values) >= SWAPPED_PAIRS[0]:
            what = f"{family}: at least {SWAPPED_WRONG:.0%} of other problems' gold answers are wrong"
            yield f"swapped {family}", SWAPPED_WRONG, 1.0, what, values


def _shares(records: list[Record]) -> Iterator[Mean]:
    """The world's shares of domains and languages in each split; a user's own problems have the shares they have."""
    total = sum(problems.DOMAIN_SHARES.values())
    expected = {("domain", d): share / total for d, share in problems.DOMAIN_SHARES.items()}
    expected |= {("language", x): share for x, share in problems.LANGUAGE_SHARES.items()}
    for split in SPLITS:
        members = [i for i, record in enumerate(records) if record["split"] == split and record["source"] == "world"]
        for (column, value), share in expected.items():
            if members:
                margin = TOLERANCE + STANDARD_ERRORS * sqrt(share * (1 - share) / len(members))
                what = f"{split}: {share:.1%} of the world's problems are {value} (within {margin:.1%})"
                values = {i: float(records[i][column] == value) for i in members}
                yield f"{column}={value} {split}", max(0.0, share - margin), min(1.0, share + margin), what, values


# ---- the sample dataset


def _sample_rows(table: pa.Table, samples_per_prompt: int) -> Phase:
    frame = table.drop_columns(["token_ids"]).to_pandas()
    frame["tokens"] = [None if ids is None else len(ids) for ids in table["token_ids"].to_pylist()]
    per_prompt = Counter(frame["prompt_id"])
    frame["samples_of_prompt"] = [per_prompt[prompt] for prompt in frame["prompt_id"]]
    frame["tokens_left"] = frame["max_new_tokens"] - frame["tokens"]
    frame["correct_answer"] = frame["answer"].where(frame["correct"].eq(True))
    one_value = "ExpectColumnUniqueValueCountToBeBetween"
    k = samples_per_prompt
    return frame, [
        _expect("ExpectTableRowCountToBeBetween", "there are rows", min_value=1),
        *_not_null([name for name in SAMPLE_SCHEMA.names if name not in ("token_ids", "language_consistency")]),
        *_not_null(["tokens"]),
        _in_set("samples_of_prompt", [k], f"every prompt has {k} samples"),
        _between("sample", 0, k - 1, f"samples are numbered 0 to {k - 1}"),
        _expect("ExpectCompoundColumnsToBeUnique", "a prompt's samples are distinct", column_list=["prompt_id", "sample"]),
        _between("tokens", 1, None, "every sample has tokens"),
        _between("tokens_left", 0, None, "no sample is longer than max_new_tokens"),
        _matches("correct_answer", r"\S", "a correct answer is not blank"),
        _between("language_consistency", 0, 1, "language consistency is a share"),
        _in_set("domain", DOMAINS),
        _in_set("language", problems.LANGUAGES),
        _between("level", 1, 5, "level is 1 to 5"),
        *(
            _expect(one_value, f"one {column} for all samples", column=column, min_value=1, max_value=1)
            for column in ("model", "temperature", "top_p", "max_new_tokens")
        ),
    ]


DATASETS: dict[str, tuple[pa.Schema, str, tuple[Callable[..., Phase], ...]]] = {
    "prompts": (SCHEMA, "id", (_prompt_columns, _prompt_golds, _prompt_relations)),
    "samples": (SAMPLE_SCHEMA, "prompt_id", (_sample_rows,)),
}
