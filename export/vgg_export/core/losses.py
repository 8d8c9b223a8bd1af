"""What a step lost, as its stage measured it on held-out pictures."""

import dataclasses

from vgg_runtime.bundle.metrics import Comparison
from vgg_runtime.records import Record


@dataclasses.dataclass(frozen=True)
class Loss(Record):
    """Agreement of the top-1 and mean KL in nats on ``n`` pictures, ``against`` what.

    A ``vgg_runtime.result.StepLoss`` without its step, which is the key that a sidecar has it under; a bundle
    lists the losses of all stages, and has the step as the first of their fields."""

    agreement: float
    kl: float
    n: int
    against: str

    @classmethod
    def of(cls, comparison: Comparison, against: str) -> "Loss":
        return cls(comparison.agreement, comparison.kl, comparison.n, against)


@dataclasses.dataclass(frozen=True)
class Losses(Record):
    """Of a sidecar, what the stage lost by what was done; empty where it measures none."""

    losses: dict[str, Loss] = dataclasses.field(default_factory=dict)
