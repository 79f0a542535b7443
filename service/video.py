"""A video to a timeline: per frame and face one row, faces numbered across frames.

Frames are read with OpenCV's FFmpeg, in order, turned upright as the file says. On import this
module tells both, for the whole process, to say nothing on stderr and to open no playlists.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from service.errors import ImageFileError, OutputError
from service.files import opened
from service.printable import as_text
from service.schemas import FaceReply
from service.tables import Row, face_columns, face_row
from service.tracking import Tracker
from service.writing import make_folder

UInt8 = NDArray[np.uint8]
SMOOTHED = "s_"
SECONDS_DECIMALS, PROBABILITY_DECIMALS = 3, 6
FRAME_COLUMNS: dict[str, type] = {"source": str, "frame": int, "seconds": float, "track": int}

# FFmpeg knows a file by what is in it: a playlist (ffconcat, HLS, DASH, SDP) called clip.mp4 would
# have it read what the playlist names. These hold their frames themselves.
CONTAINERS = "mov,matroska,avi,mpeg,mpegts,mpegvideo,m4v,ogg,asf,flv"
os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = (
    f"protocol_whitelist;file|format_whitelist;{CONTAINERS}"
)
# What is wrong with a video is told by one line of ours; who sets these wants to hear more.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
if "OPENCV_LOG_LEVEL" not in os.environ:
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


@dataclass(frozen=True)
class VideoInfo:
    """What the file says of itself."""

    frames: int
    """About how many; 0 where the file does not say."""
    frames_per_second: float
    """0 where the file does not say."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of a video."""

    index: int
    """From 0, frames that were not read counted too."""
    seconds: float
    """From the start of the video."""
    pixels: UInt8
    """[H,W,3] RGB, upright."""


@dataclass(frozen=True)
class TimelinePoint:
    """One face at one moment, as a curve needs it."""

    track: int
    """The same number in each frame the face was followed through; from 1."""
    seconds: float
    smoothed: dict[str, float]
    """Probabilities averaged over time, by label."""


@dataclass(frozen=True, eq=False)
class TrackedFace:
    """One face in one frame."""

    frame: Frame
    face: FaceReply
    point: TimelinePoint


@contextmanager
def _opened(path: Path) -> Iterator[cv2.VideoCapture]:
    with opened(path) as file:
        if not file.read(1):
            raise ImageFileError(f"{path}: The file is empty.")
    if not _is_utf8(path):
        raise ImageFileError(f"{path}: A video's name must be UTF-8; give the file another.")
    # Absolute, as FFmpeg takes `a:b.mp4` for an address.
    capture = cv2.VideoCapture(str(path.absolute()), cv2.CAP_FFMPEG)
    try:
        if not capture.isOpened():
            raise ImageFileError(f"{path}: no video that FFmpeg can read.")
        yield capture
    finally:
        capture.release()


def _is_utf8(path: Path) -> bool:
    """Of a name that is not, OpenCV would end the process."""
    name = str(path.absolute())
    return as_text(name) == name


def video_info(path: Path) -> VideoInfo:
    """Raises ImageFileError where the file is no video."""
    with _opened(path) as capture:
        frames = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        rate = capture.get(cv2.CAP_PROP_FPS)
    return VideoInfo(max(0, int(frames)), max(0.0, float(rate)))


def read_frames(path: Path, *, every: int = 1) -> Iterator[Frame]:
    """One frame in `every`, the first one included. Raises ImageFileError."""
    with _opened(path) as capture:
        rate = capture.get(cv2.CAP_PROP_FPS)
        index = 0
        while capture.grab():
            if index % every == 0:
                # Of the frame just grabbed; where a container has no times, the rate tells.
                milliseconds = capture.get(cv2.CAP_PROP_POS_MSEC)
                seconds = milliseconds / 1000 if milliseconds > 0 or not rate else index / rate
                whole, pixels = capture.retrieve()
                if whole:
                    rgb = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), np.uint8)
                    yield Frame(index, round(seconds, SECONDS_DECIMALS), rgb)
            index += 1
    if index == 0:
        raise ImageFileError(f"{path}: the video has no frame that can be read.")


class FaceFollower:
    """Numbers the faces of a video; give it the frames in order."""

    def __init__(self, *, smooth_seconds: float) -> None:
        self._tracker = Tracker(smooth_seconds=smooth_seconds)

    def follow(self, frame: Frame, faces: Sequence[FaceReply]) -> list[TrackedFace]:
        """The faces found in `frame`, with their tracks."""
        boxes = [(f.box.x1, f.box.y1, f.box.x2, f.box.y2) for f in faces]
        probabilities = [list(face.expression.probabilities.values()) for face in faces]
        followed = self._tracker.follow(
            frame.seconds, np.array(boxes, np.float64).reshape(-1, 4), np.array(probabilities)
        )
        answers = []
        for face, (track, values) in zip(faces, followed, strict=True):
            rounded = values.round(PROBABILITY_DECIMALS).tolist()
            smoothed = dict(zip(face.expression.probabilities, rounded, strict=True))
            answers.append(TrackedFace(frame, face, TimelinePoint(track, frame.seconds, smoothed)))
        return answers


def video_columns(labels: Sequence[str]) -> dict[str, type]:
    """The columns of a video's table: frame, time, track, face, then `s_<label>`, smoothed."""
    return FRAME_COLUMNS | face_columns(labels) | {SMOOTHED + label: float for label in labels}


def video_row(source: str, tracked: TrackedFace) -> Row:
    """One row of that table."""
    smoothed = {SMOOTHED + label: value for label, value in tracked.point.smoothed.items()}
    return {**_when(source, tracked), **face_row(tracked.face), **smoothed}


def video_document(source: str, tracked: TrackedFace) -> dict[str, object]:
    """The same as a JSON document, with everything a reply says of a face."""
    return {
        **_when(source, tracked),
        "smoothed": tracked.point.smoothed,
        **tracked.face.model_dump(mode="json", by_alias=True),
    }


def _when(source: str, tracked: TrackedFace) -> Row:
    frame = tracked.frame
    return {
        "source": source,
        "frame": frame.index,
        "seconds": frame.seconds,
        "track": tracked.point.track,
    }


class VideoWriter:
    """Writes frames [H,W,3] uint8 RGB of one size as an MP4 (MPEG-4 part 2)."""

    def __init__(self, path: Path, frames_per_second: float) -> None:
        if not _is_utf8(path):
            raise OutputError(f"{path}: the path of a video must be UTF-8.")
        make_folder(path.parent)
        self._path = path
        self._rate = frames_per_second
        self._writer: cv2.VideoWriter | None = None

    def write(self, pixels: UInt8) -> None:
        """Add a frame. Raises OutputError where the file cannot be written."""
        height, width = pixels.shape[:2]
        if self._writer is None:
            code = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self._path), code, self._rate, (width, height))
            if not self._writer.isOpened():
                raise OutputError(f"{self._path}: the video cannot be written.")
        self._writer.write(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.release()
