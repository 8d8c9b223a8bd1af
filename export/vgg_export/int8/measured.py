"""What the stages of int8 measure."""

import dataclasses

from vgg_export.core.losses import Loss
from vgg_export.core.records import SidecarRecord
from vgg_export.graphs.model_info import ModelInfo
from vgg_runtime.records import Record


@dataclasses.dataclass(frozen=True)
class Tried(SidecarRecord):
    """A form that was tried; its figures are absent where there were no held-out pictures."""

    form: str
    agreement: float | None = None
    kl: float | None = None
    n: int | None = None


@dataclasses.dataclass(frozen=True)
class FloatLayer(Record):
    """A layer that stays float: the mean KL that it alone costs as int8, why, and how many bytes larger the
    file is."""

    layer: str
    kl_alone: float
    why: str
    bytes: int


@dataclasses.dataclass(frozen=True)
class Choice(Record):
    """The form that was chosen of those tried, why, and the layers that are float in it."""

    chosen: str
    why: str
    tried: tuple[Tried, ...]
    float_layers: tuple[FloatLayer, ...]


@dataclasses.dataclass(frozen=True)
class Quantized(Record):
    """Of an int8 graph: its operators, the hashes of the pictures it was calibrated on, the core it is for
    and how far it is from its float model, where that could be measured."""

    ops: dict[str, int]
    calibration_images: tuple[str, ...]
    target: str
    losses: dict[str, Loss]
    int8: Choice
    model: ModelInfo


@dataclasses.dataclass(frozen=True)
class Retyped(Quantized):
    """The same for another core, and how far the logits are from those before, of their spread."""

    deviation: float
