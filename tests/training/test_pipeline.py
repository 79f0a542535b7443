"""The whole path in miniature: FERPlus folders -> faces -> guidance -> run -> ONNX -> service."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from service.expression import ExpressionModel
from service.runtime import SessionSettings
from tests.training.made_up import DETECTOR, ROOT, grey_face, votes_for, write_ferplus, write_png
from training.assessment import assess
from training.augmentation import Augmentation
from training.backbones import CheckpointError, MobileFaceNet
from training.cli import main
from training.config import TrainingConfig
from training.datasets.ferplus import LABELS
from training.export import ExportError, ModelFacts
from training.pipeline import RunPaths, load_splits, require_sound
from training.rectifying import inner_prelus
from training.release import load_part, release, validation_crops
from training.runs import load_run
from training.trainer import BEST, CHECKPOINT, METRICS, TrainingError

CONFIG = TrainingConfig(
    epochs=2, batch_size=4, learning_rate=0.003, ema_decay=0.5, threads=1, fusion="concat"
)
TRAINING = (
    *("--epochs", "2", "--batch-size", "4", "--learning-rate", "0.003", "--ema-decay", "0.5"),
    *("--threads", "1", "--fusion", "concat"),
)


def varied_faces(count: int, seed: int) -> dict[str, NDArray[np.uint8]]:
    """Pictures of one face at several sizes, mirrored and in other light, by FERPlus's names."""
    rng = np.random.default_rng(seed)
    faces = {}
    for index in range(count):
        face = grey_face(int(rng.integers(62, 84)))[:, :: rng.choice((-1, 1))]
        light = face.astype(np.float32) * rng.uniform(0.6, 1.2) + rng.normal(0, 2, face.shape)
        faces[f"fer{index:07}.png"] = light.clip(0, 255).astype(np.uint8)
    return faces


