"""What can be held about the compose file and the images without a Docker engine."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from service.detector_weights import SOURCE
from service.settings import Settings

ROOT = Path(__file__).parents[2]
DOCKERFILES = [ROOT / "docker" / name for name in ("Dockerfile", "Dockerfile.gpu")]
TRAINING = ROOT / "docker" / "Dockerfile.train"
# The workers get that long to end after the drain.
STOP_MARGIN_SECONDS = 5


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


def compose_variables() -> set[str]:
    return set(re.findall(r"\$\{([A-Z_]+)", (ROOT / "docker-compose.yml").read_text()))


@pytest.mark.parametrize("name", ["lan-fer", "lan-fer-gpu", "prometheus", "grafana", "train"])
def test_every_container_is_hardened(compose: dict[str, Any], name: str) -> None:
    container = compose["services"][name]
    assert container["read_only"] is True
    assert container["cap_drop"] == ["ALL"]
    assert container["security_opt"] == ["no-new-privileges:true"]
    assert container["restart"] == ("no" if name == "train" else "unless-stopped")
    assert {"mem_limit", "cpus", "pids_limit", "logging"} <= container.keys()
    assert all(port.startswith("127.0.0.1:") for port in container.get("ports", []))


def test_what_not_everyone_needs_has_a_profile(compose: dict[str, Any]) -> None:
    profiles = {name: s["profiles"] for name, s in compose["services"].items() if "profiles" in s}
    assert profiles == {"lan-fer-gpu": ["gpu"], "grafana": ["dashboards"], "train": ["train"]}


def test_grafana_finds_prometheus_and_its_dashboard(compose: dict[str, Any]) -> None:
    grafana = ROOT / "docker" / "grafana"
    assert compose["services"]["grafana"]["build"] == "docker/grafana"
    provisioning = grafana / "provisioning"
    sources = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())
    url = httpx.URL(sources["datasources"][0]["url"])
    assert url.host in compose["services"]
    assert compose["services"][url.host]["ports"][0].endswith(f":{url.port}")
    providers = yaml.safe_load((provisioning / "dashboards" / "dashboards.yml").read_text())
    folder = providers["providers"][0]["options"]["path"]
    assert f"COPY dashboards {folder}" in (grafana / "Dockerfile").read_text()
    home = Path(
        compose["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    )
    assert str(home.parent) == folder
    assert (grafana / "dashboards" / home.name).exists()


def test_memory_is_not_spent_on_files(compose: dict[str, Any]) -> None:
    """What lies in a tmpfs counts as the container's memory, and the service writes no file."""
    (tmpfs,) = compose["services"]["lan-fer"]["tmpfs"]
    size = re.search(r"size=(\d+)m", tmpfs)
    assert size is not None
    assert int(size[1]) <= 16


def test_a_stop_waits_longer_than_the_drain(compose: dict[str, Any]) -> None:
    grace = compose["services"]["lan-fer"]["stop_grace_period"]
    seconds = re.fullmatch(r"\$\{SERVICE_STOP_GRACE:-(\d+)s\}", grace)
    assert seconds is not None
    assert int(seconds[1]) > Settings().drain_seconds + STOP_MARGIN_SECONDS


def test_every_variable_is_in_the_example() -> None:
    example = (ROOT / ".env.example").read_text()
    missing = [v for v in compose_variables() - {"REVISION"} if f"#{v}=" not in example]
    assert not missing


def test_every_setting_named_anywhere_exists() -> None:
    text = "".join(p.read_text() for p in [ROOT / "docker-compose.yml", *DOCKERFILES])
    named = {name.lower() for name in re.findall(r"LAN_FER_([A-Z_]+)", text)}
    assert named <= Settings.model_fields.keys()


def test_shipped_networks_match_their_checksums() -> None:
    """The images are built only from these very files."""
    models = ROOT / "models"
    lines = [line.split() for line in (models / "SHA256SUMS").read_text().splitlines()]
    checksums = {name: digest for digest, name in lines}
    assert checksums.pop("retinaface_mnet025.onnx") == SOURCE.onnx_sha256
    made_here = {"retinaface_mnet025.onnx", "retinaface_mnet025.int8.onnx"}
    shipped = {p.name for p in models.glob("*.onnx")} - made_here
    assert checksums.keys() == shipped, "run: make checksums"
    for name, digest in checksums.items():
        found = hashlib.sha256((models / name).read_bytes()).hexdigest()
        assert found == digest, "run: make checksums"


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_images_run_as_nobody_and_get_their_signals(dockerfile: Path) -> None:
    final_stage = dockerfile.read_text().rsplit("\nFROM ", 1)[1]
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", final_stage, re.MULTILINE)
    assert 'ENTRYPOINT ["lan-fer"]' in final_stage
    assert "/health/ready" in final_stage


def test_training_reads_data_writes_runs_and_reaches_nobody(compose: dict[str, Any]) -> None:
    train = compose["services"]["train"]
    assert train["network_mode"] == "none"
    assert train["volumes"] == ["${TRAIN_DATA:-./data}:/data:ro", "runs:/runs"]
    dockerfile = TRAINING.read_text()
    assert 'ENTRYPOINT ["python", "-m", "training"]' in dockerfile


@pytest.mark.parametrize("dockerfile", [*DOCKERFILES, TRAINING], ids=lambda path: path.name)
def test_images_carry_the_projects_version(dockerfile: Path) -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert f'image.version="{version[1]}"' in dockerfile.read_text()
