"""The records of the int8 stages."""

import dataclasses

from vgg_export.core.losses import Loss
from vgg_export.core.records import SidecarRecord
from vgg_export.graphs.model_info import ModelInfo
from vgg_runtime.records import Record


@dataclasses.dataclass(frozen=True)
class Tried(SidecarRecord):
    """A form that was tried. Its figures are None where there were no held-out pictures."""

    form: str
    agreement: float | None = None
    kl: float | None = None
    n: int | None = None


@dataclasses.dataclass(frozen=True)
class FloatLayer(Record):
    """A layer that stays float. ``kl_alone``: the mean KL in nats when only this layer is int8. ``why``: the
    reason. ``bytes``: how much larger the file is."""

    layer: str
    kl_alone: float
    why: str
    bytes: int


@dataclasses.dataclass(frozen=True)
class Choice(Record):
    """The chosen form, the reason, the forms that were tried, and the layers that stay float."""

    chosen: str
    why: str
    tried: tuple[Tried, ...]
    float_layers: tuple[FloatLayer, ...]


@dataclasses.dataclass(frozen=True)
class FourBits(Record):
    """The fully connected layers that are stored in 4 bits. ``block``: the inputs that share a scale.
    ``saved_bytes``: how much smaller the file is. ``before``: the loss of the same graph with these layers in
    8 bits, where there were held-out pictures; the loss afterwards is that of the whole."""

    layers: tuple[str, ...]
    block: int
    saved_bytes: int
    before: Loss | None = None


@dataclasses.dataclass(frozen=True)
class Quantized(SidecarRecord):
    """The record of an int8 graph: its operators, the hashes of its calibration pictures, the core that it is
    for, and its loss against the float model where there were held-out pictures. ``float_ops``: the
    activations that are computed in float because onnxruntime has no int8 kernel for them, and how many of
    each; None where all are int8. ``four_bits``: the layers with weights of 4 bits, None where all have 8."""

    ops: dict[str, int]
    calibration_images: tuple[str, ...]
    target: str
    losses: dict[str, Loss]
    int8: Choice
    model: ModelInfo
    float_ops: dict[str, int] | None = None
    four_bits: FourBits | None = None


@dataclasses.dataclass(frozen=True)
class Retyped(Quantized):
    """The record of the graph for another core. ``deviation``: the largest difference of logits from the
    graph before, as a fraction of their spread."""

    deviation: float = dataclasses.field(kw_only=True)
