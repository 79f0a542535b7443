"""The part of `lan-fer predict` that reads a video."""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

from service.commands.flags import given_settings
from service.commands.progress import progress
from service.errors import OutputError, ServiceError
from service.local import Answer, Photo, Recognizer
from service.outputs import format_of, open_output, prepare
from service.printable import printable
from service.schemas import PredictOptions
from service.sources import DRAWN_VIDEO, drawn_path
from service.tables import Entry
from service.video import (
    FaceFollower,
    Frame,
    TimelinePoint,
    TrackedFace,
    VideoWriter,
    read_frames,
    video_columns,
    video_document,
    video_info,
    video_row,
)
from service.writing import make_folder

USUAL_RATE = 25.0  # where the file does not tell its own


def read_video(
    path: Path, arguments: argparse.Namespace, *, every: int, smooth_seconds: float
) -> int:
    """Read one frame in `every` to a timeline: one row a face and frame. Raises a ServiceError."""
    if arguments.resume:
        raise OutputError("a video cannot be gone on with (--resume): tracks begin at its start.")
    if arguments.timeline is not None:
        from service.timeline import require_suffix  # matplotlib is asked for now, not at the end

        require_suffix(arguments.timeline)
        make_folder(arguments.timeline.parent)
    info = video_info(path)
    kind = format_of(arguments.output, arguments.format)
    follower = FaceFollower(smooth_seconds=smooth_seconds)
    points: list[TimelinePoint] = []
    with ExitStack() as stack:
        recognizer = stack.enter_context(Recognizer.load(**given_settings(arguments)))
        if arguments.draw is not None:
            make_folder(arguments.draw)
        prepare(arguments.output, kind, resume=False, overwrite=arguments.overwrite)
        columns = video_columns(recognizer.networks.classifier.contract.labels)
        output = stack.enter_context(closing(open_output(arguments.output, kind, columns)))
        draw = None
        if arguments.draw is not None:
            rate = (info.frames_per_second or USUAL_RATE) / every
            writer = VideoWriter(drawn_path(path, arguments.draw, DRAWN_VIDEO), rate)
            draw = stack.enter_context(closing(writer))
        bar = stack.enter_context(progress(-(-info.frames // every), "frames"))
        frames = read_frames(path, every=every)
        for frame, answer in _answers(recognizer, frames, arguments, draw=draw is not None):
            found = follower.follow(frame, answer.reply.faces)
            output.write(_entry(str(path), found))
            points.extend(face.point for face in found)
            if draw is not None and answer.picture is not None:
                draw.write(answer.picture)
            bar.update()
    if arguments.timeline is not None:
        from service.timeline import draw_timeline

        draw_timeline(points, arguments.timeline, title=printable(path.name))
    return 0


def _answers(
    recognizer: Recognizer, frames: Iterable[Frame], arguments: argparse.Namespace, *, draw: bool
) -> Iterator[tuple[Frame, Answer]]:
    """Each frame with its answer; several are read at a time. Raises a ServiceError."""
    waiting: deque[Frame] = deque()

    def pixels() -> Iterator[Photo]:
        for frame in frames:
            waiting.append(frame)
            yield frame.pixels

    options = PredictOptions(explain=arguments.explain, class_=arguments.class_)
    for answer in recognizer.answer_many(pixels(), options, draw=draw):
        if isinstance(answer, ServiceError):
            raise answer
        yield waiting.popleft(), answer


def _entry(source: str, found: list[TrackedFace]) -> Entry:
    return Entry(
        [video_document(source, face) for face in found], [video_row(source, f) for f in found]
    )
