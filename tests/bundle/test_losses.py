"""The estimate of a loss: its calibration, and how it weighs what was counted."""

import numpy as np
import numpy.typing as npt
import pytest

from vgg_runtime.bundle import losses
from vgg_runtime.bundle.metrics import loss_error_points
from vgg_runtime.bundle.outputs import MULTI_LABEL, SIGMOID, SOFTMAX, log_softmax
from vgg_runtime.result import Loss

N = 400


def asked(
    sharpness: float, n: int = N, seed: int = 0
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Logits of five classes whose softmax, times ``sharpness``, is the true probability; and classes drawn
    from it."""
    random = np.random.default_rng(seed)
    logits = (3 * random.normal(size=(n, 5)) / sharpness).astype(np.float32)
    share = np.exp(log_softmax(logits * np.float32(sharpness)))
    labels = (share.cumsum(axis=1) > random.random((n, 1))).argmax(axis=1)
    return logits, labels


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 30.0])
def test_the_sharpness_is_the_one_that_makes_the_classes_most_likely(sharpness: float) -> None:
    logits, labels = asked(sharpness, n=4000)
    found = losses.sharpness(logits, labels)
    assert found == pytest.approx(sharpness, rel=0.1)

    def likelihood(factor: float) -> float:
        return float(log_softmax(logits * np.float32(factor))[np.arange(4000), labels].mean())

    assert likelihood(found) > max(likelihood(0.99 * found), likelihood(1.01 * found))


def test_a_network_that_is_never_wrong_gets_a_finite_sharpness() -> None:
    logits, _ = asked(1.0)
    found = losses.confidence(logits, logits.argmax(axis=1))
    assert np.isfinite(found).all()
    assert 0.9 < found.mean() < 1


@pytest.mark.parametrize("too_sure", [1.0, 20.0])
def test_the_mean_confidence_is_the_share_of_right_answers(too_sure: float) -> None:
    """However sure of itself the network is. It varies less than the answers, and its variance is that of
    the mean, the temperature's part included."""
    means, counts, said = [], [], []
    for seed in range(200):
        logits, labels = asked(1.0, n=200, seed=seed)
        found = losses.confidence(logits * np.float32(too_sure), labels)
        means.append(found.mean())
        counts.append((logits.argmax(axis=1) == labels).mean())
        said.append(found.std() / 200**0.5)
    assert np.mean(means) == pytest.approx(np.mean(counts), abs=0.01)
    assert np.std(means) < 0.8 * np.std(counts)
    assert np.mean(said) == pytest.approx(np.std(means), rel=0.2)


def test_no_picture_calibrates_its_own_probability() -> None:
    """The temperature is that of the other folds: a label that changes moves the pictures of its own fold
    only by the second part, which is the same for all of them but itself."""
    logits, labels = asked(1.0)
    other = labels.copy()
    other[0] = (labels[0] + 1) % 5
    alike = np.tile(logits[1:2], (N, 1))  # all pictures but the first are one picture
    alike[0], same = logits[0], np.full(N, labels[1])
    before, after = (losses.confidence(alike, np.concatenate([one[:1], same[1:]])) for one in (labels, other))
    fold, moved = losses.folds(N)[1:], (after - before)[1:]
    first = losses.folds(N)[0]
    assert np.ptp(moved[fold == first]) == pytest.approx(0, abs=1e-12)
    assert abs(moved[fold == first][0] - moved[fold != first][0]) > 1e-6


def test_one_sigmoid_unit_is_two_classes() -> None:
    logits, labels = asked(1.0)
    z, told = logits[:, :1], labels % 2
    two = np.concatenate([np.zeros_like(z), z], axis=1)
    counted = np.zeros(N)
    one = losses.estimated(counted, z, z + np.float32(0.3), told, SIGMOID)
    other = losses.estimated(counted, two, two + np.array([0, 0.3], np.float32), told, SOFTMAX)
    assert one.points == pytest.approx(other.points)
    assert one.n == N


def test_only_pictures_with_a_class_count_where_some_have_one() -> None:
    logits, labels = asked(1.0)
    some, counted = np.where(np.arange(N) < 100, labels, -1), np.zeros(100)
    other = logits[:, ::-1].copy()
    found = losses.estimated(counted, logits, other, some, SOFTMAX)
    assert found == losses.estimated(counted, logits[:100], other[:100], labels[:100], SOFTMAX)
    assert found.n == 100


@pytest.mark.parametrize(
    ("output", "labelled", "n"),
    [(SOFTMAX, False, N), (MULTI_LABEL, True, N), (SOFTMAX, True, losses.LEAST - 1)],
)
def test_where_only_counting_can_be_trusted_it_decides(output: str, labelled: bool, n: int) -> None:
    logits, labels = asked(1.0, n)
    counted = (np.arange(n) % 10 == 0).astype(np.float64)
    told = labels if labelled else np.full(n, -1)
    found = losses.estimated(counted, logits, logits[:, ::-1].copy(), told, output)
    error = loss_error_points(float(counted.sum()), float(counted.sum()), n)
    assert found == Loss(pytest.approx(100 * counted.mean()), error, n, 1.0, 3 * n)  # type: ignore[arg-type]


# The estimate.


def figures(
    flips: float, smooth_points: float, n: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Counted losses of which a share of ``flips`` are lost and half as many won, and a smooth figure of
    another mean that varies little."""
    counted = np.zeros(n)
    counted[: round(flips * n)] = 1
    counted[round(flips * n) : round(1.5 * flips * n)] = -1
    return counted, smooth_points / 100 + 0.02 * np.sin(np.arange(n))


def test_few_pictures_trust_the_probability_and_many_what_was_counted() -> None:
    estimates = [losses.estimate(*figures(0.06, 2.5, n)) for n in (100, 1000, 100_000)]
    shares = [found.counted_share for found in estimates]
    assert shares == sorted(shares)
    assert shares[0] < 0.2
    assert shares[-1] > 0.95
    for found in estimates:  # 3.0 were counted, and the probability says 2.5
        assert found.points == pytest.approx(
            found.counted_share * 3.0 + (1 - found.counted_share) * 2.5, abs=0.1
        )
    errors = [found.error_points for found in estimates]
    assert errors == sorted(errors, reverse=True)


def test_a_probability_that_is_plainly_wrong_is_not_trusted() -> None:
    """On a network of which it says nothing true: 3.0 points were counted, and it says 20."""
    found = losses.estimate(*figures(0.06, 20.0, 1000))
    assert found.counted_share > 0.95
    assert found.points == pytest.approx(3.0, abs=0.9)


def test_a_network_that_was_far_too_sure_of_itself_is_trusted_less() -> None:
    assert [losses.bias_points(temperature) for temperature in (0.5, 1.0, 3.0)] == [
        0.7,
        0.7,
        pytest.approx(1.8),
    ]
    counted, smooth = figures(0.06, 2.5, 300)
    sober, sure = losses.estimate(counted, smooth), losses.estimate(counted, smooth, 1.8)
    assert sober.counted_share < sure.counted_share
    assert sober.error_points < sure.error_points
    logits, labels = asked(1.0)
    lost = np.zeros(N)
    shares = [
        losses.estimated(lost, logits * scale, logits * scale, labels, SOFTMAX).counted_share
        for scale in (np.float32(1), np.float32(4))
    ]
    assert shares[0] < shares[1]


def test_the_error_of_no_loss_is_not_nought() -> None:
    found = losses.estimate(np.zeros(200), np.zeros(200))
    assert found.points == 0
    assert 0.05 < found.error_points < 0.6


@pytest.mark.parametrize("n", [100, 1000])
def test_so_many_more_pictures_halve_the_error(n: int) -> None:
    counted, smooth = figures(0.06, 2.5, n)
    found = losses.estimate(counted, smooth)
    times = round((n + found.halved_by) / n)
    more = losses.estimate(np.tile(counted, times), np.tile(smooth, times))
    assert more.error_points == pytest.approx(found.error_points / 2, rel=0.05)
    same = losses.estimate(counted, counted)
    assert same.halved_by == pytest.approx(3 * n, rel=0.03)
