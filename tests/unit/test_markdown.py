"""The page as Markdown: every form that the templates write, by hand."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from tasks import report
from tasks.errors import DataError
from tasks.monitoring import markdown, paper_map, plots


@pytest.mark.parametrize(("page", "wanted"), [
    ("<h2>A  title</h2><p>one\n  <strong>two</strong>&nbsp;% <em>three</em></p>", "## A title\n\none **two** % *three*"),
    ("<p>2 * 3 | x_1 &lt;b&gt; [a] `q`</p>", r"2 \* 3 \| x\_1 \<b\> \[a\] \`q\`"),
    ("<p>run <code>dvc repro x_1</code></p>", "run `dvc repro x_1`"),
    ("<head><title>t</title></head><nav><a>n</a></nav><p>p</p>", "p"),
    ("<ul><li>a <b>b</b></li><li>c</li></ul>", "- a **b**\n- c"),
    ("<dl><div><dt>pass@1</dt><dd>5 <small>4–6</small></dd></div><dt>x</dt><dd>y</dd></dl>", "- **pass@1:** 5 (4–6)\n- **x:** y"),
    ("<details><summary>More &amp; <code>x</code></summary><p>p</p></details>",
     "<details>\n<summary>More &amp; x</summary>\n\np\n\n</details>"),
    ('<div class="absent">Not here yet: <ul><li><code>a</code></li></ul></div>', "> Not here yet:\n>\n> - `a`"),
    ('<div class="said"><span class="tag">&lt;think&gt;</span> 1 * 2,  <mark title="wait">wait</mark>\n'
     '<span class="tag">&lt;answer&gt;</span> 3</div>',
     "> `<think>` 1 \\* 2, **wait**  \n> `<answer>` 3"),
    ("<section><p>a</p> loose <b>text</b> <div><p>c</p></div></section>", "a\n\nloose **text**\n\nc"),
])  # fmt: skip
def test_forms(page: str, wanted: str) -> None:
    assert markdown.convert(page).rstrip("\n").rstrip() == wanted


def test_tables_have_one_header_and_as_many_cells_in_every_row() -> None:
    page = """<table><thead><tr><th></th><th colspan="2">pass@1</th></tr>
    <tr><th></th><th class="n">base</th><th class="n">Zero</th></tr></thead>
    <tbody><tr class="block"><th colspan="3">Domain</th></tr>
    <tr><th scope="row">math<small>a note</small></th><td class="n">1 <small>0–2</small></td><td class="n">a|b</td></tr></tbody></table>"""
    assert markdown.convert(page).splitlines() == [
        "|  | pass@1: base | pass@1: Zero |", "| --- | ---: | ---: |", "| **Domain** |  |  |", "| math (a note) | 1 (0–2) | a\\|b |",
    ]  # fmt: skip
    assert markdown.convert("<table><tbody><tr><td>k</td><td>v</td></tr></tbody></table>").startswith("|  |  |\n| --- | --- |\n| k | v |")


def test_figures_become_files_that_stand_alone() -> None:
    svg = plots.curve([plots.Line([0, 1], [0.1, 0.2], "a")], name="fig-1", alt="what <it> shows", ylabel="y")
    page, figures = markdown.extract(f"<figure><h3>T</h3>{svg}<figcaption>c</figcaption></figure>")
    assert figures == {"fig-1": svg} and "<svg" not in page
    assert markdown.convert(page) == "### T\n\n![what \\<it\\> shows](figures/fig-1.svg)\n\nc\n"
    alone = plots.standalone(svg, report.theme())
    root = ET.fromstring(alone)  # well-formed
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and float(root.attrib["width"]) > float(root.attrib["height"]) > 100
    assert "prefers-color-scheme: dark" in alone and 'style="fill: var(--bg)"' in alone
    variables = set(re.findall(r"var\(--(\w+)", alone))
    assert variables and all(f"--{name}:" in alone for name in variables)
    assert not re.search(r"https?://(?!www\.w3\.org/)", alone) and "url(" not in alone.replace("url(#", "")


def test_tables_of_the_page_on_the_paper() -> None:
    text = "# T\n\n## One\n\nwords\n\n| a | b |\n|---|---|\n| `x<y` | see [log](log.md) & |\n\n## Two\n\nnone\n"
    found = paper_map.table(text, "One")
    assert found.header == ("a", "b") and found.rows == (("<code>x&lt;y</code>", "see log &amp;"),)
    for heading in ("Two", "Three"):
        with pytest.raises(DataError, match=heading):
            paper_map.table(text, heading)
