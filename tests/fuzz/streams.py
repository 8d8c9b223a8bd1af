"""Streams of JPEGs with and without multipart headers, in pieces of any size."""

import random

from fuzz import pictures
from fuzz.fuzzing import Target

from vgg_runtime.bundle.preprocess import open_image
from vgg_runtime.errors import ImageError
from vgg_runtime.live.mjpeg import MAX_FRAME_BYTES, Splitter


def seeds() -> list[bytes]:
    frames = [one for one in pictures.seeds() if one.startswith(b"\xff\xd8")]
    head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
    multipart = b"".join(head % len(one) + one + b"\r\n" for one in frames)
    cut = b"".join(one[: len(one) // 2] + frames[0] for one in frames)
    return [b"".join(frames), multipart, cut]


def feed(data: bytes) -> None:
    """The pictures do not depend on the pieces that the bytes come in."""
    whole = Splitter()
    together = [*whole.feed(data), *whole.end()]
    chance, pieces, place = random.Random(len(data)), Splitter(), 0
    apart: list[bytes | ImageError] = []
    while place < len(data):
        step = chance.choice((1, 2, 3, 7, 100, 4096))
        apart += pieces.feed(data[place : place + step])
        place += step
    apart += pieces.end()
    assert list(map(_said, apart)) == list(map(_said, together))
    for frame in together:
        if isinstance(frame, bytes):
            assert len(frame) <= MAX_FRAME_BYTES
            try:
                open_image(frame, pictures.SPEC)
            except ImageError:
                continue


def _said(item: bytes | ImageError) -> bytes:
    return item if isinstance(item, bytes) else str(item).encode()


TARGET = Target(seeds, feed, (ImageError,))