@pytest.fixture(scope="module")
def ferplus_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 training images, a test twin and one that people disagree on; 6 images of validation."""
    root = tmp_path_factory.mktemp("ferplus")
    for split, count in (("train", 14), ("valid", 6)):
        faces = varied_faces(count, count)
        votes = {name: votes_for(index % 3, 7) for index, name in enumerate(faces)}
        for index, row in enumerate(votes.values()):
            row[(index + 1) % 3] += 3
        if split == "train":
            votes["fer0000013.png"] = [5, 5, *[0] * 8]
        write_ferplus(root, split, votes, faces)
    (root / "test_twins.txt").write_text("Train/fer0000012.png\n")
    return root


@dataclass(frozen=True)
class Workshop:
    """Where the commands of this module read and write."""

    data: Path
    detector: Path
    folder: Path

    @property
    def paths(self) -> RunPaths:
        run = self.folder / "run"
        return RunPaths(self.data, None, self.detector, self.folder / "cache", run)

    def call(self, command: str, *options: str) -> str:
        """Run one command that must succeed; what it printed."""
        shared = ("--data", self.data, "--detector", self.detector, "--cache", self.paths.cache)
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            assert main([command, *map(str, shared), *options]) == 0
        return output.getvalue()


@pytest.fixture(scope="module")
def workshop(
    ferplus_root: Path, detector_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Workshop:
    """A finished run."""
    shop = Workshop(ferplus_root, detector_path, tmp_path_factory.mktemp("workshop"))
    printed = shop.call("train", "--run", str(shop.paths.run), *TRAINING)
    assert "12 images: {'found': 12}" in printed
    assert "6 images: {'found': 6}" in printed
    return shop


def test_a_run_leaves_checkpoints_metrics_and_caches(workshop: Workshop) -> None:
    run, cache = workshop.paths.run, workshop.paths.cache
    assert {CHECKPOINT, BEST, METRICS} < {path.name for path in run.iterdir()}
    assert len((run / METRICS).read_text().splitlines()) == 2
    names = sorted(path.name for path in cache.iterdir())
    assert names[1:] == ["landmarks.jsonl"]
    assert names[0].startswith("guidance-")


def test_checkpoints_hold_plain_values_alone(workshop: Workshop) -> None:
    """So that they are read back without running code, by any version of torch."""
    state = torch.load(workshop.paths.run / CHECKPOINT, weights_only=True)
    provenance = state["provenance"]
    assert provenance["labels"] == list(LABELS)
    assert provenance["training_images"] == 12
    assert all(type(value) in (str, int, bool, list) for value in provenance.values())


def test_a_run_can_be_taken_up_again(workshop: Workshop) -> None:
    run = workshop.paths.run
    written = (run / CHECKPOINT).read_bytes()
    printed = workshop.call("train", "--run", str(run), *TRAINING, "--resume")
    assert "going on after epoch 2" in printed
    assert (run / CHECKPOINT).read_bytes() == written


def test_a_run_is_not_taken_up_with_other_data(
    workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(workshop.paths.run)
    with pytest.raises(AssertionError):
        workshop.call("train", "--run", run, *TRAINING, "--resume", "--final")
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: ")
    assert "made with other settings: protocol" in message


def test_export_gives_the_service_a_measured_model(workshop: Workshop) -> None:
    output = workshop.folder / "lan.onnx"
    told = workshop.call("export", "--run", str(workshop.paths.run), "--output", str(output))
    model = ExpressionModel.load(output, SessionSettings("cpu"))
    contract = model.contract
    assert contract.labels == LABELS
    assert (contract.fusion, contract.backbone, contract.dataset) == (
        "concat",
        "mobilefacenet",
        "FERPlus",
    )
    assert contract.run_id.startswith("run, epoch ")
    crops, angles = validation_crops(workshop.paths, contract.input_size)
    evaluation = assess(model, crops)
    assert len(angles) == len(evaluation.classes) == 6
    assert contract.validation_accuracy == pytest.approx(evaluation.accuracy, abs=1e-4)
    assert evaluation.accuracy > 0, "it learned at least which classes there are"
    assert f"\nall: {100 * evaluation.accuracy:.2f}% of 6" in told
    again = workshop.call("evaluate", "--model", str(output))
    assert again.strip() in told


def test_mirrored_answers_do_not_change_when_faces_are_mirrored(
    workshop: Workshop, tmp_path: Path
) -> None:
    output = tmp_path / "lan.onnx"
    workshop.call("export", "--run", str(workshop.paths.run), "--output", str(output))
    model = ExpressionModel.load(output, SessionSettings("cpu"))
    crops, _ = validation_crops(workshop.paths, model.contract.input_size)
    plain, both = assess(model, crops), assess(model, crops, mirrored=True)
    turned = [crops[i][0].permute(1, 2, 0).numpy()[:, ::-1].copy() for i in range(len(crops))]
    mirror = np.stack([reading.logits for reading in model.infer(turned)])
    np.testing.assert_allclose(both.logits, (plain.logits + mirror) / 2, atol=1e-4)
    told = workshop.call("evaluate", "--model", str(output), "--mirrored")
    assert f"\nall: {100 * both.accuracy:.2f}% of 6" in told


def test_the_best_network_is_what_is_exported(workshop: Workshop) -> None:
    trained = load_run(workshop.paths.run)
    assert trained.config == CONFIG
    state = torch.load(workshop.paths.run / BEST, weights_only=True)
    assert trained.epoch == state["epoch"]
    for name, value in trained.network.state_dict().items():
        assert torch.equal(value, state["average"][name])
    assert not trained.network.training


@pytest.mark.parametrize(("majority_only", "images"), [(True, 12), (False, 13)])
def test_splits_follow_the_configuration(
    workshop: Workshop, majority_only: bool, images: int
) -> None:
    config = TrainingConfig(majority_only=majority_only)
    train, validation = load_splits(config, workshop.paths, final=False)
    assert (len(train), len(validation)) == (images, 6)
    np.testing.assert_allclose(train.targets[0, :3], [0.7, 0.3, 0])


def test_hard_labels_and_final_training(workshop: Workshop) -> None:
    config = TrainingConfig(soft_labels=False)
    train, _ = load_splits(config, workshop.paths, final=True)
    assert len(train) == 18
    np.testing.assert_array_equal(train.targets, np.eye(8)[train.classes])


# --- other data sets ---------------------------------------------------------------------------


def test_own_images_from_folders_to_a_served_model(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The three commands on a folder a class, with names of one's own and a broken file."""
    data = tmp_path / "photos"
    for label, seed in (("bored", 1), ("keen", 2)):
        for name, face in varied_faces(5, seed).items():
            write_png(data / label / name, face)
    (data / "keen" / "broken.jpg").write_bytes(b"\xff\xd8\xff and no more")
    shop = Workshop(data, workshop.detector, tmp_path)
    own = ("--dataset", "folder")
    short = (*TRAINING[2:], "--epochs", "1", "--alpha", "0", "--balanced")
    printed = shop.call("train", "--run", str(shop.paths.run), *short, *own)
    assert "warning: no --start and no --weights: the network begins with random" in printed
    assert "'unreadable': 1" in printed
    last = printed.splitlines()[-1]
    assert last.startswith("best epoch 1, accuracy ")
    assert last.endswith(
        f"{shop.paths.run}/best.pt; next: python -m training export "
        f"--data {data} --run {shop.paths.run} --output models/run.onnx"
    )
    assert f"unreadable, left out: {data / 'keen' / 'broken.jpg'}\n" in printed
    output = tmp_path / "own.onnx"
    export = ("export", "--run", str(shop.paths.run), "--output", str(output))
    # The data set is the run's.
    printed = shop.call(*export)
    written = [output.with_suffix(suffix) for suffix in (".onnx", ".md", ".png")]
    assert printed.endswith(f"wrote {', '.join(map(str, written))}\n")
    assert "--split all" not in printed, "the run has learnt from the others"
    assert all(path.stat().st_size for path in written)
    contract = ExpressionModel.load(output, SessionSettings("cpu")).contract
    assert contract.labels == ("bored", "keen")
    assert contract.name == "lan-mobilefacenet-folder"
    assert contract.dataset == "own images"
    assert contract.licence.endswith("MS-Celeb-1M and from one's own images")
    told = shop.call("evaluate", "--model", str(output), "--split", "final", *own)
    assert "\nall: " in told
    assert "of 10, mean recall" in told
    assert "\nmeasured on 10 of 11 images, the training and validation splits\n" in told
    told = shop.call("evaluate", "--model", str(output), *own)
    assert "images, the validation split (a fifth of each class)\n" in told
    assert told.endswith("for a model that learnt from none of them\n")
    capsys.readouterr()
    with pytest.raises(AssertionError):
        workshop.call("evaluate", "--model", str(output))
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: the model does not know neutral, happiness,")
    assert message.endswith("its classes are bored, keen")


