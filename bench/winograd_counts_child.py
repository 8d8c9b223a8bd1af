"""Runs on the emulated board, started by ``winograd_counts.py`` and ``mixed_counts.py``.

``python winograd_counts_child.py '[[MODEL, SHAPE, OUTPUT], ...]'`` runs each model twice on noise of its
shape and type. It sets a mark for the counting plugin before and after the second inference, and writes the
output to OUTPUT (.npy) unless that is null.
"""

import contextlib
import json
import os
import sys

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as vgg_runtime does, which is not on the board
import onnxruntime as ort

MARK = 0x7667  # as in emulated_count.c: a getpriority that the system refuses


def main() -> None:
    for turn, (path, shape, output) in enumerate(json.loads(sys.argv[1])):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        (given,) = session.get_inputs()
        x = np.random.default_rng(0).standard_normal(shape, np.float32)
        if given.type == "tensor(int8)":
            x = (40 * x).clip(-128, 127).astype(np.int8)
        session.run(None, {given.name: x})  # allocates
        mark(2 * turn)
        (found,) = session.run(None, {given.name: x})
        mark(2 * turn + 1)
        if output:
            np.save(output, found)


def mark(turn: int) -> None:
    with contextlib.suppress(OSError):
        os.getpriority(MARK, turn)


if __name__ == "__main__":
    main()
