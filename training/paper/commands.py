"""Commands that make the paper's tables and figures: `python -m training paper COMMAND`."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from service.expression import ExpressionModel
from service.runtime import SessionSettings
from training.assessment import POSE_DEGREES
from training.backbones import BACKBONES, load_backbone
from training.config import TrainingConfig
from training.crops import CropDataset
from training.datasets.records import PARTS, DatasetError
from training.lan import Lan
from training.paper import ablation, cams, faithfulness, figures, guidance_study, tables
from training.paper.scores import Scores, measure, sample, yaw_and_pitch
from training.pipeline import RunPaths, guidance_for, load_splits, prepare_split
from training.preparation import read_image
from training.runs import load_run

AddData = Callable[[argparse.ArgumentParser], None]
PathsOf = Callable[..., RunPaths]
TABLES = ("kdef", "accuracy", "methods", "pose", "fusion")


def add_commands(commands: Any, add_data: AddData, paths_of: PathsOf) -> None:  # noqa: ANN401
    """Add the group; `add_data` adds the options of the data set, `paths_of` reads them."""
    group = commands.add_parser("paper", help="the paper's tables and figures")
    parsers = group.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, run: Callable[[argparse.Namespace, RunPaths], None], text: str
    ) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = parsers.add_parser(name, help=text)
        add_data(parser)
        parser.set_defaults(run_command=lambda o: run(o, paths_of(o, run=Path())))
        return parser

    _add_score(add("score", _score, "what a model answers on a split, for tables and figures"))
    add("data", _data, "Table 1: images of each split and class")
    _add_ablate(add("ablate", _ablate, "alpha, fusion, clusters: heads on cached features"))
    _add_guidance(add("guidance", _guidance, "do guidance maps follow head pose?"))
    _add_faithfulness(add("faithfulness", _faithfulness, "deletion and insertion curves"))
    _add_drawings(parsers)


def _add_score(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--split", choices=PARTS, default="validation", help="default: %(default)s")
    parser.add_argument("--list", type=Path, help="only images on this list (RAN's lists)")
    parser.add_argument("--output", type=Path, required=True, help="folder of the scores")


def _add_ablate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", type=Path, required=True, help="pretrained backbone")
    parser.add_argument("--backbone", choices=tuple(BACKBONES), default="mobilefacenet")
    parser.add_argument("--output", type=Path, required=True, help="folder of its runs")
    plan = ablation.Plan()
    for name in ("images", "epochs", "seeds", "threads"):
        parser.add_argument(
            f"--{name}", type=int, default=getattr(plan, name), help="default: %(default)s"
        )
    names = tuple(v.name for v in ablation.VARIANTS)
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="default: all")


def _add_guidance(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--weights", type=Path, help="backbone whose features were clustered")
    parser.add_argument("--backbone", choices=tuple(BACKBONES), default="mobilefacenet")
    parser.add_argument(
        "--majority-only",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="as the run's own (its guidance maps are then taken from the cache)",
    )
    parser.add_argument("--images", type=int, default=800, help="validation images for attention")
    parser.add_argument("--output", type=Path, required=True, help="PNG or JPEG file to write")


def _add_faithfulness(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--images", type=int, default=160, help="validation images to take")
    parser.add_argument("--fill", choices=("blur", "mean"), default="blur", help="in masked cells")
    parser.add_argument("--output", type=Path, required=True, help="PNG or JPEG file to write")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, help="ONNX file with contract")


def _add_drawings(parsers: Any) -> None:  # noqa: ANN401
    """Commands that need no data set: they read scores, an ablation's folder, or photos."""
    maps = parsers.add_parser("cams", help="Figures 3, 4: class activation maps of F_o, F_a and f")
    maps.add_argument("--run", type=Path, required=True, help="folder of the LAN's run")
    maps.add_argument("--baseline", type=Path, help="folder of a run with fusion none")
    maps.add_argument("--photos", type=Path, nargs="+", required=True, help="one face a row")
    maps.add_argument("--detector", type=Path, default=Path("models/retinaface_mnet025.onnx"))
    maps.set_defaults(run_command=_cams)
    confusion = parsers.add_parser("confusion", help="Figure 5: confusion under head pose")
    confusion.set_defaults(run_command=_confusion)
    examples = parsers.add_parser(
        "examples", help="Figure 6: right and wrong answers on turned heads"
    )
    examples.set_defaults(run_command=_examples)
    for parser in (confusion, examples):
        parser.add_argument("--scores", type=Path, required=True, help="folder of `paper score`")
    alpha = parsers.add_parser("alpha", help="Figure 7: accuracy against alpha")
    alpha.add_argument("--ablation", type=Path, required=True, help="folder of `paper ablate`")
    alpha.set_defaults(run_command=_alpha)
    for parser in (maps, confusion, examples, alpha):
        parser.add_argument("--output", type=Path, required=True, help="PNG or JPEG file to write")
    table = parsers.add_parser("table", help="Tables 2 to 6 beside the paper's numbers")
    table.add_argument("which", choices=TABLES)
    table.add_argument("--scores", type=Path, nargs="+", default=[], help="of `paper score`")
    table.add_argument("--ablation", type=Path, help="of `paper ablate` (methods, fusion)")
    table.set_defaults(run_command=_table)


# --- with a data set ---------------------------------------------------------------------------


def _score(options: argparse.Namespace, paths: RunPaths) -> None:
    scores = measure(options.model, paths, options.split, options.list)
    scores.save(options.output)
    print(tables.accuracy_table([scores]))


def _data(_options: argparse.Namespace, paths: RunPaths) -> None:
    print(tables.data_table(paths))


