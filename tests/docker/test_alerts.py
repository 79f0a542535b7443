"""The alert rules: what promtool says of them, and that each is tested and explained."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.docker.promql import ALERTS, DASHBOARDS, ROOT, alerts

PROMETHEUS = ALERTS.parent
RULE_TESTS = sorted(PROMETHEUS.glob("*.test.yml"))


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is not None:
        return found
    reason = "promtool is not installed (Debian: apt-get install prometheus)"
    if os.environ.get("REQUIRE_PROMTOOL") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def run(*command: str | Path) -> None:
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_prometheus_takes_its_configuration(promtool: str) -> None:
    run(promtool, "check", "config", PROMETHEUS / "prometheus.yml")


@pytest.mark.parametrize("path", RULE_TESTS, ids=lambda path: path.name)
def test_alerts_fire_when_they_should_and_only_then(promtool: str, path: Path) -> None:
    run(promtool, "test", "rules", path)


def test_every_alert_is_made_to_fire() -> None:
    tests = "".join(path.read_text() for path in RULE_TESTS)
    missing = [name for name in alerts() if f'alertname="{name}"' not in tests]
    assert not missing


@pytest.mark.parametrize("name", alerts())
def test_every_alert_is_explained(name: str) -> None:
    alert = alerts()[name]
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert alert["annotations"]["runbook"] == f"docs/operate.md#{name.lower()}"
    operate = (ROOT / "docs" / "operate.md").read_text()
    assert re.search(rf"^### {name}$", operate, re.MULTILINE), f"docs/operate.md lacks {name}"


def test_the_operators_rules_are_the_same() -> None:
    command = "docker/deploy/prometheus_rule.py"
    target = "docker/deploy/components/monitoring/prometheus-rule.yaml"
    made = subprocess.run(
        [sys.executable, command], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert (ROOT / target).read_text() == made, f"run: python {command} > {target}"
    rules = yaml.safe_load(ALERTS.read_text())
    assert yaml.safe_load(made)["spec"] == rules


def test_dashboards_show_only_alerts_that_exist() -> None:
    named = {
        name
        for path in DASHBOARDS.glob("*.json")
        for name in re.findall(r"LanFer\w+", path.read_text())
    }
    assert named <= alerts().keys()
