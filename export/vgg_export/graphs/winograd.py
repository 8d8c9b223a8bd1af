"""Rewrites convolutions in standard operators with fewer multiplications, for processors whose int8 is no
faster than float.

A Raspberry Pi 4, 3 or Zero 2 has no dot product of bytes, and onnxruntime multiplies out every 3x3
convolution there. With F(4x4, 3x3) (see ``cook_toom``) the convolutions of a VGG take a third of the
instructions and give the same numbers up to rounding (see ``winograd_layers``).
"""

import dataclasses
import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vgg_export.core import cache
from vgg_export.core.errors import CheckFailedError, DataError, NothingToGainError, RewriteError
from vgg_export.core.progress import Progress
from vgg_runtime.bundle.manifest import SessionSettings
from vgg_runtime.bundle.session import Model
from vgg_runtime.records import Record

from . import audit, winograd_layers
from .cook_toom import Form
from .model_info import ModelInfo, described
from .winograd_cost import choose

log = logging.getLogger(__name__)

# The largest allowed |difference of logits| relative to the largest |logit|, as for the export. Both graphs
# compute in fp32. The transforms of F(4x4) add and subtract numbers up to a hundred times as large as the
# result, so a layer is off by some 1e-6 of its largest output instead of 1e-7. For a whole VGG19 with all of
# its convolutions in F(4x4), the largest difference seen was 1.4e-6.
TOLERANCE = 1e-4
# The allowed growth of the file: the matrices and positions that layers share, and some twenty nodes per
# layer.
GROWTH_BYTES, GROWTH_BYTES_PER_LAYER = 20_000, 5_000


@dataclasses.dataclass(frozen=True)
class BothWays(Record):
    """A number summed over all convolutions: as they are (``direct``), and as they were rewritten."""

    direct: int
    rewritten: int


@dataclasses.dataclass(frozen=True)
class Told(Record):
    """What was rewritten for a ``core``: the form of every rewritten layer, the predicted instructions and
    bytes before and after, and the largest relative difference of logits (``parity``)."""

    core: str
    layers: dict[str, str]
    predicted: BothWays
    moved_bytes: BothWays
    weight_bytes: BothWays
    parity: float


@dataclasses.dataclass(frozen=True)
class Rewritten(Record):
    """The record of a rewritten graph: its operators, the largest relative difference of logits and the
    allowed one."""

    ops: dict[str, int]
    parity: float
    tolerance: float
    winograd: Told
    model: ModelInfo


STAGE = cache.Stage("winograd", __name__, Rewritten)


def run(exported: cache.Artifact, core: str, output: Path, progress: Progress) -> cache.Artifact:
    """Rewrite an exported float model for a core (of ``winograd_cost.CORES``). Every layer gets the form that
    is cheapest there.

    Raises:
        DataError: it is not a float model that 'vgg-export export' wrote.
        NothingToGainError: no layer gains by it.
    """
    info = described(exported, "'vgg-export export'").model
    if info.precision != "fp32":
        raise DataError(
            f"{exported.path}: a model in {info.precision}; expected an fp32 model that 'vgg-export export'"
            " wrote"
        )
    choice = choose(info.chain.parts(), core)
    if not choice.forms:
        raise NothingToGainError(
            f"{exported.path}: no form makes a convolution clearly cheaper on a {core}; use the model as it"
            " is"
        )
    told = {"core": core, **choice.to_json()}

    def make(path: Path) -> Rewritten:
        with progress.task("rewriting convolutions", None):
            rewrite_file(exported.path, path, choice.forms)
            parity = ensure(exported.path, path, choice.forms)
        log.info("%d convolutions rewritten: largest relative difference %.1e", len(choice.forms), parity)
        what = Told.from_json({**told, "parity": parity})
        return Rewritten(audit.count_ops(path), parity, TOLERANCE, what, info)

    return cache.produce(STAGE, told, {"model": exported}, output, make)


def rewrite_file(source: Path, output: Path, forms: Mapping[str, Form]) -> None:
    """``winograd_layers.rewrite`` a file. If it has weights in other files, they stay there, and the output
    must be in the same folder.

    Raises:
        RewriteError: as ``winograd_layers.rewrite``, or the output is in another folder than the weights.
    """
    import onnx

    model = onnx.load(source, load_external_data=False)
    beside = {
        entry.value for t in model.graph.initializer for entry in t.external_data if entry.key == "location"
    }
    if beside and not source.parent.samefile(output.parent):
        raise RewriteError(
            f"{source} has weights in {', '.join(sorted(beside))}; write the output into the same folder,"
            f" not {output.parent}"
        )
    winograd_layers.rewrite(model, forms)
    output.write_bytes(model.SerializeToString())


def ensure(source: Path, result: Path, forms: Mapping[str, Form]) -> float:
    """Run all checks of a rewritten file. Returns the largest relative difference of logits.

    Raises:
        CheckFailedError: a check fails.
    """
    ensure_small(source, result, forms)
    winograd_layers.ensure_same_interface(source, result)
    audit.check(result)
    winograd_layers.ensure_folded(result, forms)
    return ensure_parity(source, result)


def ensure_small(source: Path, result: Path, forms: Collection[str]) -> None:
    """Check that the transformed weights are not in the file."""
    growth, expected = result.stat().st_size - source.stat().st_size, allowed_growth_bytes(len(forms))
    if growth > expected:
        raise CheckFailedError(
            f"the rewritten file grew by {growth} bytes for {len(forms)} layers; expected at most {expected}"
        )


def allowed_growth_bytes(layers: int) -> int:
    return GROWTH_BYTES + GROWTH_BYTES_PER_LAYER * layers


def ensure_parity(source: Path, result: Path) -> float:
    """The largest relative difference of logits, for a batch of one and a batch of three, on noise with the
    spread of normalised pictures.

    Raises:
        CheckFailedError: the difference is larger than TOLERANCE.
    """
    import onnx

    shape = onnx.load(source, load_external_data=False).graph.input[0].type.tensor_type.shape.dim
    x = np.random.default_rng(0).standard_normal((3, *(d.dim_value for d in shape[1:]))).astype(np.float32)
    expected, found = (_logits(path, x) for path in (source, result))
    difference = float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-12))
    if not difference <= TOLERANCE:
        raise CheckFailedError(
            f"the rewritten graph's logits differ by {difference:.2g} of the largest, at most"
            f" {TOLERANCE:g} allowed; use the model as it is"
        )
    return difference


def _logits(path: Path, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The logits of the first input alone, then of all inputs. Only one model is in memory at a time."""
    model = Model(path, SessionSettings(), os.cpu_count() or 1)
    return np.concatenate([model(x[:1]), model(x)])
