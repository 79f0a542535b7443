"""Training a LAN: cross-entropy + alpha * guidance loss (paper, equation 6)."""

from __future__ import annotations

import contextlib
import copy
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from training.backbones import MobileFaceNet
from training.config import TrainingConfig
from training.crops import Batch, CropDataset, batches, mixed, normalise
from training.distillation import distillation_loss, ensemble_answer
from training.distributed import World
from training.evaluation import Evaluation, evaluate
from training.lan import Lan, LanOutput
from training.progress import progress
from training.rectifying import fade, fading, finish_fading, inner_prelus

CHECKPOINT = "checkpoint.pt"
BEST = "best.pt"
METRICS = "metrics.jsonl"
# The share of a run in which PReLUs turn into ReLUs.
FADING_SHARE = 0.35
# The part of a run's provenance that may change before it goes on.
ENVIRONMENT = frozenset({"commit", "torch", "python"})


class TrainingError(Exception):
    """A run cannot start or go on; the message says why."""


@dataclass(frozen=True)
class Loss:
    """Its terms, each averaged over the batch."""

    classification: Tensor
    guidance: Tensor
    alpha: float
    distillation: Tensor | None = None
    """Already weighted; None: no teacher."""

    @property
    def total(self) -> Tensor:
        """L = L_ce + alpha * L_bce, and what a teacher adds."""
        loss = self.classification + self.alpha * self.guidance
        return loss if self.distillation is None else loss + self.distillation


def lan_loss(output: LanOutput, targets: Tensor, guidance: Tensor, alpha: float) -> Loss:
    """`targets` [N,K] soft labels, `guidance` [N,7,7] in 0..1; no attention has no such loss."""
    guided = output.logits.new_zeros(())
    if output.attention_logits is not None:
        guided = F.binary_cross_entropy_with_logits(output.attention_logits, guidance)
    return Loss(F.cross_entropy(output.logits, targets), guided, alpha)


