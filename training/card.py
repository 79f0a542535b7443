"""The model card: measured figures, pictures, recipe, licences, intended use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

from service.contract import ModelContract
from service.expression import ExpressionModel
from training.assessment import POSE_DEGREES, slices
from training.calibration import coverage_curve, cross_fitted_error, doubt, reliability
from training.config import TrainingConfig
from training.evaluation import Evaluation
from training.runs import TrainedRun

matplotlib.use("Agg")  # no display needed

from matplotlib import pyplot as plt
from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Assessment:
    """An exported model beside its answers on the validation split."""

    model: ExpressionModel
    evaluation: Evaluation
    angles: NDArray[np.float64]
    """[N] head pose of each image, degrees; NaN where no face was found."""


@dataclass(frozen=True)
class Recipe:
    """How the model came to be."""

    run: TrainedRun
    twin: TrainedRun | None
    """The run that was measured in its place, where it was trained on the validation images."""
    seen: float | None
    """Then also: its own accuracy on those images."""
    dataset: str
    """Name in the registry, for the command that measures it again."""
    balance: float = 0.0
    """Of the log of a class's share, what its logits were lowered by."""
    note: str = ""
    """What else is to be said of the training, a sentence without its full stop."""


def write_card(path: Path, assessment: Assessment, recipe: Recipe) -> None:
    """Write the card to `path` (Markdown) and its picture beside it, same name, .png."""
    picture = path.with_suffix(".png")
    draw_figures(picture, assessment)
    contract = assessment.model.contract
    sections = (
        f"# {contract.name}",
        f"SHA-256 `{assessment.model.sha256}`, run {contract.run_id}.",
        _what(assessment),
        "## Accuracy\n\n" + _accuracy(assessment, recipe),
        f"![Reliability, confusion and coverage on the validation split]({picture.name})",
        "## Training\n\n" + _training(assessment, recipe),
        _licences(assessment.model.contract, recipe),
        _intended_use(assessment),
    )
    path.write_text("\n\n".join(sections) + "\n")


def _what(assessment: Assessment) -> str:
    contract = assessment.model.contract
    return (
        f"A Local Attention Network (Cho & Lee, IEEE Access 2022) on {contract.backbone}: an "
        f"aligned face of {contract.input_size} x {contract.input_size} pixels gives logits for "
        f"{len(contract.labels)} expressions ({', '.join(contract.labels)}), an attention map and "
        "the evidence for each class, on a 7 x 7 grid. The file's metadata says how to prepare "
        "the face."
    )


def _measured(assessment: Assessment, recipe: Recipe) -> str:
    contract = assessment.model.contract
    # The protocol without its last part, which says what was learnt from.
    protocol = contract.protocol.rpartition("; ")[0] or contract.protocol
    ours = (
        f"validation split of {contract.dataset} ({protocol}), faces found and aligned by the "
        "service's code"
    )
    if recipe.seen is None:
        return f"Measured on the exported file: {ours}."
    return (
        f"Measured on a twin: {ours}. The twin was trained by the same recipe on the training "
        "images alone, and the temperature is its own. The network in the file was trained on the "
        f"validation images too; that it gets {100 * recipe.seen:.2f}% of them right says only "
        "that nothing broke."
    )


def _accuracy(assessment: Assessment, recipe: Recipe) -> str:
    contract, evaluation = assessment.model.contract, assessment.evaluation
    rows = [
        f"| {s.name} | {s.images} | {100 * s.accuracy:.2f}% | {100 * s.mean_recall:.2f}% |"
        for s in slices(evaluation, assessment.angles)
    ]
    counts = np.bincount(evaluation.classes, minlength=len(contract.labels))
    recalls = [
        f"| {label} | {count} | {f'{100 * recall:.1f}%' if count else 'not measured'} |"
        for label, count, recall in zip(contract.labels, counts, evaluation.recalls(), strict=True)
    ]
    error = reliability(evaluation, contract.temperature).error
    lines = [
        f"{_measured(assessment, recipe)} The test split was not looked at; what was measured was "
        f"trained on no validation image{WITHOUT_TWINS.get(contract.dataset, '')}. Head pose is "
        "the larger of yaw and pitch, estimated from five landmarks.",
        "",
        "| slice | images | accuracy | mean recall |",
        "| --- | --- | --- | --- |",
        *rows,
        "",
        "| expression | images | recall |",
        "| --- | --- | --- |",
        *recalls,
        "",
        f"Confidence: expected calibration error {100 * error:.2f}% (15 bins) at temperature "
        f"{contract.temperature:.3f}, which was fitted on the same images; "
        f"{100 * cross_fitted_error(evaluation):.2f}% where each image's temperature was fitted "
        f"without it.{_doubt(contract.temperature)}",
        "",
        "```sh",
        f"python -m training evaluate --dataset {recipe.dataset} --data DATA --model MODEL.onnx",
        "```",
    ]
    return "\n".join(lines)


