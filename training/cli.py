"""Commands of the training side: `python -m training COMMAND --help`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from service.detector_int8 import RANGES
from service.errors import ServiceError
from service.printable import printable
from training.averaging import averaged
from training.backbones import CheckpointError
from training.datasets.records import PARTS, DatasetError
from training.datasets.registry import DATASETS, dataset_of
from training.detector_ranges import measure_ranges
from training.detectors import (
    DetectorError,
    build_network,
    export_detector,
    fetch_checkpoint,
    load_checkpoint,
)
from training.export import ExportError, ModelFacts
from training.options import Parser, add_config, number, read_config, share
from training.paper.commands import add_commands
from training.pipeline import RunPaths, train_lan
from training.places import PlaceError, exported_files, require_folder, require_places
from training.preparation import PreparationError
from training.release import (
    CALIBRATION_IMAGES,
    MOST_LOSS,
    evaluate_file,
    load_part,
    release,
    release_int8,
)
from training.runs import TrainedRun, load_run
from training.throughput import measure_throughput
from training.tracking import compare_runs
from training.trainer import BEST, Trainer, TrainingError

DETECTOR = Path("models/retinaface_mnet025.onnx")
LICENCE = (
    "non-commercial research: derived from weights trained on MS-Celeb-1M and from {images} images"
)
KNOWN_ERRORS = (
    ServiceError,
    CheckpointError,
    DatasetError,
    DetectorError,
    ExportError,
    PlaceError,
    PreparationError,
    TrainingError,
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; known errors print one line and give exit code 1."""
    options = build_parser().parse_args(arguments)
    try:
        options.run_command(options)
    except KNOWN_ERRORS as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command of the training side."""
    parser = Parser(prog="python -m training", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train a LAN on a data set")
    train.set_defaults(run_command=_train)
    _add_data(train)
    train.add_argument(
        "--weights", type=Path, help="pretrained backbone (default: random, or --start's)"
    )
    train.add_argument("--start", type=Path, help="run, or exported ONNX file, to start from")
    train.add_argument(
        "--teacher",
        type=Path,
        nargs="+",
        default=[],
        metavar="RUN",
        help="runs, or ONNX files, whose mean answer is learnt from too",
    )
    train.add_argument("--run", type=Path, required=True, help="folder of the run")
    train.add_argument("--resume", action="store_true", help="go on with the run in the folder")
    train.add_argument("--final", action="store_true", help="train on training + validation")
    add_config(train)

    export = commands.add_parser("export", help="a run's best checkpoint -> ONNX with contract")
    export.set_defaults(run_command=_export)
    _add_data(export, dataset=None)
    export.add_argument("--run", type=Path, required=True, help="folder of the run")
    export.add_argument(
        "--measured-by",
        type=Path,
        help="for a --final run: its like, trained without validation; of the same epoch",
    )
    export.add_argument(
        "--average-with",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="average the weights with this ONNX file's, which the run went on from; with "
        "--measured-by, a second file is its start",
    )
    export.add_argument(
        "--balance",
        type=share,
        default=0.0,
        metavar="0..1",
        help="answer rare classes more often: 0 as trained, 1 as if all were equally frequent",
    )
    _add_output(export, "ONNX file to write")
    export.add_argument("--name", help="the model's name (default: lan-BACKBONE-DATASET)")
    export.add_argument("--note", default="", help="a sentence for the card, on how it was trained")
    export.add_argument("--licence", help=f"of the weights (default: {LICENCE})")

    _add_evaluate(commands)
    compare = commands.add_parser("compare", help="runs side by side: choices and results")
    compare.set_defaults(run_command=lambda options: print(compare_runs(options.runs)))
    compare.add_argument("runs", type=Path, nargs="+", help="folders of runs")
    _add_quantise(commands)
    _add_detector(commands)
    _add_ranges(commands)
    _add_throughput(commands)
    add_commands(commands, _add_data, _paths)
    return parser


def _add_evaluate(commands: Any) -> None:  # noqa: ANN401
    parser = commands.add_parser("evaluate", help="an ONNX file on a split of a data set")
    parser.set_defaults(run_command=_evaluate)
    _add_data(parser)
    parser.add_argument("--model", type=Path, required=True, help="ONNX file with contract")
    parser.add_argument(
        "--split",
        choices=(*PARTS, "all"),
        help="default: validation, or test where one's own data have no other; all: every image "
        "of one's own",
    )
    parser.add_argument(
        "--mirrored", action="store_true", help="average over each face and its mirror image"
    )
    parser.add_argument(
        "--list", type=Path, help="only images on this list (RAN's pose or occlusion lists)"
    )


def _add_quantise(commands: Any) -> None:  # noqa: ANN401
    text = "an ONNX file -> its int8 variant, for CPUs with VNNI"
    parser = commands.add_parser("quantise", help=text)
    parser.set_defaults(run_command=_quantise)
    _add_data(parser)
    parser.add_argument("--model", type=Path, required=True, help="ONNX file with contract")
    parser.add_argument(
        "--measured-by",
        type=Path,
        metavar="TWIN",
        help="for a model of a --final run: the ONNX file of its like without validation images",
    )
    parser.add_argument(
        "--images",
        type=number(int, 1),
        default=CALIBRATION_IMAGES,
        help="of the training split, to take the scales from (default: %(default)s)",
    )
    parser.add_argument(
        "--most-loss",
        type=float,
        default=MOST_LOSS,
        metavar="POINTS",
        help="of accuracy, in per cent; nothing is written beyond (default: %(default)s)",
    )
    _add_output(parser, "ONNX file to write, X.int8.onnx for X.onnx")


def _add_detector(commands: Any) -> None:  # noqa: ANN401
    parser = commands.add_parser("detector", help="RetinaFace ResNet-50 -> ONNX for the service")
    parser.set_defaults(run_command=_detector)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, help="the published file, or a checkpoint")
    source.add_argument("--download", action="store_true", help="fetch it into --cache")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"), help="of the download")
    _add_output(parser, "ONNX file to write")


def _add_ranges(commands: Any) -> None:  # noqa: ANN401
    text = "ranges of the face detector's activations, and its int8 file"
    parser = commands.add_parser("detector-ranges", help=text)
    parser.set_defaults(run_command=_ranges)
    _add_data(parser)
    parser.add_argument(
        "--ranges", type=Path, default=RANGES, help="to write (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, required=True, help="int8 file to write")


def _add_throughput(commands: Any) -> None:  # noqa: ANN401
    text = "images a second of the data loader and of the network, alone and together"
    parser = commands.add_parser("throughput", help=text)
    parser.set_defaults(run_command=_throughput)
    _add_data(parser)
    parser.add_argument("--weights", type=Path, help="pretrained backbone (default: random)")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="of each measurement (default: %(default)s)"
    )
    parser.add_argument(
        "--images", type=int, default=0, help="measure on so many (default: all of the split)"
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON in place of words")
    add_config(parser)


def _add_output(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--output", type=Path, required=True, help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")


def _add_data(parser: argparse.ArgumentParser, *, dataset: str | None = "ferplus") -> None:
    parser.add_argument(
        "--data", type=Path, required=True, help="the data set in its official layout"
    )
    parser.add_argument(
        "--dataset",
        choices=tuple(DATASETS),
        default=dataset,
        help=f"default: {dataset or 'that of the run'}",
    )
    parser.add_argument(
        "--fold", type=int, default=0, help="KDEF: fold that is the test, 0 to 9 (default: 0)"
    )
    parser.add_argument("--detector", type=Path, default=DETECTOR, help="RetinaFace ONNX file")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"), help="shared cache")


def _train(options: argparse.Namespace) -> None:
    paths = _paths(options, run=options.run)
    paths = dataclasses.replace(
        paths, weights=options.weights, start=options.start, teachers=tuple(options.teacher)
    )
    trainer = train_lan(read_config(options), paths, resume=options.resume, final=options.final)
    if trainer.world.first:
        print(_outcome(trainer, options))


def _outcome(trainer: Trainer, options: argparse.Namespace) -> str:
    """What a run came to, and the command that comes next."""
    epoch = f"epoch {load_run(options.run).epoch}"
    if not options.final:
        epoch = f"best {epoch}, accuracy {100 * trainer.best:.2f}%"
    words = ["export", "--data", options.data, "--run", options.run]
    words += ["--fold", options.fold] if options.fold else []
    words += ["--measured-by", "RUN"] if options.final else []
    words += ["--output", f"models/{options.run.resolve().name}.onnx"]
    command = shlex.join(map(str, words))
    return f"{epoch}: {options.run / BEST}; next: python -m training {command}"


def _export(options: argparse.Namespace) -> None:
    require_places(*exported_files(options.output), overwrite=options.overwrite)
    run = load_run(options.run)
    options.dataset = _dataset_of(run, options.dataset)
    paths = _paths(options, run=options.run)
    run_id = f"{options.run.name}, epoch {run.epoch}, commit {run.provenance['commit']}"
    name = options.name or f"lan-{run.config.backbone}-{options.dataset}"
    dataset = DATASETS[options.dataset]
    licence = options.licence or LICENCE.format(images=dataset.images or dataset.title)
    facts = ModelFacts(name, run_id, licence)
    # Of the same epoch, since a final run has nothing to choose its best by.
    twin = load_run(options.measured_by, after=run.epoch) if options.measured_by else None
    if options.average_with:
        runs = [run] if twin is None else [run, twin]
        if len(options.average_with) != len(runs):
            raise ExportError("--average-with: one file for the run, and one for --measured-by")
        run, *twins = map(averaged, runs, options.average_with)
        twin = next(iter(twins), None)
    told = release(
        run,
        paths,
        options.output,
        facts,
        twin=twin,
        balance=options.balance,
        note=options.note,
    )
    print(told)
    print(f"wrote {', '.join(map(str, exported_files(options.output)))}")


def _dataset_of(run: TrainedRun, named: str | None) -> str:
    """The data set that a run is measured on: its own."""
    own = dataset_of(run.provenance["dataset"], run.provenance["protocol"])
    if named and own and named != own:
        raise ExportError(f"the run learnt from --dataset {own}, not {named}; leave --dataset out")
    if not (named or own):
        raise ExportError(
            f"the run learnt from {run.provenance['dataset']}, which no data set here is called; "
            "name the one to measure on with --dataset"
        )
    return named or own


def _evaluate(options: argparse.Namespace) -> None:
    paths = _paths(options, run=Path())
    print(
        evaluate_file(
            options.model, paths, part=options.split, listed=options.list, mirrored=options.mirrored
        )
    )


def _quantise(options: argparse.Namespace) -> None:
    require_places(options.output, overwrite=options.overwrite)
    told = release_int8(
        options.model,
        _paths(options, run=Path()),
        options.output,
        twin=options.measured_by,
        images=options.images,
        most_loss=options.most_loss,
    )
    print(told)


def _detector(options: argparse.Namespace) -> None:
    require_places(options.output, overwrite=options.overwrite)
    network = build_network()
    load_checkpoint(network, options.checkpoint or fetch_checkpoint(options.cache))
    difference = export_detector(network, options.output)
    print(f"{options.output}: written; differs from torch by {difference:.1g} at most")


def _ranges(options: argparse.Namespace) -> None:
    faces = load_part(_paths(options, run=Path()), "train")
    measure_ranges(options.detector, faces, options.ranges, options.output)
    print(f"{options.ranges} and {options.output}: written")


def _throughput(options: argparse.Namespace) -> None:
    paths = dataclasses.replace(_paths(options, run=Path()), weights=options.weights)
    # What preparation tells is no part of the answer.
    with contextlib.redirect_stdout(sys.stderr):
        measured = measure_throughput(
            read_config(options), paths, seconds=options.seconds, images=options.images
        )
    print(json.dumps(measured.as_dict()) if options.json else measured.text())


def _paths(options: argparse.Namespace, *, run: Path) -> RunPaths:
    for folder in (run, options.cache):
        require_folder(folder)
    return RunPaths(
        data=options.data,
        weights=None,
        detector=options.detector,
        cache=options.cache,
        run=run,
        dataset=options.dataset,
        fold=options.fold,
    )
