"""What the sidecar of an ONNX file says of the model in it; later stages do not load the checkpoint."""

import dataclasses
from typing import Any, Self

from vgg_export.core import cache
from vgg_export.core.records import SidecarRecord
from vgg_export.network.chain import Plan
from vgg_export.network.provenance import Provenance
from vgg_runtime.bundle.preprocess import Preprocessing
from vgg_runtime.records import Record


@dataclasses.dataclass(frozen=True)
class ModelInfo(SidecarRecord):
    """A model: its plan, class names and where its weights came from, how its input is made, "fp32" or
    "int8", its size and multiply-accumulates; of an int8 model, the short hashes of the pictures that it was
    calibrated and chosen on."""

    plan: Plan
    labels: tuple[str, ...]
    provenance: Provenance
    preprocessing: Preprocessing
    precision: str
    parameters: int
    macs: int
    calibrated_on: tuple[str, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields; ``provenance`` is called "source" in files."""
        return {"source" if key == "provenance" else key: value for key, value in super().to_json().items()}

    @classmethod
    def from_json(cls, document: object, path: str = "") -> Self:
        """What ``to_json`` gave.

        Raises:
            FieldError: a field is missing or holds something else.
        """
        if isinstance(document, dict) and "source" in document:
            document = {**document, "provenance": document["source"]}
        return super().from_json(document, path)


@dataclasses.dataclass(frozen=True)
class Described(Record):
    """Of the sidecar of any stage that writes an ONNX file: its model, and what int8 was made for."""

    model: ModelInfo
    target: str | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        """The cores that the sidecar names; none: any."""
        return (self.target,) if self.target else ()


def described(artifact: cache.Artifact) -> Described | None:
    """What the sidecar of an ONNX file says, None without one.

    Raises:
        DataError: it is damaged.
    """
    return artifact.read(Described) if "model" in artifact.measured else None
