"""Splits a stream of bytes into JPEG files: MJPEG as cameras, ``ffmpeg -f mjpeg`` and
``multipart/x-mixed-replace`` servers send it."""

import re

from vgg_runtime.errors import ImageError

from . import attachments

# enough for a photograph of 50 megapixels; a stream that never ends a picture must not fill the memory
MAX_FRAME_BYTES = 12_000_000
TOO_LARGE = f"it is larger than {MAX_FRAME_BYTES // 1_000_000} MB, the most that is read of a frame"
_START = b"\xff\xd8\xff"
# a marker that ends compressed data: neither a stuffed 0xFF, nor a restart marker, nor a code that means
# nothing, which is half of a lost end marker and what follows
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
# half an end marker, and what a multipart server sends before the next picture
_BETWEEN = re.compile(rb"\xff?\r\n--[ -~\r\n]*\Z")
_BETWEEN_BYTES = 2000  # at most
_SOI, _EOI, _SOS, _APP2 = 0xD8, 0xD9, 0xDA, 0xE2
_MOST_INDICES = 100  # APP2 segments of a picture in which an index is looked for
_WITHOUT_LENGTH = frozenset((0x01, *range(0xD0, 0xD8)))


class Splitter:
    """Takes bytes and returns whole JPEGs. Bytes between them (a multipart server's headers) are skipped.

    Segments are skipped by their lengths, because the thumbnail inside a camera's EXIF block ends with the
    same two bytes as the picture. A picture without these two bytes ends where the next one begins, or with
    the stream; whether enough of its pixels are there, its decoder finds out. What a picture's own index
    calls its attachment is no frame, where it begins exactly there.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        # how many bytes of the picture at the start of the buffer are parsed; 0 while no picture has begun
        self._at = 0
        self._compressed = False  # whether ``_at`` lies in compressed data
        self._has_pixels = False  # whether any were before it
        self.without_ends = False  # whether a picture was ended by the next one
        self._has_taken = False  # whether one has ended
        self._dropped = 0  # bytes of the stream before the buffer
        self._indices: list[int] = []  # where segments begin that may hold an index of attachments
        self._attached: set[int] = set()  # where the last picture's attachments begin in the stream
        self._is_attachment = False  # whether the picture that has begun is one

    @property
    def has_begun(self) -> bool:
        """Whether a picture has begun."""
        return self._at > 0 or self._has_taken

    def feed(self, piece: bytes) -> list[bytes | ImageError]:
        """The pictures that end in ``piece``, in order; one that arrived damaged is an ``ImageError``."""
        self._buffer += piece
        found: list[bytes | ImageError] = []
        while (item := self._next()) is not None:
            if not self._is_attachment:
                found.append(item)
        return found

    def end(self, *, broke_off: bool = False) -> list[bytes | ImageError]:
        """End the stream: what there is of a picture without its end, or an ``ImageError`` where that is
        nothing to decode, or where the stream ``broke_off`` and its pictures have ends; nothing where none
        was begun."""
        if self._at and self._is_attachment:
            self._drop(len(self._buffer))
            self._at = 0
        if self._at and self._compressed and (self.without_ends or not broke_off):
            return [self._take(len(self._buffer))]
        return [self._give_up("the stream ended in the middle of it")] if self._at else []

    def _next(self) -> bytes | ImageError | None:
        if not self._at and not self._begin():
            return None
        while self._at + 2 <= len(self._buffer):
            if self._compressed and not self._skip_compressed():
                break
            if self._buffer[self._at] != 0xFF:
                return self._give_up("bytes are missing or wrong")
            code = self._buffer[self._at + 1]
            if code == _EOI:
                return self._take(self._at + 2)
            if code == _SOI:
                if self._has_pixels:
                    self.without_ends = True
                    picture = self._take(self._at)
                    between = _BETWEEN.search(picture, max(0, len(picture) - _BETWEEN_BYTES))
                    return picture[: between.start()] if between else picture
                return self._give_up("the next frame began in the middle of it")
            if not self._step_over(code):
                break
        if len(self._buffer) > MAX_FRAME_BYTES:
            self._at = len(self._buffer)
            return self._give_up(TOO_LARGE)
        return None

    def _begin(self) -> bool:
        """Drop everything before the next picture; False when none has begun."""
        start = self._buffer.find(_START)
        self._drop(start if start >= 0 else max(0, len(self._buffer) - len(_START) + 1))
        self._at, self._compressed, self._has_pixels = (2 if start >= 0 else 0), False, False
        self._indices, self._is_attachment = [], start >= 0 and self._dropped in self._attached
        return start >= 0

    def _skip_compressed(self) -> bool:
        """Go to the next marker; False when it has not arrived."""
        marker = _MARKER.search(self._buffer, self._at)
        self._at = marker.start() if marker else len(self._buffer) - 1  # a last 0xFF may be half a marker
        self._compressed = marker is None
        return marker is not None

    def _step_over(self, code: int) -> bool:
        """Skip a segment; False when its length has not arrived."""
        if code == 0xFF or code in _WITHOUT_LENGTH:
            self._at += 1 if code == 0xFF else 2  # 0xFF before a marker is a fill byte
            return True
        if self._at + 4 > len(self._buffer):
            return False
        if code == _APP2:
            self._indices.append(self._at)
        self._at += 2 + int.from_bytes(self._buffer[self._at + 2 : self._at + 4], "big")
        self._compressed = code == _SOS
        self._has_pixels |= self._compressed
        return True

    def _take(self, end: int) -> bytes:
        picture = bytes(self._buffer[:end])
        starts = [start for at in self._indices[:_MOST_INDICES] for start in _starts(picture, at)]
        if 0 in starts:  # it is the first one of a file, whatever the index before it says
            self._is_attachment = False
        if not self._is_attachment:
            self._attached = {self._dropped + start for start in starts if start}
        self._drop(end)
        self._at, self._has_taken = 0, True
        return picture

    def _drop(self, count: int) -> None:
        del self._buffer[:count]
        self._dropped += count

    def _give_up(self, reason: str) -> ImageError:
        """Drop the parsed bytes of the picture; the search for the next one starts behind them."""
        self._drop(self._at)
        self._at, self._has_taken = 0, True
        return ImageError(f"a frame is damaged: {reason}")


def _starts(picture: bytes, at: int) -> list[int]:
    """Where the attachments begin that the APP2 segment at ``at`` names."""
    length = int.from_bytes(picture[at + 2 : at + 4], "big")
    return attachments.starts(picture[at + 4 : at + 2 + length], at + 4)
