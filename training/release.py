"""A run's best checkpoint -> measured, calibrated and exported model, also in 8-bit integers."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.contract import ModelContract
from service.expression import ExpressionModel
from service.runtime import SessionSettings
from training.assessment import assess, comparison, head_angles, report
from training.balance import balanced
from training.calibration import fit_temperature
from training.card import Assessment, Recipe, write_card
from training.crops import CropDataset
from training.datasets.folder import split_counts
from training.datasets.lists import select
from training.datasets.records import PARTS, DatasetError, Part, Split, arranged
from training.datasets.registry import FINAL, Choice, find_dataset
from training.evaluation import Evaluation
from training.export import (
    ExportError,
    ModelFacts,
    export_onnx,
    make_contract,
    write_contract,
)
from training.pipeline import RunPaths, load_splits, prepare_split
from training.quantisation import quantise
from training.runs import TrainedRun

CPU = SessionSettings("cpu")
# Of release_int8: images that the scales come from, and percentage points of accuracy.
CALIBRATION_IMAGES, MOST_LOSS = 1024, 0.3
# What the contracts of a model and of its twin need not have in common.
TWINS_DIFFER_IN = {
    "name",
    "bias",
    "protocol",
    "temperature",
    "validation_accuracy",
    "run_id",
    "licence",
}


def validation_crops(paths: RunPaths, size: int) -> tuple[CropDataset, NDArray[np.float64]]:
    """Validation images as the service would cut them, and each head's angle in degrees."""
    return crops_of(load_part(paths, "validation"), paths, size)


def load_part(paths: RunPaths, part: Part, *, majority_only: bool = True) -> Split:
    """A split of the data set that `paths` names. Raises DatasetError."""
    if part == "all" and paths.dataset != "folder":
        raise DatasetError(
            f"split all is of --dataset folder; {paths.dataset} has {', '.join(PARTS)}"
        )
    choice = Choice(majority_only=majority_only, fold=paths.fold)
    return find_dataset(paths.dataset).load(paths.data, part, choice)


def crops_of(split: Split, paths: RunPaths, size: int) -> tuple[CropDataset, NDArray[np.float64]]:
    """`split` as the service would cut it, and each head's angle in degrees."""
    prepared = prepare_split(split, paths)
    angles = head_angles(prepared.faces.landmarks)
    return CropDataset(prepared.split, prepared.faces, size), angles


def _measured_part(paths: RunPaths) -> Part:
    """What to measure on unless told: validation, or the test where one's own data are no more."""
    if paths.dataset == "folder" and set(split_counts(paths.data)) == {"test"}:
        return "test"
    return "validation"


def _measured_on(paths: RunPaths, part: Part, images: int) -> str:
    """A line of a report: which images it is of, and how many there are."""
    if paths.dataset != "folder":
        return f"measured on {images} images, the {part} split\n"
    given = split_counts(paths.data)
    split = {"all": "whatever their split", "final": "the training and validation splits"}.get(
        part, f"the {part} split"
    )
    if part == "validation" and not given["validation"]:
        split += " (a fifth of each class)"
    return f"measured on {images} of {given.total()} images, {split}\n"


def release(
    run: TrainedRun,
    paths: RunPaths,
    output: Path,
    facts: ModelFacts,
    *,
    twin: TrainedRun | None = None,
    balance: float = 0.0,
    note: str = "",
) -> str:
    """Export `run` to `output` with its measured accuracy and fitted temperature, and its card.

    A run on training + validation images has nothing left to be measured on: its figures and its
    temperature are those of `twin`, a run of the same configuration on the training images alone.
    Where `balance` is above 0, rare classes are answered more often (training.balance). The card
    lies beside the file, .md and .png, and has `note` among what it says of the training. It and
    the returned report are measured on an exported file.
    Raises ExportError, also where a twin is missing, not needed or none.
    """
    _require_twin(run, twin)
    if balance:
        if run.config.balanced:
            raise ExportError("the run drew each class equally often: --balance would do it twice")
        learnt = load_splits(run.config, paths, final=run.is_final)[0]
        targets = arranged(learnt, tuple(run.provenance["labels"])).targets
        run = replace(run, network=balanced(run.network, targets, balance))
        twin = twin and replace(twin, network=balanced(twin.network, targets, balance))
    contract = make_contract(run.network, run.config, run.provenance, facts)
    validation = arranged(load_part(paths, "validation"), contract.labels)
    crops, angles = crops_of(validation, paths, contract.input_size)
    export_onnx(run.network, contract, output)
    evaluation = _evaluation(output, crops)
    seen = None
    if twin is not None:
        seen = evaluation.accuracy
        evaluation = _evaluation_of(twin, contract, output, crops)
    write_contract(output, _measured(contract, evaluation))
    model = ExpressionModel.load(output, CPU)
    recipe = Recipe(run, twin, seen, paths.dataset, balance, note)
    write_card(output.with_suffix(".md"), Assessment(model, evaluation, angles), recipe)
    return _measured_on(paths, "validation", len(crops)) + report(model, evaluation, angles)


def _require_twin(run: TrainedRun, twin: TrainedRun | None) -> None:
    if run.is_final and twin is None:
        raise ExportError(
            "the run was trained on the validation images too, so it cannot be measured on them: "
            "name the run of the same configuration that was not, with --measured-by"
        )
    if twin is None:
        return
    if not run.is_final or twin.is_final:
        raise ExportError("--measured-by is for a --final run, and names one that is not")
    own, theirs = run.config.as_dict(), twin.config.as_dict()
    if changed := [name for name in own if own[name] != theirs[name]]:
        raise ExportError(f"the two runs have different configurations: {', '.join(changed)}")


