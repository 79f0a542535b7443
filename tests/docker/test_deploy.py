"""The Kubernetes manifests: by Kubernetes' own schemas, and by what an operator would check."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.pipeline import CPU_BATCHES
from service.settings import ENV_PREFIX, Settings, load_settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "docker" / "deploy"
KUBERNETES_VERSIONS = ["1.30", "1.37"]
# Custom resources: the keys their `spec` must have, and those it may have beside them.
CUSTOM = {
    "ServiceMonitor": ({"selector", "endpoints"}, {"jobLabel"}),
    "PrometheusRule": ({"groups"}, set()),
    "ScaledObject": (
        {"scaleTargetRef", "triggers", "minReplicaCount", "maxReplicaCount"},
        {"pollingInterval", "advanced"},
    ),
    "InferenceService": ({"predictor"}, set()),
}
STOP_MARGIN_SECONDS = 5
BYTES = {"Mi": 1024**2, "Gi": 1024**3}
# Beside the images in flight: Python, the networks; a detector's batch takes 20 MB an image, and
# decoding up to 8 bytes a pixel.
BASE_BYTES = 400_000_000
DETECTOR_BYTES = 20_000_000
DECODING_BYTES_PER_PIXEL = 8

Manifest = dict[str, Any]


def manifests(folder: str) -> dict[str, Manifest]:
    """Kind -> manifest, of the files in `folder` that are whole resources."""
    loaded = [
        yaml.safe_load(path.read_text())
        for path in sorted((DEPLOY / folder).glob("*.yaml"))
        if path.name != "kustomization.yaml"
    ]
    return {manifest["kind"]: manifest for manifest in loaded}


def written() -> list[tuple[str, Manifest]]:
    """Every resource as it is written; patches are none."""
    folders = ["base", "components/monitoring", "components/keda", "kserve"]
    return [(kind, m) for folder in folders for kind, m in manifests(folder).items()]


def settings_of(folder: str) -> dict[str, str]:
    kustomization = yaml.safe_load((DEPLOY / folder / "kustomization.yaml").read_text())
    (generator,) = kustomization["configMapGenerator"]
    return dict(literal.split("=", 1) for literal in generator["literals"])


@pytest.fixture(params=["base", "kserve"])
def pod(request: pytest.FixtureRequest) -> Manifest:
    """The pod's spec, with every setting in its container's `env`."""
    found = manifests(request.param)
    if request.param == "kserve":
        predictor: Manifest = found["InferenceService"]["spec"]["predictor"]
        return predictor
    spec: Manifest = found["Deployment"]["spec"]["template"]["spec"]
    literals = [{"name": k, "value": v} for k, v in settings_of("base").items()]
    spec["containers"][0]["env"] += literals
    return spec


def settings(pod: Manifest) -> Settings:
    """As the container would read them."""
    (container,) = pod["containers"]
    given = {}
    for variable in container["env"]:
        name = variable["name"].removeprefix(ENV_PREFIX).lower()
        if "value" in variable:
            given[name] = variable["value"]
        else:
            reference = variable["valueFrom"]["resourceFieldRef"]
            assert reference["containerName"] == container["name"]
            assert reference["resource"] == "limits.cpu"
            given[name] = container["resources"]["limits"]["cpu"]
    return load_settings(**given)


def in_bytes(quantity: str) -> int:
    return int(quantity[:-2]) * BYTES[quantity[-2:]]


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize(("kind", "manifest"), written(), ids=lambda value: str(value)[:20])
def test_manifests_follow_their_schema(kind: str, manifest: Manifest, version: str) -> None:
    if kind in CUSTOM:
        assert_custom(manifest)
    else:
        kubernetes_validate.validate(manifest, version, strict=True)


def assert_custom(manifest: Manifest) -> None:
    required, allowed = CUSTOM[manifest["kind"]]
    assert manifest.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert required <= manifest["spec"].keys() <= required | allowed


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_the_inference_service_is_a_pod_that_follows_its_schema(version: str) -> None:
    own = {"minReplicas", "maxReplicas", "scaleMetric", "scaleTarget"}
    predictor = manifests("kserve")["InferenceService"]["spec"]["predictor"]
    spec = {key: value for key, value in predictor.items() if key not in own}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "lan-fer"}, "spec": spec}
    kubernetes_validate.validate(pod, version, strict=True)


def test_both_ways_run_the_same_pod() -> None:
    ours = manifests("base")["Deployment"]["spec"]["template"]["spec"]
    theirs = manifests("kserve")["InferenceService"]["spec"]["predictor"]
    for key in ("securityContext", "terminationGracePeriodSeconds", "volumes"):
        assert ours[key] == theirs[key]
    (our_container,), (their_container,) = ours["containers"], theirs["containers"]
    for key in ("resources", "securityContext", "lifecycle", "volumeMounts"):
        assert our_container[key] == their_container[key]


def test_the_pod_is_restricted(pod: Manifest) -> None:
    user = re.search(
        r"^USER (\d+):(\d+)$", (ROOT / "docker" / "Dockerfile").read_text(), re.MULTILINE
    )
    assert user is not None
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": int(user[1]),
        "runAsGroup": int(user[2]),
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert pod["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False


def test_kubernetes_sets_no_setting_of_ours(pod: Manifest) -> None:
    """A Service lan-fer would otherwise become LAN_FER_PORT=tcp://10.0.0.1:80."""
    assert pod["enableServiceLinks"] is False


