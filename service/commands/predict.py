"""`lan-fer predict`: photos, folders or a video to JSON lines, CSV or Parquet."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from service.commands.flags import (
    NETWORK_SETTINGS,
    add_settings,
    given_settings,
    names_on_stdin,
    report,
    seconds_from_0,
    sentence,
)
from service.commands.progress import progress
from service.errors import OutputError, ServiceError
from service.imaging import encode_image
from service.outputs import (
    FORMATS,
    Format,
    Output,
    format_of,
    open_output,
    prepare,
)
from service.printable import as_text
from service.schemas import PredictOptions
from service.sources import DRAWN_PHOTO, DRAWN_VIDEO, drawn_path, find_sources, is_video
from service.tables import Entry, columns, rows
from service.writing import STANDARD_OUTPUT, make_folder, require_apart, written

if TYPE_CHECKING:
    from service.local import Answer, Recognizer

SMOOTH_SECONDS = 0.3

SUMMARY = "read photos, folders or a video on this machine, without a server"

EXAMPLES = """examples:
  lan-fer predict photo.jpg                               one line of JSON on standard output
  lan-fer predict holiday/ -o answers.csv --draw drawn/   a folder, and pictures with the answers
  lan-fer predict 'scans/**/*.png' -o answers.parquet     a pattern (quoted); needs pyarrow
  find / -name '*.jpg' | lan-fer predict - -o all.jsonl   names from standard input
  lan-fer predict holiday/ -o answers.csv --resume        go on after an interruption
  lan-fer predict clip.mp4 -o clip.csv --timeline clip.png

exit code: 0 all read; 1 some could not be read (listed at the end) or nothing could begin (it says
why); 2 unknown or malformed flags
"""


def add_parser(parser: argparse.ArgumentParser) -> None:
    """The flags of `predict`."""
    parser.description = sentence(SUMMARY)
    parser.epilog = EXAMPLES
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="photo, folder, pattern, video, or - for stdin"
    )
    add_output(parser)
    parser.add_argument(
        "--draw", type=Path, metavar="FOLDER", help="also write the pictures, drawn on, to FOLDER"
    )
    add_explanation(parser)
    video = parser.add_argument_group("video")
    video.add_argument(
        "--every", type=_positive, metavar="N", help="read one frame in N (default: each)"
    )
    video.add_argument(
        "--smooth",
        type=seconds_from_0,
        metavar="SECONDS",
        help=f"time constant of the smoothed probabilities; 0: none (default: {SMOOTH_SECONDS})",
    )
    video.add_argument(
        "--timeline", type=Path, metavar="FILE", help="draw expression over time (.png, .svg, .pdf)"
    )
    add_settings(parser.add_argument_group("networks and limits"), NETWORK_SETTINGS)


def add_output(parser: argparse.ArgumentParser) -> None:
    """Where answers go, and what to do with those that are there."""
    parser.add_argument(
        "-o",
        "--output",
        default=STANDARD_OUTPUT,
        metavar="FILE",
        help="where answers go: .jsonl, .csv, .parquet (a folder), or - (default)",
    )
    parser.add_argument("--format", choices=FORMATS, help="default: what the suffix says")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="skip what the output already has")
    again.add_argument("--overwrite", action="store_true", help="replace an output that is there")


def add_explanation(parser: argparse.ArgumentParser) -> None:
    """Which map explains the answer."""
    parser.add_argument(
        "--explain",
        choices=("attention", "evidence"),
        default="attention",
        help="the map in JSON and pictures (default: %(default)s)",
    )
    parser.add_argument("--class", dest="class_", metavar="LABEL", help="whose evidence is wanted")


def options_of(arguments: argparse.Namespace) -> PredictOptions:
    """The options of every photo."""
    return PredictOptions(explain=arguments.explain, class_=arguments.class_)


def run(arguments: argparse.Namespace) -> int:
    """Read everything; exit code 1 where something could not be read."""
    sources = find_sources(arguments.paths, lines=names_on_stdin(), drawn=arguments.draw)
    require_apart(_targets(sources, arguments), sources)
    videos = [source for source in sources if is_video(source)]
    if not videos:
        for option in ("every", "smooth", "timeline"):
            if getattr(arguments, option) is not None:
                raise OutputError(f"--{option} is for a video, and there is none among these.")
        return _read_photos(sources, arguments)
    if len(sources) > 1:
        raise OutputError(f"{videos[0]}: a video is read alone, with an output of its own.")
    from service.commands.video import read_video

    every = arguments.every or 1
    smooth = SMOOTH_SECONDS if arguments.smooth is None else arguments.smooth
    return read_video(videos[0], arguments, every=every, smooth_seconds=smooth)


def _targets(sources: Sequence[Path], arguments: argparse.Namespace) -> Iterator[Path]:
    """What will be written, but the timeline, which is no video."""
    if arguments.output != STANDARD_OUTPUT:
        yield Path(arguments.output)
    for source in sources if arguments.draw is not None else ():
        yield drawn_path(source, arguments.draw, DRAWN_VIDEO if is_video(source) else DRAWN_PHOTO)


def _read_photos(sources: Sequence[Path], arguments: argparse.Namespace) -> int:
    from service.local import Recognizer

    kind: Format = format_of(arguments.output, arguments.format)
    with Recognizer.load(**given_settings(arguments)) as recognizer:
        if arguments.draw is not None:
            make_folder(arguments.draw)
        done = prepare(
            arguments.output, kind, resume=arguments.resume, overwrite=arguments.overwrite
        )
        left = [source for source in sources if as_text(str(source)) not in done]
        labels = recognizer.networks.classifier.contract.labels
        with (
            closing(open_output(arguments.output, kind, columns(labels))) as output,
            progress(len(sources), "photos", done=len(sources) - len(left)) as bar,
        ):
            answers = _answers(recognizer, left, arguments)
            failures: list[tuple[str, str]] = []
            for source, answer in answers:
                if isinstance(answer, ServiceError):
                    failures.append((str(source), answer.detail))
                else:
                    _keep(source, answer, output, arguments.draw)
                bar.update()
    return report(failures, len(left))


def _answers(
    recognizer: Recognizer, sources: Sequence[Path], arguments: argparse.Namespace
) -> Iterator[tuple[Path, Answer | ServiceError]]:
    answers = recognizer.answer_many(
        sources, options_of(arguments), draw=arguments.draw is not None
    )
    return zip(sources, answers, strict=True)


def _keep(source: Path, answer: Answer, output: Output, folder: Path | None) -> None:
    # The picture first: what is in the output is done, and is not drawn again.
    if folder is not None and answer.picture is not None:
        target = drawn_path(source, folder, DRAWN_PHOTO)
        make_folder(target.parent)
        picture = encode_image(answer.picture, "image/jpeg")
        with written(target):
            target.write_bytes(picture)
    name = as_text(str(source))
    document = {"source": name, **answer.reply.model_dump(mode="json", by_alias=True)}
    output.write(Entry([document], rows(name, answer.reply)))


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number
