"""The loss of a step, as its stage measured it on held-out pictures."""

import dataclasses

from vgg_runtime.bundle.metrics import Comparison
from vgg_runtime.records import Record


@dataclasses.dataclass(frozen=True)
class Loss(Record):
    """``agreement`` of the class, or of a multi-label network's decisions (0 to 1), and mean ``kl`` in nats
    on ``n`` pictures. ``against``: the reference.

    This is ``vgg_runtime.result.StepLoss`` without the step's name, which is its key in a sidecar.
    """

    agreement: float
    kl: float
    n: int
    against: str

    @classmethod
    def of(cls, comparison: Comparison, against: str) -> "Loss":
        return cls(comparison.agreement, comparison.kl, comparison.n, against)


@dataclasses.dataclass(frozen=True)
class Losses(Record):
    """The losses in a sidecar, by what was done; empty where the stage measures none."""

    losses: dict[str, Loss] = dataclasses.field(default_factory=dict)
