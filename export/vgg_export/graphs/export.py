"""Exports a checkpoint to a float ONNX graph: its chain is lowered, torch's exporter traces it, then the
graph is cleaned, audited and compared with torch."""

import dataclasses
import logging
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vgg_export.core import cache
from vgg_export.core.errors import CheckFailedError
from vgg_export.core.progress import Progress
from vgg_export.network import adaptive_pool
from vgg_export.network import checkpoint as checkpoints
from vgg_export.network.chain import Placed, Scale
from vgg_runtime.bundle.manifest import SessionSettings
from vgg_runtime.bundle.session import Model
from vgg_runtime.records import Record

from . import audit, lowering
from .model_info import ModelInfo

if TYPE_CHECKING:
    import onnx_ir
    from torch import nn

log = logging.getLogger(__name__)

# The largest allowed |difference of logits| between torch and onnxruntime, relative to the largest |logit|.
# Both compute in fp32, but sum in different orders through up to 19 layers.
TOLERANCE = 1e-4
OPSET = 20


@dataclasses.dataclass(frozen=True)
class Exported(Record):
    """The record of an exported graph: its operators, the largest relative difference from torch (``parity``)
    and the allowed one."""

    ops: dict[str, int]
    parity: float
    tolerance: float
    model: ModelInfo


STAGE = cache.Stage("export", __name__, Exported)


def run(checkpoint: cache.Artifact, output: Path, progress: Progress) -> cache.Artifact:
    """Export a checkpoint file; the sidecar carries what the bundle says about the model."""

    def make(path: Path) -> Exported:
        with progress.task("exporting to ONNX", None):
            source = checkpoints.load(checkpoint.path)
            export(source, path)
            ops = audit.audit_exported(path, lowering.operators(adaptive_pool.without_pool(source).chain))
            parity = ensure_parity(source, path)
        log.info("exported: largest relative difference to torch %.1e", parity)
        return Exported(ops, parity, TOLERANCE, describe(source))

    return cache.produce(
        STAGE, {"opset": OPSET, "transposed_linear": True}, {"checkpoint": checkpoint}, output, make
    )


def describe(checkpoint: checkpoints.Checkpoint) -> ModelInfo:
    """The description that later stages read, so that they need not load torch."""
    chain = checkpoint.chain
    return ModelInfo(
        chain,
        checkpoint.labels,
        checkpoint.provenance,
        chain.input,
        precision="fp32",
        parameters=chain.parameters(),
        macs=chain.macs(),
    )


