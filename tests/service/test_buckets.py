from __future__ import annotations

from pathlib import Path

import pytest
from pyarrow import fs

from service.buckets import list_photos, locate, read_photo_file
from service.cli import main
from service.errors import ImageFileError, OutputError, PayloadTooLargeError
from service.parquet import prepare_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "below").mkdir()
    for name in ("b.jpg", "a.PNG", "below/c.webp", "notes.txt"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def test_photos_of_an_address(folder: Path) -> None:
    address = f"file://{folder}"
    expected = [f"{address}/{name}" for name in ("a.PNG", "b.jpg", "below/c.webp")]
    assert list_photos(address) == list_photos(address + "/") == expected
    assert list_photos(expected[2]) == expected[2:]
    assert [read_photo_file(name, 100) for name in expected] == [
        b"a.PNG",
        b"b.jpg",
        b"below/c.webp",
    ]
    assert read_photo_file(str(folder / "b.jpg"), 100) == b"b.jpg"


def test_query_stays_with_each_photo() -> None:
    system, path = locate("s3://bucket/photos/?region=eu-central-1&endpoint_override=127.0.0.1:9")
    assert path == "bucket/photos"
    assert isinstance(system, fs.S3FileSystem)
    assert system.region == "eu-central-1"


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("file:///no/such/folder", "no photos"),
        ("nonsense://bucket/photos", "cannot be reached"),
        ("s3://key:secret@bucket/photos", "no keys"),
    ],
)
def test_address_that_leads_nowhere_is_refused(address: str, why: str) -> None:
    with pytest.raises(ImageFileError, match=why) as caught:
        list_photos(address)
    assert "secret" not in caught.value.detail


def test_file_that_cannot_be_read(folder: Path) -> None:
    with pytest.raises(ImageFileError, match="cannot be read"):
        read_photo_file(f"file://{folder}/missing.jpg", 100)
    with pytest.raises(PayloadTooLargeError):
        read_photo_file(f"file://{folder}/b.jpg", 4)


def test_folder_of_answers_by_its_address(folder: Path) -> None:
    address = f"file://{folder}/answers"
    assert prepare_folder(address, resume=False, overwrite=False) == set()
    (folder / "answers").mkdir()
    (folder / "answers" / "half.parquet").write_bytes(b"PAR1 half")
    (folder / "answers" / "part-1.unfinished").write_bytes(b"")
    with pytest.raises(OutputError, match="--resume"):
        prepare_folder(address, resume=False, overwrite=False)
    assert prepare_folder(address, resume=True, overwrite=False) == set()
    assert list((folder / "answers").iterdir()) == []
    with pytest.raises(OutputError, match="no folder"):
        prepare_folder(f"file://{folder}/b.jpg", resume=True, overwrite=False)


def test_predict_points_to_bulk(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "s3://bucket/photos"]) == 1
    assert main(["predict", str(folder / "b.jpg"), "-o", "s3://bucket/answers.csv"]) == 1
    assert capsys.readouterr().err.count("lan-fer bulk") == 2
