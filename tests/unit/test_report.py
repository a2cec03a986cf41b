"""The report: complete from files alone, honest about what is missing, self-contained, reproducible."""

from __future__ import annotations

import html.parser
import json
import re
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tasks import report
from tasks.errors import DataError
from tasks.monitoring import examples, figures, plots
from tests.fake_run import RAISED, TAKEOFF, steps_table, write_run

SHOWN = 8


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return report.render(report.load(root), SHOWN)


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


def test_the_cost_of_forbidding_is_paired_by_problem(root: Path) -> None:
    inputs = report.load(root)
    cost = report.cost_of_forbidding(inputs)
    free, forbidden = (inputs[f"samples_{m}"]["correct"].mean() for m in ("zero", "zero_no_reflection"))
    assert cost is not None and cost["mean"] == pytest.approx(free - forbidden)
    assert cost["low"] < cost["mean"] < cost["high"]
    shifted = inputs | {"samples_zero_no_reflection": inputs["samples_zero"]}
    assert report.cost_of_forbidding(shifted) == {"mean": 0.0, "low": 0.0, "high": 0.0}


def test_events_are_found_and_told(page: str) -> None:
    table = steps_table()
    assert [(e.step, e.label) for e in figures.limit_raised(table)] == [(RAISED, "length limit raised to 144")]
    assert [e.step for e in figures.reference_replaced(table)] == [21, 41]
    told = re.search(r"The detector puts the take-off at step (\d+)", said(page))
    assert told and abs(int(told[1]) - TAKEOFF) <= 3


def test_every_section_is_there(page: str) -> None:
    text = said(page)
    for words in (
        *("Training, step by step", "The ten reflective words", "Base and Zero on held-out problems"),
        *("Is reflection the cause", "Held-out problems, side by side", "Harder problems, longer thoughts?"),
        *("Data and its checks", "Beside the paper", "What differs from the paper", "What each number means"),
        *("Provenance", "gold answers verify", "3 from train (the same words)", "15.6 → 77.9", "zero.learning_rate"),
        *("zero-fingerprint", "812,345 parameters", "0" * 64),
    ):
        assert words in text, words
    assert page.count("<svg") == 10 + 10 + 1 + 2  # curves, words, families, levels
    assert "Not here yet" not in text


@pytest.mark.parametrize("name", sorted(report.SOURCES))
def test_a_missing_input_is_named_with_the_command_that_makes_it(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "to_svg", lambda *_, **__: "<svg></svg>")  # drawing takes 2 s
    inputs = report.load(root) | {name: None}
    page = report.render(inputs, SHOWN)
    outline(page)
    source = report.SOURCES[name]
    assert f"{source.path} , made by {source.command}" in said(page)


def test_an_empty_folder_gives_a_page_that_names_every_input(tmp_path: Path) -> None:
    assert report.write(tmp_path, SHOWN) == [tmp_path / "reports/report.html"]
    text = said((tmp_path / "reports/report.html").read_text(encoding="utf-8"))
    for source in report.SOURCES.values():
        assert source.path in text


def test_the_same_files_give_the_same_bytes_in_time(root: Path, tmp_path: Path) -> None:
    started = time.process_time()
    first = [path.read_bytes() for path in report.write(root, SHOWN)]
    assert time.process_time() - started < 20
    twin = write_run(tmp_path / "twin")
    assert [path.read_bytes() for path in report.write(twin, SHOWN)] == first
    assert not list((root / "reports").glob(".*"))


@pytest.mark.parametrize(("name", "content"), [("zero", "{"), ("steps", "step,reward\n1,0.5\n"), ("samples_zero", "no parquet")])
def test_an_unreadable_input_is_named(tmp_path: Path, name: str, content: str) -> None:
    source = report.SOURCES["zero_summary" if name == "zero" else name]
    path = write_run(tmp_path) / source.path
    path.write_text(content)
    with pytest.raises(DataError, match=re.escape(source.path)) as caught:
        report.load(tmp_path)
    assert source.command in str(caught.value)


def test_a_flat_run_is_reported_as_it_is(root: Path) -> None:
    inputs = report.load(root)
    steps = inputs["steps"].assign(wait_share=0.05, max_new_tokens=96, kl=np.nan, validation_pass1=np.nan)
    text = said(report.render(inputs | {"steps": steps, "samples_zero_no_reflection": inputs["samples_zero"]}, SHOWN))
    assert "The detector finds no take-off" in text and "no take-off detected" in text
    assert "The length limit stays as it is" in text
    assert "The interval includes 0, so this run does not show that reflection causes accuracy" in text


