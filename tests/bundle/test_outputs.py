"""What logits mean, held against textbook formulas."""

import math

import numpy as np
import pytest

from vgg_runtime.bundle import metrics, outputs
from vgg_runtime.bundle.outputs import MULTI_LABEL, SIGMOID, SOFTMAX
from vgg_runtime.result import Proportion


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def bernoulli_kl(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def test_softmax_survives_large_logits() -> None:
    found = outputs.softmax(np.array([[1000.0, 1000.0, -1000.0]], np.float32))
    assert found == pytest.approx(np.array([[0.5, 0.5, 0.0]]))
    for kind in (SIGMOID, MULTI_LABEL):
        found = outputs.probabilities(np.array([[-1000.0], [1000.0]], np.float32), kind)
        assert found[:, -1].tolist() == [0.0, 1.0]


def test_top_k_is_ordered_and_stable() -> None:
    assert outputs.top_k(np.array([[1.0, 3.0, 2.0, 3.0]], np.float32), 3).tolist() == [[1, 3, 2]]


def test_one_sigmoid_unit_is_two_classes() -> None:
    z = np.array([[-1.5], [0.25]], np.float32)
    assert outputs.class_logits(z, SIGMOID).tolist() == [[0, -1.5], [0, 0.25]]
    expected = [[1 - sigmoid(-1.5), sigmoid(-1.5)], [1 - sigmoid(0.25), sigmoid(0.25)]]
    assert outputs.probabilities(z, SIGMOID) == pytest.approx(np.array(expected))
    found = outputs.predictions(z[0], SIGMOID, 5)
    assert np.array(found) == pytest.approx(np.array([[0, sigmoid(1.5)], [1, sigmoid(-1.5)]]))
    for kind in (SOFTMAX, MULTI_LABEL):
        assert outputs.class_logits(z, kind) is z
    with pytest.raises(ValueError, match="has one logit per picture, found 2"):
        outputs.class_logits(np.zeros((1, 2), np.float32), SIGMOID)


def test_a_multi_label_picture_is_given_every_label_above_a_half() -> None:
    z = np.array([0.5, -2, 3, -0.25, 0.1, -5], np.float32)
    assert outputs.probabilities(z, MULTI_LABEL) == pytest.approx([sigmoid(float(v)) for v in z])
    assert outputs.decisions(z).tolist() == [True, False, True, False, True, False]
    one, four = (outputs.predictions(z, MULTI_LABEL, k) for k in (1, 4))
    assert [label for label, _ in one] == [2, 0, 4]
    assert [label for label, _ in four] == [2, 0, 4, 3]
    assert outputs.given([share for _, share in four], MULTI_LABEL) == 3
    nothing = outputs.predictions(np.array([-1, -2, 0], np.float32), MULTI_LABEL, 2)
    assert [label for label, _ in nothing] == [2, 0]
    assert nothing[0][1] == 0.5
    assert outputs.given([share for _, share in nothing], MULTI_LABEL) == 0


def test_a_picture_of_one_class_is_given_one() -> None:
    found = outputs.predictions(np.array([2, 1, 0], np.float32), SOFTMAX, 2)
    total = math.exp(2) + math.exp(1) + 1
    assert np.array(found) == pytest.approx(np.array([[0, math.exp(2) / total], [1, math.exp(1) / total]]))
    assert outputs.given([0.2, 0.1], SOFTMAX) == outputs.given([0.9, 0.1], SIGMOID) == 1


def test_a_sigmoid_is_compared_as_two_classes() -> None:
    reference, found = (np.array(z, np.float32)[:, None] for z in ([-2, 1, 0.5, -0.1], [-1, 2, -0.5, 0.1]))
    compared = metrics.compare(found, reference, np.array([0, 1, 1, -1]), SIGMOID)
    assert compared.same.tolist() == [True, True, False, False]
    assert compared.lost.tolist() == [0, 0, 1]
    pairs = zip(reference[:, 0], found[:, 0], strict=True)
    expected = [bernoulli_kl(sigmoid(float(p)), sigmoid(float(q))) for p, q in pairs]
    assert compared.divergence == pytest.approx(expected)


def test_multi_label_answers_are_compared_decision_by_decision() -> None:
    reference = np.array([[2, -1, 0.5, -3], [1, 1, -1, -1], [-1, -1, -1, -1]], np.float32)
    found = np.array([[1, 1, 0.5, -3], [-1, -1, 1, 1], [-2, -1, -1, -1]], np.float32)
    compared = metrics.compare(found, reference, np.array([0, 1, 2]), MULTI_LABEL)
    assert (compared.n, compared.agreement) == (3, 7 / 12)
    assert compared.differing.tolist() == compared.counted.tolist() == [0.25, 1, 0]
    assert compared.lost.tolist() == []  # a picture has one class here, and several labels there
    expected = [
        np.mean([bernoulli_kl(sigmoid(p), sigmoid(q)) for p, q in zip(*rows, strict=True)])
        for rows in zip(reference.tolist(), found.tolist(), strict=True)
    ]
    assert compared.divergence == pytest.approx(expected)
    assert compared.kl == pytest.approx(np.mean(expected))
    assert compared.loss_error_points == pytest.approx(100 * np.std([0.25, 1, 0]) / math.sqrt(3))


def test_the_interval_of_a_share_counts_pictures_not_labels() -> None:
    """The labels of a picture depend on each other: ten of them are not ten pictures."""
    hits = np.ones((4, 10), bool)
    hits[0, :5] = False
    assert metrics.share(hits) == Proportion(35 / 40, 4, metrics.wilson_interval(3.5, 4))
    assert metrics.share(~hits | hits) == Proportion(1.0, 4, metrics.wilson_interval(4, 4))
    assert metrics.share(hits[:, 0]) == metrics.proportion(3, 4)