def test_an_export_is_replaced_when_asked_for(workshop: Workshop, tmp_path: Path) -> None:
    output = tmp_path / "lan.onnx"
    output.touch()
    export = ("export", "--run", str(workshop.paths.run), "--output", str(output), "--overwrite")
    workshop.call(*export)
    assert ExpressionModel.load(output, SessionSettings("cpu")).contract.labels == LABELS


def test_a_run_is_not_measured_on_another_data_set(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = ("export", "--run", str(workshop.paths.run), "--output", str(tmp_path / "lan.onnx"))
    with pytest.raises(AssertionError):
        workshop.call(*export, "--dataset", "folder")
    message = capsys.readouterr().err
    assert "the run learnt from --dataset ferplus, not folder; leave --dataset out" in message


def test_classes_are_matched_by_name(workshop: Workshop, tmp_path: Path) -> None:
    """In whatever order, and whether all of them occur or one alone."""
    output = tmp_path / "lan.onnx"
    workshop.call("export", "--run", str(workshop.paths.run), "--output", str(output))
    some = ("neutral", "happiness", "surprise")
    faces = varied_faces(6, 6)
    for index, (name, face) in enumerate(faces.items()):
        write_png(tmp_path / "ev" / "test" / some[index % 3] / name, face)
    shop = Workshop(tmp_path / "ev", workshop.detector, workshop.folder)
    own = ("evaluate", "--model", str(output), "--dataset", "folder")
    told = shop.call(*own)
    absent = ", ".join(LABELS[3:])
    assert "measured on 6 of 6 images, the test split\n" in told
    assert f"no image of {absent}: mean recall is over 3 of 8 classes" in told
    assert "nan" not in told
    # The same images, sorted by the data set's own names, as FERPlus's validation split has.
    official = workshop.call("evaluate", "--model", str(output))
    assert official.splitlines()[2:] == told.splitlines()[2:]
    (tmp_path / "ev" / "test").rename(tmp_path / "moved")
    shop = dataclasses.replace(shop, data=tmp_path / "moved")
    assert "measured on 6 of 6 images, whatever their split\n" in shop.call(*own, "--split", "all")


def test_every_image_is_asked_of_own_images_alone(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "lan.onnx"
    workshop.call("export", "--run", str(workshop.paths.run), "--output", str(output))
    with pytest.raises(AssertionError):
        workshop.call("evaluate", "--model", str(output), "--split", "all")
    assert "split all is of --dataset folder; ferplus has train" in capsys.readouterr().err


def test_a_list_of_difficult_images_is_measured_with_its_labels(
    workshop: Workshop, tmp_path: Path
) -> None:
    output = tmp_path / "lan.onnx"
    workshop.call("export", "--run", str(workshop.paths.run), "--output", str(output))
    names = tmp_path / "pose_30_ferplus_list.txt"
    names.write_text("0/fer0000000.jpg\n3/fer0000001.jpg\n0/fer0009999.jpg\n")
    told = workshop.call("evaluate", "--model", str(output), "--list", str(names))
    assert (
        "pose_30_ferplus_list.txt: 2 of 3 listed images found; "
        "1 have another label in the data set; measured against the list's labels\n"
    ) in told
    assert "% of 2, mean recall" in told


# --- mistakes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("train", ("--run", "{tmp}/run"), "FER2013Valid/label.csv: no such file"),
        ("export", ("--run", "{tmp}/run", "--output", "{tmp}/x.onnx"), "best.pt: no such file"),
        ("evaluate", ("--model", "{tmp}/x.onnx"), "x.onnx: cannot read the model file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    options: tuple[str, ...],
    message: str,
) -> None:
    filled = [option.format(tmp=tmp_path) for option in options]
    assert main([command, "--data", str(tmp_path), *filled]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_run_starts_from_another_runs_network(workshop: Workshop, tmp_path: Path) -> None:
    first, second = workshop.paths.run, tmp_path / "second"
    options = [*TRAINING, "--epochs", "1", "--learning-rate", "0", "--ema-decay", "0"]
    workshop.call("train", "--run", str(second), *options, "--start", str(first))
    start, run = load_run(first), load_run(second)
    assert run.provenance["start"] == "run"
    for (name, own), (_, theirs) in zip(
        run.network.named_parameters(), start.network.named_parameters(), strict=True
    ):
        assert torch.equal(own, theirs), name


def test_a_run_starts_from_an_exported_file(workshop: Workshop, tmp_path: Path) -> None:
    exported, second = tmp_path / "first.onnx", tmp_path / "second"
    workshop.call("export", "--run", str(workshop.paths.run), "--output", str(exported))
    options = [*TRAINING, "--epochs", "1", "--learning-rate", "0", "--ema-decay", "1"]
    workshop.call("train", "--run", str(second), *options, "--start", str(exported))
    start, run = load_run(workshop.paths.run), load_run(second)
    # No backbone weights were given: they came with the start, and so did the guidance.
    assert (run.provenance["start"], run.provenance["weights"]) == ("first.onnx", "")
    images = torch.randn(3, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = run.network(images).logits - start.network(images).logits
    assert difference.abs().max() < 1e-3


def test_a_run_may_go_on_with_relus(workshop: Workshop, tmp_path: Path) -> None:
    exported, third = tmp_path / "first.onnx", tmp_path / "third"
    workshop.call("export", "--run", str(workshop.paths.run), "--output", str(exported))
    options = [*TRAINING, "--epochs", "1", "--relu", "--teacher", str(exported)]
    workshop.call("train", "--run", str(third), *options, "--start", str(exported))
    backbone = load_run(third).network.backbone
    assert isinstance(backbone, MobileFaceNet)
    assert not any(bool(prelu.weight.any()) for prelu in inner_prelus(backbone))
    output = tmp_path / "relu.onnx"
    workshop.call("export", "--run", str(third), "--output", str(output))
    slopes = [i.name for i in onnx.load(output).graph.initializer if i.name.endswith(".slope")]
    assert len(slopes) == 1, "the last PReLU keeps its own"
    assert "became ReLUs, which were fitted to them" in output.with_suffix(".md").read_text()


def test_a_start_with_the_classes_in_another_order_keeps_its_classifier(
    workshop: Workshop, tmp_path: Path
) -> None:
    """One's own folders are in alphabetical order; the teacher's classes are matched likewise."""
    for index, label in enumerate(LABELS):
        for name, face in varied_faces(2, index).items():
            write_png(tmp_path / "photos" / label / name, face)
    shop = dataclasses.replace(workshop, data=tmp_path / "photos")
    options = [*TRAINING, "--dataset", "folder", "--epochs", "1", "--learning-rate", "0"]
    start = str(workshop.paths.run)
    run = tmp_path / "own"
    printed = shop.call("train", "--run", str(run), *options, "--start", start, "--teacher", start)
    assert "begins anew" not in printed
    assert "warning: " not in printed
    own, theirs = load_run(run), load_run(workshop.paths.run)
    labels = own.provenance["labels"]
    assert labels == sorted(LABELS)
    rows = [LABELS.index(name) for name in labels]
    assert torch.equal(own.network.classifier.weight, theirs.network.classifier.weight[rows])
    assert torch.equal(own.network.classifier.bias, theirs.network.classifier.bias[rows])


SHIPPED = ROOT / "models" / "lan_mobilefacenet_ferplus.int8.onnx"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--start", "{tmp}/none.onnx"), "none.onnx: no such file"),
        (("--start", "{tmp}/photo.jpg"), "photo.jpg: not an ONNX file"),
        (("--start", str(DETECTOR)), "no model of this package"),
        (("--start", str(SHIPPED)), "is the 8-bit file; name the float32 one"),
        (("--start", "{tmp}"), "best.pt: no such file"),
        (("--teacher", str(SHIPPED)), "is the 8-bit file"),
        (("--weights", "{tmp}/photo.jpg"), "not a safetensors file"),
        (("--weights", "{tmp}"), "no such file (backbone weights"),
        (
            ("--freeze-before", "layer9", "--freeze-epochs", "1"),
            "freeze_before 'layer9' is unknown",
        ),
    ],
)
def test_what_cannot_be_begun_with_is_refused_before_faces_are_looked_for(
    workshop: Workshop,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    write_png(tmp_path / "photo.png", grey_face()).rename(tmp_path / "photo.jpg")
    # There is no detector either, which is only seen by the search.
    shop = dataclasses.replace(workshop, detector=tmp_path / "nowhere.onnx")
    filled = [option.format(tmp=tmp_path) for option in options]
    with pytest.raises(AssertionError):
        shop.call("train", "--run", str(tmp_path / "run"), *filled)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_of_a_start_that_knows_other_classes_all_but_the_classifier_is_kept(
    workshop: Workshop, tmp_path: Path
) -> None:
    for label in ("calm", "lively"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for name, face in varied_faces(5, len(label)).items():
            write_png(tmp_path / "photos" / label / name, face)
    shop = dataclasses.replace(workshop, data=tmp_path / "photos")
    options = [*TRAINING, "--dataset", "folder", "--epochs", "1", "--learning-rate", "0"]
    run = tmp_path / "own"
    start = str(workshop.paths.run)
    printed = shop.call("train", "--run", str(run), *options, "--start", start)
    assert "knows neutral, happiness" in printed
    own, theirs = load_run(run).network, load_run(workshop.paths.run).network
    assert own.classifier.out_features == 2
    kept = zip(own.backbone.parameters(), theirs.backbone.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in kept)


def test_a_run_learns_from_another_runs_network(workshop: Workshop, tmp_path: Path) -> None:
    first, second = workshop.paths.run, tmp_path / "second"
    options = [*TRAINING, "--epochs", "1", "--teacher", str(first), "--teacher-weight", "0.5"]
    workshop.call("train", "--run", str(second), *options)
    run = load_run(second)
    assert run.provenance["teachers"] == ["run"]
    assert run.config.teacher_weight == 0.5


def test_teachers_may_be_of_another_kind(workshop: Workshop, tmp_path: Path) -> None:
    second, third = tmp_path / "second", tmp_path / "third"
    options = [*TRAINING, "--epochs", "1"]
    workshop.call("train", "--run", str(second), *options, "--fusion", "mean")
    teachers = ("--teacher", str(workshop.paths.run), str(second))
    workshop.call("train", "--run", str(third), *options, *teachers, "--mixup", "0.5")
    assert load_run(third).provenance["teachers"] == ["run", "second"]
    output = tmp_path / "third.onnx"
    workshop.call("export", "--run", str(third), "--output", str(output))
    assert "the mean answer of `run`, `second` (weight 1)" in output.with_suffix(".md").read_text()


def test_a_final_run_is_measured_by_its_twin(workshop: Workshop, tmp_path: Path) -> None:
    """It has seen the validation images: another run's figures go into its contract."""
    final, output = tmp_path / "final", tmp_path / "lan.onnx"
    workshop.call("train", "--run", str(final), *TRAINING, "--final")
    export = ("export", "--run", str(final), "--output", str(output))
    told = workshop.call(*export, "--measured-by", str(workshop.paths.run))
    plain, facts = tmp_path / "plain.onnx", ModelFacts("twin", "run", "none")
    last = load_run(workshop.paths.run, after=2)
    assert f"\n{release(last, workshop.paths, plain, facts)}\nwrote " in told
    own, twin = (ExpressionModel.load(p, SessionSettings("cpu")) for p in (output, plain))
    assert own.contract.temperature == twin.contract.temperature
    assert own.contract.validation_accuracy == twin.contract.validation_accuracy
    assert own.contract.protocol.endswith("training + validation")
    assert own.sha256 != twin.sha256
    card = output.with_suffix(".md").read_text()
    assert "Measured on a twin: " in card
    assert "right says only that nothing broke" in card
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("lan")) == [
        "lan.md",
        "lan.onnx",
        "lan.png",
    ]


def test_a_twin_is_of_the_same_epoch(workshop: Workshop, tmp_path: Path) -> None:
    final = tmp_path / "final"
    workshop.call("train", "--run", str(final), *TRAINING, "--epochs", "3", "--final")
    with pytest.raises(CheckpointError, match="none of epoch 3"):
        load_run(workshop.paths.run, after=load_run(final).epoch)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixup": 33}, "mixup is 33; expected a probability"),
        ({"teacher_weight": -1}, "teacher_weight is -1"),
        ({"relu": True, "backbone": "resnet18"}, "works with the mobilefacenet backbone only"),
        ({"relu": True, "freeze_before": "dconv_34", "freeze_epochs": 1}, "freeze layers after"),
        ({"relu": True, "freeze_before": "dconv_34", "freeze_from": 2}, "freeze layers after"),
        ({"alpha": 2}, "expected 0 \\(no guidance\\) to 1"),
        ({"fusion": "none"}, "set alpha to 0"),
        ({"augmentation": Augmentation(turn_degrees=60)}, "turn_degrees is 60"),
        ({"clusters": 1}, "two or more are needed"),
        ({"freeze_before": "dconv_34"}, "one without the other freezes nothing"),
        ({"freeze_epochs": 1}, "one without the other freezes nothing"),
    ],
)
def test_choices_that_contradict_each_other_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        require_sound(dataclasses.replace(TrainingConfig(), **changes))


def test_a_note_is_in_the_card(workshop: Workshop, tmp_path: Path) -> None:
    export = ("export", "--run", str(workshop.paths.run), "--output", str(tmp_path / "lan.onnx"))
    workshop.call(*export, "--note", "Trained on a Tuesday")
    assert ". Trained on a Tuesday. docs/retrain.md has" in (tmp_path / "lan.md").read_text()


def test_a_balanced_export_says_so(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = ("export", "--run", str(workshop.paths.run), "--output")
    plain, output = tmp_path / "plain.onnx", tmp_path / "balanced.onnx"
    workshop.call(*export, str(plain))
    workshop.call(*export, str(output), "--balance", "0.5")
    before, after = (ExpressionModel.load(p, SessionSettings("cpu")) for p in (plain, output))
    train = load_part(workshop.paths, "train")
    raised = np.subtract(after.contract.bias, before.contract.bias)
    assert np.allclose(raised, -0.5 * np.log(train.targets.mean(0).clip(1 / len(train))), atol=1e-4)
    assert "Balanced: logits are lowered by 0.5 times" in output.with_suffix(".md").read_text()
    assert "Balanced" not in plain.with_suffix(".md").read_text()
    with pytest.raises(SystemExit):
        workshop.call(*export, str(output), "--balance", "2")
    assert "2 is not between 0 and 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("finals", "changes", "message"),
    [
        ((True, None), {}, "name the run of the same configuration"),
        ((False, False), {}, "is for a --final run"),
        ((True, True), {}, "is for a --final run"),
        ((True, False), {"alpha": 0.1}, "different configurations: alpha"),
    ],
)
def test_a_twin_that_is_none_is_refused(
    workshop: Workshop,
    tmp_path: Path,
    finals: tuple[bool, bool | None],
    changes: dict[str, Any],
    message: str,
) -> None:
    trained = load_run(workshop.paths.run)
    run = dataclasses.replace(trained, provenance={**trained.provenance, "final": finals[0]})
    twin = None
    if finals[1] is not None:
        twin = dataclasses.replace(
            trained,
            config=dataclasses.replace(trained.config, **changes),
            provenance={**trained.provenance, "final": finals[1]},
        )
    facts = ModelFacts("name", "run", "none")
    with pytest.raises(ExportError, match=message):
        release(run, workshop.paths, tmp_path / "lan.onnx", facts, twin=twin)
    assert not list(tmp_path.iterdir())
