"""Prints .env.example from the settings class: ``python docker/env_example.py > .env.example``."""

from __future__ import annotations

import textwrap

from pydantic.fields import FieldInfo

from service.settings import ENV_PREFIX, Settings

HEADING = """\
# Settings for docker compose: copy this file to .env, take the # off a line and change it.
# What is left out keeps its default. Paths are paths inside the container: a model or a file of
# keys of your own also needs a line under `volumes` in a docker-compose.override.yml.
# Made by: python docker/env_example.py > .env.example

# --- docker compose ---

# Port of Prometheus on 127.0.0.1.
#PROMETHEUS_PORT=9090

# Port of Grafana on 127.0.0.1 (profile dashboards).
#GRAFANA_PORT=3000

# CPU cores the service may use, a whole number; it starts that many workers.
#SERVICE_CPUS=2

# Memory the service may use; images of the largest size allowed, in every worker, must fit.
#SERVICE_MEMORY=4g

# Time to finish after a stop; must be more than 5 s longer than LAN_FER_DRAIN_SECONDS.
#SERVICE_STOP_GRACE=30s

# Folder of the data sets, CPU cores and memory of training (profile train).
#TRAIN_DATA=./data
#TRAIN_CPUS=2
#TRAIN_MEMORY=12g

# --- the service ---
"""
# What the image and docker-compose.yml set: the settings class knows only the source tree.
IN_CONTAINER = {
    "model_path": "/opt/lan-fer/models/lan_mobilefacenet_ferplus.onnx",
    "detector_path": "/opt/lan-fer/models/retinaface_mnet025.onnx",
    "inference_workers": "2",
}


def entry(name: str, field: FieldInfo) -> str:
    """One setting: its description as a comment, then its variable with the default."""
    default = IN_CONTAINER.get(name, "" if field.default is None else str(field.default))
    comment = textwrap.fill(
        field.description or "", 98, initial_indent="# ", subsequent_indent="# "
    )
    return f"{comment}\n#{ENV_PREFIX}{name.upper()}={default}\n"


def env_example() -> str:
    """The whole text of .env.example. The host is set by docker-compose.yml, whatever .env says."""
    fields = Settings.model_fields.items()
    return "\n".join([HEADING, *(entry(n, f) for n, f in fields if n != "host")])


if __name__ == "__main__":
    print(env_example(), end="")
