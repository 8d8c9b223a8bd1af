"""Decodes an uploaded picture in a process of its own: ``python -m vgg_runtime.web.decode``.

Standard input: one JSON line ``{"bytes", "preprocessings"}`` and then the file. Standard output: one event,
either error or decoded (``width``, ``height``, ``format``, ``tensor_bytes``: a list) followed by one float32
tensor [channels, px, px] per preprocessing. A picture that crashes the decoder ends only this process.
"""

import json
import sys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vgg_runtime.bundle import picture_files
from vgg_runtime.bundle.input_spec import InputSpec
from vgg_runtime.bundle.preprocess import open_image, size_px, to_tensor
from vgg_runtime.errors import ImageError
from vgg_runtime.measure.answers import say

ADDRESS_SPACE_BYTES = 1_500_000_000  # 52 megapixels decoded, twice (a WEBP four times), and numpy


def main() -> int:
    """Answer one request. The exit code is 0 also for a picture that cannot be used."""
    limit_memory()
    request = json.loads(sys.stdin.buffer.readline())
    content = sys.stdin.buffer.read(request["bytes"])
    try:
        specs = [InputSpec.from_json(wanted) for wanted in request["preprocessings"]]
        tensors, form = _prepared(content, specs)
        width, height = size_px(content)
    except (ImageError, MemoryError) as error:
        message = str(error) or "the picture does not fit into this device's memory; make it smaller first"
        say("error", message=message)
        return 0
    sizes = [tensor.nbytes for tensor in tensors]
    say("decoded", width=width, height=height, format=form, tensor_bytes=sizes)
    for tensor in tensors:
        sys.stdout.buffer.write(tensor.tobytes())
    sys.stdout.buffer.flush()
    return 0


def _prepared(content: bytes, specs: Sequence[InputSpec]) -> tuple[list[npt.NDArray[np.float32]], str | None]:
    """The tensor for each input, and the format of the file. Only a JPEG is decoded in another way for
    another input; one at a time is in memory."""
    if picture_files.kind(content) != picture_files.JPEG:
        image = open_image(content)
        return [to_tensor(image, spec) for spec in specs], image.format
    tensors = []
    form = None
    for spec in specs:
        image = open_image(content, spec)
        form = image.format
        tensors.append(to_tensor(image, spec))
        del image
    return tensors, form


def limit_memory() -> None:
    """Limit the memory of this process, so that a hostile picture cannot fill that of the device."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))


if __name__ == "__main__":
    sys.exit(main())
