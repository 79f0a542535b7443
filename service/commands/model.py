"""`lan-fer model info`: which networks would answer."""

from __future__ import annotations

import argparse

from service.commands.flags import HelpFormatter, add_settings, answer, given_settings
from service.model_info import model_info
from service.pipeline import load_networks
from service.printable import printable
from service.schemas import ModelReply
from service.settings import load_settings

SUMMARY = "say which networks would answer"
SETTINGS = ("model_path", "detector_path", "provider", "precision")


def add_parser(parser: argparse.ArgumentParser) -> None:
    """The command `info` of the group `model`."""
    parser.description = "About the networks."
    commands = parser.add_subparsers(dest="model_command", required=True, metavar="COMMAND")
    info = commands.add_parser(
        "info",
        help="labels, accuracy, licence, hashes, provider",
        description="Load both networks and say what they are, as GET /model does.",
        epilog="examples:\n  lan-fer model info\n  lan-fer model info --json | jq .classifier",
        formatter_class=HelpFormatter,
    )
    info.add_argument("--json", action="store_true", help="the reply of GET /model")
    add_settings(info, SETTINGS)


def run(arguments: argparse.Namespace) -> int:
    """Print it. Raises StartupError where a network cannot be loaded."""
    settings = load_settings(**given_settings(arguments))
    networks = load_networks(settings)
    reply = model_info(networks)
    file = networks.classifier.source
    answer(reply.model_dump_json(indent=2) if arguments.json else _as_text(reply, file))
    return 0


def _as_text(reply: ModelReply, file: str) -> str:
    classifier, detector = reply.classifier, reply.detector
    lines = {
        "expressions": classifier.name,
        "  file": file,
        "  labels": ", ".join(classifier.labels),
        "  version": classifier.version,
        "  licence": classifier.licence,
        "  provider": classifier.provider,
        **{f"  {name}": _short(value) for name, value in classifier.contract if _is_fact(value)},
        "detector": detector.name,
        "  version ": detector.version,
        "  licence ": detector.licence,
        "  provider ": detector.provider,
    }
    width = max(map(len, lines))
    return "\n".join(f"{k:{width}}  {printable(v)}".rstrip() for k, v in lines.items())


def _short(value: str | float) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _is_fact(value: object) -> bool:
    """A word or a number; the lists of the contract are for programs (--json)."""
    return isinstance(value, str | int | float)
