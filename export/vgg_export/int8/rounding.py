"""Rounds the weights of convolutions such that their outputs change least, instead of each to the nearest
step.

The change of an output is e H e, where e are the errors of its weights and H is the covariance of the patches
that the convolution reads. With H = R' R and R upper triangular, the last error appears in the last row of R
e alone. So the weights are rounded from the last to the first, and each makes up for the errors of those
behind it (Babai 1986; the same as "GPTQ", Frantar et al. 2022). The mean of the outputs is left to the bias.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vgg_calibration.chain import Layer
from vgg_calibration.moments import LARGEST, Moments
from vgg_calibration.observe import Array
from vgg_export.graphs.tensors import array, tensors_of

if TYPE_CHECKING:
    import onnx

Floats = npt.NDArray[np.float32]

# Variance that is added to each value of a patch, in multiples of the mean variance: it keeps H regular, and
# the errors small where few pictures say what they would do.
RIDGE = 0.01
BLOCK = 128  # weights of an output whose corrections are summed up at once


def kernels(model: "onnx.ModelProto", layers: Sequence[Layer]) -> dict[Layer, tuple[int, ...]]:
    """The layers of a float graph whose weights are rounded together, with the shapes of these: convolutions
    of all channels with patches that are not too large. Fully connected layers see one sample per picture,
    too few to gain anything in 8 bits."""
    weights = tensors_of(model)
    shapes = {
        layer: tuple(weights[layer.weight].dims)
        for layer in layers
        if layer.kind == "Conv" and layer.groups == 1
    }
    return {layer: shape for layer, shape in shapes.items() if np.prod(shape[1:]) <= LARGEST}


def rounded(
    floating: "onnx.ModelProto", layer: Layer, moments: Moments, integer: "onnx.ModelProto"
) -> npt.NDArray[np.int8]:
    """The weight of a convolution of ``integer``, chosen anew with the same scales; [n, c, height, width].

    Args:
        floating: the graph that ``integer`` was made of.
        moments: what the convolution reads.
    """
    quantized = tensors_of(integer)
    nearest, scale = (array(quantized[f"{layer.weight}_{part}"]) for part in ("quantized", "scale"))
    limit = int(np.abs(nearest.astype(np.int16)).max())  # each channel reaches it
    weight = array(tensors_of(floating)[layer.weight]).reshape(len(scale), -1) / scale[:, None]
    steps = least_change(weight.T, moments.covariance(), limit)
    return np.ascontiguousarray(steps.T).astype(np.int8).reshape(nearest.shape)


def least_change(weight: Floats, covariance: Array, limit: int) -> Floats:
    """Whole steps [d, n] from -limit to limit for weights [d, n] in steps, by the covariance [d, d] of what
    they multiply; to the nearest where that is zero everywhere."""
    order = np.argsort(np.diag(covariance), kind="stable")  # first is rounded what varies most
    ridge = RIDGE * float(np.diag(covariance).mean()) or 1.0
    h = covariance[np.ix_(order, order)]
    h[np.diag_indices_from(h)] += ridge
    root = np.linalg.cholesky(h).astype(np.float32)  # R transposed
    wanted = np.ascontiguousarray(weight[order], dtype=np.float32)
    error = np.zeros_like(wanted)
    for end in range(len(order), 0, -BLOCK):
        start = max(0, end - BLOCK)
        behind = root[end:, start:end].T @ error[end:]
        for k in range(end - 1, start - 1, -1):
            own = behind[k - start] + root[k + 1 : end, k] @ error[k + 1 : end]
            rounded = np.rint(wanted[k] + own / root[k, k]).clip(-limit, limit)
            error[k] = wanted[k] - rounded
    steps = np.empty_like(wanted)
    steps[order] = np.rint(wanted - error)
    return steps
