"""Receives uploaded pictures. Their size, total size, number and time are limited. Nothing is copied or
written to disk."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from vgg_runtime.bundle import picture_files
from vgg_runtime.bundle.preprocess import FORMATS

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]

MAX_UPLOAD_BYTES = 12_000_000
# bytes of all pictures that are being received or wait; a small board has little memory
HELD_BYTES = MAX_UPLOAD_BYTES
RECEIVING = 16  # uploads at a time
DRAINED_BYTES = 60_000_000  # most bytes of a refused upload that are read and discarded
BODY_SECONDS = 15.0  # within which a whole upload must arrive


class Refused(Exception):  # noqa: N818  it is an answer, not a fault
    """A request is refused, with an HTTP status and a sentence."""

    def __init__(self, status: int, sentence: str, **headers: str) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, headers


class Upload:
    """The file of one picture, in the pieces in which it arrived (a growing buffer would be copied again and
    again). ``close`` gives its bytes back to the intake."""

    def __init__(self, intake: "Intake") -> None:
        self.pieces: list[bytes] = []
        self.bytes = 0
        self._intake = intake

    def take(self, piece: bytes) -> None:
        """Add a piece that has arrived.

        Raises:
            Refused: 413 when this picture becomes too large, 503 when all pictures together do, 415 when this
            is no picture.
        """
        if self.bytes + len(piece) > MAX_UPLOAD_BYTES:
            raise Refused(413, f"the file has more than {MAX_UPLOAD_BYTES} bytes; make the picture smaller")
        if self._intake.held_bytes + len(piece) > HELD_BYTES:
            raise Refused(503, "other pictures fill the memory for uploads; try again in a minute")
        self.pieces.append(piece)
        self.bytes += len(piece)
        self._intake.held_bytes += len(piece)
        is_known = self.bytes >= picture_files.HEAD_BYTES > self.bytes - len(piece)
        if is_known and not picture_files.may_be_one(b"".join(self.pieces)):
            raise _no_picture(b"".join(self.pieces))

    def close(self) -> None:
        self._intake.held_bytes -= self.bytes
        self.bytes = 0
        self.pieces = []  # a new list: a thread that feeds a decoder may still read the old one


class Intake:
    """All uploads of a server. ``held_bytes``: the bytes of uploads that are not closed yet."""

    def __init__(self) -> None:
        self.held_bytes = 0
        self.receiving = 0

    async def read(self, scope: Message, chunks: AsyncIterator[bytes]) -> Upload:
        """Read the uploaded file; the caller closes it.

        Raises:
            Refused: 400, 408, 413, 415 or 503, as soon as it is known.
        """
        if self.receiving >= RECEIVING:
            raise Refused(503, f"{self.receiving} pictures are being sent already; try again in a minute")
        length = dict(scope["headers"]).get(b"content-length")
        if length is not None and (not length.isdigit() or int(length) > MAX_UPLOAD_BYTES):
            raise Refused(
                413,
                f"the file has {length.decode('latin-1')[:20]} bytes; at most {MAX_UPLOAD_BYTES} are allowed",
            )
        upload = Upload(self)
        self.receiving += 1
        try:
            await _fill(upload, chunks)
        except BaseException:
            upload.close()
            raise
        finally:
            self.receiving -= 1
        return upload


async def _fill(upload: Upload, chunks: AsyncIterator[bytes]) -> None:
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in chunks:
                upload.take(chunk)
    except TimeoutError as error:
        raise Refused(408, f"the upload took more than {BODY_SECONDS:g} seconds; try again") from error
    if upload.bytes < picture_files.HEAD_BYTES and not picture_files.may_be_one(b"".join(upload.pieces)):
        raise _no_picture(b"".join(upload.pieces))


def _no_picture(content: bytes) -> Refused:
    """The refusal of a file that begins so; it says what the file is, where that is known."""
    formats = ", ".join(FORMATS)
    if words := picture_files.foreign(content):
        return Refused(415, f"this is {words}; expected {formats}: convert it to PNG or JPEG")
    return Refused(415, f"{'this is not a picture' if content else 'the file is empty'}; expected {formats}")


async def chunks(receive: Receive) -> AsyncIterator[bytes]:
    """The body of a request as it arrives."""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "the client ended the upload early")
        yield message.get("body", b"")
        more = message.get("more_body", False)


async def drain(rest: AsyncIterator[bytes]) -> None:
    """Read and discard the rest of a refused upload, within limits. A client that is cut off while it sends
    never reads the answer."""
    left = DRAINED_BYTES
    with contextlib.suppress(TimeoutError, Refused):
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in rest:
                left -= len(chunk)
                if left < 0:
                    return


async def disconnected(receive: Receive) -> None:
    """Wait until the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass
