"""Prints the alerts of docker/prometheus/alerts.yml as a resource of the Prometheus operator.

Run it in docker/deploy: ``python prometheus_rule.py > components/monitoring/prometheus-rule.yaml``
"""

from __future__ import annotations

import textwrap
from pathlib import Path

ALERTS = Path(__file__).parents[1] / "prometheus" / "alerts.yml"
HEADING = """\
# Made from docker/prometheus/alerts.yml by docker/deploy/prometheus_rule.py.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: lan-fer
  labels: { app.kubernetes.io/name: lan-fer }
spec:
"""


def prometheus_rule() -> str:
    """The whole text of the resource."""
    groups = ALERTS.read_text()
    return HEADING + textwrap.indent(groups[groups.index("groups:") :], "  ")


if __name__ == "__main__":
    print(prometheus_rule(), end="")
