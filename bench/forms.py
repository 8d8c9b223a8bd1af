"""Compares the forms of a factorised convolution: what each loses on held-out pictures at the same
arithmetic, and its latency as int8.

    python bench/forms.py --weights my_vgg16.pth --data photos/ --layers
    conv1_2,conv2_2,conv3_1,conv4_3,conv5_1

Every layer, share of its arithmetic and form gets a row: the error as a share of the variance of the layer's
outputs, and the median and tenth percentile of the latency. For that the two parts, and the direct
convolution, are an int8 graph of their own, timed in turns.
"""

import vgg_runtime  # noqa: F401  it sets what onnxruntime reads when it is imported

# isort: split

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from vgg_export import inputs as given
from vgg_export.compress import feature_maps, least_squares, reconstruct
from vgg_export.data import tensors
from vgg_export.network import chain
from vgg_export.network import checkpoint as checkpoints
from vgg_export.options import DataOptions, WeightsOptions
from vgg_export.terminal import TerminalProgress

SHARES = (0.1, 0.2, 0.3, 0.5)
PLACES = 600  # output positions that are taken of each picture
ROUNDS, RUNS = 20, 3
MULTIPLE = 16


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--weights", required=True)
@click.option("--data", "pictures", required=True)
@click.option(
    "--layers", default="conv1_2,conv2_2,conv3_1,conv3_3,conv4_1,conv4_3,conv5_1,conv5_3", show_default=True
)
@click.option(
    "--images", default=48, show_default=True, help="Three quarters to fit on, the rest to measure."
)
def main(weights: str, pictures: str, layers: str, images: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, progress = Path(name), TerminalProgress()
        saved = given.checkpoint_file(WeightsOptions(weights), DataOptions(pictures), folder, progress)
        original = checkpoints.load(saved.path)
        splits = given.splits_for(saved, DataOptions(pictures), folder, progress)
        x = tensors.stacked(splits.fit[:images], original.chain.input)
        print("layer    share  form     rank   error     P50 ms  P10 ms")
        with torch.inference_mode():
            for conv, seen in inputs(original, x, layers.split(",")):
                report(original, conv, seen, folder)


def inputs(
    original: checkpoints.Checkpoint, x: torch.Tensor, wanted: Sequence[str]
) -> Iterator[tuple[chain.Site, torch.Tensor]]:
    """Each wanted convolution with its inputs for all pictures, float32 [N, c, side, side]."""
    for site in original.chain.convs:
        if site.name in wanted:
            yield site, x
        step, _ = feature_maps.forward(original.chain, site.name, original.tensors)
        x = torch.cat(
            [step(x[a : a + feature_maps.CHUNK].clone()) for a in range(0, len(x), feature_maps.CHUNK)]
        )


def report(original: checkpoints.Checkpoint, site: chain.Site, seen: torch.Tensor, folder: Path) -> None:
    """The rows of one layer."""
    weight, bias = (original.tensors[f"{site.name}.{part}"] for part in ("weight", "bias"))
    c, n = site.channels, site.layer.outputs
    edge = 3 * len(seen) // 4
    fitting, held = (moments(part, site, weight, bias) for part in (seen[:edge], seen[edge:]))
    rows: list[tuple[str, str, int, float]] = [("100 %", "direct", 0, 0.0)]
    for share in SHARES:
        for kind in ("channel", "spatial"):
            per_rank = 9 * c + n if kind == "channel" else 3 * (c + n)
            rank = max(MULTIPLE, MULTIPLE * round(share * 9 * c * n / per_rank / MULTIPLE))
            _, effective = reconstruct.in_two(
                site.name, weight.double(), fitting.xx, chain.Factor(kind, rank)
            )
            rows.append((f"{share:.0%}".replace("%", " %"), kind, rank, held.error(effective) / held.yy))
    sessions = [int8_session(site, kind, rank, folder) for _, kind, rank, _ in rows]
    for (share_text, kind, rank, error), samples in zip(rows, timed(sessions, site), strict=True):
        p50, p10 = statistics.median(samples), sorted(samples)[len(samples) // 10]
        print(
            f"{site.name:8} {share_text:>5}  {kind:8} {rank or '–':>4}  {error:6.4f}  {p50:8.2f}  {p10:6.2f}",
            flush=True,
        )


def moments(
    x: torch.Tensor, site: chain.Site, weight: torch.Tensor, bias: torch.Tensor
) -> least_squares.Moments:
    assert isinstance(site.layer, chain.Conv)
    generator, sums = torch.Generator().manual_seed(0), least_squares.Sums(9 * x.shape[1], len(weight))
    for a in range(0, len(x), feature_maps.CHUNK):
        part = x[a : a + feature_maps.CHUNK]
        area = part.shape[2] * part.shape[3]
        places = torch.stack([torch.randperm(area, generator=generator)[:PLACES] for _ in range(len(part))])
        outputs = torch.nn.functional.conv2d(part, weight, bias, padding=1).flatten(2)
        outputs = outputs.gather(2, places[:, None].expand(-1, len(weight), -1))
        sums.add(
            feature_maps.patches(part, places, site.layer), outputs.transpose(1, 2).reshape(-1, len(weight))
        )
    return sums.moments()


def int8_session(site: chain.Site, kind: str, rank: int, folder: Path) -> Any:
    """A session of the convolution, or its two parts, with ReLU, as int8; random weights: latency does not
    depend on them."""
    parts = site.made_of(chain.Factor(kind, rank) if rank else None).parts()
    kernels = [part.kernel for part in parts if part.kernel]
    widths = (parts[0].inputs, *(part.outputs for part in parts))
    rng, nodes, tensors = np.random.default_rng(0), [], []
    for k, kernel in enumerate(kernels):
        shape = (widths[k + 1], widths[k], *kernel)
        values = rng.standard_normal(shape, np.float32) / np.sqrt(np.prod(shape[1:])).astype(np.float32)
        tensors.append(numpy_helper.from_array(values.astype(np.float32), f"w{k}"))
        pads = [kernel[0] // 2, kernel[1] // 2] * 2
        nodes.append(
            helper.make_node(
                "Conv", [f"x{k}", f"w{k}"], [f"x{k + 1}"], name=f"conv{k}", kernel_shape=kernel, pads=pads
            )
        )
    nodes.append(helper.make_node("Relu", [f"x{len(kernels)}"], ["y"], name="relu"))
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, *shape])]
        for name, shape in (("x0", site.inputs), ("y", site.outputs))
    ]
    graph = helper.make_graph(nodes, "layer", *ends, tensors)
    floating, integer = folder / "float.onnx", folder / "int8.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), floating)
    quantize_static(
        floating,
        integer,
        _Once(batch(site)),
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    return onnxruntime.InferenceSession(integer, providers=["CPUExecutionProvider"])


class _Once(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, x: np.ndarray) -> None:
        self._left = [{"x0": x}]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self._left.pop() if self._left else None


def batch(site: chain.Site) -> np.ndarray:
    return np.random.default_rng(1).random((1, *site.inputs), np.float32)


def timed(sessions: Sequence[Any], site: chain.Site) -> list[list[float]]:
    """Latencies in ms of each session, in turns; the first run of a turn is not counted."""
    x, samples = {"x0": batch(site)}, [list[float]() for _ in sessions]
    for _ in range(ROUNDS):
        for k, session in enumerate(sessions):
            session.run(None, x)
            for _ in range(RUNS):
                start = time.perf_counter()
                session.run(None, x)
                samples[k].append((time.perf_counter() - start) * 1e3)
    return samples


if __name__ == "__main__":
    main()
