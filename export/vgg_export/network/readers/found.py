"""What a reader found in a file, before anything that was told is applied to it."""

import dataclasses

from vgg_export.network.assemble import Assembled
from vgg_export.network.provenance import Origins
from vgg_runtime.bundle.input_spec import InputSpec

from .class_names import ClassNames

PADDED = "padding that keeps the size of the maps"  # a sentence of Found.assumed


@dataclasses.dataclass(frozen=True)
class Found:
    """A network as a file has it.

    ``container``: what the file is, in words ("a PyTorch state dict"). ``network``: its layers and tensors.
    ``input``: how pictures are prepared for it, as far as the file or the convention says, else as it is most
    often done. ``output``: a word of ``vgg_runtime.bundle.outputs``. ``origins``: how each of these is known.
    ``assumed``: sentences about what is assumed. ``names``: the class names in the file; ``names_fault``: why
    those that it has cannot be used. ``remarks``: sentences about what else is in the file and left aside.
    ``unpadded``: the same network without padding, where PADDED is assumed.
    """

    container: str
    network: Assembled
    input: InputSpec
    output: str
    origins: Origins
    assumed: tuple[str, ...] = ()
    names: ClassNames | None = None
    names_fault: str | None = None
    remarks: tuple[str, ...] = ()
    unpadded: Assembled | None = None
