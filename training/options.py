"""Options of the commands: one for each choice of a run, and how a wrong one is told."""

from __future__ import annotations

import argparse
import dataclasses
import math
import typing
from collections.abc import Callable
from typing import NoReturn

from service.printable import printable
from training.augmentation import Augmentation
from training.backbones import BACKBONES
from training.config import TrainingConfig
from training.lan import FUSIONS

CHOICES = {
    "backbone": tuple(BACKBONES),
    "fusion": FUSIONS,
    "attentive": ("smallest", "largest"),
    "optimizer": ("adamw", "sgd"),
    "precision": ("float32", "bfloat16"),
}
# The least of each number; 0 of the others.
LEAST = {"epochs": 1, "batch_size": 1}


class Parser(argparse.ArgumentParser):
    """Tells a mistake in one line: `train` has dozens of options, all listed otherwise."""

    def error(self, message: str) -> NoReturn:
        """See the class."""
        self.exit(2, f"error: {printable(message)} ({self.prog} --help)\n")


def add_config(parser: argparse.ArgumentParser) -> None:
    """One option per plain field of the configuration, with its default."""
    group = parser.add_argument_group("configuration")
    types = typing.get_type_hints(TrainingConfig)
    for field in dataclasses.fields(TrainingConfig):
        name, kind = "--" + field.name.replace("_", "-"), types[field.name]
        if kind is bool:
            group.add_argument(name, action=argparse.BooleanOptionalAction, default=field.default)
        elif field.name != "augmentation":
            numeric = kind in (int, float)
            group.add_argument(
                name,
                type=number(kind, LEAST.get(field.name, 0)) if numeric else str,
                default=field.default,
                choices=CHOICES.get(field.name),
                help="default: %(default)s",
            )
    group = parser.add_argument_group("augmentation of training crops")
    for field in dataclasses.fields(Augmentation):
        name = "--augment-" + field.name.replace("_", "-")
        group.add_argument(
            name, type=number(float, 0), default=field.default, help="default: %(default)s"
        )


def read_config(options: argparse.Namespace) -> TrainingConfig:
    """The configuration that options of `add_config` make."""
    names = {f.name for f in dataclasses.fields(TrainingConfig)} - {"augmentation"}
    changes = {
        f.name: getattr(options, f"augment_{f.name}") for f in dataclasses.fields(Augmentation)
    }
    chosen = {name: getattr(options, name) for name in names}
    return TrainingConfig(**chosen, augmentation=Augmentation(**changes))


def number(kind: type[int] | type[float], least: float) -> Callable[[str], float]:
    """A type of option: a finite number, `least` or more."""

    def parse(text: str) -> float:
        value = kind(text)
        if not least <= value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not {least} or more")
        return value

    parse.__name__ = kind.__name__  # what argparse calls it where the text is no number
    return parse


def share(text: str) -> float:
    """A type of option: 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value
