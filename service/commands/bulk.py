"""`lan-fer bulk`: a folder of millions of photos to Parquet, on every core or a whole cluster."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from service.commands.flags import (
    NETWORK_SETTINGS,
    add_settings,
    given_settings,
    names_on_stdin,
    report,
    say,
    sentence,
)
from service.pipeline import load_networks
from service.printable import as_text
from service.settings import load_settings
from service.sources import find_sources, is_address, require_there

SUMMARY = "read millions of photos to Parquet with Ray"

EXAMPLES = """examples:
  lan-fer bulk /photos --output /answers                 every core of this machine
  lan-fer bulk /photos --output /answers --resume        go on after an interruption
  lan-fer bulk 's3://bucket/photos?region=eu-central-1' -o s3://bucket/answers
  RAY_ADDRESS=auto lan-fer bulk /mnt/photos -o /mnt/answers --workers 64
  lan-fer bulk /photos -o /answers --gpus-per-worker 1 --provider cuda

The rows are those of `lan-fer predict`, with a column `error` that says why a photo could not be
read. Needs the extra `bulk`: in a checkout, pip install -e '.[bulk]'.
"""


def add_parser(parser: argparse.ArgumentParser) -> None:
    """The flags of `bulk`."""
    parser.description = sentence(SUMMARY)
    parser.epilog = EXAMPLES
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="photo, folder, pattern, bucket, or -"
    )
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FOLDER",
        help="where the Parquet files go: a folder or bucket",
    )
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="skip what the output already has")
    again.add_argument("--overwrite", action="store_true", help="replace an output that is there")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="default: one a CPU of the cluster"
    )
    parser.add_argument(
        "--gpus-per-worker", type=float, default=0.0, metavar="N", help="default: %(default)s"
    )
    add_settings(parser.add_argument_group("networks and limits"), NETWORK_SETTINGS)


def run(arguments: argparse.Namespace) -> int:
    """Read everything; exit code 1 where a photo could not be read."""
    require_there(arguments.paths)
    from service.bulk import BulkJob, failures, run_job
    from service.parquet import prepare_folder

    settings = given_settings(arguments)
    # A wrong setting or model is said here, not by every worker; the GPU may be theirs alone.
    load_networks(load_settings(**settings | {"provider": "cpu"}))
    sources = _sources(arguments.paths)
    output = _absolute(arguments.output)
    done = prepare_folder(output, resume=arguments.resume, overwrite=arguments.overwrite)
    left = [source for source in sources if as_text(source) not in done]
    if left:
        say(f"{len(left)} of {len(sources)} photos to read")
        run_job(
            BulkJob(
                sources=left,
                output=output,
                settings=settings,
                workers=arguments.workers,
                gpus_per_worker=arguments.gpus_per_worker,
            )
        )
    return report(failures(output), len(sources))


def _sources(names: Sequence[str]) -> list[str]:
    """What `predict` would read, as absolute paths, and the photos of buckets."""
    from service.buckets import list_photos

    found: dict[str, None] = {}
    lines = names_on_stdin()
    for name in names:
        if is_address(name):
            found.update(dict.fromkeys(list_photos(name)))
        else:
            paths = find_sources([name], lines=lines)
            found.update(dict.fromkeys(_absolute(str(path)) for path in paths))
    return list(found)


def _absolute(name: str) -> str:
    # A worker need not have this process's folder as its own.
    return name if is_address(name) else str(Path(name).absolute())
