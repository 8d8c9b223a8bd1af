"""The description of a model in the sidecar of its ONNX file, so that later stages need not load the
checkpoint."""

import dataclasses
from typing import Any, Self

from vgg_export.core import cache
from vgg_export.core.errors import DataError
from vgg_export.core.records import SidecarRecord
from vgg_export.network.chain import Chain
from vgg_export.network.provenance import Provenance
from vgg_runtime.bundle.input_spec import InputSpec
from vgg_runtime.records import FieldError, Record


@dataclasses.dataclass(frozen=True)
class ModelInfo(SidecarRecord):
    """A model. ``preprocessing``: the input of the chain. ``precision``: "fp32" or "int8". ``parameters``:
    the number of weights and biases. ``macs``: multiply-accumulates per inference. ``calibrated_on``: for an
    int8 model, the short hashes of the pictures that it was calibrated and chosen on."""

    chain: Chain
    labels: tuple[str, ...]
    provenance: Provenance
    preprocessing: InputSpec
    precision: str
    parameters: int
    macs: int
    calibrated_on: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.labels) != self.chain.classes:
            raise FieldError("labels", f"{self.chain.classes} names, one per class", list(self.labels))
        if self.preprocessing != self.chain.input:
            raise FieldError("preprocessing", "the input of the chain", self.preprocessing.to_json())

    def to_json(self) -> dict[str, Any]:
        """The fields. ``provenance`` is called "source" in files."""
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
    """The part of a sidecar that every stage with an ONNX file writes: its model, and the core that int8 is
    for."""

    model: ModelInfo
    target: str | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        """The cores that the sidecar names; empty: any core."""
        return (self.target,) if self.target else ()


def described(artifact: cache.Artifact, commands: str) -> Described:
    """The description in the sidecar of an ONNX file.

    Args:
        commands: those that write such a file and its sidecar, for the error.

    Raises:
        DataError: the sidecar is missing or damaged.
    """
    if "model" not in artifact.measured:
        sidecar = cache.sidecar_path(artifact.path)
        found = f"{sidecar.name} is damaged" if sidecar.is_file() else f"it has no sidecar {sidecar.name}"
        raise DataError(f"{artifact.path}: {found}; expected a model that {commands} wrote, with its sidecar")
    return artifact.read(Described)
