"""Finds the order of the classes that a confusion matrix shows, where it is another one than assumed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vgg_runtime.text import printable

from .trials import Asked, Found, Said, clearly_more

LEAST_EXPLAINED = 0.5  # share of the held-out pictures that another order of the classes must get right
MOST_SHOWN = 60  # how many classes of an order a message shows


def other_order(
    predicted: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], names: Sequence[str]
) -> dict[str, Any]:
    """The order of the classes that the confusion matrix suggests. It is found on every other picture of each
    class, and kept only if it is right on the other pictures clearly more often than the assumed order."""
    place = np.zeros(len(labels), np.int64)  # the index of a picture among those of its class
    for label in np.unique(labels):
        place[labels == label] = np.arange((labels == label).sum())
    fit, apart = place % 2 == 0, place % 2 == 1
    if not apart.any():
        return {}
    confusion = np.zeros((len(names), len(names)), np.int64)  # [class, output]
    np.add.at(confusion, (labels[fit], predicted[fit]), 1)
    class_of = _assigned(confusion)
    meant = np.array([class_of.get(int(output), -1) for output in predicted[apart]])
    hits, n = meant == labels[apart], int(apart.sum())
    right = int(hits.sum())
    if right / n < LEAST_EXPLAINED or not clearly_more(hits, predicted[apart] == labels[apart]):
        return {}
    if len(class_of) == len(names) - 1:  # the last class belongs to the last output
        (output,), (label,) = (
            set(range(len(names))) - set(class_of),
            set(range(len(names))) - set(class_of.values()),
        )
        class_of[output] = label
    order = tuple(names[class_of[k]] if k in class_of else None for k in range(len(names)))
    missing = tuple(name for k, name in enumerate(names) if k not in class_of.values())
    return {"order": order, "missing": missing, "order_right": right, "order_n": n}


def with_other_input(asked: Asked, found: Found, names: Sequence[str]) -> Said | None:
    """The answers about all pictures with the one of the other inputs that shows another order of the classes
    best; None: none shows any. With a wrong order no input is right more often than chance."""
    orders = [(other_order(said.logits.argmax(1), said.labels, names), said) for said in found.others]
    shown = [(order["order_right"] / order["order_n"], said) for order, said in orders if order]
    if not shown:
        return None
    best = max(shown, key=lambda one: one[0])[1].input
    everything = range(len(asked.items))
    return asked.said([best], everything, "asking it with another input and order of classes")[0]


def _assigned(confusion: npt.NDArray[np.int64]) -> dict[int, int]:
    """The class of each output. The most frequent pairs are taken first; each output and class is used
    once."""
    pairs = [
        (int(confusion[label, output]), int(label), int(output))
        for label, output in zip(*np.nonzero(confusion), strict=True)
    ]
    class_of: dict[int, int] = {}
    taken: set[int] = set()
    for _, label, output in sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2])):
        if output not in class_of and label not in taken:
            class_of[output] = label
            taken.add(label)
    return class_of


def in_words(order: Sequence[str | None], missing: Sequence[str]) -> str:
    """The names of the outputs in their order. The ``missing`` classes belong to outputs that were not
    seen."""
    names = [f"{k} {'(not seen)' if name is None else printable(name)}" for k, name in enumerate(order)]
    shown = ", ".join(names[:MOST_SHOWN]) + (f", … {len(names)} in all" if len(names) > MOST_SHOWN else "")
    return shown + (
        f" (those not seen are {', '.join(map(printable, missing[:MOST_SHOWN]))})" if missing else ""
    )
