"""The service against the plain baseline, both in one run: `make bench`.

    python -m benchmarks.run [--only 640x480] [--seconds 8] [--output benchmarks/results]

Both servers are up all the time and take turns, case by case, so that a noisy minute of the machine
hits both. The load generator is a process of its own; on a machine of few cores it takes CPU from
the server, from both alike, and how much is in the last column.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from benchmarks.photos import usual_photos
from benchmarks.report import Row, machine, picture, stage_table, table
from benchmarks.servers import BASELINE, SERVICE, Measured, RunningServer, running

PHOTOS = 8
FEWER_PHOTOS = 3  # of 12 MP, which take long to compose
# The open loop raises its rate by this until a server lags behind or keeps clients waiting.
RATE_STEP = 1.3
KNEE_P95_MS = 1000
KEEPS_UP = 0.93


@dataclass(frozen=True)
class Case:
    """A closed loop on one kind of photo."""

    clients: int
    size: str
    faces: int

    @property
    def name(self) -> str:
        """As `--only` matches it."""
        return f"{self.size}, {self.faces} faces, {self.clients} clients"


CASES = (
    *(Case(clients, "640x480", 1) for clients in (1, 8, 32, 64)),
    *(Case(1, "640x480", faces) for faces in (0, 5, 20)),
    *(Case(1, "1080p", faces) for faces in (0, 1, 5, 20)),
    Case(32, "1080p", 1),
    *(Case(1, "12MP", faces) for faces in (0, 1, 5, 20)),
)
# Of the baseline's value; the issue of speed is settled where every ratio keeps to its goal.
GOALS = {
    (Case(1, "640x480", 1), "p50"): 0.4,
    (Case(32, "640x480", 1), "throughput"): 4.0,
    (Case(32, "640x480", 1), "p95"): 0.25,
    (Case(1, "12MP", 1), "p50"): 0.15,
    (Case(1, "1080p", 20), "p50"): 0.4,
}


@dataclass(frozen=True, eq=False)
class Bench:
    """Both servers, and the photos that have been composed."""

    servers: dict[str, RunningServer]
    folder: Path
    seconds: float

    def photos(self, size: str, faces: int) -> Path:
        """A folder of JPEGs of the kind, composed when first asked for."""
        folder = self.folder / f"{size}-{faces}"
        if not folder.is_dir():
            folder.mkdir()
            count = FEWER_PHOTOS if size == "12MP" else PHOTOS
            for index, photo in enumerate(usual_photos(size, faces, count)):
                (folder / f"{index}.jpg").write_bytes(photo)
        return folder

    def closed(self, case: Case) -> Row:
        """One case on both servers."""
        photos = self.photos(case.size, case.faces)
        options = ("--clients", case.clients, "--seconds", self.seconds)
        measured = {kind: server.load(photos, *options) for kind, server in self.servers.items()}
        return Row(case.name, measured[BASELINE], measured[SERVICE])

    def open(self, kind: str, start_rate: float) -> list[Measured]:
        """Rising rates (640x480, one face) up to the first that the server does not hold."""
        photos = self.photos("640x480", 1)
        steps: list[Measured] = []
        rate = start_rate
        while True:
            options = ("--rate", rate, "--seconds", self.seconds)
            step = self.servers[kind].load(photos, *options)
            steps.append(dataclasses.replace(step, load=step.load | {"rate": round(rate, 1)}))
            late = step.load["p95_ms"] > KNEE_P95_MS
            if late or step.load["photos_per_second"] < KEEPS_UP * rate or step.load["refused"]:
                return steps
            rate *= RATE_STEP


@lru_cache(maxsize=1)
def _goal_texts() -> dict[str, str]:
    texts: dict[str, list[str]] = {}
    for (case, figure), goal in GOALS.items():
        texts.setdefault(case.name, []).append(f"{figure} {goal:g}")
    return {name: ", ".join(goals) for name, goals in texts.items()}


def measure(bench: Bench, only: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Every case whose name holds `only`; JSON."""
    rows = []
    for case in (c for c in CASES if only in c.name):
        row = bench.closed(case)
        rows.append(row)
        say(row.line())
    found: dict[str, Any] = {"closed": [row.as_json() for row in rows]}
    if only in "open loop":
        found["open"] = {}
        for kind in (BASELINE, SERVICE):
            start = 0.4 * _throughput(rows, kind)
            steps = bench.open(kind, start)
            found["open"][kind] = [dataclasses.asdict(step) for step in steps]
            say(f"open loop, {kind}: " + ", ".join(_step_text(s) for s in steps))
    found["start"] = {kind: s.seconds_to_ready for kind, s in bench.servers.items()}
    text = f"{table(rows, _goal_texts())}\n\n{stage_table(rows)}\n\n{_start_text(found['start'])}"
    return found | {"table": text}


def _start_text(seconds: dict[str, float]) -> str:
    texts = (f"{kind} {value:.1f} s" for kind, value in seconds.items())
    return f"From the command to ready: {', '.join(texts)}."


def _throughput(rows: Sequence[Row], kind: str) -> float:
    """Photos a second in the closed loop, to start the open loop from."""
    rates = [r.of(kind).load["photos_per_second"] for r in rows if "640x480, 1 faces" in r.name]
    return max(rates, default=50.0)


def _step_text(step: Measured) -> str:
    return f"{step.load['rate']:g}/s p95 {step.load['p95_ms']:.0f} ms"


def main() -> None:
    """Measure, print, write JSON, Markdown and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--seconds", type=float, default=8, help="of each load")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--model", type=Path, help="another expression network, for both servers")
    parser.add_argument(
        "--as-shipped",
        action="store_true",
        help="the baseline runs the shipped file as it is, not with PReLU",
    )
    options = parser.parse_args()
    model = ["--model", str(options.model)] if options.model else []
    own = ["--model-path", str(options.model)] if options.model else []
    with (
        tempfile.TemporaryDirectory() as folder,
        running(BASELINE, model + (["--as-shipped"] if options.as_shipped else [])) as baseline,
        running(SERVICE, own) as service,
    ):
        servers = {BASELINE: baseline, SERVICE: service}
        bench = Bench(servers, Path(folder), options.seconds)
        found = measure(bench, options.only, lambda line: print(line, flush=True))
    print(found["table"])
    options.output.mkdir(parents=True, exist_ok=True)
    found = {"machine": machine(), "arguments": vars(options), **found}
    (options.output / "bench.json").write_text(json.dumps(found, indent=1, default=str) + "\n")
    (options.output / "bench.md").write_text(found["table"] + "\n")
    picture(found, options.output / "bench.png")


if __name__ == "__main__":
    main()
