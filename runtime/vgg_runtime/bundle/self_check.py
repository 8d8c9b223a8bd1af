"""The self-check: the device replays inputs that come with the bundle and compares the logits with those
recorded. The only table of tolerances is here.
"""

import io
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vgg_runtime.errors import BundleError

from .outputs import SIGMOID

# Largest |difference of logits| that still passes, as a fraction of the spread (max - min) of the expected
# logits. fp32: another CPU sums in another order. int8: the accumulation is exact, but a value that falls
# between two steps may round the other way in each layer.
TOLERANCE = {"fp32": 1e-3, "int8": 0.10}

MOST_BYTES = 400_000_000  # of one array in expected.npz; two pictures at 224 px have 1.2 MB
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what numpy writes


def input_key(px: int) -> str:
    """Name of the inputs [n, channels, px, px] in expected.npz."""
    return f"input_{px}"


def logits_key(build: str) -> str:
    """Name of a build's raw logits [n, outputs] in expected.npz."""
    return f"logits_{build}"


def load_expected(path: Path, build: str, px: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Inputs [n, channels, px, px] and raw logits [n, outputs], float32, recorded when the bundle was built.

    Raises:
        BundleError: the file cannot be read, or has none for this build, or something else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            inputs, logits = (_array(archive, key) for key in (input_key(px), logits_key(build)))
        fits = inputs.ndim == 4 and inputs.shape[2:] == (px, px) and logits.ndim == 2
        if not fits or not len(inputs) == len(logits) > 0:
            raise ValueError(f"shapes {list(inputs.shape)} and {list(logits.shape)}")
        if not np.isfinite(inputs).all() or not np.isfinite(logits).all():
            raise ValueError("values that are no numbers")
    except Exception as error:  # whatever zipfile, zlib and numpy raise; a header may claim terabytes
        raise BundleError(f"{path} has no self-check for {build} ({error}); copy the bundle again") from error
    return inputs, logits


def _array(archive: zipfile.ZipFile, key: str) -> npt.NDArray[np.float32]:
    """An array of a .npz file. Its size is looked at before anything is unpacked."""
    member = archive.getinfo(f"{key}.npy")
    if member.file_size > MOST_BYTES:
        raise ValueError(f"{key} has {member.file_size} bytes, at most {MOST_BYTES} are read")
    if member.compress_type not in _PACKED:
        raise ValueError(f"{key} is packed with method {member.compress_type} of zip, which numpy never uses")
    with archive.open(member) as file:
        found = np.lib.format.read_array(io.BytesIO(file.read(MOST_BYTES)), allow_pickle=False)
    if found.dtype != np.float32:
        raise ValueError(f"{key} holds {found.dtype}")
    return found


def ensure_classes(logits: npt.NDArray[np.float32], output: str, classes: int) -> None:
    """Make sure that there is a class name for each of the network's answers; ``logits`` [n, outputs] are
    recorded ones or its own.

    Raises:
        BundleError: there are fewer, or more.
    """
    expected = 1 if output == SIGMOID else classes
    if logits.ndim != 2 or logits.shape[1] != expected or (output == SIGMOID and classes != 2):
        raise BundleError(
            f"the bundle names {classes} classes, and its network has {_outputs(logits)} outputs ({output});"
            " copy the bundle again, or make it again"
        )


def _outputs(logits: npt.NDArray[np.float32]) -> str:
    return " x ".join(map(str, logits.shape[1:])) or "no"


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
