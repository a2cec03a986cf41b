"""The report in a real browser: complete, within the window's width, in light and dark, without a single request."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tasks import report
from tasks.config import Report
from tests.fake_run import write_run

BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
LIGHT, DARK = 1, 0  # Chromium's preferredColorScheme
# Loads the report in a frame of a given width, as a telephone would show it, and writes what it measures into the page.
PROBE = """<!doctype html><body>
<iframe src="report.html" style="width: {width}px; height: 900px; border: 0"></iframe>
<script>
addEventListener("load", () => {{
  const page = document.querySelector("iframe").contentDocument, style = getComputedStyle(page.body);
  const out = document.createElement("pre");
  out.textContent = JSON.stringify({{
    width: page.documentElement.scrollWidth, background: style.backgroundColor, ink: style.color,
    curve: getComputedStyle(page.querySelector("#training svg path[style*='--blue']")).stroke,
    figures: page.querySelectorAll("svg[role=img]").length,
    invisible: [...page.querySelectorAll("figure > svg")].filter(svg => svg.getBoundingClientRect().height < 60).length,
    requests: page.defaultView.performance.getEntriesByType("resource").map(entry => entry.name),
    small: Math.min(...[...page.querySelectorAll("figure svg text")].map(text => text.getBoundingClientRect().height)),
  }});
  document.body.append(out);
}});
</script></body>"""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH (Debian: apt-get install chromium)")


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the report of a made-up run."""
    root = write_run(tmp_path_factory.mktemp("browser"))
    return report.write(root, Report(examples=8))[0].parent


def browse(page: Path, profile: Path, *flags: str) -> str:
    """Runs the browser on a page with an empty profile; what it prints."""
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def measure(reports: Path, profile: Path, width: int, scheme: int) -> dict:
    """What PROBE sees of the report at a width in CSS pixels and a colour scheme."""
    probe = reports / f"probe-{width}.html"
    probe.write_text(PROBE.format(width=width), encoding="utf-8")
    flags = (
        "--allow-file-access-from-files",
        "--window-size=1400,1000",
        f"--blink-settings=preferredColorScheme={scheme}",
    )
    found = re.search(r"<pre>(.*?)</pre>", browse(probe, profile, "--dump-dom", *flags), re.DOTALL)
    assert found, "the probe wrote nothing"
    return json.loads(html.unescape(found[1]))


def luminance(colour: str) -> float:
    """Relative luminance of "rgb(r, g, b)", as WCAG defines it."""
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("width", [1200, 400])
@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_fits_the_window_and_is_legible(reports: Path, tmp_path: Path, width: int, scheme: int) -> None:
    seen = measure(reports, tmp_path, width, scheme)
    assert seen["width"] <= width, "the page scrolls sideways"
    assert (luminance(seen["background"]) > 0.5) is (scheme == LIGHT)
    assert contrast(seen["ink"], seen["background"]) > 7
    assert contrast(seen["curve"], seen["background"]) > 4.5
    assert seen["figures"] == 53 and seen["invisible"] == 0
    assert seen["small"] >= 9  # height in pixels of the smallest label in a figure
    assert seen["requests"] == []


def test_draws_a_screenshot(reports: Path, tmp_path: Path) -> None:
    picture = tmp_path / "report.png"
    browse(reports / "report.html", tmp_path / "profile", f"--screenshot={picture}", "--window-size=1200,2400")
    assert picture.stat().st_size > 50_000  # a blank page of this size is under 10 kB
