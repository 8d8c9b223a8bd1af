"""Runs on the emulated board, beside a copy of the runtime, started by ``instructions.py``.

``python instructions_child.py REQUEST`` loads one variant as compare.py does and infers a few times. It sets
marks for the counting plugin before, between and after the inferences, and prints how far the logits are from
the recorded ones.

The recorded inputs take turns, so that all are checked at no cost: how many instructions an inference takes
does not depend on what is in the picture.
"""

import contextlib
import json
import os
import sys
from pathlib import Path

import numpy as np

from vgg_runtime.bundle import self_check
from vgg_runtime.bundle.manifest import SessionSettings
from vgg_runtime.bundle.session import Model

MARK = 0x7667  # as in emulated_count.c: a getpriority that the system refuses


def main() -> None:
    request = json.loads(sys.argv[1])
    inputs, expected = self_check.load_expected(
        Path(request["expected"]), request["check"], request["input_px"]
    )
    model = Model(Path(request["model"]), SessionSettings(**request["session"]), threads=1)
    found = []
    for turn in range(request["inferences"]):
        batch = inputs[turn % len(inputs)][None]
        mark(turn)
        found.append(model(batch))
    mark(request["inferences"])
    replayed = np.concatenate(found[: len(inputs)])
    print(json.dumps({"deviation": min(self_check.deviation(replayed, expected[: len(replayed)]), 1e9)}))


def mark(turn: int) -> None:
    with contextlib.suppress(OSError):
        os.getpriority(MARK, turn)


if __name__ == "__main__":
    main()
