"""docs/metrics.md, the alert rules and the dashboard name the metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwen_wsgi.accounting.metric_families import (
    BY_NAME,
    ENDPOINTS,
    FAMILIES,
    INVALID,
    NONE,
    OTHER,
    OUTCOMES,
    OWN_CAUSES,
    PHASES,
    TOKEN_KINDS,
    Family,
)
from qwen_wsgi.credentials.credential import TokenState
from qwen_wsgi.credentials.refresh.attempt import Outcome
from qwen_wsgi.upstream.failures.causes import CAUSES

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = (DOCS / "metrics.md").read_text()
ALERTS: dict[str, Any] = yaml.safe_load((DOCS / "metrics/alerts.yml").read_text())
DASHBOARD: dict[str, Any] = json.loads((DOCS / "metrics/grafana.json").read_text())
PROMTOOL = shutil.which("promtool")

#: The expressions of both, by where they stand.
RULES = {rule["alert"]: rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]}
PANELS = {
    f"{panel['title']} {target['refId']}": target["expr"]
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
}
EXPRESSIONS = {**RULES, **PANELS}

#: Labels that have a closed set of values, by the metric where that differs.
VALUES: Mapping[str, set[str]] = {
    "endpoint": set(ENDPOINTS),
    "outcome": set(OUTCOMES),
    "kind": set(TOKEN_KINDS),
    "cause": {*CAUSES, *OWN_CAUSES, INVALID, OTHER},
    "phase": set(PHASES),
    "state": {state.value for state in TokenState},
    "qwen_proxy_login_refreshes_total outcome": {outcome.value for outcome in Outcome},
}


def family_of(sample: str) -> Family | None:
    """The metric of a sample's name."""
    if sample in BY_NAME:
        return BY_NAME[sample] if BY_NAME[sample].kind != "histogram" else None
    name = re.sub(r"_(bucket|sum|count)$", "", sample)
    found = BY_NAME.get(name)
    return found if found is not None and found.kind == "histogram" else None


def test_the_page_has_every_metric_as_the_code_has_it_and_no_other() -> None:
    rows = re.findall(r"^\| `(qwen_proxy_\w+)` \| (\w+) \| (.*?) \| (.*) \|$", PAGE, re.MULTILINE)

    assert rows == [
        (
            family.name,
            family.kind,
            ", ".join(f"`{label}`" for label in family.labels) or "–",
            family.help,
        )
        for family in FAMILIES
    ]


def test_the_page_names_no_metric_that_does_not_exist() -> None:
    named = set(re.findall(r"\bqwen_proxy_\w+", PAGE))

    assert {name for name in named if family_of(name) is None and name not in BY_NAME} == set()


@pytest.mark.parametrize(
    "words",
    [
        *(ENDPOINTS, OUTCOMES, TOKEN_KINDS, PHASES),
        [each.value for each in TokenState],
        [each.value for each in Outcome],
    ],
)
def test_the_page_has_the_values_of_closed_sets(words: list[str]) -> None:
    assert [word for word in (*words, NONE, OTHER) if f"`{word}`" not in PAGE] == []


@pytest.mark.parametrize("place", EXPRESSIONS)
def test_an_expression_uses_metrics_labels_and_values_that_exist(place: str) -> None:
    expression = EXPRESSIONS[place]
    used = re.findall(r"\b(qwen_proxy_\w+)(?:\{(.*?)\})?", expression)
    assert used or "up{" in expression
    labels: set[str] = set()
    for sample, matchers in used:
        family = family_of(sample)
        assert family is not None, sample
        labels.update(family.labels, {"le"} if family.kind == "histogram" else ())
        for label, _, wanted in re.findall(r'(\w+)(=~|=)"(.*?)"', matchers):
            if label == "job":
                continue
            assert label in family.labels
            values = VALUES.get(f"{family.name} {label}") or VALUES[label]
            assert set(wanted.split("|")) <= values
    for grouped in re.findall(r"\bby \((.*?)\)", expression):
        assert set(grouped.split(", ")) <= labels


@pytest.mark.parametrize(
    ("texts", "expressions"),
    [
        (
            {
                rule["alert"]: " ".join(rule["annotations"].values())
                for group in ALERTS["groups"]
                for rule in group["rules"]
            },
            RULES,
        ),
        (
            {
                f"{panel['title']} {target['refId']}": target["legendFormat"]
                for panel in DASHBOARD["panels"]
                for target in panel["targets"]
            },
            PANELS,
        ),
    ],
    ids=["alerts", "dashboard"],
)
def test_texts_show_labels_that_their_expression_keeps(
    texts: Mapping[str, str], expressions: Mapping[str, str]
) -> None:
    for place, text in texts.items():
        expression = expressions[place]
        grouped = re.search(r"\bby \((.*?)\)", expression)
        samples = re.findall(r"\bqwen_proxy_\w+", expression)
        kept = {label for sample in samples for label in (family_of(sample) or FAMILIES[0]).labels}
        if grouped:
            kept = set(grouped[1].split(", "))
        assert set(re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", text)) <= kept, place


def test_the_dashboard_shows_nearly_all() -> None:
    """What is not on it is the version."""
    used = {
        family.name
        for expression in PANELS.values()
        for sample in re.findall(r"\bqwen_proxy_\w+", expression)
        if (family := family_of(sample)) is not None
    }

    assert {family.name for family in FAMILIES} - used == {"qwen_proxy_build_info"}


def test_the_panels_of_the_dashboard_lie_beside_one_another() -> None:
    places: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not places & cells, panel["title"]
        places |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (apt: prometheus)")
def test_prometheus_accepts_the_rules_and_the_expressions_of_the_dashboard(tmp_path: Path) -> None:
    shown = tmp_path / "dashboard.yml"
    rules = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "5m")}
        for number, expression in enumerate(PANELS.values())
    ]
    shown.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))

    for file, count in ((DOCS / "metrics/alerts.yml", len(RULES)), (shown, len(PANELS))):
        checked = subprocess.run(
            [str(PROMTOOL), "check", "rules", str(file)], capture_output=True, text=True
        )
        assert checked.returncode == 0, checked.stderr
        assert f"{count} rules found" in checked.stdout
