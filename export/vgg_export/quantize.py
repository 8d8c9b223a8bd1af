"""Static int8: QDQ nodes, per-channel weights, ranges from calibration images through the device's own preprocessing."""

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import vgg_calibration.choose as choose
from vgg_calibration.reader import ImageReader
from vgg_runtime.preprocess import Preprocessing

from . import graph, stage
from .data import Splits, short_hash
from .errors import DataError
from .options import TARGETS, QuantizeOptions, as_json
from .progress import Progress

log = logging.getLogger(__name__)


def run(
    exported: stage.Artifact, splits: Splits, count: int, output: Path, options: QuantizeOptions, progress: Progress, seed: int = 0
) -> stage.Artifact:
    """Quantize an exported model with at most ``count`` pictures of the fitting set."""
    info = exported.measured.get("model")
    if info is None:
        raise DataError(
            f"{exported.path} has no sidecar {stage.sidecar_path(exported.path).name}; expected a model that 'vgg-export export' wrote"
        )
    items = choose.limit(splits.fit, [i.source for i in splits.fit], count, seed)

    def make(path: Path) -> dict[str, object]:
        preprocessing = Preprocessing.from_json(info["preprocessing"])
        quantize(exported.path, path, [i.path for i in items], preprocessing, options, progress)
        with progress.task("auditing the int8 graph", None):
            ops = graph.audit_quantized(path)
        return {
            "ops": ops,
            "calibration_images": [i.sha256 for i in items],
            "target": options.target,
            "model": info | {"precision": "int8", "calibrated_on": [short_hash(i.sha256) for i in items]},
        }

    calibrated_on = {"seed": seed, "images": [i.sha256 for i in items]}
    return stage.produce("quantize", as_json(options) | calibrated_on, {"model": exported}, output, make)


def quantize(
    source: Path, output: Path, pictures: list[Path], preprocessing: Preprocessing, options: QuantizeOptions, progress: Progress
) -> None:
    """Write the int8 QDQ model of the float model ``source``.

    MinMax ranges: the only method whose memory stays flat in the number of pictures. ``CalibMaxIntermediateOutputs`` is not
    set, because it drops data (microsoft/onnxruntime#20226), and activations are asymmetric, because symmetric ones keep
    ReLU from folding into the convolution.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    target = TARGETS[options.target]
    # It calibrates in one pass over the pictures and then writes; the bar counts the pictures.
    with _own_temporary_folder(output.parent), progress.task(f"calibrating and quantizing for {target.name}", len(pictures)) as task:
        quantize_static(
            str(source),
            str(output),
            ImageReader(pictures, preprocessing, "input", task.advance),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QInt8 if target.signed_activations else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=target.reduce_range,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
        )


@contextlib.contextmanager
def _own_temporary_folder(parent: Path) -> Iterator[None]:
    """onnxruntime puts copies of the model into the system's temporary folder, which on many systems is memory."""
    with tempfile.TemporaryDirectory(prefix=".quantize.", dir=parent) as folder:
        before = tempfile.tempdir
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = before
