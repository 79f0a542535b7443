"""What PromQL asks for: names of metrics, and the labels their selectors match."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "docker" / "prometheus" / "alerts.yml"
DASHBOARDS = ROOT / "docker" / "grafana" / "dashboards"
SCALED_OBJECT = ROOT / "docker" / "deploy" / "components" / "keda" / "scaled-object.yaml"

STRING = r'"(?:[^"\\]|\\.)*"'
SELECTOR = re.compile(rf"([a-zA-Z_:][\w:]*)\s*\{{((?:{STRING}|[^}}\"])*)\}}")
MATCHER = re.compile(rf"(\w+)\s*(=~|!~|!=|=)\s*({STRING})")
LABEL_LISTS = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
NAME = re.compile(r"(?<![\w:$.])[a-zA-Z_:][\w:]*(?!\s*\(|[\w:])")
WORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan"}


@dataclass(frozen=True)
class Query:
    """One expression, and where it stands."""

    place: str
    expression: str

    @property
    def metrics(self) -> set[str]:
        bare = LABEL_LISTS.sub(" ", SELECTOR.sub(r"\1", self.expression))
        bare = re.sub(rf"{STRING}|\[[^\]]*\]", " ", bare)
        return set(NAME.findall(bare)) - WORDS

    @property
    def matchers(self) -> Iterator[tuple[str, str, str, str]]:
        """Metric, label, operator and value of each matcher."""
        for metric, inside in SELECTOR.findall(self.expression):
            for label, operator, value in MATCHER.findall(inside):
                yield metric, label, operator, json.loads(value)


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def recorded() -> set[str]:
    return {rule["record"] for rule in rules() if "record" in rule}


def queries() -> list[Query]:
    """Every expression in the alerts, the dashboards and the scaler."""
    found = [Query(rule.get("alert") or rule["record"], rule["expr"]) for rule in rules()]
    for path in sorted(DASHBOARDS.glob("*.json")):
        dashboard = json.loads(path.read_text())
        found += [
            Query(f"{path.name}: {panel['title']}", target["expr"])
            for panel in dashboard["panels"]
            for target in panel.get("targets", [])
        ]
        found += [Query(path.name, a["expr"]) for a in dashboard["annotations"]["list"]]
        found += [
            Query(path.name, variable["query"]["query"])
            for variable in dashboard["templating"]["list"]
            if variable["type"] == "query"
        ]
    triggers = yaml.safe_load(SCALED_OBJECT.read_text())["spec"]["triggers"]
    scaling = [t["metadata"]["query"] for t in triggers if t["type"] == "prometheus"]
    return found + [Query(SCALED_OBJECT.name, expression) for expression in scaling]
