"""The report in a real browser, on a desk and on a phone: nothing off the page, text that reads."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ares_stream.detection.decide import DetectionPolicy
from ares_stream.reporting.page import Findings
from tests.unit.test_report import add, page

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")

SMALLEST_TEXT = 10.0
"""CSS pixels as drawn, after an SVG is scaled."""

OFF_THE_PAGE = """() => {
  const wide = document.documentElement.clientWidth;
  const rolls = (element) => {
    for (let at = element; at !== null; at = at.parentElement) {
      if (['auto', 'scroll'].includes(getComputedStyle(at).overflowX)) return true;
    }
    return false;
  };
  return [...document.querySelectorAll('body *')]
    .filter((element) => element.getBoundingClientRect().right > wide + 1 && !rolls(element))
    .map((element) => element.tagName + ' ' + (element.textContent || '').slice(0, 40));
}"""
TABLES_THAT_ROLL = """() => [...document.querySelectorAll('table')]
  .filter((table) => table.scrollWidth > table.parentElement.clientWidth + 1)
  .map((table) => table.innerText.slice(0, 60))"""
CHART_TEXT = """() => [...document.querySelectorAll('svg text')]
  .map((text) => [text, text.getScreenCTM()])
  .map(([text, to]) => parseFloat(getComputedStyle(text).fontSize) * Math.hypot(to.a, to.b))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every section: long names, each class, every lane."""
    findings = Findings(DetectionPolicy())
    for number in range(40):
        harm, quantile = ((0.95, 0.9), (0.95, 0.1), (0.05, 0.9), (0.05, 0.1), (0.5, 0.5))[
            number % 5
        ]
        add(findings, number, harm, quantile)
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(page(findings))
    return file


@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_fits_the_screen_and_its_charts_can_be_read(
    browser: Any, report: Path, width: int
) -> None:
    view = browser.new_page(viewport={"width": width, "height": 900})
    view.goto(report.as_uri())
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    assert view.evaluate(OFF_THE_PAGE) == []
    assert view.evaluate(TABLES_THAT_ROLL) == []
    sizes = view.evaluate(CHART_TEXT)
    assert sizes
    assert min(sizes) >= SMALLEST_TEXT
    view.close()
