"""How a checkpoint answers on labelled pictures, and what would explain its errors."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vgg_runtime.bundle import metrics
from vgg_runtime.bundle.outputs import softmax
from vgg_runtime.records import Record

from . import class_order
from .trials import Floats, Trial, Tried

CERTAIN = 0.9  # from this share on, the classes are said to be in that order


@dataclasses.dataclass(frozen=True)
class Answers(Record):
    """The answers of a checkpoint on ``n`` labelled pictures: ``right`` of them are correct. ``chance``: the
    share of the most frequent class, or that of guessing. ``largest``: the name of that class.
    ``mean_probability``: the mean probability of the predicted classes. The other fields would explain the
    errors.

    ``order``: the class names in the order of the outputs (None: not seen, one of the ``missing``). It was
    found on half of the pictures, and is right on ``order_right`` of the ``order_n`` others. ``trial``: how
    the checkpoint answers with other inputs, where that was tried; ``otherwise``: its answers with the best
    of them, where that is better."""

    n: int
    right: int
    chance: float
    largest: str
    single_class: bool
    mean_probability: float
    order: tuple[str | None, ...] | None = None
    missing: tuple[str, ...] = ()
    order_right: int = 0
    order_n: int = 0
    trial: Trial | None = None
    otherwise: "Answers | None" = None

    @property
    def rate(self) -> float:
        return self.right / self.n

    @property
    def order_certain(self) -> bool:
        return self.order is not None and self.order_right / self.order_n >= CERTAIN

    @property
    def better_than_chance(self) -> bool:
        return metrics.better_than_chance(self.right, self.n, self.chance)

    @property
    def telling(self) -> bool:
        """Whether these pictures could show anything. If nearly all are of one class, even a perfect network
        is not clearly better than chance."""
        return metrics.better_than_chance(self.n, self.n, self.chance)

    @property
    def misordered(self) -> bool:
        """Whether another order of the classes is right more than twice as often, so that most classes have
        wrong names."""
        return self.order is not None and 2 * self.rate < self.order_right / self.order_n

    @property
    def beaten_by(self) -> Tried | None:
        """The input that is clearly better than the assumed one; None: there is none."""
        return self.trial.best if self.trial and self.trial.clear else None

    @property
    def understood(self) -> bool:
        return self.better_than_chance and not self.misordered

    @property
    def doubtful(self) -> bool:
        """Whether the network is near chance, or right clearly less often than its mean probability says."""
        return (
            not self.better_than_chance
            or metrics.wilson_interval(self.right, self.n)[1] < self.mean_probability
        )

    @property
    def suspicious(self) -> bool:
        """Whether something is wrong although the pictures count as understood."""
        return self.rate < self.mean_probability / 2 or self.order is not None


def judge(logits: Floats, labels: npt.NDArray[np.int64], names: Sequence[str]) -> Answers:
    """Judge ``logits`` [n, classes] of pictures whose classes are ``labels`` [n]. ``names``: the class names
    in the assumed order."""
    chance = metrics.chance(labels, logits.shape[1])
    assert chance is not None
    predicted = logits.argmax(1)
    counts = np.bincount(labels, minlength=len(names))
    answers = Answers(
        n=len(labels),
        right=int((predicted == labels).sum()),
        chance=chance,
        largest=names[int(counts.argmax())],
        single_class=int((counts > 0).sum()) == 1,
        mean_probability=float(softmax(logits).max(1).mean()),
    )
    return (
        dataclasses.replace(answers, **class_order.other_order(predicted, labels, names))
        if answers.doubtful
        else answers
    )
