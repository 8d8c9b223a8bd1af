"""The provenance of the weights of a network: their source, and the steps since."""

import dataclasses
from typing import Any, Self

from vgg_runtime.records import Record

FILE, CONVENTION, ASSUMED, TOLD = "file", "convention", "assumed", "told"
PICTURES = "pictures"


@dataclasses.dataclass(frozen=True)
class Origins(Record):
    """How each part of a network that tensors do not show is known: the "file" says so, the "convention" of
    such files, the user has "told", labelled "pictures" chose it, or it is "assumed"."""

    px: str = ASSUMED
    channels: str = FILE
    resize: str = ASSUMED
    normalize: str = ASSUMED
    activations: str = ASSUMED
    output: str = ASSUMED


@dataclasses.dataclass(frozen=True)
class Provenance(Record):
    """``kind``: "imagenet", "demo", "random" or "file". ``what``: the source in words. ``sha256``: the hash
    of the file that was read. ``origins``: how each part of its input and its layers is known; None where
    nothing is assumed. ``assumed``: the same in words, of what the file does not state. ``names_from``: where
    the class names come from, "checkpoint" or "labels"; None: neither named them. ``wordnet``: whether the
    classes are ImageNet's. ``figures_absent``: why accuracy and agreement mean nothing. ``notice``: a
    sentence that is shown with every figure. ``history``: the steps since, in order. ``fitted_on``: short
    hashes of the pictures that something was fitted or selected on."""

    kind: str
    what: str
    sha256: str | None = None
    assumed: tuple[str, ...] = ()
    names_from: str | None = None
    origins: Origins | None = None
    wordnet: bool = False
    figures_absent: str | None = None
    notice: str | None = None
    history: tuple[str, ...] = ()
    fitted_on: tuple[str, ...] = ()

    @property
    def has_knowledge(self) -> bool:
        """False for random weights: there is nothing to repair or to recover, and no figure of accuracy means
        anything."""
        return not self.figures_absent

    def then(self, words: str) -> Self:
        """The provenance with one more step in its history."""
        return dataclasses.replace(self, history=(*self.history, words))

    def to_json(self) -> dict[str, Any]:
        """The fields that are not empty. ``kind`` is called "weights" in files."""
        said = super().to_json()
        named = {"weights": said.pop("kind"), "what": said.pop("what")}
        return named | {key: value for key, value in said.items() if value}

    @classmethod
    def from_json(cls, document: object, path: str = "") -> Self:
        """What ``to_json`` gave.

        Raises:
            FieldError: ``kind`` or ``what`` is missing, or a field holds something else.
        """
        if isinstance(document, dict) and "weights" in document:
            document = {"kind": document["weights"], **document}
        return super().from_json(document, path)
