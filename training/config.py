"""The one configuration of a training run, saved inside its checkpoints."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from training.augmentation import Augmentation

# Choices that runs of earlier versions had.
FORMER = frozenset({"share_slopes_epochs"})


@dataclass(frozen=True)
class TrainingConfig:
    """Every choice that a run depends on. The defaults are, in the main, those of the teachers."""

    backbone: str = "mobilefacenet"
    fusion: Literal["add", "concat", "mean", "none"] = "add"
    """How f_o and f_a become one; "none" is the backbone alone (the paper's baseline)."""
    alpha: float = 0.5
    """Weight of the guidance loss (paper: 0.5); 0 trains without guidance."""
    clusters: int = 2
    """K of the guidance maps' K-means."""
    attentive: Literal["smallest", "largest"] = "smallest"
    """Which of the K clusters is attentive (paper: the smaller one)."""
    epochs: int = 14
    batch_size: int = 128
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 8e-4
    """Peak rate (paper: SGD at 0.1)."""
    weight_decay: float = 0.05
    momentum: float = 0.9
    """SGD only."""
    warmup_epochs: float = 1.0
    """Linear rise to the peak; a cosine to zero follows."""
    sharpness: float = 0.0
    """Sharpness-aware minimisation (Foret et al., 2021): the gradient is taken where the loss is
    highest within this distance of the weights (0.05 is usual), which doubles a step; 0: off."""
    ema_decay: float = 0.998
    """Exponential moving average of the weights, which is what is evaluated and exported; in the
    first steps of a run it forgets sooner."""
    dropout: float = 0.1
    soft_labels: bool = True
    """Vote distributions as targets; false: the majority class alone."""
    majority_only: bool = True
    """Leave out images whose votes have no majority; false: learn from their votes too."""
    balanced: bool = False
    """Draw each class equally often, for data sets in which some are rare (AffectNet)."""
    freeze_before: str = ""
    """Backbone stage before which all is frozen for the first `freeze_epochs` (MobileFaceNet)."""
    freeze_epochs: int = 0
    freeze_from: int = 0
    """Epochs after which they are frozen for good, which halves an epoch's cost; 0: never."""
    relu: bool = False
    """ReLUs in place of PReLUs, but for the last one (MobileFaceNet): over the first third of the
    run, each PReLU turns into the ReLU that was fitted to it. They cost nothing at inference, and
    teachers make up for most of what they lose."""
    teacher_weight: float = 1.0
    """Of the distillation loss, where a run is given teachers."""
    mixup: float = 0.0
    """Probability of a batch in which each image is blended with another one."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0
    threads: int = 0
    """CPU threads; 0 leaves torch's default."""
    workers: int = 0
    """Processes that load images."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of activations in training; bfloat16 is faster on recent GPUs, slower on most CPUs."""
    compile: bool = False
    """torch.compile: a minute of waiting, then faster steps."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as stored in checkpoints and model metadata."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingConfig:
        """The inverse of `as_dict`."""
        kept = {name: value for name, value in values.items() if name not in FORMER}
        return cls(**{**kept, "augmentation": Augmentation(**values["augmentation"])})