def _evaluation_of(
    run: TrainedRun, contract: ModelContract, output: Path, crops: CropDataset
) -> Evaluation:
    temporary = output.with_suffix(".twin.onnx")
    export_onnx(run.network, contract, temporary)
    try:
        return _evaluation(temporary, crops)
    finally:
        temporary.unlink()


def _evaluation(path: Path, crops: CropDataset) -> Evaluation:
    return assess(ExpressionModel.load(path, CPU), crops)


def evaluate_file(
    path: Path,
    paths: RunPaths,
    *,
    part: Part | None = None,
    listed: Path | None = None,
    mirrored: bool = False,
) -> str:
    """The report of an ONNX file on one split, or on its images that the list `listed` names.

    Without `part`, that is validation, or the test where one's own data have nothing else.
    `mirrored` averages over each face and its mirror image, which the service does not do.
    Raises DatasetError where the model does not know a class of the split.
    """
    model = ExpressionModel.load(path, CPU)
    part = part or _measured_part(paths)
    # A list brings labels of its own: also for images whose votes have no majority.
    split, found = load_part(paths, part, majority_only=listed is None), ""
    if listed is not None:
        # Its classes are numbers in the data set's own order.
        selected = select(split, listed)
        split, found = selected.split, f"{listed.name}: {selected.summary()}\n"
    split = arranged(split, model.contract.labels)
    crops, angles = crops_of(split, paths, model.contract.input_size)
    measured = report(model, assess(model, crops, mirrored=mirrored), angles)
    if paths.dataset == "folder" and part == "validation":
        measured += (
            "\n--split all measures on every image: for a model that learnt from none of them"
        )
    return found + _measured_on(paths, part, len(crops)) + measured


def release_int8(
    path: Path,
    paths: RunPaths,
    output: Path,
    *,
    twin: Path | None = None,
    images: int = CALIBRATION_IMAGES,
    most_loss: float = MOST_LOSS,
) -> str:
    """Quantise the ONNX file `path` to `output`, and compare both on the validation split.

    Scales come from so many `images` of the training split. Accuracy and temperature in the new
    file's contract are its own; for a model of training + validation images, which has nothing left
    to be measured on, those of `twin`, the file of its like without the latter, quantised likewise.
    Raises ExportError where more than `most_loss` percentage points of accuracy are lost, by either
    file, or where a twin is missing, not needed or none; `output` is then not written.
    """
    if output.resolve() == path.resolve():
        raise ExportError(f"{output}: is the float32 file itself; name another --output")
    contract = ExpressionModel.load(path, CPU).contract
    _require_twin_file(path, contract, twin)
    validation = arranged(load_part(paths, "validation"), contract.labels)
    crops, angles = crops_of(validation, paths, contract.input_size)
    sample = _sample(paths, contract.input_size, images)
    told = []
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".int8-", dir=output.parent) as folder:
        # The last one's figures are those of the contract.
        for source in (path,) if twin is None else (path, twin):
            written = Path(folder) / ("twin.onnx" if source == twin else "model.onnx")
            quantise(source, sample, written)
            before, after = _evaluation(source, crops), _evaluation(written, crops)
            _require_little_loss(source, before, after, most_loss)
            seen = ", on images that it has learnt from" if source != twin and twin else ""
            told.append(f"{source}, float32 -> int8{seen}:")
            told.append(comparison(contract.labels, before, after, angles))
        written = Path(folder) / "model.onnx"
        own = ExpressionModel.load(written, CPU).contract
        write_contract(written, _measured(own, after))
        written.replace(output)
    return "\n".join(told)


def _measured(contract: ModelContract, evaluation: Evaluation) -> ModelContract:
    return contract.model_copy(
        update={
            "validation_accuracy": round(evaluation.accuracy, 4),
            "temperature": round(fit_temperature(evaluation), 4),
        }
    )


def _sample(paths: RunPaths, size: int, count: int) -> list[NDArray[np.uint8]]:
    """`count` images of the training split as the service would cut them, [size,size,3] RGB."""
    split = load_part(paths, "train")
    chosen = np.random.default_rng(0).permutation(len(split))[:count]
    crops, _ = crops_of(split.subset(np.isin(np.arange(len(split)), chosen)), paths, size)
    return [crops[i][0].permute(1, 2, 0).numpy() for i in range(len(crops))]


def _require_twin_file(path: Path, contract: ModelContract, twin: Path | None) -> None:
    final = contract.protocol.endswith(FINAL)
    if twin is None:
        if final:
            raise ExportError(
                f"{path}: was trained on the validation images too, so it cannot be measured on "
                "them: name the file of its like that was not, with --measured-by"
            )
        return
    theirs = ExpressionModel.load(twin, CPU).contract
    if not final or theirs.protocol.endswith(FINAL):
        raise ExportError(
            "--measured-by is for a model of training + validation images, and names one without"
        )
    unlike = set(ModelContract.model_fields) - TWINS_DIFFER_IN
    changed = [n for n in sorted(unlike) if getattr(contract, n) != getattr(theirs, n)]
    if theirs.protocol.rpartition("; ")[0] != contract.protocol.rpartition("; ")[0]:
        changed.append("protocol")
    if changed:
        raise ExportError(f"{twin}: is no twin of {path}: another {', '.join(changed)}")


def _require_little_loss(
    path: Path, before: Evaluation, after: Evaluation, most_loss: float
) -> None:
    loss = 100 * (before.accuracy - after.accuracy)
    if not loss <= most_loss:
        raise ExportError(
            f"{path}: int8 loses {loss:.2f} points of accuracy ({100 * before.accuracy:.2f}% -> "
            f"{100 * after.accuracy:.2f}%), more than --most-loss {most_loss:g}; nothing written"
        )
