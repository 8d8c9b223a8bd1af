import math

import numpy as np
import pytest

from vgg_runtime.bundle import metrics


def test_wilsons_interval_is_the_textbooks() -> None:
    # Newcombe 1998, table I
    assert metrics.wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert metrics.wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert metrics.wilson_interval(10, 10)[1] == 1.0
    for right, n in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="needs 0 <= right <= n"):
            metrics.wilson_interval(right, n)


def test_divergence_is_zero_of_the_same_and_right_by_hand() -> None:
    p = np.log(np.array([[0.5, 0.5]], np.float32))
    q = np.log(np.array([[0.9, 0.1]], np.float32))
    assert metrics.kl_divergence(p, p) == pytest.approx([0.0])
    assert metrics.kl_divergence(p, q) == pytest.approx(
        [0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)], rel=1e-5
    )
    assert metrics.kl_divergence(p, p + 7) == pytest.approx([0.0], abs=1e-6)


def test_percentiles_have_to_be_earned() -> None:
    samples = [float(k) for k in range(1, 101)]
    assert metrics.percentile(samples, 50) == 50.5
    assert metrics.percentile(samples, 90) == 90.0
    assert metrics.percentile(samples[:63], 90) is None
    assert metrics.percentile(samples[:64], 90) == 58.0  # 0.9 * 64 = 57.6
    assert metrics.percentile([float(k) for k in range(661)], 99) is None
    assert metrics.percentile([float(k) for k in range(662, 0, -1)], 99) == 656.0  # 0.99 * 662 = 655.38
    assert metrics.percentile(samples, 95) is None
    assert metrics.percentile([], 50) is None


@pytest.mark.parametrize(
    ("labels", "lost", "counted"),
    [
        (None, [], [0, 1, 1, 0]),
        ([-1, -1, -1, -1], [], [0, 1, 1, 0]),
        ([0, 1, 0, -1], [0, 1, -1], [0, 1, -1]),  # both right, the reference alone, the answer alone
    ],
)
def test_a_comparison_counts_the_same_pictures(
    labels: list[int] | None, lost: list[int], counted: list[int]
) -> None:
    reference = np.log(np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4]], np.float32))
    logits = np.log(np.array([[0.9, 0.1], [0.7, 0.3], [0.8, 0.2], [0.6, 0.4]], np.float32))
    found = metrics.compare(logits, reference, None if labels is None else np.array(labels))
    assert (found.n, found.agreement, found.same.tolist()) == (4, 0.5, [True, False, False, True])
    assert found.divergence == pytest.approx(metrics.kl_divergence(reference, logits))
    assert found.kl == pytest.approx(float(found.divergence.mean()))
    assert (found.lost.tolist(), found.counted.tolist()) == (lost, counted)
    total, squares = float(sum(counted)), float(sum(k * k for k in counted))
    assert found.loss_error_points == metrics.loss_error_points(total, squares, len(counted))
