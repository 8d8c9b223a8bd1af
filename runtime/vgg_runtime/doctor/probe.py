"""Imports onnxruntime and runs a variant in a process of its own, to see which operators are executed.

``python -m vgg_runtime.doctor.probe`` reads one JSON request line from standard input and writes one JSON
event per line to standard output, which ``bundle_checks.py`` reads. The operators come from onnxruntime's own
profile of one inference. It lists what this board executes after every optimization for its core, and takes
some kilobytes. (Saving the optimized graph would write the weights a second time, on many boards into
memory.)
"""

import collections
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from vgg_runtime.board import device
from vgg_runtime.bundle.manifest import SessionSettings
from vgg_runtime.bundle.session import session_options
from vgg_runtime.measure.answers import in_words, say
from vgg_runtime.output import temporary_folder

# Layers that multiply, under the names that onnxruntime's optimizers give them. A ReLU in a profile is one
# that was not folded into its layer.
FLOAT_LAYERS = frozenset({"Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"})
INTEGER_LAYERS = frozenset(
    {"QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "ConvInteger", "MatMulNBits"}
)
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types of protobuf


def main() -> int:
    request = json.loads(sys.stdin.buffer.readline())
    try:
        import onnxruntime as ort

        say("imported", version=ort.__version__)
        if request:
            model = Path(request["model"])
            executed = executed_ops(
                model, SessionSettings(**request["session"]), request["threads"], request["shape"]
            )
            say(
                "executed",
                ops=executed,
                float_layers=float_layers(model),
                peak_rss_bytes=device.peak_rss_bytes(),
            )
    except KeyboardInterrupt:
        return 130
    except NoFolderError:
        say("no folder")
    except (Exception, MemoryError) as error:
        # every error of onnxruntime becomes a check, with its message
        say("error", message=in_words(error))
    return 0


class NoFolderError(Exception):
    """No temporary folder can be written."""


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A temporary folder; in memory (``/dev/shm``) where none on the card can be written."""
    with contextlib.ExitStack() as entered:
        for place in (None, "/dev/shm"):
            with contextlib.suppress(OSError):
                folder = entered.enter_context(temporary_folder(place=place))
                (folder / "tried").write_bytes(b"x")  # a full card still takes folders
                break
        else:
            raise NoFolderError
        yield folder


def executed_ops(
    model: Path, settings: SessionSettings, threads: int, shape: Sequence[int]
) -> dict[str, int]:
    """How often each operator runs in one inference of a picture of ``shape``: channels, height, width."""
    import onnxruntime as ort

    with _scratch() as folder:
        options = session_options(settings, threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
        session: Any = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        session.run(None, {session.get_inputs()[0].name: np.zeros((1, *shape), np.float32)})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    # Before onnxruntime 1.21 a node has two more events, for the fences around it.
    ran = [
        e["args"]["op_name"] for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")
    ]
    return dict(sorted(collections.Counter(ran).items()))


def float_layers(model: Path) -> int:
    """The number of Conv, Gemm and MatMul of a quantized ONNX file that are meant to run in float, because
    their weights are not dequantized."""
    weights, dequantized = [], set()
    for kind, inputs, outputs in nodes(model):
        if kind == "DequantizeLinear":
            dequantized |= set(outputs)
        elif kind in FLOAT_LAYERS:
            weights.append(inputs[1])
    return sum(name not in dequantized for name in weights)


def nodes(model: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Operator, inputs and outputs of every node of an ONNX file. The weights are skipped without being read.

    The package onnx, at 40 MB, is not on the board. The field numbers are those of onnx.proto.
    """
    with model.open("rb") as file:
        for graph, start, end in _fields(file, 0, model.stat().st_size):
            if graph != 7:  # ModelProto.graph
                continue
            for node, first, last in _fields(file, start, end):
                if node == 1:  # GraphProto.node
                    yield _node(file, first, last)


def _node(file: IO[bytes], start: int, end: int) -> tuple[str, list[str], list[str]]:
    texts: dict[int, list[str]] = collections.defaultdict(list)
    for number, first, last in _fields(file, start, end):
        if number in (1, 2, 4):  # NodeProto.input, output, op_type
            file.seek(first)
            texts[number].append(file.read(last - first).decode())
    return "".join(texts[4]), texts[1], texts[2]


def _fields(file: IO[bytes], start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Field number, start and end of every field of the message in bytes [start, end) of a file."""
    while start < end:
        file.seek(start)
        tag = _varint(file)
        match tag & 7:
            case wire if wire == _BYTES:
                length = _varint(file)
            case wire if wire in (_FIXED64, _FIXED32):
                length = 8 if wire == _FIXED64 else 4
            case wire if wire == _VARINT:
                first = file.tell()
                _varint(file)
                length = file.tell() - first
                file.seek(first)
            case wire:
                raise ValueError(f"not an ONNX file: wire type {wire} at byte {start}")
        first = file.tell()
        start = first + length
        yield tag >> 3, first, start


def _varint(file: IO[bytes]) -> int:
    value = shift = 0
    while byte := file.read(1):
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
        shift += 7
    raise ValueError("not an ONNX file: it ends in the middle of a number")


if __name__ == "__main__":
    sys.exit(main())
