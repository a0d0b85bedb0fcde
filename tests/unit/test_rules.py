"""Prometheus' rules: each alert is tested by promtool, explains itself, leads to the runbook."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from tests.support.promql import KUBERNETES, known_metrics, labels_of, metric_names

ROOT = Path(__file__).resolve().parents[2]
RULES = sorted((ROOT / "helm/ares-stream/rules").rglob("*.yaml"))
TESTS = sorted((ROOT / "tests/rules").glob("*.yaml"))
RUNBOOK = "https://github.com/ares-stream/ares-stream/blob/main/docs/runbook.md#"


def groups(file: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load(file.read_text())["groups"])


ENTRIES = [rule for file in RULES for group in groups(file) for rule in group["rules"]]
ALERTS = [rule for rule in ENTRIES if "alert" in rule]
NAMES = sorted({rule["alert"] for rule in ALERTS})


def promtool(*words: str) -> None:
    if shutil.which("promtool") is None:
        reason = "promtool is not installed (Debian: apt-get install prometheus)"
        if os.environ.get("ARES_REQUIRE_PROMETHEUS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    ran = subprocess.run(
        ["promtool", *words], capture_output=True, text=True, check=False, timeout=120
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_promtool_has_nothing_to_say_about_the_rules() -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", *map(str, RULES))


@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.stem)
def test_alerts_fire_stay_silent_and_hold_their_thresholds(file: Path) -> None:
    promtool("test", "rules", str(file))


@pytest.mark.parametrize("name", NAMES)
def test_every_alert_is_tested_firing_silent_and_at_its_boundary(name: str) -> None:
    tests = [
        test
        for file in TESTS
        for test in yaml.safe_load(file.read_text())["tests"]
        if test["name"].split()[0] == name
    ]
    asked = [case for test in tests for case in test["promql_expr_test"]]
    assert asked, f"{name} has no test"
    assert all(f'alertname="{name}"' in case["expr"] for case in asked)
    assert any(case.get("exp_samples") for case in asked), "no case in which it fires"
    series = " ".join(row["series"] for test in tests for row in test["input_series"])
    wholly_absent = {test["name"].split()[-1] for test in tests} >= {"firing", "silent"}
    assert wholly_absent or all(
        f'namespace="{kind}"' in series for kind in ("firing", "silent", "boundary")
    )
    windows = {
        rule["labels"]["window"]
        for rule in ALERTS
        if rule["alert"] == name and "window" in rule["labels"]
    }
    for window in windows:
        assert any(f'window="{window}"' in case["expr"] for case in asked), window


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_how_grave_it_is_what_it_means_and_where_to_read_on(
    rule: dict[str, Any],
) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    notes = rule["annotations"]
    assert {"summary", "description", "runbook_url"} <= notes.keys()
    assert re.fullmatch(r"Ares[A-Z][A-Za-z]+", rule["alert"])
    assert len(notes["summary"]) < 120
    assert notes["description"].endswith(".")
    assert notes["runbook_url"] == RUNBOOK + rule["alert"].lower()


@pytest.mark.parametrize(
    ("expression", "labels"),
    [
        ("sum by (a, b) (rate(x[5m])) > 3", {"a", "b"}),
        ("3 < sum by (a) (x)", {"a"}),
        ("time() - max by (a) (x) > 3", {"a"}),
        ("sum(x) > 3", set()),
        ("absent(x)", set()),
        ("sum without (a) (x)", None),
        ("increase(x[5m]) > 0", None),
        ("x > on (a) group_left () y", None),
        ("x > on (a) y", {"a"}),
        ("x and on (a) y", None),
        ("max by (a, b) (x) or max by (a, c) (y)", {"a"}),
        ("absent(x) or count by (a) (x)", set()),
    ],
)
def test_the_labels_of_a_result_are_read_from_its_expression(
    expression: str, labels: set[str] | None
) -> None:
    found = labels_of(promql_parser.parse(expression))
    assert found == (None if labels is None else frozenset(labels))


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_speaks_of_labels_that_it_has_and_tells_installations_apart(
    rule: dict[str, Any],
) -> None:
    labels = labels_of(promql_parser.parse(rule["expr"]))
    spoken = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
    if labels is not None:
        assert spoken <= labels | rule["labels"].keys()
        assert "namespace" in labels or "absent(" in rule["expr"]


def test_the_runbook_has_a_section_for_each_alert_and_for_nothing_else() -> None:
    page = (ROOT / "docs/runbook.md").read_text()
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL))
    assert sorted(sections) == NAMES
    assert all(len(text) > 100 for text in sections.values())
    assert [name for name, text in sections.items() if "\nOver " not in text] == []
    # With a selector kubectl shows ten lines, unless told otherwise.
    asked = [line for line in page.splitlines() if "logs -l" in line]
    assert asked
    assert all("--tail" in line for line in asked)


def test_a_link_to_a_section_of_the_runbook_leads_there() -> None:
    page = (ROOT / "docs/runbook.md").read_text()
    anchors = {name.lower() for name in re.findall(r"^#+ (\w+)$", page, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([\w-]+)\)", page)) <= anchors


@pytest.mark.parametrize("rule", ENTRIES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_asks_for_metrics_that_exist(rule: dict[str, Any]) -> None:
    recorded = {other["record"] for other in ENTRIES if "record" in other}
    assert (
        metric_names(promql_parser.parse(rule["expr"])) <= known_metrics() | KUBERNETES | recorded
    )
