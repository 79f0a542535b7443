"""Preparation with the real detector on real face pictures: results, resumption, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from service.faces.alignment import ARCFACE_TEMPLATE, similarity_transform
from service.faces.detector import FaceDetector
from service.faces.face import Face
from service.faces.looks import Search
from service.runtime import SessionSettings
from tests.training.made_up import (
    FacePictures,
    coloured_split,
    face_pictures,
    grey_face,
    write_png,
)
from training.datasets.records import DatasetError
from training.pipeline import RunPaths, prepare_split
from training.preparation import (
    FOUND,
    NO_FACE,
    UNREADABLE,
    PreparationError,
    Prepared,
    prepare,
    read_image,
    transforms,
)


class CountingDetector(FaceDetector):
    """The real detector; counts the images it is given and can be interrupted."""

    calls = 0
    interrupt_at = 0

    def detect(
        self,
        image: NDArray[np.uint8],
        *,
        min_score: float | None = None,
        search: Search = "quick",
    ) -> list[Face]:
        self.calls += 1
        if self.calls == self.interrupt_at:
            raise KeyboardInterrupt
        return super().detect(image, min_score=min_score, search=search)


@pytest.fixture
def counting(detector_path: Path) -> CountingDetector:
    detector = CountingDetector.load(detector_path, SessionSettings("cpu"))
    assert isinstance(detector, CountingDetector)
    return detector


def moved(matrix: NDArray[np.float64], points: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.asarray(points @ matrix[:, :2].T + matrix[:, 2], np.float64)


def assert_same(actual: Prepared, expected: Prepared) -> None:
    assert actual.status == expected.status
    np.testing.assert_array_equal(actual.landmarks, expected.landmarks)
    np.testing.assert_array_equal(actual.matrices, expected.matrices)


# --- what comes out ----------------------------------------------------------------------------


def test_finds_the_face_at_every_size(
    faces: FacePictures, detector: FaceDetector, tmp_path: Path
) -> None:
    prepared = prepare(faces.found, tmp_path / "store.jsonl", detector)
    assert prepared.status == (FOUND,) * 4
    assert prepared.landmarks.shape == (4, 5, 2)
    assert prepared.landmarks.dtype == np.float32
    assert prepared.matrices.shape == (4, 2, 3)
    for matrix, landmarks in zip(prepared.matrices, prepared.landmarks, strict=True):
        away = np.linalg.norm(moved(matrix, landmarks) - ARCFACE_TEMPLATE, axis=1)
        assert away.mean() < 8, "she smiles wider than the template"
    # The same face, seen in the whole photo and in crops of it whose corners are known.
    whole, crop, wide, grey = prepared.landmarks
    np.testing.assert_allclose(crop + (117, 10), wide + (60, 20), atol=5)
    # The whole photo is seen at half its size, where the corners of a smile lie elsewhere.
    np.testing.assert_allclose(crop + (117, 10), whole, atol=8.5)
    np.testing.assert_allclose(wide + (60, 20), whole, atol=8.5)
    np.testing.assert_allclose((grey + 0.5) * 3 - 0.5 + (153, 46), whole, atol=8)


def test_results_come_in_the_order_asked_for(
    faces: FacePictures, detector: FaceDetector, tmp_path: Path
) -> None:
    store = tmp_path / "store.jsonl"
    forth = prepare(faces.found, store, detector, workers=3)
    back = prepare(faces.found[::-1], store, detector)
    np.testing.assert_array_equal(back.landmarks, forth.landmarks[::-1])
    np.testing.assert_array_equal(back.matrices, forth.matrices[::-1])


def test_images_without_a_face_and_unreadable_ones_are_counted(
    faces: FacePictures, detector: FaceDetector, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(faces.found[3].read_bytes()[:100])
    gone = tmp_path / "gone.png"
    paths = (*faces.found, faces.faceless, broken, gone)
    prepared = prepare(paths, tmp_path / "store.jsonl", detector)
    assert prepared.counts == {FOUND: 4, NO_FACE: 1, UNREADABLE: 2}
    np.testing.assert_array_equal(prepared.readable, [True] * 5 + [False] * 2)
    kept = prepared.subset(prepared.readable)
    assert kept.status == (*(FOUND,) * 4, NO_FACE)
    assert len(kept.landmarks) == len(kept.matrices) == 5
    assert np.isnan(kept.landmarks[4]).all()
    assert np.isfinite(kept.matrices).all()


def test_a_faceless_image_gets_the_mean_transform_of_the_others(
    detector: FaceDetector, tmp_path: Path
) -> None:
    tight = [write_png(tmp_path / f"{half}.png", grey_face(half)) for half in (64, 72, 84)]
    faceless = write_png(tmp_path / "flat.png", np.full((96, 96), 90))
    prepared = prepare([*tight, faceless], tmp_path / "store.jsonl", detector)
    assert prepared.status == (FOUND, FOUND, FOUND, NO_FACE)
    mean_face = prepared.landmarks[:3].mean(0)
    # It is twice as large as the others.
    expected = similarity_transform(2 * mean_face, ARCFACE_TEMPLATE)
    np.testing.assert_allclose(prepared.matrices[3], expected, atol=1e-3)


def test_where_no_face_was_found_at_all_the_template_fills_the_image() -> None:
    landmarks = np.full((1, 5, 2), np.nan, np.float32)
    (matrix,) = transforms(landmarks, np.array([[224.0, 224.0]]))
    np.testing.assert_allclose(matrix, [[0.5, 0, 0], [0, 0.5, 0]], atol=1e-9)


def test_unreadable_images_leave_the_split(
    detector_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split = coloured_split(tmp_path / "data", 6)
    split.paths[2].write_bytes(b"GIF89a and no more")
    paths = RunPaths(tmp_path, None, detector_path, tmp_path / "cache", tmp_path / "run")
    prepared = prepare_split(split, paths)
    assert prepared.split.paths == (*split.paths[:2], *split.paths[3:])
    np.testing.assert_array_equal(prepared.split.classes, np.delete(split.classes, 2))
    assert len(prepared.faces.matrices) == 5
    printed = capsys.readouterr().out
    assert "6 images" in printed
    assert "'unreadable': 1" in printed
    assert f"unreadable, left out: {split.paths[2]}\n" in printed


def test_a_split_of_which_nothing_can_be_read_is_refused(
    detector_path: Path, tmp_path: Path
) -> None:
    split = coloured_split(tmp_path / "data", 2)
    for path in split.paths:
        path.write_bytes(b"no image")
    paths = RunPaths(tmp_path, None, detector_path, tmp_path / "cache", tmp_path / "run")
    with pytest.raises(DatasetError, match="none of 2 images can be read"):
        prepare_split(split, paths)


def test_reads_images_as_the_service_does(tmp_path: Path) -> None:
    grey = grey_face()
    pixels = read_image(write_png(tmp_path / "grey.png", grey))
    np.testing.assert_array_equal(pixels, np.repeat(grey[..., None], 3, axis=2))
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 200
    np.testing.assert_array_equal(read_image(write_png(tmp_path / "red.png", red)), red)


# --- what the data know already ----------------------------------------------------------------


def test_the_face_that_overlaps_the_box_is_taken(detector: FaceDetector, tmp_path: Path) -> None:
    photo = read_image(face_pictures(tmp_path / "pictures").found[1])
    small = photo[::2, ::2]
    sheet = np.full((240, 400, 3), 90, np.uint8)
    sheet[: photo.shape[0], : photo.shape[1]] = photo
    sheet[: small.shape[0], 240 : 240 + small.shape[1]] = small
    path = write_png(tmp_path / "two.png", sheet)
    boxes = np.array([[np.nan] * 4, [250, 10, 340, 100], [380, 220, 399, 239]], np.float32)
    store = tmp_path / "store.jsonl"
    prepared = prepare((path, path, path), store, detector, boxes=boxes)
    assert prepared.status == (FOUND, FOUND, NO_FACE)
    assert prepared.landmarks[0, :, 0].max() < photo.shape[1], "the largest"
    assert prepared.landmarks[1, :, 0].min() > 240, "the one in the box"
    written = store.read_bytes()
    assert_same(prepare((path, path, path), store, detector, boxes=boxes), prepared)
    assert store.read_bytes() == written


def test_known_landmarks_go_before_the_detectors(faces: FacePictures) -> None:
    status = (FOUND, NO_FACE, FOUND, UNREADABLE)
    landmarks = np.full((4, 5, 2), np.nan, np.float32)
    prepared = Prepared(status, landmarks, np.zeros((4, 2, 3)))
    template = np.array(ARCFACE_TEMPLATE, np.float32)
    known = np.stack([landmarks[0], 2 * template, 4 * template, template])
    merged = prepared.with_landmarks(known)
    assert merged.status == (FOUND, FOUND, FOUND, UNREADABLE)
    np.testing.assert_array_equal(merged.landmarks[1:3], known[1:3])
    np.testing.assert_allclose(merged.matrices[1], [[0.5, 0, 0], [0, 0.5, 0]], atol=1e-3)
    np.testing.assert_array_equal(merged.matrices[[0, 3]], 0)


def test_images_of_one_name_do_not_meet(
    faces: FacePictures, detector: FaceDetector, tmp_path: Path
) -> None:
    """train/happy/1.png and valid/happy/1.png, in one call and in one store."""
    paths = [tmp_path / split / "happy" / "1.png" for split in ("train", "valid")]
    for path, source in zip(paths, faces.found[:2], strict=True):
        path.parent.mkdir(parents=True)
        path.write_bytes(source.read_bytes())
    apart = [prepare([p], tmp_path / f"{i}.jsonl", detector) for i, p in enumerate(paths)]
    together = prepare(paths, tmp_path / "store.jsonl", detector)
    for index, single in enumerate(apart):
        np.testing.assert_array_equal(together.landmarks[index], single.landmarks[0])
    assert not np.array_equal(together.landmarks[0], together.landmarks[1])


# --- resumption --------------------------------------------------------------------------------


def test_a_second_call_does_no_work(
    faces: FacePictures, counting: CountingDetector, tmp_path: Path
) -> None:
    store = tmp_path / "cache" / "store.jsonl"
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n")
    paths = (*faces.found, faces.faceless, broken)
    first = prepare(paths, store, counting)
    assert counting.calls == 5, "the broken image never reaches the detector"
    written = store.read_bytes()
    assert_same(prepare(paths, store, counting), first)
    assert counting.calls == 5
    assert store.read_bytes() == written


def test_new_images_are_added(
    faces: FacePictures, counting: CountingDetector, tmp_path: Path
) -> None:
    store = tmp_path / "store.jsonl"
    prepare(faces.found[:1], store, counting)
    both = prepare(faces.found[:2], store, counting)
    assert counting.calls == 2
    assert both.status == (FOUND, FOUND)


@pytest.mark.parametrize("lost_bytes", [1, 30])
def test_half_a_line_at_the_end_is_done_again(
    faces: FacePictures, counting: CountingDetector, tmp_path: Path, lost_bytes: int
) -> None:
    store = tmp_path / "store.jsonl"
    first = prepare(faces.found, store, counting, workers=1)
    written = store.read_bytes()
    store.write_bytes(written[:-lost_bytes])
    counting.calls = 0
    assert_same(prepare(faces.found, store, counting, workers=1), first)
    assert counting.calls == 1
    assert store.read_bytes() == written


@pytest.mark.parametrize("left", ["", '{"detec'])
def test_a_store_cut_within_its_header_starts_anew(
    faces: FacePictures, counting: CountingDetector, tmp_path: Path, left: str
) -> None:
    store = tmp_path / "store.jsonl"
    prepare(faces.found[:2], store, counting, workers=1)
    written = store.read_bytes()
    store.write_text(left)
    prepare(faces.found[:2], store, counting, workers=1)
    assert store.read_bytes() == written


def test_what_was_found_before_an_interruption_is_kept(
    faces: FacePictures, counting: CountingDetector, tmp_path: Path
) -> None:
    store = tmp_path / "store.jsonl"
    counting.interrupt_at = 3
    with pytest.raises(KeyboardInterrupt):
        prepare(faces.found, store, counting, workers=1)
    assert len(store.read_text().splitlines()) == 1 + 2, "the header and two images"
    counting.calls, counting.interrupt_at = 0, 0
    prepared = prepare(faces.found, store, counting, workers=1)
    assert counting.calls == 2
    assert prepared.status == (FOUND,) * 4


def test_a_changed_image_is_examined_anew(
    faces: FacePictures, counting: CountingDetector, tmp_path: Path
) -> None:
    store = tmp_path / "store.jsonl"
    before = prepare(faces.found, store, counting)
    mirrored = read_image(faces.found[0])[:, ::-1]
    write_png(faces.found[0], mirrored)
    after = prepare(faces.found, store, counting)
    assert counting.calls == 5
    np.testing.assert_array_equal(after.landmarks[1:], before.landmarks[1:])
    nose_before, nose_after = before.landmarks[0, 2], after.landmarks[0, 2]
    np.testing.assert_allclose(nose_after, (511 - nose_before[0], nose_before[1]), atol=5)
    assert_same(prepare(faces.found, store, counting), after)
    assert counting.calls == 5


@pytest.mark.parametrize("changed", [{"detector": "0" * 64}, {"version": 0}])
def test_a_store_of_another_detector_or_version_is_refused(
    faces: FacePictures, detector: FaceDetector, tmp_path: Path, changed: dict[str, object]
) -> None:
    store = tmp_path / "store.jsonl"
    prepare(faces.found[:1], store, detector)
    header, *entries = store.read_text().splitlines()
    store.write_text("\n".join([json.dumps(json.loads(header) | changed), *entries]) + "\n")
    written = store.read_bytes()
    with pytest.raises(PreparationError, match=r"store\.jsonl: made by .* remove the file"):
        prepare(faces.found, store, detector)
    assert store.read_bytes() == written
