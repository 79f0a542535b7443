from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo

from service.cli import build_parser
from service.errors import SettingsError
from service.runtime import SessionSettings
from service.settings import ENV_PREFIX, Settings, available_cpus, load_settings

FIELDS = list(Settings.model_fields.items())
UNITS = (
    "_ms",
    "_seconds",
    "_bytes",
    "_pixels",
    "_images",
    "_faces",
    "_threads",
    "_workers",
    "_connections",
)


def test_defaults_are_safe() -> None:
    settings = load_settings()
    assert settings.host == "127.0.0.1"
    assert settings.cors_origins is None
    assert settings.session_settings == SessionSettings(provider="auto", intra_op_threads=1)
    # What a phone takes at its best: 33 megapixels, 20 MB.
    assert settings.max_image_pixels >= 33_200_000
    assert settings.max_body_bytes >= 20_000_000


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_every_setting_is_described(name: str, field: FieldInfo) -> None:
    assert field.description
    assert re.match(r"[A-Z0-9]", field.description), name
    assert field.description.endswith(".")


@pytest.mark.parametrize(
    "name",
    [
        n
        for n, f in FIELDS
        if f.annotation is int and n not in ("port", "engines", "max_detector_batch")
    ],
)
def test_numbers_name_their_unit(name: str) -> None:
    assert name.endswith((*UNITS, "_batch")), name


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("port", "65536"),
        ("port", "http"),
        ("provider", "tpu"),
        ("intra_op_threads", "0"),
        ("inference_workers", "-1"),
        ("max_body_bytes", "12"),
        ("max_image_pixels", "0"),
        ("max_faces", "0"),
        ("min_score", "1.5"),
        ("search", "deep"),
        ("max_in_flight_images", "0"),
        ("deadline_ms", "0"),
        ("drain_seconds", "-1"),
        ("log_level", "loud"),
        ("log_format", "xml"),
    ],
)
def test_wrong_value_is_one_line_that_names_the_setting(
    name: str, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = ENV_PREFIX + name.upper()
    monkeypatch.setenv(variable, wrong)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert f"{name} ({variable})" in caught.value.detail
    assert "\n" not in caught.value.detail


@pytest.mark.parametrize("variable", ["LAN_FER_API_KEY", "lan_fer_apikeys"])
def test_variable_that_is_no_setting_is_refused(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that was to ask for keys must not start open."""
    monkeypatch.setenv(variable, "app=very-secret")
    with pytest.raises(SettingsError) as caught:
        load_settings(max_faces="0")
    hint = "there is no such setting; did you mean LAN_FER_API_KEYS?"
    assert f"{variable.upper()}: {hint}" in caught.value.detail
    assert "max_faces" in caught.value.detail
    assert "secret" not in caught.value.detail
    with pytest.raises(SettingsError, match="no such setting"):
        load_settings()


@pytest.mark.parametrize(("name", "hint"), [("maxfaces", "; did you mean max_faces?"), ("foo", "")])
def test_name_that_is_no_setting_is_refused(name: str, hint: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(**{name: 1})
    assert caught.value.detail == f"wrong settings: {name}: there is no such setting{hint}"


def test_only_a_name_that_is_like_it_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAN_FER_FOO", "1")
    with pytest.raises(SettingsError, match=r"LAN_FER_FOO: there is no such setting$"):
        load_settings()


def test_port_that_kubernetes_sets_says_how_to_be_rid_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LAN_FER_PORT", "tcp://10.0.0.1:80")
    with pytest.raises(SettingsError, match="enableServiceLinks: false"):
        load_settings()


def test_addresses_that_kubernetes_adds_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERVICE_HOST", "SERVICE_PORT_HTTP", "WEB_PORT", "PORT_8000_TCP_ADDR"):
        monkeypatch.setenv(ENV_PREFIX + name, "tcp://10.0.0.1:8000")
    assert load_settings().port == 8000


def test_flag_wins_over_environment_wins_over_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAN_FER_MAX_FACES", "5")
    monkeypatch.setenv("LAN_FER_MIN_SCORE", "0.25")
    settings = load_settings(max_faces="7")
    assert (settings.max_faces, settings.min_score, settings.port) == (7, 0.25, 8000)


def test_an_empty_line_of_an_environment_file_leaves_a_number_unset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LAN_FER_MIN_SCORE", "")
    assert load_settings().min_score is None


def test_unknown_setting_is_refused() -> None:
    with pytest.raises(SettingsError, match="max_face"):
        load_settings(max_face="7")


def serve_parser() -> argparse.ArgumentParser:
    (commands,) = (
        action
        for action in build_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    parser: argparse.ArgumentParser = commands.choices["serve"]
    return parser


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_help_tells_flag_variable_default_and_consequence(name: str, field: FieldInfo) -> None:
    text = " ".join(serve_parser().format_help().split())
    assert f"--{name.replace('_', '-')} VALUE" in text
    assert f"[{ENV_PREFIX}{name.upper()}]" in text
    if isinstance(field.default, int):
        assert f"Default: {field.default}. [{ENV_PREFIX}{name.upper()}]" in text


def test_flags_become_settings() -> None:
    arguments = ["serve", "--port", "0", "--model-path", "other.onnx"]
    given = vars(build_parser().parse_args(arguments))
    assert given == {"command": "serve", "port": "0", "model_path": "other.onnx"}
    del given["command"]
    settings = load_settings(**given)
    assert (settings.port, settings.model_path) == (0, Path("other.onnx"))


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "100000 100000"}, 1),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "max 100000"}, 4),
        ({"cpu.max": "9900000 100000"}, 4),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ({"cpu.max": "nonsense"}, 4),
        ({}, 4),
    ],
)
def test_cores_are_no_more_than_the_quota_of_cpu_time(
    files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)), raising=False)
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n")
    assert available_cpus(tmp_path) == cores
