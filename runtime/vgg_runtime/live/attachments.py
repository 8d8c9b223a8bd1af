"""What a JPEG says of other pictures in its file: the index of the Multi-Picture Format (CIPA DC-007), which
phones use for a larger or brighter version of the picture behind it."""

import struct

NAME = b"MPF\0"
_ENTRIES = 0xB002  # the tag whose value is the list of pictures
_ENTRY_BYTES = 16
_FIELD_BYTES = 12
MOST = 100  # pictures of one file


def starts(segment: bytes, at: int) -> list[int]:
    """Where the pictures of the file begin, in bytes from the beginning of this one, which is 0; empty where
    there is no index or none that can be read. Only the first picture of a file has one.

    Args:
        segment: an APP2 segment without its marker and length.
        at: where it lies, in bytes from the beginning of the picture.
    """
    if not segment.startswith(NAME):
        return []
    index, base = segment[len(NAME) :], at + len(NAME)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(index[:4])
    if order is None:
        return []
    try:
        offsets = [
            struct.unpack_from(f"{order}I", index, place + 8)[0] for place in _entries_of(index, order)
        ]
    except struct.error:  # it ends too early
        return []
    return [base + offset if offset else 0 for offset in offsets]


def _entries_of(index: bytes, order: str) -> range:
    """Where the entries of the pictures begin in the index.

    Raises:
        struct.error: it ends too early.
    """
    (directory,) = struct.unpack_from(f"{order}I", index, 4)
    (count,) = struct.unpack_from(f"{order}H", index, directory)
    for k in range(count):
        tag, _, size, place = struct.unpack_from(f"{order}HHII", index, directory + 2 + k * _FIELD_BYTES)
        if tag == _ENTRIES:
            return range(place, place + min(size, MOST * _ENTRY_BYTES), _ENTRY_BYTES)
    return range(0)