def test_settings_exist_and_workers_follow_the_limit(pod: Manifest) -> None:
    cpus = int(pod["containers"][0]["resources"]["limits"]["cpu"])
    assert settings(pod).inference_workers == cpus
    assert settings(pod).image_workers == 0, "it goes by the limit itself"


def test_a_stop_loses_no_reply(pod: Manifest) -> None:
    pause = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    needed = pause + settings(pod).drain_seconds + STOP_MARGIN_SECONDS
    assert pod["terminationGracePeriodSeconds"] > needed


def test_probes_ask_what_they_should(pod: Manifest) -> None:
    (container,) = pod["containers"]
    prefix = "/v2" if container["name"] == "kserve-container" else ""
    (port,) = container["ports"]
    assert port["containerPort"] == Settings().port
    for probe, path in {
        "startupProbe": "/health/ready",
        "readinessProbe": "/health/ready",
        "livenessProbe": "/health/live",
    }.items():
        assert container[probe]["httpGet"]["path"] == prefix + path
        assert container[probe]["httpGet"]["port"] in {port["name"], port["containerPort"]}


def test_the_largest_photos_fit_into_memory(pod: Manifest) -> None:
    chosen = settings(pod)
    lanes = int(pod["containers"][0]["resources"]["limits"]["cpu"]) + 1
    image = chosen.max_body_bytes + 3 * chosen.max_image_pixels
    worst = (
        BASE_BYTES
        + chosen.max_in_flight_images * image
        + chosen.inference_workers * (chosen.max_detector_batch or CPU_BATCHES[0]) * DETECTOR_BYTES
        + lanes * DECODING_BYTES_PER_PIXEL * chosen.max_image_pixels
    )
    assert worst < in_bytes(pod["containers"][0]["resources"]["limits"]["memory"])


def test_everything_selects_the_pods() -> None:
    base = manifests("base")
    labels = base["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    assert base["Deployment"]["spec"]["selector"]["matchLabels"].items() <= labels
    assert base["Service"]["spec"]["selector"].items() <= labels
    assert base["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"].items() <= labels
    assert base["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"].items() <= labels
    monitor = manifests("components/monitoring")["ServiceMonitor"]["spec"]
    service = base["Service"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert {e["port"] for e in monitor["endpoints"]} <= {
        port["name"] for port in service["spec"]["ports"]
    }
    # The alerts ask for this job.
    assert service["metadata"]["labels"][monitor["jobLabel"]] == "lan-fer"


def test_only_the_autoscaler_sets_the_number_of_replicas() -> None:
    base = manifests("base")
    assert "replicas" not in base["Deployment"]["spec"]
    target = base["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert target["name"] == base["Deployment"]["metadata"]["name"]


def test_replicas_are_added_before_photos_are_turned_away() -> None:
    (trigger,) = [
        t
        for t in manifests("components/keda")["ScaledObject"]["spec"]["triggers"]
        if t["type"] == "prometheus"
    ]
    limit = int(settings_of("base")["LAN_FER_MAX_IN_FLIGHT_IMAGES"])
    assert int(trigger["metadata"]["threshold"]) <= limit / 2


def test_the_image_is_of_this_version() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    for folder, tag in {"base": version[1], "components/gpu": f"{version[1]}-gpu"}.items():
        kustomization = yaml.safe_load((DEPLOY / folder / "kustomization.yaml").read_text())
        assert kustomization["images"] == [{"name": "lan-fer", "newTag": tag}]
    predictor = manifests("kserve")["InferenceService"]["spec"]["predictor"]
    assert predictor["containers"][0]["image"] == f"lan-fer:{version[1]}"


@pytest.fixture(scope="module")
def kustomize() -> list[str]:
    """The command that builds a kustomization."""
    if shutil.which("kustomize") is not None:
        return ["kustomize", "build"]
    if shutil.which("kubectl") is not None:
        return ["kubectl", "kustomize"]
    reason = "neither kustomize nor kubectl is installed"
    if os.environ.get("REQUIRE_KUSTOMIZE") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def built(kustomize: list[str], folder: str) -> dict[str, Manifest]:
    command = [*kustomize, str(DEPLOY / folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return {m["kind"]: m for m in yaml.safe_load_all(result.stdout)}


@pytest.mark.parametrize("folder", ["base", "overlays/cpu", "overlays/gpu", "overlays/keda"])
def test_overlays_build_into_what_kubernetes_takes(kustomize: list[str], folder: str) -> None:
    resources = built(kustomize, folder)
    for kind, manifest in resources.items():
        if kind in CUSTOM:
            assert_custom(manifest)
        else:
            kubernetes_validate.validate(manifest, KUBERNETES_VERSIONS[-1], strict=True)
    scaled_by_keda = folder in {"overlays/gpu", "overlays/keda"}
    assert ("ScaledObject" in resources) == scaled_by_keda
    assert ("HorizontalPodAutoscaler" in resources) != scaled_by_keda


def test_the_gpu_overlay_asks_for_a_gpu_by_name(kustomize: list[str]) -> None:
    spec = built(kustomize, "overlays/gpu")["Deployment"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    environment = {v["name"]: v.get("value") for v in container["env"]}
    assert environment["LAN_FER_PROVIDER"] == "cuda"
    assert environment["LAN_FER_INFERENCE_WORKERS"] == "0"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
