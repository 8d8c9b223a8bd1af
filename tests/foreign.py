"""Networks from files of other programs, run as this program runs them."""

import numpy as np
import torch

from vgg_export.network import modules
from vgg_export.network.chain import Chain
from vgg_export.network.readers.found import Found
from vgg_runtime.bundle import outputs

TOLERANCE = 1e-4  # the largest difference of two networks' logits, relative to the largest logit


def pictures(channels: int, px: int, count: int = 4) -> np.ndarray:
    """Noise on another colour in each picture: [count, channels, px, px], whole numbers of 0 to 255."""
    rng = np.random.default_rng(0)
    colours = rng.uniform(20, 235, (count, channels, 1, 1))
    return np.clip(colours + rng.normal(0, 40, (count, channels, px, px)), 0, 255).round()


def logits(found: Found, seen: np.ndarray) -> np.ndarray:
    """The logits [N, units] of the network for pictures as ``pictures`` makes them, prepared as its input
    says."""
    spec = found.input
    x = seen[:, ::-1] if spec.bgr else seen
    mean, std = (np.reshape(numbers, (1, -1, 1, 1)) for numbers in (spec.mean, spec.std))
    chain = Chain(spec, found.network.layers, found.output)
    network = modules.build(chain).eval()
    network.load_state_dict(found.network.tensors)
    with torch.inference_mode():
        return np.asarray(network(torch.from_numpy(((x / 255 - mean) / std).astype(np.float32))))


def assert_same(found: Found, seen: np.ndarray, expected: np.ndarray) -> None:
    """The network says what another program says, whose file may end in a softmax or in sigmoids."""
    own, expected = logits(found, seen).astype(np.float64), expected.astype(np.float64)
    if found.network.output == outputs.SOFTMAX:
        own = own - own.max(1, keepdims=True)
        own = own - np.log(np.exp(own).sum(1, keepdims=True))
        expected = expected if (expected < 0).any() else np.log(expected)
    elif found.network.output:
        expected = np.log(expected / (1 - expected))
    assert own.shape == expected.shape
    assert np.isfinite(expected).all()
    assert np.abs(expected - expected.mean(0)).max() > 1e-3  # they do depend on the picture
    assert np.abs(own - expected).max() <= TOLERANCE * np.abs(expected).max()
    assert (own.argmax(1) == expected.argmax(1)).all()