def _doubt(temperature: float) -> str:
    doubtful = doubt(temperature)
    return doubtful and f" Mind that {doubtful}."


def _training(assessment: Assessment, recipe: Recipe) -> str:
    contract, config, origin = assessment.model.contract, recipe.run.config, recipe.run.provenance
    sentences = (
        f"{origin['training_images']:,} images",
        f"{contract.protocol[0].upper()}{contract.protocol[1:]}",
        *_targets(config),
        f"Backbone from `{_backbone(origin)}`, {_trained(config, recipe.run.epoch)}",
        *_start(config, origin),
        *_guidance(config, origin),
        f"{config.optimizer} at a peak rate of {config.learning_rate:g}, batch "
        f"{config.batch_size}, warm-up and cosine over {config.epochs} epochs; the weights are the "
        f"exponential moving average after epoch {recipe.run.epoch}",
        *_averaging(origin),
        *_balance(recipe),
        *filter(None, [recipe.note]),
        "docs/retrain.md has the commands",
    )
    return ". ".join(sentences) + "."


def _guidance(config: TrainingConfig, origin: dict[str, Any]) -> list[str]:
    if config.fusion == "none":
        return ["The backbone alone, without attention"]
    fusion = f"Fusion {config.fusion}"
    if not config.alpha:
        return [f"{fusion}, without guidance (alpha 0)"]
    features = {
        "random": "backbone as it began, before any training on expressions",
        "": f"network that it started from (`{origin.get('start')}`)",
    }.get(
        origin["weights"],
        "pretrained face-recognition backbone, before any training on expressions",
    )
    return [
        f"Guidance maps: K-means on the features of the {features}; "
        f"alpha {config.alpha:g}; fusion {config.fusion}"
    ]


def _backbone(origin: dict[str, Any]) -> str:
    """Where the backbone comes from: a file of weights, or another network with its own."""
    return str(origin["weights"] or origin["start"])


def _averaging(origin: dict[str, Any]) -> list[str]:
    if not (other := origin.get("averaged_with")):
        return []
    return [f"Then each weight is the mean of the run's and that of `{other}`"]


def _balance(recipe: Recipe) -> list[str]:
    if not recipe.balance:
        return []
    return [
        f"Balanced: logits are lowered by {recipe.balance:g} times the log of the class's share of "
        "the training targets (Menon et al., ICLR 2021)"
    ]


def _targets(config: TrainingConfig) -> list[str]:
    targets = "the votes, where there are any" if config.soft_labels else "the majority class"
    told = [f"Targets: {targets}"]
    if not config.majority_only:
        told.append("Images whose votes have no majority are learnt from too")
    return told


def _trained(config: TrainingConfig, epoch: int) -> str:
    """What of the backbone had learnt up to the epoch that was exported."""
    layers = f"its layers before `{config.freeze_before}`"
    spans = []
    if config.freeze_epochs:
        spans.append(f"for the first {config.freeze_epochs} epochs")
    if 0 < config.freeze_from < epoch:
        spans.append(f"after epoch {config.freeze_from}")
    if not config.freeze_before or not spans:
        return "all of it trained"
    if config.freeze_epochs >= epoch:
        return f"trained but for {layers}, which stayed as they were"
    return f"all of it trained; {layers} were frozen {' and '.join(spans)}"


def _start(config: TrainingConfig, origin: dict[str, Any]) -> list[str]:
    told = []
    if start := origin.get("start"):
        told.append(f"The network went on from the best network of `{start}`")
    # Runs of earlier versions had one.
    if teachers := origin.get("teachers") or list(filter(None, [origin.get("teacher")])):
        mean = "mean answer" if len(teachers) > 1 else "answer"
        names = ", ".join(f"`{name}`" for name in teachers)
        told.append(
            f"Beside the labels it learnt from the {mean} of {names} "
            f"(weight {config.teacher_weight:g})"
        )
    if config.mixup:
        told.append(f"In {config.mixup:.0%} of the batches each image was blended with another one")
    if config.relu:
        told.append("All its PReLUs but the last became ReLUs, which were fitted to them first")
    return told