def export(checkpoint: checkpoints.Checkpoint, path: Path) -> None:
    """Write the graph: float32 ``input`` [batch, channels, px, px] -> ``logits`` [batch, units], with a batch
    of any size.

    Raises:
        CheckpointError: no operator computes one of its pools.
    """
    import torch

    # The batch has two pictures, because torch.export would take a batch of one for a constant.
    program = torch.onnx.export(
        traceable(adaptive_pool.without_pool(checkpoint)),
        (torch.zeros(2, *checkpoint.chain.input.shape),),
        dynamo=True,
        opset_version=OPSET,
        input_names=["input"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    assert program is not None  # it is None only when torch.onnx.export writes the file itself
    strip_metadata(program.model)
    transpose_linear_weights(program.model)
    simplify_average_pools(program.model)
    program.save(path)


def traceable(checkpoint: checkpoints.Checkpoint) -> "nn.Sequential":
    """The network of the lowered chain in evaluation mode, with every scale as a convolution of each channel
    by itself. In 8 bits this is one operator, too, whose weights are exact, because every channel has a step
    of its own; a Mul and an Add would be two, with one step for all channels."""
    import torch

    units = lowering.unit_scales(checkpoint.chain)
    ones = {f"{name}.weight": torch.ones(channels) for name, channels in units.items()}
    zeros = {f"{name}.bias": torch.zeros(channels) for name, channels in units.items()}
    chain = lowering.lowered(checkpoint.chain)
    lowered = dataclasses.replace(checkpoint, chain=chain, tensors=checkpoint.tensors | ones | zeros)
    scales = {p.layer.name: p for p in chain.placed if isinstance(p.layer, Scale)}
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for name, module in lowered.model().named_children():
        modules.update(_convolution(name, module, scales[name]) if name in scales else {name: module})
    return torch.nn.Sequential(modules).eval()


def _convolution(name: str, scale: "nn.Module", placed: Placed) -> "dict[str, nn.Module]":
    """The modules of a scale: a 1x1 convolution that is called as the scale, between two changes of the shape
    where it reads a list of features."""
    from torch import nn

    channels = placed.inputs[0]
    convolution = nn.Conv2d(channels, channels, 1, groups=channels)
    known = convolution.state_dict()
    convolution.load_state_dict({key: t.view_as(known[key]) for key, t in scale.state_dict().items()})
    if len(placed.inputs) == 3:
        return {name: convolution}
    return {
        f"{name}_maps": nn.Unflatten(1, (channels, 1, 1)),
        name: convolution,
        f"{name}_list": nn.Flatten(),
    }


def strip_metadata(exported: "onnx_ir.Model") -> None:
    """Remove the exporter's notes, which hold stack traces with the paths of this machine."""
    values = [*exported.graph.inputs, *exported.graph.outputs, *exported.graph.initializers.values()]
    for node in exported.graph:
        values += node.outputs
        node.metadata_props.clear()
        node.doc_string = None
    for value in values:
        value.metadata_props.clear()
    exported.metadata_props.clear()
    exported.graph.metadata_props.clear()


def transpose_linear_weights(exported: "onnx_ir.Model") -> None:
    """Store fully connected weights as [inputs, outputs] (``transB=0``).

    onnxruntime's int8 kernel needs them so. Otherwise it makes a transposed copy while loading, which raises
    the peak memory (by a quarter of a VGG19's int8 load, measured).
    """
    import onnx_ir as ir

    for node in exported.graph:
        flag = node.attributes.get("transB")
        if node.op_type != "Gemm" or flag is None or flag.as_int() == 0:
            continue
        weight = node.inputs[1]
        if weight is None or weight.const_value is None:
            raise CheckFailedError(f"the exported {node.op_type} {node.name} has no constant weight")
        transposed = ir.tensor(np.ascontiguousarray(weight.const_value.numpy().T), name=weight.name)
        weight.const_value, weight.shape = transposed, transposed.shape
        node.attributes["transB"] = ir.AttrInt64("transB", 0)


def simplify_average_pools(exported: "onnx_ir.Model") -> None:
    """Write average pools as onnxruntime computes them in 8 bits, too: the mean over a whole map as
    GlobalAveragePool, and the others without padding in their means. Torch's exporter lets padding count, and
    with ``ceil_mode`` onnxruntime's int8 kernel then takes what lies behind the map for padding."""
    import onnx_ir as ir

    for node in exported.graph:
        if node.op_type == "AveragePool":
            node.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 0)
        elif node.op_type == "ReduceMean":
            axes = node.inputs[1]
            node.op_type = "GlobalAveragePool"
            node.attributes.clear()
            node.resize_inputs(1)
            if axes is not None and axes.name and not axes.uses():
                del exported.graph.initializers[axes.name]


def ensure_parity(checkpoint: checkpoints.Checkpoint, path: Path) -> float:
    """Largest relative difference of logits between torch and onnxruntime, for a batch of one and a batch of
    three.

    Raises:
        CheckFailedError: the difference is larger than TOLERANCE, or the network overflows.
    """
    import torch

    x = torch.randn(3, *checkpoint.chain.input.shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = checkpoint.model()(x).numpy()
    if not np.isfinite(expected).all():
        raise CheckFailedError(
            "the network's answer to noise is not a finite number: its numbers overflow between its layers;"
            " give another checkpoint"
        )
    session = Model(path, SessionSettings(), torch.get_num_threads())
    found = np.concatenate([session(x[:1].numpy()), session(x.numpy())])
    difference = float(
        np.abs(found - np.concatenate([expected[:1], expected])).max() / max(np.abs(expected).max(), 1e-12)
    )
    if not difference <= TOLERANCE:
        raise CheckFailedError(
            f"the exported graph's logits differ from torch's by {difference:.2g} of the largest, at most"
            f" {TOLERANCE:g} allowed"
        )
    return difference
