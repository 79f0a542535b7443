"""Alerts, dashboards and scaling ask for nothing that the service does not have."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import get_args

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.observing import Network, Stage
from tests.docker.promql import Query, queries, recorded
from tests.service.serving import RunningServer

# What Prometheus itself adds.
TARGET_LABELS = {"job", "instance"}
PROMETHEUS = {"up": TARGET_LABELS, "ALERTS": {"alertname", "alertstate"}}

Labels = Mapping[str, Mapping[str, set[str]]]


@pytest.fixture(scope="module")
def exposed(server: RunningServer, portrait_jpeg: bytes) -> Labels:
    """Metric -> label -> values, of a service that has answered, refused and been looked at."""
    with server.client() as client:
        jpeg = {"content-type": "image/jpeg"}
        assert client.post("/predict", content=portrait_jpeg, headers=jpeg).status_code == 200
        assert client.post("/predict", headers=jpeg).status_code == 400
        return labels_of(client)


def labels_of(client: httpx.Client) -> Labels:
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            values = found[sample.name]
            for label, value in sample.labels.items():
                values[label].add(value)
    return dict(found)


@pytest.mark.parametrize("query", queries(), ids=lambda query: query.place)
def test_every_metric_exists(query: Query, exposed: Labels) -> None:
    if query.expression.startswith("label_values("):
        query = Query(query.place, query.expression.split("(")[1].split(",")[0])
    assert query.metrics
    assert query.metrics <= exposed.keys() | recorded() | PROMETHEUS.keys()


@pytest.mark.parametrize("query", queries(), ids=lambda query: query.place)
def test_every_label_exists(query: Query, exposed: Labels) -> None:
    for metric, label, _, _ in query.matchers:
        known = PROMETHEUS.get(metric, set(exposed.get(metric, ())) | TARGET_LABELS)
        assert label in known, f"{metric} has no label {label}"


@pytest.mark.parametrize("query", queries(), ids=lambda query: query.place)
def test_every_value_exists(query: Query, exposed: Labels) -> None:
    """A stage, a route or a bucket that is misspelt would only ever give silence."""
    for metric, label, operator, value in query.matchers:
        if label in {"route", "stage", "network", "le"} and operator in {"=", "!="}:
            assert value in exposed[metric][label], f"{metric} has no {label}={value}"


def test_stages_and_networks_are_all_exposed(exposed: Labels) -> None:
    assert exposed["lan_fer_stage_duration_seconds_count"]["stage"] == set(get_args(Stage))
    assert exposed["lan_fer_queued_items"]["network"] == set(get_args(Network))


def test_names_are_found_in_promql() -> None:
    query = Query(
        "here",
        'sum by (job, le) (rate(a_total{x="}(b)", y=~"c.*"}[5m])) / on (job) group_left () '
        "(job:b:c5m or 0 * d offset 1h) > 1e3 and e",
    )
    assert query.metrics == {"a_total", "job:b:c5m", "d", "e"}
    assert list(query.matchers) == [
        ("a_total", "x", "=", "}(b)"),
        ("a_total", "y", "=~", "c.*"),
    ]


def test_latency_alert_has_a_bucket_at_its_threshold_or_above(exposed: Labels) -> None:
    """Above the last bucket a quantile is cut off, and such an alert would never fire."""
    bounds = {float(b) for b in exposed["lan_fer_stage_duration_seconds_bucket"]["le"]}
    threshold = re.search(r"> (\d+)\s*$", slow_alert())
    assert threshold is not None
    assert max(bounds - {float("inf")}) > float(threshold[1])


def slow_alert() -> str:
    (query,) = [q for q in queries() if q.place == "LanFerSlow"]
    return query.expression