# Data sets whose loader keeps byte-identical copies of an image on one side.
WITHOUT_TWINS = dict.fromkeys(
    ("FERPlus", "own images"), " and on none that is byte for byte the same"
)
# What is known of the pictures that were learnt from, and who named the expressions.
PICTURES = {
    "FERPlus": (
        "48-pixel grey faces from a web search",
        "ten people would most likely call",
        (("images (FER2013)", "research"), ("labels (FER+)", "MIT")),
    )
}


def _licences(contract: ModelContract, recipe: Recipe) -> str:
    own = (f"images and labels ({contract.dataset})", "those of the data set")
    parts = PICTURES[contract.dataset][2] if contract.dataset in PICTURES else (own,)
    rows = [("this model", contract.licence)]
    weights = recipe.run.provenance["weights"]
    if not weights:
        rows.append((f"network that it started from ({recipe.run.provenance['start']})", "its own"))
    elif weights != "random":
        backbone = f"backbone weights ({weights})"
        rows.append((backbone, "their own; trained on MS-Celeb-1M: non-commercial research"))
    lines = [f"| {what} | {terms} |" for what, terms in (*rows, *parts)]
    return "\n".join(("## Licence", "", "| what | terms |", "| --- | --- |", *lines))


def _on_turned_heads(assessment: Assessment) -> str:
    """What the table says of them."""
    whole, *turned = slices(assessment.evaluation, assessment.angles)
    if not turned:
        return (
            f"No head here was turned by more than {POSE_DEGREES[0]} degrees: how much accuracy "
            "falls as heads turn was not measured."
        )
    if min(part.accuracy for part in turned) < whole.accuracy:
        return "Accuracy falls as heads turn; the table says how far."
    return f"Of turned heads there were {turned[0].images} alone: they may be harder than it seems."


def _intended_use(assessment: Assessment) -> str:
    contract = assessment.model.contract
    unknown = f"those of {contract.dataset}", "its labellers would most likely call", ()
    pictures, called, _ = PICTURES.get(contract.dataset, unknown)
    return f"""## Intended use

Research on facial expressions in photos, and tools whose users know what the numbers are.

- **An expression is no inner state.** The model says what {called} the
  face in a photo. What the person feels, means or is like, it cannot know.
- **European Union:** inferring emotions at work and in education is prohibited, medical and safety
  reasons apart (AI Act, article 5(1)(f)).
- Not for decisions about people.
- The training pictures are {pictures}; how ages, skin tones and cultures
  are represented in them is unknown, and so is how accuracy differs between them.
- Rare classes have few training images: read the recall table before you rely on one.
- {_on_turned_heads(assessment)}"""


def draw_figures(path: Path, assessment: Assessment) -> None:
    """Reliability diagram, confusion matrix and coverage curve, side by side, as a PNG."""
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    _draw_reliability(axes[0], assessment)
    _draw_confusion(axes[1], assessment)
    _draw_coverage(axes[2], assessment)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _draw_reliability(axes: Axes, assessment: Assessment) -> None:
    bins = reliability(assessment.evaluation, assessment.model.contract.temperature)
    used = bins.counts > 0
    axes.plot((0, 1), (0, 1), color="grey", linestyle="--", linewidth=1)
    axes.plot(bins.confidence[used], bins.accuracy[used], marker="o")
    axes.set(title="Reliability", xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))


def _draw_confusion(axes: Axes, assessment: Assessment) -> None:
    labels = assessment.model.contract.labels
    counts = assessment.evaluation.confusion()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*shares.shape):
        colour = "white" if shares[row, column] > 0.6 else "black"
        text = f"{100 * shares[row, column]:.0f}"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    ticks = range(len(labels))
    axes.set_xticks(ticks, labels, rotation=45, ha="right")
    axes.set_yticks(ticks, labels)
    axes.set(title="Confusion, % of each true class", xlabel="predicted", ylabel="true")


def _draw_coverage(axes: Axes, assessment: Assessment) -> None:
    coverage, accuracy = coverage_curve(
        assessment.evaluation, assessment.model.contract.temperature
    )
    axes.plot(coverage, accuracy)
    axes.set(
        title="Answering only the most confident",
        xlabel="share of faces answered",
        ylabel="accuracy",
        xlim=(0, 1),
        ylim=(min(0.8, float(accuracy.min())), 1),
    )
    axes.grid(visible=True, alpha=0.3)