def learning_rate(config: TrainingConfig, progress: float) -> float:
    """Rate at `progress` (0..1 of all steps): linear warm-up, then a cosine to zero.

    The warm-up is at most half of the run.
    """
    warmup = min(0.5, config.warmup_epochs / config.epochs)
    if progress < warmup:
        return config.learning_rate * progress / warmup
    share = (progress - warmup) / max(1e-9, 1 - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def fading_epochs(config: TrainingConfig) -> int:
    """The first epochs of a run, in which PReLUs turn into ReLUs; 0: they stay."""
    return max(1, round(FADING_SHARE * config.epochs)) if config.relu else 0


def make_optimizer(network: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW or SGD with momentum; biases, normalisation and PReLU slopes do not decay."""
    matrices = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, config.learning_rate, momentum=config.momentum)
    return torch.optim.AdamW(groups, config.learning_rate)


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """EMA of parameters; buffers (BatchNorm statistics) likewise, counters copied."""
    for own, new in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if own.is_floating_point():
            own.lerp_(new, 1 - decay)
        else:
            own.copy_(new)


@contextlib.contextmanager
def climbed(network: nn.Module, distance: float) -> Iterator[None]:
    """Within, the weights lie `distance` (Euclidean, over all) up their gradients.

    What is seen there does not enter the running statistics of BatchNorm.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    learnt = [(p, p.grad, p.detach().clone()) for p in network.parameters() if p.grad is not None]
    step = distance / (torch.nn.utils.get_total_norm([g for _, g, _ in learnt]) + 1e-12)
    with torch.no_grad():
        for weight, gradient, _ in learnt:
            weight.add_(gradient * step)
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        with torch.no_grad():
            for weight, _, before in learnt:
                weight.copy_(before)


def frozen_stages(network: Lan, before: str) -> list[nn.Module]:
    """The backbone's modules before stage `before`. Raises TrainingError for an unknown stage."""
    if not before:
        return []
    if not isinstance(network.backbone, MobileFaceNet):
        raise TrainingError("freeze_before works with the mobilefacenet backbone only")
    stages = list(network.backbone.stages())
    names = [name for name, _ in stages]
    if before not in names:
        raise TrainingError(f"freeze_before {before!r} is unknown; one of {', '.join(names)}")
    return [module for _, modules in stages[: names.index(before)] for module in modules]


class Trainer:
    """One run in one folder: checkpoint and metrics each epoch, resumable."""

    def __init__(
        self,
        network: Lan,
        config: TrainingConfig,
        folder: Path,
        provenance: dict[str, Any],
        *,
        world: World | None = None,
        teachers: Sequence[Lan] = (),
    ) -> None:
        """`provenance` is stored in checkpoints as it is (labels, data, weights digests)."""
        self.world = world or World()
        self.world.prepare(network)
        self.network = network
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.config, self.folder, self.provenance = config, folder, provenance
        self.epoch, self.best = 0, 0.0
        self._taken = 0
        self._begin()
        self._teachers = [self._ready_teacher(teacher) for teacher in teachers]

    def _begin(self) -> None:
        """Have all that depends on which parameters the network has."""
        self.optimizer = make_optimizer(self.network, self.config)
        self._compiled: Any = torch.compile(self.network) if self.config.compile else self.network
        self._model: Any = self._compiled

    def _finish_fading(self) -> None:
        """Go on with ReLUs; the optimiser begins anew."""
        if not any(fading(self.network)):
            return
        for network in (self.network, self.average):
            if isinstance(network.backbone, MobileFaceNet):
                finish_fading(network.backbone)
        # Graphs of what was there before count towards the most that may be compiled.
        torch.compiler.reset()
        self._begin()

    def _ready_teacher(self, teacher: Lan) -> Any:  # noqa: ANN401
        self.world.prepare(teacher.eval().requires_grad_(False))
        return torch.compile(teacher) if self.config.compile else teacher

    def resume(self) -> bool:
        """Take up the run in the folder, if there is one. Raises TrainingError if it differs."""
        path = self.folder / CHECKPOINT
        if not path.is_file():
            return False
        state = torch.load(path, map_location="cpu", weights_only=True)
        self._require_same_run(state, path)
        if 0 < fading_epochs(self.config) <= state["epoch"]:
            self._finish_fading()
        try:
            self.network.load_state_dict(state["network"])
        except RuntimeError as error:
            raise TrainingError(f"{path} holds another network") from error
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        self.epoch, self.best = state["epoch"], state["best"]
        if self.world.first:
            self._forget_later_metrics()
        return True

    def _require_same_run(self, state: dict[str, Any], path: Path) -> None:
        own = self.config.as_dict() | self.provenance
        # Fields that the configuration did not have yet count as their defaults.
        config = TrainingConfig.from_dict(state["config"]).as_dict()
        stored = config | state["provenance"]
        names = dict.fromkeys((*own, *stored))
        # What an older run did not write down counts as nothing: "" or false.
        changed = [
            n for n in names if n not in ENVIRONMENT and (own.get(n) or "") != (stored.get(n) or "")
        ]
        if changed:
            raise TrainingError(f"{path} was made with other settings: {', '.join(changed)}")

    def _forget_later_metrics(self) -> None:
        # An epoch may have been told before its checkpoint was written; it will be told again.
        path = self.folder / METRICS
        lines = path.read_text().splitlines() if path.is_file() else []
        kept = [line for line in lines if json.loads(line)["epoch"] <= self.epoch]
        if kept != lines:
            path.write_text("".join(f"{line}\n" for line in kept))

    def fit(self, train: CropDataset, validation: CropDataset | None, *, until: int = 0) -> None:
        """Train up to the configured number of epochs, or to epoch `until` of them."""
        if not self.world.first:
            while self.epoch < (until or self.config.epochs):
                self._train_epoch(train)
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with SummaryWriter(str(self.folder)) as board:
            while self.epoch < (until or self.config.epochs):
                metrics = self._train_epoch(train)
                if validation is not None:
                    metrics |= self._validate(validation).summary()
                self._record(metrics, board)
                self._save(metrics.get("accuracy", 0.0))

    def _train_epoch(self, train: CropDataset) -> dict[str, float]:
        train.epoch = self.epoch
        self.set_mode()
        steps = max(1, len(train) // self.config.batch_size)
        self._taken = self.epoch * steps
        sums = torch.zeros(2, device=self.world.device)
        passes = batches(
            train,
            self.config.batch_size,
            shuffle=True,
            balanced=self.config.balanced,
            workers=self.config.workers,
            share=(self.world.rank, self.world.size),
        )
        title = f"epoch {self.epoch + 1}/{self.config.epochs}"
        bar = progress(passes, title, steps)
        for step, batch in enumerate(bar):
            done = (self.epoch + step / steps) / self.config.epochs
            loss = self.step(batch, done)
            sums += torch.stack((loss.classification, loss.guidance)).detach()
            bar.set_postfix(loss=f"{sums[0].item() / (step + 1):.3f}", refresh=False)
        self.epoch += 1
        if self.epoch == fading_epochs(self.config):
            self._finish_fading()
        classification, guidance = self.world.mean(sums / steps).tolist()
        return {"loss": classification, "guidance_loss": guidance}

    def step(self, batch: Batch, done: float) -> Loss:
        """Learn from one batch; `done` (0..1) of the whole run lies behind.

        Raises TrainingError where the loss is not finite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, done)
        if self.epoch < (span := fading_epochs(self.config)):
            for network in (self.network, self.average):
                fade(network, min(1.0, done * self.config.epochs / span))
        device = self.world.device
        moved = Batch(*(tensor.to(device, non_blocking=True) for tensor in batch))
        # Once for the teachers and for both passes of a step that minds sharpness.
        moved = moved._replace(images=normalise(moved.images))
        if self.config.mixup and torch.rand(()).item() < self.config.mixup:
            moved = mixed(moved)
        told = self._ask_teachers(moved.images)
        loss = self._learn(moved, told)
        if self.config.sharpness:
            with climbed(self.network, self.config.sharpness):
                self._learn(moved, told)
        self.optimizer.step()
        update_average(self.average, self.network, self._decay())
        self._taken += 1
        return loss

    def _decay(self) -> float:
        """Of the average: smaller at first, so that it does not hang on what the run began with."""
        return min(self.config.ema_decay, (1 + self._taken) / (10 + self._taken))

    def _ask_teachers(self, images: Tensor) -> Tensor | None:
        """[N,K] log probabilities; None without teachers."""
        if not self._teachers:
            return None
        with torch.no_grad(), self._autocast():
            return ensemble_answer([teacher(images).logits for teacher in self._teachers])

    def _autocast(self) -> torch.autocast:
        halved = self.config.precision == "bfloat16"
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=halved)

    def _learn(self, batch: Batch, told: Tensor | None) -> Loss:
        """Loss and gradients of one batch, its images normalised, at the present weights."""
        with self._autocast():
            output = self._model(batch.images)
            loss = lan_loss(output, batch.targets, batch.guidance, self.config.alpha)
            if told is not None:
                extra = self.config.teacher_weight * distillation_loss(output.logits, told)
                loss = replace(loss, distillation=extra)
        if not torch.isfinite(loss.total):
            raise TrainingError(f"epoch {self.epoch + 1}: the loss is not finite; lower the rate")
        self.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()  # type: ignore[no-untyped-call]
        return loss

    def set_mode(self) -> None:
        """Make the network ready for steps of the current epoch: what learns, what is frozen."""
        self.network.train().requires_grad_(True)
        late = self.config.freeze_from and self.epoch >= self.config.freeze_from
        if self.epoch < self.config.freeze_epochs or late:
            for module in frozen_stages(self.network, self.config.freeze_before):
                module.requires_grad_(False).eval()
        if self.config.relu and isinstance(self.network.backbone, MobileFaceNet):
            for prelu in inner_prelus(self.network.backbone):
                prelu.requires_grad_(False)
        self._model = self.world.wrapped(self._compiled)

    def _validate(self, validation: CropDataset) -> Evaluation:
        return evaluate(self.average, validation, self.config.batch_size)

    def _record(self, metrics: dict[str, float], board: SummaryWriter) -> None:
        for name, value in metrics.items():
            board.add_scalar(name, value, self.epoch)
        rounded = {name: round(value, 5) for name, value in metrics.items()}
        with (self.folder / METRICS).open("a") as file:
            file.write(json.dumps({"epoch": self.epoch, **rounded}) + "\n")
        print(f"epoch {self.epoch}: {rounded}", flush=True)

    def _save(self, score: float) -> None:
        # A network on its way to ReLUs is not one yet.
        ready = not any(fading(self.network))
        is_best = ready and score >= self.best
        self.best = max(score, self.best) if ready else self.best
        state = {
            "config": self.config.as_dict(),
            "provenance": self.provenance,
            "epoch": self.epoch,
            "score": score,
            "best": self.best,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
        }
        _write(self.folder / CHECKPOINT, state)
        if is_best:
            kept = ("config", "provenance", "epoch", "score", "average")
            _write(self.folder / BEST, {name: state[name] for name in kept})


def _write(path: Path, state: dict[str, Any]) -> None:
    # Written beside and moved: an interruption never leaves half a checkpoint.
    temporary = path.with_suffix(".part")
    torch.save(state, temporary)
    temporary.replace(path)