def test_texts_of_models_cannot_inject_markup(root: Path) -> None:
    inputs = report.load(root)
    evil = inputs["samples_zero"].assign(text="<think> <script>alert(1)</script> wait & </think> <answer> <b>4 </answer>")
    page = report.render(inputs | {"samples_zero": evil}, SHOWN)
    outline(page)
    assert "<script" not in page and "<b>4" not in page
    assert "&lt;script&gt;" in page and '<mark title="wait">wait</mark> &amp;' in page


def sample(identifier: str, language: str, correct: bool, text: str = "") -> dict:
    family = identifier.split("-")[0]
    row = {"prompt_id": identifier, "sample": 0, "text": text, "token_ids": [1], "finished": True, "correct": correct}
    return row | {"family": family, "level": 1, "language": language}


def test_examples_are_picked_by_the_rule_that_is_printed() -> None:
    ids = ["calc-b", "calc-a", "fill-c", "fill-d", "fill-e", "fill-f"]
    languages = ["en", "en", "en", "zh", "en", "en"]
    base = pd.DataFrame([sample(i, x, i == "fill-e") for i, x in zip(ids, languages, strict=True)])
    zero = pd.DataFrame(
        [sample(i, x, i != "calc-b", "wait" if i in ("fill-e", "fill-f") else "") for i, x in zip(ids, languages, strict=True)]
    )
    second = zero.assign(sample=1, correct=False)
    chosen = examples.choose(base.sample(frac=1, random_state=1), pd.concat([second, zero]), count=4)
    # calc in English: a is before b; fill in Chinese: only d; fill-e says "wait", but the base solves it too.
    assert [identifier for identifier, _ in chosen] == ["calc-a", "fill-d", "fill-f", "calc-b"]
    assert ["picked by outcome" in why for _, why in chosen] == [False, False, True, True]
    assert [i for i, _ in examples.choose(base, zero, count=1)] == ["calc-a"]
    assert {i for i, _ in examples.choose(base, zero, count=50)} == set(ids)


def test_word_ratio() -> None:
    base, zero = ({"words_per_1000_samples": {"wait": n, "but": 10}} for n in (40, 240))
    assert report.word_ratio(base, zero) == 5.0
    assert report.word_ratio({"words_per_1000_samples": {"wait": 0}}, zero) is None


def test_smoothing_keeps_level_and_length_and_skips_gaps() -> None:
    assert plots.smooth([2.0] * 9) == pytest.approx(np.full(9, 2.0))
    assert plots.smooth([0.0, 3.0, np.nan, 5.0], window=3) == pytest.approx([1.5, 1.5, 4.0, 5.0])
    assert np.isnan(plots.smooth([np.nan, np.nan])).all()


def test_labels_are_spread_in_their_order() -> None:
    placed = plots.spread([0.50, 0.52, 0.1, 0.51], gap=0.1)
    assert np.diff(np.sort(placed)).min() > 0.099
    assert list(np.argsort(placed)) == [2, 0, 3, 1]
    assert placed[2] == 0.1


def test_figures_follow_the_page_in_colour_and_font() -> None:
    svg = plots.curve([plots.Line([0, 1, 2], [0.004, 0.006, 0.009], "a & b")], name="fig", alt='"x" & <y>', ylabel="kl (nats)")
    outline(svg)
    assert 'aria-label="&quot;x&quot; &amp; &lt;y&gt;"' in svg and "a &amp; b" in svg and "kl (nats)" in svg
    assert "var(--blue, " in svg and "font-family: inherit" in svg and "DejaVu" not in svg
    bare = re.sub(r"var\(--\w+, #[0-9a-f]{6}\)", "", svg)
    assert not re.findall(r"#[0-9a-f]{6}\b", bare)  # no colour that would not follow the theme
    assert ">0.004<" in svg  # tick labels keep their digits


def test_the_overview_picture_is_a_png_without_a_date(tmp_path: Path) -> None:
    path = figures.save_overview(steps_table(), TAKEOFF, tmp_path / "new" / "curves.png")
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG") and b"tIME" not in content and b"Software" not in content