def _ablate(options: argparse.Namespace, paths: RunPaths) -> None:
    plan = ablation.Plan(
        images=options.images, epochs=options.epochs, seeds=options.seeds, threads=options.threads
    )
    variants = [v for v in ablation.VARIANTS if v.name in options.only]
    places = dataclasses.replace(paths, weights=options.weights, run=options.output)
    rows = ablation.run_ablation(places, options.backbone, plan, variants)
    print(tables.ablation_table(rows, [v.name for v in ablation.VARIANTS]))


def _guidance(options: argparse.Namespace, paths: RunPaths) -> None:
    model = ExpressionModel.load(options.model, SessionSettings("cpu"))
    labels = model.contract.labels
    config = TrainingConfig(backbone=options.backbone, majority_only=options.majority_only)
    train = prepare_split(load_splits(config, paths, final=False)[0], paths)
    network = Lan(load_backbone(options.backbone, options.weights), len(labels))
    maps = guidance_for(train, network, config, paths).maps
    yaw = yaw_and_pitch(train.faces.landmarks)[0]
    guided = guidance_study.study_pose(maps, yaw, train.split.classes, labels)
    information, chance = guidance_study.yaw_information(maps, yaw)

    seen, _ = sample(paths, "validation", labels, images=options.images)
    crops = CropDataset(seen.split, seen.faces, model.contract.input_size)
    pictures = [crops[i][0].permute(1, 2, 0).numpy() for i in range(len(crops))]
    attention = np.stack([model.infer([picture])[0].attention for picture in pictures])
    turned = yaw_and_pitch(seen.faces.landmarks)[0]
    learned = guidance_study.study_pose(attention, turned, seen.split.classes, labels)
    rows = (
        ("guidance", guided, maps.mean(0)),
        ("attention", learned, attention.mean(0).astype(np.float64)),
    )
    figures.draw_pose_study(options.output, rows)
    print(guidance_study.pose_report("Guidance maps (training images)", guided))
    print(
        f"\nMutual information of a position's bit and the bucket of yaw: {information.mean():.4f} "
        f"bits on average, {information.max():.4f} at most; {chance:.5f} for shuffled images.\n"
    )
    print(guidance_study.pose_report("Learned attention (validation images)", learned))


def _faithfulness(options: argparse.Namespace, paths: RunPaths) -> None:
    model = ExpressionModel.load(options.model, SessionSettings("cpu"))
    seen, _ = sample(paths, "validation", model.contract.labels, images=options.images)
    crops = CropDataset(seen.split, seen.faces, model.contract.input_size)
    pictures = [crops[i][0].permute(1, 2, 0).numpy() for i in range(len(crops))]
    curves = faithfulness.measure_curves(model, pictures, fill=options.fill)
    figures.draw_curves(options.output, curves)
    print(f"{len(pictures)} images, masked with {options.fill}\n")
    print(faithfulness.faithfulness_report(curves))


# --- without -----------------------------------------------------------------------------------


def _cams(options: argparse.Namespace) -> None:
    run = load_run(options.run)
    crops = cams.largest_faces(options.photos, options.detector, run.network.backbone.input_size)
    baseline = None
    if options.baseline:
        baseline = cams.activation_maps(load_run(options.baseline), crops)
    figures.draw_activation_maps(options.output, cams.activation_maps(run, crops), baseline)
    print(options.output)


def _confusion(options: argparse.Namespace) -> None:
    scores = Scores.load(options.scores)
    parts = [("all", scores.evaluation)]
    for degrees in POSE_DEGREES:
        turned = scores.angles > degrees
        if turned.any():
            parts.append((f"head pose over {degrees} degrees", scores.evaluation.subset(turned)))
    figures.draw_confusions(options.output, parts, scores.facts.labels)
    print(options.output)


def _examples(options: argparse.Namespace) -> None:
    scores = Scores.load(options.scores)
    chosen = scores.examples()
    if not len(chosen):
        raise DatasetError(f"{options.scores}: no head is turned by more than {POSE_DEGREES[0]}")
    pictures = [read_image(Path(scores.paths[index])) for index in chosen]
    figures.draw_examples(options.output, scores, pictures, chosen)
    print(options.output)


def _alpha(options: argparse.Namespace) -> None:
    rows = ablation.read_results(options.ablation)
    by_name = {
        variant: np.array([row["accuracy"] for row in rows if row["variant"] == variant.name])
        for variant in ablation.VARIANTS
    }
    points = [
        (variant.alpha, values)
        for variant, values in by_name.items()
        if variant.name.startswith("alpha-") and len(values)
    ]
    if not points:
        raise DatasetError(f"{options.ablation}: no results; `python -m training paper ablate`")
    baseline = next(values for variant, values in by_name.items() if variant.name == "baseline")
    figures.draw_alpha(options.output, points, baseline)
    print(options.output)


def _table(options: argparse.Namespace) -> None:
    if options.which in ("methods", "fusion"):
        if options.ablation is None:
            raise DatasetError(f"table {options.which} needs --ablation, the folder of an ablation")
        names = tables.METHODS if options.which == "methods" else tables.FUSED
        print(tables.ablation_table(ablation.read_results(options.ablation), names))
        return
    if not options.scores:
        raise DatasetError(f"table {options.which} needs --scores, folders of `paper score`")
    scores = [Scores.load(folder) for folder in options.scores]
    made = {
        "kdef": tables.kdef_table,
        "accuracy": tables.accuracy_table,
        "pose": tables.pose_table,
    }
    print(made[options.which](scores))
