"""Decodes a stranger's picture in a process of its own: ``python -m vgg_runtime.web.decode``.

Standard input: one JSON line ``{"bytes", "preprocessings"}`` and then the file. Standard output: one JSON
line, either ``{"error"}`` or ``{"width", "height", "format", "tensor_bytes": [...]}`` followed by one float32
tensor [3, px, px] per preprocessing. Whatever a picture does to the decoder ends with this process.
"""

import json
import sys

from vgg_runtime.bundle.preprocess import Preprocessing, open_image, to_tensor
from vgg_runtime.errors import ImageError

ADDRESS_SPACE_BYTES = 1_500_000_000  # 52 megapixels decoded, twice (a WEBP four times), and numpy


def main() -> int:
    """Answer one request; 0 also for a picture that cannot be used."""
    limit_memory()
    request = json.loads(sys.stdin.buffer.readline())
    content = sys.stdin.buffer.read(request["bytes"])
    try:
        image = open_image(content)
        tensors = [
            to_tensor(image, Preprocessing(p["resize_px"], p["crop_px"], tuple(p["mean"]), tuple(p["std"])))
            for p in request["preprocessings"]
        ]
    except (ImageError, MemoryError) as error:
        message = str(error) or "the picture does not fit into this device's memory; make it smaller first"
        _answer({"error": message})
        return 0
    _answer(
        {
            "width": image.width,
            "height": image.height,
            "format": image.format,
            "tensor_bytes": [t.nbytes for t in tensors],
        },
        *(t.tobytes() for t in tensors),
    )
    return 0


def limit_memory() -> None:
    """Keep a hostile picture from taking the device's memory."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))


def _answer(line: dict[str, object], *tensors: bytes) -> None:
    sys.stdout.buffer.write(json.dumps(line).encode() + b"\n" + b"".join(tensors))
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
