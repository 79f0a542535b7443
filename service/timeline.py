"""A picture of expression over time. Needs matplotlib, of the extra `video`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from service.errors import OutputError
from service.video import TimelinePoint

try:
    from matplotlib import colormaps
    from matplotlib.figure import Figure
except ImportError as error:
    raise OutputError(
        "--timeline needs matplotlib; in a checkout: pip install -e '.[video]'."
    ) from error

MAX_TRACKS = 12  # the longest; more would not be seen
SUFFIXES = (".png", ".svg", ".pdf")
WIDTH_INCHES, TRACK_INCHES, MARGIN_INCHES = 10.0, 1.6, 1.2


def require_suffix(path: Path) -> None:
    """Raises OutputError where the suffix of `path` is not one of SUFFIXES."""
    if path.suffix.lower() not in SUFFIXES:
        raise OutputError(f"{path}: a timeline's suffix is one of {', '.join(SUFFIXES)}.")


def draw_timeline(points: Iterable[TimelinePoint], path: Path, *, title: str) -> None:
    """One band a face: the smoothed probabilities stacked over the seconds of the video.

    The suffix of `path` says the format: .png, .svg, .pdf. Raises OutputError where it cannot be
    written.
    """
    tracks: dict[int, list[TimelinePoint]] = defaultdict(list)
    for point in points:
        tracks[point.track].append(point)
    longest = sorted(sorted(tracks, key=lambda t: len(tracks[t]), reverse=True)[:MAX_TRACKS])
    figure = Figure((WIDTH_INCHES, MARGIN_INCHES + TRACK_INCHES * max(1, len(longest))))
    bands = figure.subplots(max(1, len(longest)), 1, sharex=True, squeeze=False)[:, 0]
    colours = colormaps["tab10"].colors  # type: ignore[attr-defined]
    for band, track in zip(bands, longest, strict=False):
        seconds = [p.seconds for p in tracks[track]]
        labels = list(tracks[track][0].smoothed)
        curves = [[p.smoothed[label] for p in tracks[track]] for label in labels]
        band.stackplot(seconds, curves, labels=labels, colors=colours)
        band.set(ylabel=f"face {track}", ylim=(0, 1), yticks=(0, 0.5, 1))
    # A name may have the signs of a formula.
    bands[0].set_title(title if longest else f"{title}: no face was found", parse_math=False)
    bands[-1].set_xlabel("seconds")
    handles, names = bands[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=8, frameon=False)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, bbox_inches="tight", dpi=120)
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: the timeline cannot be written ({error}).") from error
