"""The self-check: the device replays inputs that come with the bundle and compares the logits with those
recorded. The only table of tolerances is here.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from vgg_runtime.errors import BundleError

# Largest |difference of logits| that still passes, as a fraction of the spread (max - min) of the expected
# logits. fp32: another CPU sums in another order. int8: the accumulation is exact, but a value that falls
# between two steps may round the other way in each layer.
TOLERANCE = {"fp32": 1e-3, "int8": 0.10}


def input_key(px: int) -> str:
    """Name of the inputs [n, channels, px, px] in expected.npz."""
    return f"input_{px}"


def logits_key(build: str) -> str:
    """Name of a build's raw logits [n, outputs] in expected.npz."""
    return f"logits_{build}"


def load_expected(path: Path, build: str, px: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Inputs [n, channels, px, px] and raw logits [n, outputs], float32, recorded when the bundle was built.

    Raises:
        BundleError: the file cannot be read, or has none for this build.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return archive[input_key(px)], archive[logits_key(build)]
    except (OSError, KeyError, ValueError) as error:
        raise BundleError(f"{path} has no self-check for {build} ({error}); copy the bundle again") from error


def deviation(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    """Largest difference as a fraction of the spread of the expected logits; infinite when anything is not a
    number."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    spread = float(expected.max() - expected.min())
    return float(np.abs(found - expected).max()) / max(spread, 1e-12)


def failure(found: float, precision: str) -> str | None:
    """Why a deviation is too large for a model of this precision; None where it is not."""
    limit = TOLERANCE[precision]
    if found <= limit:
        return None
    return (
        f"self-check failed: logits differ by {found:.2g} of their spread from those recorded at build time,"
        f" at most {limit:g} allowed"
    )


def refusal(found: float, precision: str) -> str | None:
    """``failure`` with what to do, where a model that fails is not used."""
    wrong = failure(found, precision)
    return wrong and f"{wrong}; copy the bundle again, or make it for this board with --target"
