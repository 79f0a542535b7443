"""The paper's tables and figures on made-up answers, of which the truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from service.expression import ExpressionModel, Reading
from tests.training.made_up import (
    DETECTOR,
    astronaut,
    enliven,
    grey_face,
    tiny_lan,
    votes_for,
    write_ferplus,
    write_png,
)
from training.backbones import load_backbone
from training.cli import main
from training.config import TrainingConfig
from training.datasets.ferplus import LABELS
from training.evaluation import Evaluation
from training.lan import Lan
from training.paper import ablation, cams, faithfulness, figures, guidance_study, tables
from training.paper.scores import Facts, Scores
from training.pipeline import RunPaths
from training.runs import TrainedRun, load_run
from training.trainer import BEST

UInt8 = NDArray[np.uint8]
# What a picture may weigh in a repository.
MOST_BYTES = 150_000


def made_up_scores(dataset: str = "ferplus", count: int = 40, *, listed: str = "") -> Scores:
    """Answers of which the first half is right; every second head is turned by 40 degrees."""
    classes = np.arange(count) % len(LABELS)
    logits = np.eye(len(LABELS), dtype=np.float32)[classes]
    logits[count // 2 :] = np.roll(logits[count // 2 :], 1, axis=1)
    yaw = np.where(np.arange(count) % 2, 40.0, 5.0)
    yaw[0] = np.nan
    facts = Facts("made-up", "0" * 64, "add", "tiny", LABELS, dataset, "test", 0, listed, "")
    paths = tuple(f"fer{index:07}.png" for index in range(count))
    return Scores(facts, Evaluation(logits, classes), yaw, np.zeros(count), paths)


# --- scores and tables -------------------------------------------------------------------------


def test_scores_come_back_as_they_were_stored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = made_up_scores()
    scores.save(tmp_path)
    again = Scores.load(tmp_path)
    assert (again.facts, again.paths) == (scores.facts, scores.paths)
    np.testing.assert_array_equal(again.evaluation.logits, scores.evaluation.logits)
    np.testing.assert_array_equal(again.yaw, scores.yaw)
    missing = ["paper", "table", "pose", "--scores", str(tmp_path / "none")]
    assert main(missing) == 1
    assert "paper score` writes it" in capsys.readouterr().err


def test_the_tables_stand_beside_the_papers_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made_up_scores().save(tmp_path / "whole")
    made_up_scores(listed="pose_45.txt").save(tmp_path / "listed")
    folders = [str(tmp_path / name) for name in ("whole", "listed")]
    assert main(["paper", "table", "accuracy", "--scores", *folders]) == 0
    assert "| 40 | 50.00 | 50.00 | 88.45 |" in capsys.readouterr().out
    assert main(["paper", "table", "pose", "--scores", *folders]) == 0
    pose = capsys.readouterr().out
    assert "head pose over 30 degrees | 20 | 50.00 | 87.18 |" in pose
    assert "pose_45.txt:  | 40 | 50.00 | 85.31 |" in pose
    assert "over 45 degrees" not in pose, "no head is turned that far"


def test_kdef_is_the_mean_of_its_folds_by_protocol() -> None:
    folds = [made_up_scores("kdef-images", count) for count in (16, 24)]
    table = tables.kdef_table([*folds, made_up_scores("kdef")])
    assert (
        "| folds by images (people recur in the test) | 1 of 10 | 50.00 ± 0.00 | 95.39 |" in table
    )
    assert "| folds by person | 1 of 10 | 50.00 ± 0.00 | - |" in table


def test_the_ablations_tables_have_mean_and_spread() -> None:
    rows = [
        {"variant": "baseline", "seed": seed, "accuracy": a, "mean_recall": 0.5, "over_30": 0.25}
        for seed, a in enumerate((0.6, 0.8))
    ]
    table = tables.ablation_table(rows, tables.METHODS)
    assert "| backbone alone | 2 | 70.00 ± 10.00 | 50.00 ± 0.00 | 25.00 ± 0.00 | nan" in table
    assert main(["paper", "table", "fusion"]) == 1


# --- guidance ----------------------------------------------------------------------------------


def test_a_bit_that_follows_pose_is_found_and_one_that_does_not_is_not() -> None:
    rng = np.random.default_rng(0)
    yaw = rng.uniform(-60, 60, 2000)
    maps = rng.integers(0, 2, (2000, 7, 7), np.uint8)
    maps[:, 2, 3] = np.abs(yaw) > 30
    maps[:, 4, 0] = yaw > 0
    yaw[:5] = np.nan
    classes = rng.integers(0, 3, 2000)
    study = guidance_study.study_pose(maps, yaw, classes, ("a", "b", "c"))
    assert study.images == 1995
    assert study.turned[2, 3] == 1
    assert study.side[4, 0] == 1
    others = np.delete(study.turned.reshape(-1), 2 * 7 + 3)
    assert np.abs(others - 0.5).max() < 0.06
    assert study.turned_by_map > 0.99
    assert study.side_by_map > 0.99
    assert all(abs(auc - 0.5) < 0.1 for auc in study.classes_by_map.values())
    information, chance = guidance_study.yaw_information(maps, yaw)
    assert information[2, 3] == pytest.approx(1, abs=0.02)
    assert information[0, 0] < 0.01
    assert chance < 0.01
    report = guidance_study.pose_report("Made up", study)
    assert "best position (row 2, column 3): turned | 1.000" in report


def test_maps_by_bucket_of_yaw() -> None:
    yaw = np.array([-40.0, -20, 0, 5, 20, np.nan])
    maps = np.arange(6)[:, None, None] * np.ones((6, 7, 7))
    means, counts = guidance_study.by_bucket(maps, yaw)
    assert counts.tolist() == [1, 1, 2, 1, 0]
    assert means[:4, 0, 0].tolist() == [0, 1, 2.5, 4]
    assert np.isnan(means[4]).all()


# --- faithfulness ------------------------------------------------------------------------------


class OneCell:
    """Answers class 0 as sure as one cell of the crop is white; attention is on it or not."""

    def __init__(self, attended: int) -> None:
        self.attended = attended

    def infer(self, crops: Sequence[UInt8]) -> list[Reading]:
        return [self._read(crop) for crop in crops]

    def _read(self, crop: UInt8) -> Reading:
        sure = float(crop[16:32, 32:48].mean()) / 255
        attention = np.zeros((7, 7), np.float32)
        attention.flat[self.attended] = 1
        evidence = np.stack((attention, -attention))
        probabilities = np.array([sure, 1 - sure], np.float32)
        return Reading(probabilities, probabilities, attention, evidence)


def white_cell(count: int) -> list[UInt8]:
    """Crops [112,112,3] of noise with the cell (1, 2) white."""
    crops = np.random.default_rng(0).integers(0, 90, (count, 112, 112, 3), np.uint8)
    crops[:, 16:32, 32:48] = 255
    return list(crops)


@pytest.mark.parametrize(("attended", "verdict"), [(9, "more faithful"), (48, "less faithful")])
def test_curves_tell_a_faithful_map_from_one_that_is_not(attended: int, verdict: str) -> None:
    model = cast(ExpressionModel, OneCell(attended))
    # The order of equal values: from the upper left; cell 9 is the tenth, or the eleventh.
    curves = faithfulness.measure_curves(model, white_cell(30), fill="mean")
    assert curves.shares[0] == 0
    assert curves.shares[-1] == 1
    for name in faithfulness.ORDERS:
        np.testing.assert_allclose(curves.deletion[name][:, 0], 1)
        np.testing.assert_allclose(curves.insertion[name][:, -1], 1)
    found = {(c.kind, c.order, c.against): c for c in faithfulness.compare_orders(curves)}
    if verdict == "more faithful":
        for kind in ("deletion", "insertion"):
            assert found[kind, "attention", "random"].verdict == verdict
            assert found[kind, "evidence", "centre"].verdict == verdict
    else:
        area = curves.areas("deletion")
        assert area["attention"].mean() > 0.1, "its cell is not the first to go"
    assert "| deletion | attention | random |" in faithfulness.faithfulness_report(curves)


def test_masks_cover_the_cells_they_name() -> None:
    crop, other = np.zeros((112, 112, 3), np.uint8), np.full((112, 112, 3), 9, np.uint8)
    masked = faithfulness.masked(crop, other, np.array([0, 48]), 7)
    assert (masked[:16, :16] == 9).all()
    assert (masked[96:, 96:] == 9).all()
    assert masked.sum() == 2 * 16 * 16 * 3 * 9
    blurred = faithfulness.filling(white_cell(1)[0], "blur")
    assert blurred.shape == (112, 112, 3)
    assert np.ptp(blurred) < 255


# --- figures -----------------------------------------------------------------------------------


def a_run(fusion: str) -> TrainedRun:
    network = enliven(tiny_lan(8, fusion=fusion))
    config = TrainingConfig(fusion=fusion)  # type: ignore[arg-type]
    return TrainedRun(network, config, {"labels": list(LABELS)}, 1)


@pytest.mark.parametrize("fusion", ["add", "concat", "mean", "none"])
def test_activation_maps_add_up_to_the_logit(fusion: str, tmp_path: Path) -> None:
    run = a_run(fusion)
    photo = write_png(tmp_path / "astronaut.png", astronaut())
    (crop,) = cams.largest_faces([photo], DETECTOR, 28)
    (maps,) = cams.activation_maps(run, [crop])
    with torch.no_grad():
        image = torch.from_numpy(crop).permute(2, 0, 1)[None]
        logits = run.network((image.float() - 127.5) / 128).logits[0]
    answer = int(logits.argmax())
    assert maps.label == LABELS[answer]
    bias = run.network.classifier.bias[answer].item()
    assert maps.f.mean() + bias == pytest.approx(logits[answer].item(), abs=1e-4)
    assert maps.f_a.any() == (fusion != "none")


def test_every_figure_is_drawn_and_small(tmp_path: Path) -> None:
    crop = np.asarray(astronaut()[60:172, 170:282])
    maps = cams.activation_maps(a_run("add"), [crop[:28, :28]])
    figures.draw_activation_maps(tmp_path / "cams.png", maps, maps)
    figures.draw_activation_maps(tmp_path / "cams_alone.png", maps, None)
    scores = made_up_scores()
    figures.draw_confusions(tmp_path / "confusion.png", [("all", scores.evaluation)], LABELS)
    chosen = scores.examples(4)
    assert len(chosen) == 8
    assert (scores.evaluation.predicted[chosen[:4]] == scores.evaluation.classes[chosen[:4]]).all()
    figures.draw_examples(tmp_path / "examples.png", scores, [crop] * 8, chosen)
    points = [(0.0, np.array([0.7, 0.71])), (0.5, np.array([0.72, 0.73]))]
    figures.draw_alpha(tmp_path / "alpha.png", points, np.array([0.69]))
    model = cast(ExpressionModel, OneCell(9))
    figures.draw_curves(tmp_path / "curves.png", faithfulness.measure_curves(model, white_cell(2)))
    rng = np.random.default_rng(0)
    bits, yaw = rng.integers(0, 2, (60, 7, 7)), rng.uniform(-60, 60, 60)
    study = guidance_study.study_pose(bits, yaw, np.zeros(60, np.int64), ("a",))
    figures.draw_pose_study(tmp_path / "pose.png", [("bits", study, bits.mean(0))])
    sizes = {path.name: path.stat().st_size for path in tmp_path.glob("*.png")}
    assert len(sizes) == 7
    assert all(1000 < size < MOST_BYTES for size in sizes.values()), sizes


# --- the ablation ------------------------------------------------------------------------------


def test_the_ablation_trains_heads_that_are_runs_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, count in (("train", 8), ("valid", 4)):
        names = [f"fer{index:07}.png" for index in range(count)]
        votes = {name: votes_for(index % 3) for index, name in enumerate(names)}
        faces = {name: grey_face(62 + 2 * index) for index, name in enumerate(names)}
        write_ferplus(tmp_path / "data", split, votes, faces)
    paths = RunPaths(tmp_path / "data", None, DETECTOR, tmp_path / "cache", tmp_path / "out")
    plan = ablation.Plan(images=0, epochs=1, seeds=1)
    chosen = [v for v in ablation.VARIANTS if v.name in ("baseline", "alpha-0.5")]
    rows = ablation.run_ablation(paths, "mobilefacenet", plan, chosen[:1])
    assert [row["variant"] for row in rows] == ["baseline"]
    rows = ablation.run_ablation(paths, "mobilefacenet", plan, chosen)
    assert [row["variant"] for row in rows] == ["baseline", "alpha-0.5"]
    assert all(0 <= row["accuracy"] <= 1 for row in rows)
    run = load_run(tmp_path / "out" / "alpha-0.5-seed0")
    assert run.provenance["protocol"].endswith("head alone trained")
    assert (tmp_path / "out" / "baseline-seed0" / BEST).is_file()
    capsys.readouterr()
    folder, picture = str(tmp_path / "out"), str(tmp_path / "alpha.png")
    assert main(["paper", "alpha", "--ablation", folder, "--output", picture]) == 0
    assert main(["paper", "table", "methods", "--ablation", folder]) == 0
    assert "| backbone alone | 1 |" in capsys.readouterr().out


def test_only_the_head_learns() -> None:
    torch.manual_seed(0)
    network = Lan(load_backbone("mobilefacenet", None), 3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    rng = np.random.default_rng(0)
    features = rng.normal(size=(16, 7, 7, 512)).astype(np.float16)
    classes = np.arange(16) % 3
    cached = ablation.Cached(features, np.eye(3, dtype=np.float32)[classes], classes, np.zeros(16))
    config = TrainingConfig(epochs=1, batch_size=8, ema_decay=0.0)
    after = ablation.train_head(network, cached, None, config).state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved
    assert not [name for name in moved if name.startswith("backbone.")]
