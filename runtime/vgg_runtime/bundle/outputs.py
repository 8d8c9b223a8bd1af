"""What the outputs of a network mean: one class per picture, one of two classes, or a yes or no per label.

A graph always gives raw logits. Here they become classes, probabilities and decisions.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

# softmax: one logit per class; a picture has one class. sigmoid: one logit for two classes; a picture has one
# of them. multi-label: one logit per label; a picture has any number of labels.
from vgg_runtime.result import MULTI_LABEL, OUTPUTS, SIGMOID, SOFTMAX

__all__ = ["MULTI_LABEL", "OUTPUTS", "SIGMOID", "SOFTMAX"]
BLOCK_NUMBERS = 1 << 21  # 16 MB in float64
THRESHOLD = 0.5  # a label is given to a picture if its probability is larger

# What the figures are called in tables.
ACCURACY = {SOFTMAX: "top-1", SIGMOID: "accuracy at 0.5", MULTI_LABEL: "top-1"}
AGREEMENT = {SOFTMAX: "agrees", SIGMOID: "agrees", MULTI_LABEL: "per-label agreement"}
# Why there is no accuracy, where there is none.
TOP1_ABSENT = {
    MULTI_LABEL: "a multi-label network has no top-1: one folder per class names one label per picture"
}


def class_logits(logits: npt.NDArray[np.float32], kind: str) -> npt.NDArray[np.float32]:
    """Logits [..., outputs] with one entry per label: [..., labels].

    The one logit z of a sigmoid becomes [0, z], whose softmax is [1 - sigmoid(z), sigmoid(z)]. What is true
    of classes is then true of these two. Other logits stay as they are.

    Raises:
        ValueError: a sigmoid has another number of logits than one.
    """
    if kind != SIGMOID:
        return logits
    if logits.shape[-1] != 1:
        raise ValueError(f"a sigmoid network has one logit per picture, found {logits.shape[-1]}")
    return against_zero(logits[..., 0])


def against_zero(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Each logit z as the two logits [0, z] of no and yes: [...] -> [..., 2]."""
    return np.stack([np.zeros_like(logits), logits], axis=-1)


def in_blocks(rows: npt.NDArray[np.int64], width: int) -> list[npt.NDArray[np.int64]]:
    """``rows`` in parts that hold BLOCK_NUMBERS numbers each, where a row has ``width``: what is computed of
    many rows in float64 then takes no more memory than of a few."""
    each = max(1, BLOCK_NUMBERS // max(1, width))
    return [rows[start : start + each] for start in range(0, len(rows), each)]


def by_blocks(
    function: Callable[..., npt.NDArray[Any]], *arrays: npt.NDArray[np.floating]
) -> npt.NDArray[Any]:
    """``function`` of arrays [n, …], which says something of each row [n, …], computed block by block."""
    first = arrays[0]
    parts = in_blocks(np.arange(len(first)), first[:1].size)
    if len(parts) < 2:
        return function(*arrays)
    return np.concatenate([function(*(array[part] for array in arrays)) for part in parts])


def log_softmax(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Natural logarithm of the probabilities along the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Probabilities along the last axis, in float64."""
    result: npt.NDArray[np.float64] = np.exp(log_softmax(logits))
    return result


def top_k(logits: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int64]:
    """Indices of the ``k`` largest logits, largest first: [n, k]. Equal logits keep the order of the
    classes."""

    def largest(z: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        return np.argsort(-z, axis=-1, kind="stable")[..., :k].copy()  # a view would keep all of it

    return by_blocks(largest, logits) if logits.ndim > 1 else largest(logits)


def probabilities(logits: npt.NDArray[np.float32], kind: str) -> npt.NDArray[np.float64]:
    """The probability of each label: logits [..., outputs] -> float64 [..., labels]. Those of a multi-label
    network do not add up to 1."""
    if kind == MULTI_LABEL:
        return softmax(against_zero(logits))[..., 1]
    return softmax(class_logits(logits, kind))


def decisions(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """The yes or no of a multi-label network per label: logits [..., labels] -> bool [..., labels]."""
    result: npt.NDArray[np.bool_] = probabilities(logits, MULTI_LABEL) > THRESHOLD
    return result


def predictions(logits: npt.NDArray[np.float32], kind: str, k: int) -> list[tuple[int, float]]:
    """The ``k`` most probable labels of one picture, most probable first, each with its probability. More
    than ``k`` where a multi-label network gives the picture more. ``logits`` [outputs].

    Raises:
        ValueError: a logit is no number; nothing is the most probable one then.
    """
    if not np.isfinite(logits).all():
        raise ValueError("the network answers with values that are no numbers (NaN or infinity)")
    found = probabilities(logits, kind)
    count = max(k, int((found > THRESHOLD).sum()))
    return [(int(label), float(found[label])) for label in top_k(class_logits(logits, kind), count)]


def given(probabilities: Sequence[float], kind: str) -> int:
    """How many labels a picture is given, when ``predictions`` found these ``probabilities``: so many of the
    first. It is one class, or every label of a multi-label network above THRESHOLD."""
    return sum(share > THRESHOLD for share in probabilities) if kind == MULTI_LABEL else 1
