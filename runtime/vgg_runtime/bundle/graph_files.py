"""The files beside an ONNX graph that hold tensors of it. No package on the board reads graphs, and only this
is asked: a walk through the fields of the protobuf that passes over the tensors' data.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

# by message, the numbers of the fields (onnx.proto) through which a tensor is reached, and what they hold
_INSIDE = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor",
        6: "graph",
        10: "tensor",
        11: "graph",
        22: "sparse tensor",
        23: "sparse tensor",
    },
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external data"},
}
_KEY, _VALUE = 1, 2  # of an entry of external data
_VARINT, _EIGHT_BYTES, _BLOCK, _FOUR_BYTES = 0, 1, 2, 5  # how a field's value is written
_GROUPS = (3, 4)  # a group's begin and end; what is in it counts as if it stood outside
_DEEPEST = 110  # messages within each other; protobuf itself reads 100


def named_in(path: Path) -> set[str]:
    """The files that the graph in the file ``path`` names as holding tensors, as it names them: relative to
    its folder. What onnxruntime reads as a graph is read here, too.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no ONNX graph.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return set(_locations(content, "model", 0, len(content)))


def _locations(content: mmap.mmap, message: str, start: int, end: int, depth: int = 0) -> Iterator[str]:
    """The locations that the message in bytes [start, end) names."""
    if depth > _DEEPEST:
        raise ValueError("its messages are nested too deeply")
    inside = _INSIDE[message]
    for number, first, last in _blocks(content, start, end):
        held = inside.get(number)
        if held == "external data":
            yield from _location(content, first, last)
        elif held:
            yield from _locations(content, held, first, last, depth + 1)


def _location(content: mmap.mmap, start: int, end: int) -> set[str]:
    """The value of an entry of external data whose key is "location", "" if it has none; nothing for another
    one."""
    texts = [(number, content[a:b]) for number, a, b in _blocks(content, start, end)]
    if (_KEY, b"location") not in texts:
        return set()
    # bytes that are no UTF-8 become what no manifest can name
    return {text.decode(errors="surrogateescape") for number, text in texts if number == _VALUE} or {""}


def _blocks(content: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The fields of a message that hold bytes, a text or a message: number, start and end of each."""
    while start < end:
        tag, start = _varint(content, start, end)
        number, kind = divmod(tag & 0xFFFFFFFF, 8)  # as protobuf cuts it
        length = 0
        if kind == _VARINT:
            _, start = _varint(content, start, end)
        elif kind == _BLOCK:
            length, start = _varint(content, start, end)
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            length = 8 if kind == _EIGHT_BYTES else 4
        elif kind not in _GROUPS:
            raise ValueError(f"a field is of kind {kind}")
        if start + length > end:
            raise ValueError("a field is longer than the message that holds it")
        if kind == _BLOCK:
            yield number, start, start + length
        start += length


def _varint(content: mmap.mmap, start: int, end: int) -> tuple[int, int]:
    """A whole number of variable length, and where it ends."""
    value = 0
    for k in range(10):
        if start + k >= end:
            raise ValueError("it ends within a number")
        byte = content[start + k]
        value |= (byte & 0x7F) << 7 * k
        if byte < 0x80:
            return value, start + k + 1
    raise ValueError("a number has more than ten bytes")
