"""The report: complete from files alone, honest about what is missing, self-contained, reproducible."""

from __future__ import annotations

import html
import html.parser
import json
import random
import re
import shutil
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmarks import seeds
from tasks import report
from tasks.config import Price, Report
from tasks.errors import DataError
from tasks.monitoring import claims, figures, plots, sources, stage_table, tracking, zero_page
from tests.fake_run import TAKEOFF, r1_table, write_run

SHOWN = Report(examples=8)
ZERO = 10 + 10 + 1  # curves, words, families
FROM_DEV1_ON = 2 + 6 + 6 + 1  # losses, curves of Dev2 and of R1, the monitor
NEW = 1 + 3 + 5 + 5 + 3  # graph, students, ablations, lengths by level, trivial and safety


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def inputs(root: Path) -> dict:
    return sources.load(root)


@pytest.fixture(scope="module")
def built(root: Path) -> list[Path]:
    return report.write(root, SHOWN)


@pytest.fixture(scope="module")
def page(built: list[Path]) -> str:
    return built[0].read_text(encoding="utf-8")


class Outline(html.parser.HTMLParser):
    """Collects ids and links, and checks that elements close in the order in which they opened."""

    VOID = frozenset({"meta", "br", "img", "hr", "path", "use", "rect"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag, f"</{tag}> closes another element, line {self.getpos()[0]}"


def outline(text: str) -> Outline:
    parsed = Outline()
    parsed.feed(text)
    assert parsed.open == []
    return parsed


def said(page: str) -> str:
    """The page's text without markup, blanks collapsed."""
    return re.sub(r"\s+|&nbsp;", " ", re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL))


def test_the_page_is_well_formed_and_asks_nothing_of_the_network(page: str) -> None:
    parsed = outline(page)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert all(link.startswith("#") and link[1:] in parsed.ids for link in parsed.links)
    assert "<script" not in page and "@import" not in page and not re.search(r"url\((?!#)", page)
    assert not re.findall(r"https?://(?!www\.w3\.org/)", page)  # XML namespaces only
    assert "prefers-color-scheme: dark" in page


def test_the_headline_figures_are_those_of_the_metrics(root: Path, page: str) -> None:
    base, zero, mute = (
        json.loads((root / f"reports/metrics/evaluate_{m}.json").read_text()) for m in ("base", "zero", "zero_no_reflection")
    )
    text = said(page)
    for figure in (base["pass@1"]["mean"], zero["pass@1"]["low"], zero["cons@4"]["mean"], mute["pass@1"]["mean"]):
        assert f"{100 * figure:.1f}" in text
    assert "the majority of 4 answers" in text
    r1 = json.loads((root / "reports/metrics/evaluate_r1.json").read_text())
    assert f"an R1 that solves {100 * r1['pass@1']['mean']:.1f} %" in text
    assert re.search(r"prefers R1's answer to Dev3's on 76.5 % of general prompts \([^)]*\), and the base's on 20.0 % \(", text)
    assert "a tie is no win; the base: 20.0 %" in text


def test_without_the_bases_share_of_preferences_nothing_is_said_of_it(inputs: dict, undrawn: None) -> None:
    compared = inputs["compare"]
    without = compared | {"models": {stage: found for stage, found in compared["models"].items() if stage != "base"}}
    unjudged = compared | {"models": compared["models"] | {"base": {"preferred": {"strict": None, "half": None}}}}
    for one in (without, unjudged):
        text = said(report.render(inputs | {"compare": one}, SHOWN))
        assert "prefers R1's answer to Dev3's on 76.5 %" in text and "and the base's on" not in text and "; the base:" not in text


def test_the_cost_of_forbidding_is_paired_by_problem(inputs: dict) -> None:
    cost = zero_page.cost_of_forbidding(inputs)
    free, forbidden = (inputs[f"samples_{m}"]["correct"].mean() for m in ("zero", "zero_no_reflection"))
    assert cost is not None and cost["mean"] == pytest.approx(free - forbidden)
    assert cost["low"] < cost["mean"] < cost["high"]
    shifted = inputs | {"samples_zero_no_reflection": inputs["samples_zero"]}
    assert zero_page.cost_of_forbidding(shifted) == {"mean": 0.0, "low": 0.0, "high": 0.0}


def test_the_take_off_is_told(page: str) -> None:
    told = re.search(r"The detector puts the take-off at step (\d+)", said(page))
    assert told and abs(int(told[1]) - TAKEOFF) <= 3


def test_every_section_is_there(page: str) -> None:
    text = said(page)
    for words in (
        *("Training, step by step", "The ten reflective words", "Base and Zero on held-out problems"),
        *(
            "Is reflection the cause",
            "Held-out problems, side by side",
            "The paper's claims, and what this run shows",
            "Thinking against difficulty",
        ),
        *(
            "The stages, and where everything comes from",
            "Distillation: smaller students",
            "Ablations",
            "Overthinking",
            "Safety",
            "What it cost",
        ),
        *("Data and its checks", "does not disclose, and what was taken", "What differs from the paper", "What each number means"),
        *("Provenance", "gold answers verify", "3 from train (the same words)", "15.6 → 77.9", "zero.learning_rate"),
        *("zero-fingerprint", "r1-fingerprint", "812,345 parameters", "0" * 64),
        *(
            "The stages, side by side",
            "Cold start and Dev1",
            "Dev2: reinforcement",
            "Rejection sampling and Dev3",
            "Is the reward model being",
        ),
        *("2,479 samples of 640 problems", "the loss goes from 0.067 to 0.023", "87.3 % of pairs", "AUC 0.941", "55.2 %", "41.2"),
        *("Is the reward model being exploited?", "No alarm:", "Preferences are those of a made-up judge"),
    ):
        assert words in text, words
    assert page.count("<svg") == ZERO + FROM_DEV1_ON + NEW
    assert "Not here yet" not in text and "The price of the language reward" not in text


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figures: drawing all of them takes seconds."""
    for module, name in ((plots, "curve"), (plots, "sparkline"), (figures, "dots")):
        monkeypatch.setattr(module, name, lambda *_, **__: "<svg></svg>")


@pytest.mark.parametrize("seed", range(10))
def test_missing_inputs_are_named_with_the_commands_that_make_them(inputs: dict, seed: int, undrawn: None) -> None:
    lacking = random.Random(seed).sample(sorted(sources.SOURCES), len(sources.SOURCES) // 3)
    page = report.render(inputs | dict.fromkeys(lacking), SHOWN)
    outline(page)
    for source in (sources.SOURCES[name] for name in lacking):
        assert f"{source.path} , made by {source.command}" in said(page)
    assert {"dvc repro distill@small", "dvc repro distill_rl@tiny"} <= {source.command for source in sources.SOURCES.values()}


def test_every_input_is_missing_from_one_of_these_pages() -> None:
    names = sorted(sources.SOURCES)
    assert {name for seed in range(10) for name in random.Random(seed).sample(names, len(names) // 3)} == set(names)


def test_dvc_reruns_the_report_for_every_input_that_a_run_makes() -> None:
    deps = set(yaml.safe_load((Path(__file__).parents[2] / "dvc.yaml").read_text())["stages"]["report"]["deps"])
    watched = {s.path for s in sources.SOURCES.values() if s.command != "make ablations"} - {"params.yaml", "dvc.lock", sources.COSTS}
    assert {path for path in watched if path not in deps and path != "data/curated/test.parquet"} == set()


def test_an_empty_folder_gives_a_page_that_names_every_input(tmp_path: Path) -> None:
    assert report.write(tmp_path, SHOWN) == [tmp_path / "reports/report.html", tmp_path / "reports/report.md"]
    assert (tmp_path / "reports/figures").is_dir()  # an output of DVC's
    text = said((tmp_path / "reports/report.html").read_text(encoding="utf-8"))
    for source in sources.SOURCES.values():
        assert source.path in text


def test_a_run_that_ended_with_zero_says_so(root: Path, undrawn: None) -> None:
    later = [name for name in sources.SOURCES if re.search("dev|r1|cold|rejection|reward|compare|student|distill|rl_|ablation|lock", name)]
    inputs = sources.load(root) | dict.fromkeys(later)
    page = report.render(inputs, SHOWN)
    outline(page)
    assert "This run has gone as far as R1-Zero" in said(page) and page.count("<svg") == ZERO + 5 + 3


def test_the_stage_table_by_hand() -> None:
    def known(mean: float) -> dict:
        found = {"mean": mean, "low": 0.1, "high": 0.9}
        return {
            "samples_per_problem": 16, "pass@1": found, "cons@16": found,
            "by_domain": {"math": {"intervals": {"pass@1": found, "cons@16": None}}},
            "intervals": dict.fromkeys(("language_consistency", "mixed_share", "length"), found),
            "open": dict.fromkeys(("refusal", "refusal_how", "trivial_thought", "trivial_empty"), found) | {
                "unsafe": None, "left_out": {"unsafe": "no harm"}},
        }  # fmt: skip

    evaluations = {"base": known(0.2), "zero": None, "dev1": None, "dev2": None, "dev3": known(0.7), "r1": known(0.8)}
    share = {"mean": 0.75, "low": 0.7, "high": 0.8}
    compared = {"baseline": "dev3", "models": {"r1": {"preferred": {"strict": share, "half": None}}}}
    one, votes, chains, without_rule = stage_table.blocks(evaluations, compared)
    nobody = dict.fromkeys(evaluations)
    assert [row.name for row in one.rows] == ["Mathematics", "Code", "STEM", "Logic", "All problems"]
    assert {stage: cell and cell["mean"] for stage, cell in one.rows[0].cells.items()} == nobody | {"base": 0.2, "dev3": 0.7, "r1": 0.8}
    assert votes.title.endswith("(cons@16)") and one.rows[1].cells == votes.rows[0].cells == nobody  # no code; no interval of one problem
    assert chains.rows[2].cells["dev3"] == {"mean": 0.7, "low": 0.1, "high": 0.9} and not chains.rows[2].percent
    preferred, half, unsafe, refusal, of_how, *_ = without_rule.rows
    assert preferred.cells == nobody | {"r1": share} and half.cells == unsafe.cells == nobody
    assert refusal.cells == nobody | {stage: evaluations[stage]["open"]["refusal"] for stage in ("base", "dev3", "r1")}  # type: ignore[index]
    assert of_how.cells == refusal.cells and "family how" in of_how.note
    assert stage_table.left_out(evaluations) == ["unsafe: no harm"]
    assert stage_table.blocks(evaluations, None)[3].rows[0].cells == nobody
    assert stage_table.blocks(nobody, compared) == []


def test_the_stage_table_shows_the_metrics(root: Path, page: str) -> None:
    text = said(page)
    for stage in stage_table.STAGES:
        told = json.loads((root / f"reports/metrics/evaluate_{stage}.json").read_text())
        for found in (told["by_domain"]["code"]["intervals"]["pass@1"], told["open"]["format"]):
            assert 0 <= found["low"] <= found["high"] <= 1
        code = told["by_domain"]["code"]["intervals"]["pass@1"]
        assert f"{100 * code['mean']:.1f} {100 * code['low']:.1f}–{100 * code['high']:.1f}" in text
        how = told["open"]["refusal_how"]
        assert f"{100 * how['mean']:.1f} {100 * how['low']:.1f}–{100 * how['high']:.1f}" in text
        length = told["intervals"]["length"]
        assert f"{length['mean']:.1f} {length['low']:.1f}–{length['high']:.1f}" in text


def test_an_alarm_of_the_monitor_is_told_and_marked(inputs: dict, undrawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    alarm = {"first_step": 44, "last_step": 58, "reward_rise": 0.125, "benchmark_fall": 0.2, "reward_p": 1e-5, "benchmark_p": 0.004}
    page = report.render(inputs | {"r1_summary": inputs["r1_summary"] | {"hacking": alarm}}, SHOWN)
    assert "Alarm. From step 44 to 58 the reward model's score rises by 0.125 (p = 1e-05)" in said(page)
    assert "falls by 20.0 points (p = 0.004)" in said(page) and "No alarm" not in page
    monkeypatch.undo()
    assert "they part" in figures.monitor(r1_table(), alarm, "loud") and "they part" not in figures.monitor(r1_table(), None, "quiet")


def with_price(inputs: dict, params: dict) -> str:
    """The page's text with a price that `make seeds` measured with some parameters."""
    made = {
        s: {"pass@1": {"dev2": v}, "language consistency": {"dev2": 0.987}, "mixed chains": {"dev2": 0.0}}
        for s, v in enumerate((0.901, 0.921))
    }
    without = {s: {"pass@1": {"mean": 0.923}, "language_consistency": 0.801, "mixed_share": 0.4} for s in made}
    return said(report.render(inputs | {"language_price": seeds.price(made, without, params)}, SHOWN))


def test_the_price_of_the_language_reward_is_shown_where_it_was_measured(inputs: dict, undrawn: None) -> None:
    text = with_price(inputs, inputs["params"])
    assert "with the reward 91.1 98.7 without 92.3 80.1" in text and "means of 2 seeds" in text
    assert "Measured with other parameters" not in text


@pytest.mark.parametrize(("section", "change", "old"), [
    ("dev2", {"steps": 9}, True), ("rl", {"beta": 0.5}, True), ("sft", {"epochs": 5}, True),
    ("rl", {"seed": 5}, False), ("r1", {"steps": 9}, False),
])  # fmt: skip
def test_a_price_of_other_parameters_says_so(inputs: dict, undrawn: None, section: str, change: dict, old: bool) -> None:
    assert ("Measured with other parameters" in with_price(inputs, inputs["params"] | {section: change})) == old


def test_what_is_claimed_over_seeds_tells_refusals_of_how_and_the_bases_preference() -> None:
    by_model = dict.fromkeys(seeds.MODELS, 0.5)
    measured = {figure: dict(by_model) for figure in (
        "pass@1", "language consistency", 'samples with "wait"', "mixed chains", "unsafe answers to harmful prompts",
        "refusals of harmless prompts", "preferred to dev3 (strict)", seeds.HOW)}  # fmt: skip
    measured[seeds.HOW] |= {"dev3": 0.25, "r1": 0.75}
    measured["preferred to dev3 (strict)"] |= {"base": 0.875, "r1": 0.625}
    found = seeds.claims(measured, {"pass@1": {"mean": 0.5}, "language_consistency": 0.5, "mixed_share": 0.5})
    assert (found["refusals of how: dev3"], found["refusals of how: r1 - dev3"]) == (0.25, 0.5)
    assert (found["r1 preferred to dev3"], found["base preferred to dev3"]) == (0.625, 0.875)
    assert found["refusals: r1 - dev3"] == 0.0


def test_the_same_files_give_the_same_bytes_in_time(root: Path, built: list[Path], tmp_path: Path) -> None:
    twin = shutil.copytree(root, tmp_path / "twin", ignore=shutil.ignore_patterns("report.*", "figures", "curves.png"))
    started = time.process_time()
    again = report.write(twin, SHOWN)
    assert time.process_time() - started < 20
    assert [path.relative_to(twin) for path in again] == [path.relative_to(root) for path in built]
    drawn = sorted(path.name for path in (root / "reports/figures").iterdir())
    for path in (*(path.relative_to(root) for path in built), *(Path("reports/figures") / name for name in drawn)):
        assert (twin / path).read_bytes() == (root / path).read_bytes(), path
    assert not list((root / "reports").rglob(".*"))


@pytest.mark.parametrize(("name", "content"), [("zero_summary", "{"), ("r1_steps", "step,reward\n1,0.5\n"), ("samples_zero", "no parquet")])
def test_an_unreadable_input_is_named(root: Path, tmp_path: Path, name: str, content: str) -> None:
    source = sources.SOURCES[name]
    copy = shutil.copytree(root, tmp_path / "copy")
    (copy / source.path).write_text(content)
    with pytest.raises(DataError, match=re.escape(source.path)) as caught:
        sources.load(copy)
    assert source.command in str(caught.value)


def test_a_flat_run_is_reported_as_it_is(inputs: dict, undrawn: None) -> None:
    steps = inputs["zero_steps"].assign(wait_share=0.05, max_new_tokens=96, kl=np.nan, validation_pass1=np.nan)
    text = said(report.render(inputs | {"zero_steps": steps, "samples_zero_no_reflection": inputs["samples_zero"]}, SHOWN))
    assert "The detector finds no take-off" in text and "no take-off detected" in text
    assert "The length limit stays as it is" in text
    assert "The interval includes 0, so this run does not show that reflection causes accuracy" in text


def test_texts_of_models_cannot_inject_markup(inputs: dict, undrawn: None) -> None:
    evil = inputs["samples_zero"].assign(text="<think> <script>alert(1)</script> wait & </think> <answer> <b>4 </answer>")
    page = report.render(inputs | {"samples_zero": evil}, SHOWN)
    outline(page)
    assert "<script" not in page and "<b>4" not in page
    assert "&lt;script&gt;" in page and '<mark title="wait">wait</mark> &amp;' in page


def test_word_ratio() -> None:
    base, zero = ({"words_per_1000_samples": {"wait": n, "but": 10}} for n in (40, 240))
    assert zero_page.word_ratio(base, zero) == 5.0
    assert zero_page.word_ratio({"words_per_1000_samples": {"wait": 0}}, zero) is None


def test_the_markdown_says_what_the_page_says(root: Path, built: list[Path], page: str) -> None:
    told = built[1].read_text(encoding="utf-8")
    shown = set(re.findall(r"\]\((figures/[\w-]+\.svg)\)", told))
    assert len(shown) == page.count("<svg") and {f"figures/{p.name}" for p in (root / "reports/figures").iterdir()} == shown
    titles = re.findall(r"<h[123]>(.*?)</h[123]>", page)
    assert len(titles) > 40 and all(html.unescape(title) in told.replace("\\", "") for title in titles)
    assert told.count("<details>") == told.count("</details>") == page.count("<details>")
    assert not re.search(r"</?(div|span|table|p|svg)\b", told)
    for line, rule in zip(told.splitlines(), told.splitlines()[1:], strict=False):
        if rule.startswith("| ---"):
            assert line.count("|") - line.count("\\|") == rule.count("|")
    rows = [line for line in told.splitlines() if "| shown |" in line or "| not shown |" in line or "| not run |" in line]
    assert len(rows) == len(claims.CLAIMS)


def test_figures_of_an_earlier_report_go(tmp_path: Path) -> None:
    stale = tmp_path / "figures/old.svg"
    stale.parent.mkdir()
    stale.touch()
    list(report._write_markdown(tmp_path, "<p>none</p>"))
    assert not stale.exists() and (tmp_path / "report.md").read_text() == "none\n"


def test_the_abstract_counts_the_claims_and_names_the_commit(inputs: dict, undrawn: None) -> None:
    verdicts = Counter(row.verdict for row in claims.table(inputs))
    code = tracking.Commit("0123456789abcdef", dirty=True)
    text = said(report.render(inputs | {"commit": code}, SHOWN))
    assert f"this run shows {verdicts['shown']}, does not show {verdicts['not shown']}, and did not try {verdicts['not run']}." in text
    assert "commit 0123456789ab , with edits that are not committed" in text
    assert "A smaller student distilled" in text and "the same student trained by reinforcement" in text


def test_money_appears_where_a_price_is_given(inputs: dict, undrawn: None) -> None:
    priced = Report(examples=8, price_per_hour=Price(amount=3600.0, currency="EUR"))
    text, without = said(report.render(inputs, priced)), said(report.render(inputs, SHOWN))
    assert "Money at 3600.0 EUR an hour" in text and "Money needs a price" in without
    assert re.search(r"zero 21 – 123,456|zero 21", text) and "21.0000" in text and "21.0000" not in without


def test_numbers_with_many_digits() -> None:
    assert [report.scientific(value) for value in (None, 0, 8.314e13, 1e-4)] == ["–", "0", "8.31·10¹³", "1.00·10⁻⁴"]
    assert report.unbroken("5.0 % (4.0–6.0) <b>") == '5.0\xa0% <span class="nb">(4.0–6.0)</span> &lt;b&gt;'
