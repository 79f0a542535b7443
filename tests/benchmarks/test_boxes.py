"""A detector's report: boxes matched with faces, by height; annotated sets read or refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from benchmarks.annotations import AnnotationError, annotated_scenes, read_annotations
from benchmarks.boxes import Report, composed_scenes, main
from benchmarks.recall import HEIGHTS

# Of the portrait's face, by hand.
FACE = (176.0, 55.0, 275.0, 182.0)


@pytest.fixture
def photos(tmp_path: Path, portrait: NDArray[np.uint8]) -> Path:
    """A folder with a photo of one face and one without any."""
    Image.fromarray(portrait).save(tmp_path / "face.png")
    Image.fromarray(np.full((120, 160, 3), 90, np.uint8)).save(tmp_path / "wall.png")
    return tmp_path


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def square(x: float, y: float, side: float) -> list[float]:
    return [x, y, x + side, y + side]


def boxes_of(*boxes: list[float]) -> NDArray[np.float64]:
    return np.array(boxes, np.float64).reshape(-1, 4)


# --- the report --------------------------------------------------------------------------------


def test_a_face_takes_one_box_and_a_box_one_face() -> None:
    report = Report()
    twice = boxes_of(square(0, 0, 40), square(2, 0, 40), square(500, 0, 200))
    report.add(boxes_of(square(0, 0, 40), square(100, 100, 20)), twice)
    rows = report.rows()
    assert (rows["32 to 64"].faces, rows["32 to 64"].found, rows["32 to 64"].false) == (1, 1, 1)
    assert (rows["16 to 32"].faces, rows["16 to 32"].found) == (1, 0)
    assert (rows["128 and more"].faces, rows["128 and more"].false) == (0, 1)
    assert (rows["all"].faces, rows["all"].found, rows["all"].false) == (2, 1, 2)
    assert rows["all"].mean_iou == 1, "the better of two boxes"


def test_half_of_the_union_is_enough_and_less_is_not() -> None:
    for width, found in ((20, 1), (19, 0)):
        report = Report()
        report.add(boxes_of([0, 0, 40, 40]), boxes_of([0, 0, width, 40]))
        everything = report.rows()["all"]
        assert (everything.found, everything.false) == (found, 1 - found)


def test_neighbours_are_matched_so_that_both_are_found() -> None:
    """The left box overlaps both faces, the right face a little more than its own."""
    report = Report()
    faces = boxes_of([0, 0, 100, 100], [30, 0, 130, 100])
    report.add(faces, boxes_of([16, 0, 116, 100], [40, 0, 140, 100]))
    assert report.rows()["all"].found == 2


def test_photos_without_faces_or_boxes_count() -> None:
    report = Report()
    report.add(boxes_of(), boxes_of())
    report.add(boxes_of(), boxes_of(square(0, 0, 10)))
    report.add(boxes_of(square(0, 0, 16)), boxes_of())
    assert report.photos == 3
    assert "| 0 to 16 | 0 | 0 (-) | - | 1 |" in report.text()
    assert "| 16 to 32 | 1 | 0 (0.0%) | - | 0 |" in report.text()
    json.dumps(report.as_dict(), allow_nan=False)


def test_composed_photos_hold_the_heights_they_are_drawn_for() -> None:
    first = next(composed_scenes(1, "1080p"))
    np.testing.assert_allclose(first.boxes[:, 3] - first.boxes[:, 1], HEIGHTS[0])


# --- the command -------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_the_service_finds_the_annotated_face(
    photos: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    corners = ",".join(map(str, FACE))
    lines = {
        "csv": ("path,x1,y1,x2,y2", f"face.png,{corners}", "wall.png,,,,"),
        "jsonl": (
            json.dumps({"path": "face.png", "boxes": [FACE]}),
            "",
            json.dumps({"path": "wall.png", "boxes": []}),
        ),
    }
    faces = written(photos, f"faces.{form}", "\n".join(lines[form]))
    assert main(["--faces", str(faces), "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out).values()
    assert answer["photos"] == 2
    everything = answer["heights"]["all"]
    assert (everything["faces"], everything["found"], everything["false"]) == (1, 1, 0)
    assert everything["mean_iou"] > 0.7
    assert answer["heights"]["64 to 128"]["found"] == 1


def test_composed_photos_are_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--photos", "1", "--size", "640x480"]) == 0
    printed = capsys.readouterr().out
    assert "retinaface_mnet025.onnx, 8 photos" in printed
    assert "| 64 to 128 | 24 | 24 (100.0%) |" in printed
    assert "| all | 96 |" in printed


def test_what_is_no_detector_is_one_line(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--detector", str(photos / "face.png")]) == 1
    assert capsys.readouterr().err.startswith("error: ")


# --- annotated sets ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("faces.txt", "face.png 1 2 3 4", r"expected a \.csv file with the columns path,x1"),
        ("faces.csv", "path,x1,y1\nface.png,1,2", r"no column x2, y2"),
        ("faces.csv", "path,x1,y1,x2,y2\nface.png,1,2,3", r"line 2: the box is .*expected four"),
        ("faces.csv", "path,x1,y1,x2,y2\nface.png,1,2,a,4", r"line 2: the box is"),
        ("faces.csv", "path,x1,y1,x2,y2\nface.png,9,2,3,4", r"with x1 < x2 and y1 < y2"),
        ("faces.csv", "path,x1,y1,x2,y2\nface.png,1,2,nan,4", r"line 2: the box is"),
        ("faces.csv", "path,x1,y1,x2,y2\n,1,2,3,4", r"line 2: no path"),
        ("faces.csv", "path,x1,y1,x2,y2\n", r"names no image"),
        ("faces.csv", "path,x1,y1,x2,y2\nb.png,1,2,3,4", r"b\.png is not there \(1 of 1 images"),
        ("faces.jsonl", '{"path": "face.png"}', r"line 1: expected"),
        ("faces.jsonl", '\n{"path": "face.png", "boxes": [1, 2]}', r"line 2: the box is 1;"),
        ("faces.jsonl", '{"path": 3, "boxes": []}', r"line 1: no path"),
        ("faces.jsonl", "[1", r"line 1: expected"),
    ],
)
def test_bad_annotations_are_named(photos: Path, name: str, text: str, problem: str) -> None:
    with pytest.raises(AnnotationError, match=problem):
        read_annotations(written(photos, name, text))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"absent\.csv: cannot be read"):
        read_annotations(tmp_path / "absent.csv")


def test_boxes_are_cut_at_the_photo_and_refused_outside(photos: Path) -> None:
    (scene,) = annotated_scenes({photos / "wall.png": boxes_of([-5, 100, 40, 140])})
    np.testing.assert_array_equal(scene.boxes, [[0, 100, 40, 120]])
    with pytest.raises(AnnotationError, match=r"wall\.png: a box lies outside its 160 x 120"):
        list(annotated_scenes({photos / "wall.png": boxes_of([160, 0, 170, 10])}))


def test_an_image_that_cannot_be_read_is_named(photos: Path) -> None:
    broken = written(photos, "broken.png", "no image")
    with pytest.raises(AnnotationError, match=r"broken\.png: The bytes are no JPEG"):
        list(annotated_scenes({broken: boxes_of()}))
