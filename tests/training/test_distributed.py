"""Two processes learn what one does from the same batches; a share is every n-th example."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.multiprocessing.spawn import spawn

from tests.training.made_up import ROOT, grey_face, made_up_crops, tiny_lan, write_png
from training.config import TrainingConfig
from training.crops import batches
from training.distributed import World, joined_world
from training.tracking import RUN_FILE
from training.trainer import CHECKPOINT, METRICS, Trainer, lan_loss, make_optimizer

# BatchNorm on CPUs sees a process's share alone; without warm-up the first step counts.
CONFIG = TrainingConfig(
    epochs=1, batch_size=8, learning_rate=0.01, warmup_epochs=0, dropout=0.0, optimizer="sgd"
)
PROCESSES = 2


def test_shares_are_one_process_batches_dealt_out(tmp_path: Path) -> None:
    crops = made_up_crops(tmp_path, 26)
    whole = [batch.indices.tolist() for batch in batches(crops, 8, shuffle=True)]
    parts = [
        [batch.indices.tolist() for batch in batches(crops, 8, shuffle=True, share=(rank, 2))]
        for rank in range(2)
    ]
    assert len(whole) == 3
    for batch, first, second in zip(whole, *parts, strict=True):
        assert (first, second) == (batch[::2], batch[1::2])


def work(rank: int, folder: str, port: int) -> None:
    """One of the processes, as torchrun would start it."""
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(PROCESSES),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        CUDA_VISIBLE_DEVICES="",
    )
    with joined_world() as world:
        crops = made_up_crops(Path(folder) / f"images-{rank}", 32)
        ready = Path(folder) / "ready"
        with world.first_alone():
            assert ready.exists() == (rank > 0), "the first process was here before the others"
            ready.touch()
        assert (world.rank, world.size) == (rank, PROCESSES)
        run = Path(folder) / "run"
        trainer = Trainer(tiny_lan(), CONFIG, run, {"labels": list("abc")}, world=world)
        trainer.fit(crops, None)


def losses_of_one_process(folder: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The mean losses and the weights after one epoch, each batch read in two shares."""
    crops = made_up_crops(folder, 32)
    network = tiny_lan().train()
    optimizer = make_optimizer(network, CONFIG)
    sums = torch.zeros(2)
    for step, batch in enumerate(batches(crops, CONFIG.batch_size, shuffle=True)):
        for group in optimizer.param_groups:
            group["lr"] = CONFIG.learning_rate * 0.5 * (1 + np.cos(np.pi * step / 4))
        shares = []
        for rank in range(PROCESSES):
            images = (batch.images[rank::PROCESSES].float() - 127.5) / 128
            output = network(images)
            targets, guidance = batch.targets[rank::2], batch.guidance[rank::2]
            shares.append(lan_loss(output, targets, guidance, CONFIG.alpha))
        optimizer.zero_grad()
        (sum(share.total for share in shares) / PROCESSES).backward()  # type: ignore[union-attr]
        optimizer.step()
        sums += sum(torch.stack((s.classification, s.guidance)).detach() for s in shares) / 2
    return (sums / 4).tolist(), network.state_dict()


def test_two_processes_have_the_loss_of_one_on_the_same_batches(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(work, (str(tmp_path), port), nprocs=PROCESSES)  # type: ignore[no-untyped-call]
    (metrics,) = map(json.loads, (tmp_path / "run" / METRICS).read_text().splitlines())
    expected, weights = losses_of_one_process(tmp_path / "again")
    assert [metrics["loss"], metrics["guidance_loss"]] == pytest.approx(expected, abs=2e-5)
    state = torch.load(tmp_path / "run" / CHECKPOINT, weights_only=True)["network"]
    for name, value in weights.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(state[name], value, atol=1e-5, rtol=1e-4)


def documented_torchrun() -> list[str]:
    """The words before those of `train`, as docs/retrain.md has them."""
    (line,) = re.findall(
        r"^torchrun (.*) train \.\.\.$", (ROOT / "docs/retrain.md").read_text(), re.M
    )
    return str(line).split()


def test_torchrun_as_documented_trains_with_two_processes(
    tmp_path: Path, detector_path: Path
) -> None:
    for index, pixels in enumerate((grey_face(66), grey_face(72), grey_face(78))):
        for label in ("calm", "lively"):
            light = pixels // (2 if label == "calm" else 1)
            write_png(tmp_path / "photos" / label / f"{index}.png", light)
    options = {
        "--dataset": "folder",
        "--data": tmp_path / "photos",
        "--run": tmp_path / "run",
        "--cache": tmp_path / "cache",
        "--detector": detector_path,
        "--epochs": 1,
        "--batch-size": 2,
        "--alpha": 0,
        "--threads": 1,
    }
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    words = [word for option in options.items() for word in map(str, option)]
    done = subprocess.run(
        [*torchrun, *documented_torchrun(), "train", *words],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "run" / RUN_FILE).read_text())
    assert told["environment"]["processes"] == PROCESSES
    assert (tmp_path / "run" / CHECKPOINT).is_file()


def test_one_process_is_a_world_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined_world() as world:
        assert (world.rank, world.size, world.first) == (0, 1, True)
        network = tiny_lan()
        assert world.wrapped(network) is network


def test_halved_precision_learns_too(tmp_path: Path) -> None:
    crops = made_up_crops(tmp_path, 24)
    config = dataclasses.replace(CONFIG, precision="bfloat16", epochs=3, learning_rate=0.1)
    trainer = Trainer(tiny_lan(), config, tmp_path / "run", {}, world=World())
    trainer.fit(crops, None)
    lines = (tmp_path / "run" / METRICS).read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert losses[-1] < losses[0]
    assert next(trainer.network.parameters()).dtype == torch.float32
