"""Measured loads as a table and a picture."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt

from benchmarks.servers import BASELINE, SERVICE, Measured

HEAD = (
    "case",
    "p50 ms",
    "p95 ms",
    "p99 ms",
    "photos/s",
    "CPU ms/photo",
    "memory MB",
    "p50, p95 ratio",
    "photos/s ratio",
    "goal",
    "generator CPU ms/photo",
)


@dataclass(frozen=True)
class Row:
    """One case on both servers; in the table, the baseline's figure stands first."""

    name: str
    baseline: Measured
    service: Measured

    def of(self, kind: str) -> Measured:
        """What one of the servers did."""
        return self.baseline if kind == BASELINE else self.service

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)

    def ratio(self, key: str) -> float:
        """Of the service's figure to the baseline's."""
        return float(self.service.load[key] / self.baseline.load[key])

    def cells(self, goals: Mapping[str, str]) -> list[str]:
        """The row of the table."""
        loads = (self.baseline.load, self.service.load)
        times = [" → ".join(f"{x[k]:.0f}" for x in loads) for k in ("p50_ms", "p95_ms", "p99_ms")]
        both = (self.baseline, self.service)
        refused = self.service.load["refused"]
        return [
            self.name + (f" ({refused} refused)" if refused else ""),
            *times,
            " → ".join(f"{x['photos_per_second']:.1f}" for x in loads),
            " → ".join(f"{m.cpu_ms_per_photo:.0f}" for m in both),
            " → ".join(f"{m.rss_mb:.0f}" for m in both),
            f"{self.ratio('p50_ms'):.2f}, {self.ratio('p95_ms'):.2f}",
            f"{self.ratio('photos_per_second'):.1f}",
            goals.get(self.name, ""),
            " → ".join(f"{x['generator_cpu_ms_per_photo']:.1f}" for x in loads),
        ]

    def line(self) -> str:
        """Progress, on one line."""
        return " | ".join(self.cells({}))


def table(rows: Sequence[Row], goals: Mapping[str, str]) -> str:
    """Markdown."""
    return _markdown(HEAD, (row.cells(goals) for row in rows))


def stage_table(rows: Sequence[Row]) -> str:
    """Markdown: how long a photo was in each of the service's stages, milliseconds."""
    stages = list(dict.fromkeys(stage for row in rows for stage in row.service.stage_ms))
    cells = ([r.name, *(f"{r.service.stage_ms.get(s, 0.0):.1f}" for s in stages)] for r in rows)
    return _markdown(["service, mean ms in", *stages], cells)


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    fields = dict(line.split("\t: ", 1) for line in lines if "\t: " in line)
    return {
        "cpu": fields.get("model name\t", fields.get("model name", platform.processor())),
        "cores": os.cpu_count(),
        "vnni": any("vnni" in flag for flag in fields.get("flags\t", "").split()),
        "python": platform.python_version(),
        "onnxruntime": version("onnxruntime"),
    }


def picture(found: Mapping[str, Any], path: Path) -> None:
    """Throughput against latency, 640x480 with one face."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for kind, colour in ((BASELINE, "tab:grey"), (SERVICE, "tab:blue")):
        closed = [r[kind]["load"] for r in found["closed"] if "640x480, 1 faces" in r["name"]]
        opened = [step["load"] for step in found.get("open", {}).get(kind, [])]
        for loads, style, loop in ((closed, "o--", "closed"), (opened, "s-", "open")):
            rates = [load["photos_per_second"] for load in loads]
            axes.plot(
                rates,
                [load["p95_ms"] for load in loads],
                style,
                color=colour,
                label=f"{kind}, {loop} loop",
            )
    axes.set(
        xlabel="photos a second", ylabel="p95 latency, ms", yscale="log", title="640x480, one face"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)
