"""Tells files of protocol buffers apart by their outermost fields, without the libraries that read them."""

import itertools
from collections.abc import Iterator
from typing import BinaryIO

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
ONNX, GRAPH_DEF, SAVED_MODEL, CAFFE, CORE_ML = "onnx", "graph", "saved_model", "caffe", "core_ml"
_MOST_FIELDS = 10_000  # of a file that are looked at
_NUMBERS = {1: VARINT, 5: VARINT} | dict.fromkeys((2, 3, 4, 6, 7, 8, 14, 20, 25, 26), BYTES)  # of ONNX
_CORE_ML = range(200, 4000)  # the fields that hold a model of one type or another

Field = tuple[int, int, int, int]  # number, wire type, where its content begins, its length in bytes


def kind(file: BinaryIO, size: int) -> str | None:
    """ONNX, GRAPH_DEF (a frozen graph), SAVED_MODEL, CAFFE or CORE_ML; None: something else, or nothing that
    can be told. A file that ends too early counts as what it began to be."""
    found = list(itertools.islice(_fields(file, 0, size), _MOST_FIELDS))
    if not found:
        return None
    types = {number: wire for number, wire, _, _ in found}
    first = found[0]
    if (
        all(_NUMBERS.get(number) == wire for number, wire in types.items())
        and 7 in types
        and {1, 8} & types.keys()
    ):
        return ONNX
    if first[:2] == (1, VARINT) and types.get(2) == BYTES:
        if any(number in _CORE_ML for number in types):
            return CORE_ML
        return SAVED_MODEL if types.keys() == {1, 2} else None
    if first[:2] != (1, BYTES):
        return None
    if types.get(100) == BYTES or (types.get(2) == BYTES and _begins(file, found[1], (5, 2, 4))):
        return CAFFE
    return GRAPH_DEF if types.keys() <= {1, 2, 3, 4} and _is_node(file, first) else None


def _begins(file: BinaryIO, field: Field, numbers: tuple[int, ...]) -> bool:
    """Whether a message begins with one of the fields ``numbers``."""
    inner = next(_fields(file, field[2], field[2] + field[3]), None)
    return inner is not None and inner[0] in numbers


def _is_node(file: BinaryIO, field: Field) -> bool:
    """Whether a message is a node of TensorFlow: a name, then the name of an operator."""
    inner = list(itertools.islice(_fields(file, field[2], field[2] + field[3]), 2))
    if [one[:2] for one in inner] != [(1, BYTES), (2, BYTES)]:
        return False
    file.seek(inner[1][2])
    return file.read(inner[1][3]).isalnum()


def _fields(file: BinaryIO, start: int, end: int) -> Iterator[Field]:
    """The fields of a message, until one that is none. The last may reach beyond the end."""
    place = start
    while place < end:
        tag, place = _varint(file, place)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 2**29:
            return
        if wire == VARINT:
            begin = place
            value, place = _varint(file, place)
            if value < 0:
                return
            yield number, wire, begin, place - begin
            continue
        length = {FIXED64: 8, FIXED32: 4}.get(wire, -1)
        if wire == BYTES:
            length, place = _varint(file, place)
        if length < 0:
            return
        yield number, wire, place, length
        place += length


def _varint(file: BinaryIO, place: int) -> tuple[int, int]:
    """A number in base 128, and where it ends; -1: there is none."""
    file.seek(place)
    value = 0
    for k, byte in enumerate(file.read(10)):
        value |= (byte & 127) << (7 * k)
        if byte < 128:
            return value, place + k + 1
    return -1, place
