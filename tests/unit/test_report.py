"""The report: self-contained, escaped, bounded, and text closed until someone opens it."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from html.parser import HTMLParser

from ares_stream.detection.decide import DetectionPolicy, decide
from ares_stream.detection.intervals import wilson
from ares_stream.records.base import digest
from ares_stream.records.interaction import Interaction, Lane, Message, Policy
from ares_stream.records.verdict import FailureClass, Harm, Reward, SourceCoordinates, Verdict
from ares_stream.reporting.charts import Series
from ares_stream.reporting.page import Findings, Report, curve_section, render, table_section

POLICY = DetectionPolicy()
NOW = datetime(2026, 11, 24, tzinfo=UTC)
HOSTILE = "<script>alert('secret')</script>\u202e\x9b31m"


def add(
    findings: Findings, number: int, harm: float, quantile: float, lane: Lane = "production"
) -> Verdict:
    interaction = Interaction(
        id=f"<i>{number}",
        occurred_at=NOW,
        messages=(Message(role="user", content=f"{HOSTILE} {number} " + "x" * 9_000),),
        response=f"answer {number}",
        policy=Policy(name="<b>", version="1"),
        attributes={"tenant": "<u>a"},
    )
    scores = Harm(probability=harm, judges={"j": harm}), Reward(score=quantile, quantile=quantile)
    decision = decide(*scores, POLICY)
    verdict = Verdict(
        id=digest([number])[:32],
        interaction_id=interaction.id,
        lane=lane,
        source=SourceCoordinates(topic="t", partition=0, offset=number, timestamp_ms=0),
        occurred_at=NOW,
        policy=interaction.policy,
        attributes=interaction.attributes,
        harm=scores[0],
        reward=scores[1],
        scored_high=decision.scored_high,
        failure_class=decision.failure_class,
        reasons=decision.reasons,
        releases={"judge": "a" * 64},
        detection_policy=POLICY.digest,
    )
    findings.add(verdict, interaction)
    return verdict


def page(findings: Findings) -> str:
    report = Report(
        "Title & more",
        "sub",
        findings.tiles(),
        (
            *findings.sections(),
            curve_section("Rounds", [Series("rate <x>", (wilson(5, 50), None))], ["0", "1 <y>"]),
            table_section("Gate", ["figure"], [["<z>"]]),
        ),
        {"judge": findings.releases.get("judge", "")},
    )
    return render(report, NOW)


class _Tags(HTMLParser):
    """Counts tags, notes addresses, and keeps the text outside closed details."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.addresses: list[str] = []
        self.visible = ""
        self._inside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.addresses += [
            value or "" for name, value in attrs if name in ("src", "href", "action")
        ]
        if tag in ("details", "summary"):
            self._inside.append(tag)
            assert ("open", None) not in attrs

    def handle_endtag(self, tag: str) -> None:
        if tag in ("details", "summary"):
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if self._inside[-1:] != ["details"]:
            self.visible += data


def test_the_page_is_self_contained_and_escapes_everything() -> None:
    findings = Findings(POLICY)
    for number in range(30):
        add(findings, number, 0.95, 0.9)
    html = page(findings)
    parsed = _Tags()
    parsed.feed(html)
    assert not parsed.tags.keys() & {"script", "u", "i", "x", "y", "z", "link", "img", "iframe"}
    assert parsed.addresses == []
    assert not re.search(r"https?://|url\(|@import", html)
    assert "default-src 'none'" in html
    assert "NaN" not in html
    assert "⟨U+202E⟩⟨U+009B⟩" in html
    assert not re.search("[\u202e\x9b]", html)


def test_text_is_hidden_until_asked_for_and_shortened() -> None:
    findings = Findings(POLICY, max_failures=5)
    for number in range(30):
        add(findings, number, 0.95, 0.5 + number / 100)
    html = page(findings)
    parsed = _Tags()
    parsed.feed(html)
    assert parsed.tags["details"] == 5
    assert "secret" not in parsed.visible
    assert "answer" not in parsed.visible.replace("harmful answers", "").replace(" answer", "")
    assert html.count("x" * 1_000) < 5 * 5
    assert "x" * 4_001 not in html


def test_the_gravest_failures_are_kept_whatever_the_order() -> None:
    orders = (range(40), reversed(range(40)))
    kept = []
    for order in orders:
        findings = Findings(POLICY, max_failures=3)
        for number in order:
            add(findings, number, 0.95, 0.55 + number / 100)
        kept.append([item.verdict.source.offset for item in findings.worst])
    assert kept == [[39, 38, 37], [39, 38, 37]]


def test_memory_and_marks_are_bounded_and_pages_repeatable() -> None:
    def make() -> str:
        findings = Findings(POLICY, max_points=50)
        for number in range(400):
            add(findings, number, (number % 100) / 100, (number % 37) / 37)
        return page(findings)

    html = make()
    assert html == make()
    assert html.count('class="dot ') == 50
    assert "A random 50 of 400 are drawn." in html


def test_figures_are_of_one_lane_and_classes_are_all_named() -> None:
    findings = Findings(POLICY)
    verdict = add(findings, 0, 0.95, 0.9)
    add(findings, 1, 0.05, 0.9)
    add(findings, 2, 0.95, 0.9, lane="probe")
    assert verdict.failure_class is FailureClass.COUPLED_FAILURE
    assert findings.tiles()[1].value == "50.0 %"
    html = page(findings)
    for name in FailureClass:
        assert name.value.replace("_", " ") in html


def test_a_report_of_nothing_is_a_page() -> None:
    assert "interactions" in page(Findings(POLICY))
