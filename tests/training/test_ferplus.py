"""The FERPlus protocol on made-up votes, and the official layout in miniature."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.training.made_up import ferplus_row, votes_for, write_ferplus
from training.datasets.ferplus import (
    LABELS,
    final_training,
    load_split,
    majority_class,
    training_and_validation,
    vote_distribution,
    without_test_twins,
)
from training.datasets.records import DatasetError, Split, concatenate, without_twins

NEUTRAL, HAPPINESS, SURPRISE, CONTEMPT, UNKNOWN, NOT_A_FACE = 0, 1, 2, 7, 8, 9


def votes(**counts: int) -> list[int]:
    """Votes by class name; `unknown` and `nf` are the last two."""
    return [counts.get(name, 0) for name in (*LABELS, "unknown", "nf")]


# --- the majority protocol ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "winner"),
    [
        pytest.param(votes(neutral=10), NEUTRAL, id="all agree"),
        pytest.param(votes(happiness=6, neutral=4), HAPPINESS, id="six of ten"),
        pytest.param(votes(happiness=5, neutral=5), None, id="a tie"),
        pytest.param(votes(happiness=5, neutral=3, fear=2), None, id="half is not more than half"),
        pytest.param(votes(surprise=5, neutral=4, fear=1), SURPRISE, id="the single vote is void"),
        pytest.param(
            votes(surprise=2, neutral=1, happiness=1, sadness=1, anger=1, disgust=1, fear=1, nf=1),
            SURPRISE,
            id="two votes against singles",
        ),
        pytest.param(votes(contempt=5, unknown=5), None, id="a tie with unknown"),
        pytest.param(votes(contempt=5, unknown=4, nf=1), CONTEMPT, id="one not-a-face is void"),
        pytest.param(votes(contempt=4, unknown=3, nf=3), None, id="unknown counts in the sum"),
        pytest.param(votes(unknown=6, neutral=4), None, id="unknown wins"),
        pytest.param(votes(nf=10), None, id="not a face"),
        pytest.param(
            votes(neutral=1, happiness=1, surprise=1, sadness=1, anger=1), None, id="singles only"
        ),
        pytest.param(votes(), None, id="no vote at all"),
        pytest.param(votes(fear=5, sadness=4), 6, id="nine votes"),
    ],
)
def test_majority(row: list[int], winner: int | None) -> None:
    assert majority_class(row) == winner


def test_majority_leaves_its_votes_alone() -> None:
    row = np.array(votes(surprise=5, neutral=4, fear=1))
    before = row.copy()
    majority_class(row)
    np.testing.assert_array_equal(row, before)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (votes(neutral=10), {"neutral": 1.0}),
        (votes(neutral=6, happiness=4), {"neutral": 0.6, "happiness": 0.4}),
        # Single votes and what is no expression do not count.
        (votes(neutral=6, happiness=2, fear=1, unknown=1), {"neutral": 0.75, "happiness": 0.25}),
        (votes(neutral=4, happiness=2, unknown=3), {"neutral": 2 / 3, "happiness": 1 / 3}),
        # Nothing but single votes: they are all there is.
        (votes(neutral=1, fear=1), {"neutral": 0.5, "fear": 0.5}),
    ],
)
def test_vote_distribution(row: list[int], expected: dict[str, float]) -> None:
    target = vote_distribution(row)
    assert target is not None
    assert target.dtype == np.float32
    np.testing.assert_allclose(target, [expected.get(name, 0) for name in LABELS], atol=1e-6)


@pytest.mark.parametrize(
    "row", [votes(nf=10), votes(unknown=5, neutral=5), votes(unknown=4, nf=3, fear=3), votes()]
)
def test_votes_that_name_no_expression_have_no_distribution(row: list[int]) -> None:
    assert vote_distribution(row) is None


@given(st.lists(st.integers(0, 10), min_size=10, max_size=10))
@example(votes(contempt=5, unknown=4, nf=1))
@example(votes(neutral=2, unknown=1, nf=1))
def test_soft_and_hard_labels_agree(row: list[int]) -> None:
    winner, target = majority_class(row), vote_distribution(row)
    if target is not None:
        assert target.sum() == pytest.approx(1, abs=1e-6)
    if winner is not None:
        assert target is not None
        assert target.argmax() == winner


# --- the official layout -----------------------------------------------------------------------


def miniature(root: Path) -> Path:
    """Train: 6 images of which the protocol keeps 4; valid: 3 of which it keeps 2."""
    write_ferplus(
        root,
        "train",
        {
            "fer0000000.png": votes_for(NEUTRAL),
            "fer0000001.png": votes(happiness=6, neutral=3, fear=1),
            "fer0000002.png": votes(happiness=5, neutral=5),
            "fer0000003.png": votes_for(UNKNOWN),
            "fer0000004.png": votes_for(CONTEMPT),
            "fer0000005.png": votes_for(SURPRISE),
        },
        {},
    )
    write_ferplus(
        root,
        "valid",
        {
            "fer0000000.png": votes_for(NEUTRAL),
            "fer0000001.png": votes(fear=5, sadness=5),
            "fer0000002.png": votes_for(HAPPINESS),
        },
        {},
    )
    return root


def names(split: Split) -> list[str]:
    return [f"{path.parent.name}/{path.name}" for path in split.paths]


def copy_image(root: Path, source: str, target: str) -> None:
    (root / target).write_bytes((root / source).read_bytes())


def test_loads_what_the_protocol_keeps(tmp_path: Path) -> None:
    split = load_split(miniature(tmp_path), "train")
    assert split.labels == LABELS
    assert names(split) == [f"FER2013Train/fer000000{i}.png" for i in (0, 1, 4, 5)]
    assert all(path.is_file() for path in split.paths)
    np.testing.assert_array_equal(split.classes, [NEUTRAL, HAPPINESS, CONTEMPT, SURPRISE])
    assert split.classes.dtype == np.int64
    assert split.targets.dtype == np.float32
    np.testing.assert_allclose(split.targets.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(split.targets[1, :2], [1 / 3, 2 / 3], atol=1e-6)


def test_can_keep_images_without_a_majority(tmp_path: Path) -> None:
    split = load_split(miniature(tmp_path), "train", majority_only=False)
    assert names(split)[2] == "FER2013Train/fer0000002.png"
    assert split.classes[2] == -1
    np.testing.assert_allclose(split.targets[2, :2], [0.5, 0.5])
    assert len(split) == 5, "unknown stays out"


def test_hardened_has_one_class_per_image(tmp_path: Path) -> None:
    split = load_split(miniature(tmp_path), "train", majority_only=False).hardened()
    assert names(split) == [f"FER2013Train/fer000000{i}.png" for i in (0, 1, 4, 5)]
    np.testing.assert_array_equal(split.targets, np.eye(8, dtype=np.float32)[split.classes])
    assert split.targets.dtype == np.float32


def test_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"FER2013Train/label\.csv: no such file"):
        load_split(tmp_path, "train")


@pytest.mark.parametrize(
    "row",
    [
        ferplus_row("fer0000009.png", [1] * 9),
        ferplus_row("fer0000009.png", [1] * 11),
        ferplus_row("fer0000009.png", [1] * 9) + ",many",
        ferplus_row("fer0000009.png", [1] * 9) + ",-1",
        "",
        "fer0000009.png",
    ],
)
def test_malformed_row_is_named_with_its_line(tmp_path: Path, row: str) -> None:
    table = miniature(tmp_path) / "FER2013Train" / "label.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines[:2], row, *lines[2:]]) + "\n")
    with pytest.raises(DatasetError, match=r"FER2013Train/label\.csv, line 3: expected"):
        load_split(tmp_path, "train")


def test_a_table_without_any_expression_is_refused(tmp_path: Path) -> None:
    write_ferplus(tmp_path, "train", {"fer0000000.png": votes_for(NOT_A_FACE)}, {})
    with pytest.raises(DatasetError, match="leaves no image"):
        load_split(tmp_path, "train")


def test_missing_image_is_named(tmp_path: Path) -> None:
    (miniature(tmp_path) / "FER2013Train" / "fer0000004.png").unlink()
    with pytest.raises(DatasetError, match=r"FER2013Train/fer0000004\.png"):
        training_and_validation(tmp_path)


# --- twins -------------------------------------------------------------------------------------


def test_without_twins_nothing_is_left_out(tmp_path: Path) -> None:
    train, validation = training_and_validation(miniature(tmp_path))
    assert (len(train), len(validation)) == (4, 2)


def test_test_twins_are_left_out_of_training(tmp_path: Path) -> None:
    twins = miniature(tmp_path) / "test_twins.txt"
    twins.write_text("Train/fer0000004.png\nValid/fer0000002.png\n")
    train, validation = training_and_validation(tmp_path)
    assert names(train) == [f"FER2013Train/fer000000{i}.png" for i in (0, 1, 5)]
    assert len(validation) == 2, "validation is measured whole"
    everything = final_training(tmp_path)
    assert names(everything) == [
        *(f"FER2013Train/fer000000{i}.png" for i in (0, 1, 5)),
        "FER2013Valid/fer0000000.png",
    ]


def test_without_a_list_of_test_twins_the_split_stays(tmp_path: Path) -> None:
    split = load_split(miniature(tmp_path), "train")
    assert without_test_twins(split, tmp_path) is split


def test_validation_twins_are_left_out_of_training(tmp_path: Path) -> None:
    miniature(tmp_path)
    copy_image(tmp_path, "FER2013Valid/fer0000002.png", "FER2013Train/fer0000000.png")
    train, validation = training_and_validation(tmp_path)
    assert names(train) == [f"FER2013Train/fer000000{i}.png" for i in (1, 4, 5)]
    assert len(validation) == 2
    assert len(final_training(tmp_path)) == 6, "the last training may see validation"


def test_twins_of_validation_images_without_a_majority_are_left_out_too(tmp_path: Path) -> None:
    miniature(tmp_path)
    copy_image(tmp_path, "FER2013Valid/fer0000001.png", "FER2013Train/fer0000005.png")
    train, _ = training_and_validation(tmp_path)
    assert names(train) == [f"FER2013Train/fer000000{i}.png" for i in (0, 1, 4)]


def test_the_same_name_is_no_twin(tmp_path: Path) -> None:
    train = load_split(miniature(tmp_path), "train")
    assert len(without_twins(train, load_split(tmp_path, "valid"))) == len(train)


def test_final_training_joins_training_and_validation(tmp_path: Path) -> None:
    split = final_training(miniature(tmp_path))
    assert len(split) == len(split.targets) == len(split.classes) == 6
    assert names(split)[4:] == ["FER2013Valid/fer0000000.png", "FER2013Valid/fer0000002.png"]
    np.testing.assert_array_equal(split.classes[4:], [NEUTRAL, HAPPINESS])


def test_splits_of_different_labels_do_not_join(tmp_path: Path) -> None:
    split = load_split(miniature(tmp_path), "train")
    other = Split(LABELS[::-1], split.paths, split.targets, split.classes)
    with pytest.raises(DatasetError, match="labels differ"):
        concatenate(split, other)
