"""Runs a variant in its own process for a whole stream: ``python -m vgg_runtime.live.worker``. ``stream.py``
starts it and asks it.

Standard input: one JSON request line, then float32 tensors [1, channels, px, px] as raw bytes, one after the
other, until it is closed. Standard output: one JSON event per line: loaded, checked, then one answered per
tensor; or error.
"""

import io
import json
import signal
import sys
import time
from pathlib import Path

import numpy as np

from vgg_runtime.bundle import self_check
from vgg_runtime.bundle.manifest import SessionSettings
from vgg_runtime.bundle.outputs import predictions
from vgg_runtime.bundle.session import Model
from vgg_runtime.measure.answers import failure, say


def main() -> int:
    # Ctrl-C reaches every process of a terminal; stream.py ends this one
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with io.FileIO(0, closefd=False) as raw:
            answer(io.BufferedReader(raw))
    except BrokenPipeError:
        return 0  # stream.py has ended
    except Exception as error:  # every error of onnxruntime, with its message
        say("error", message=failure(error))
    return 0


def answer(questions: io.BufferedReader) -> None:
    """Load the model, replay the recorded inputs, and classify tensors until the input ends."""
    request = json.loads(questions.readline())
    inputs, expected = self_check.load_expected(Path(request["expected"]), request["check"], request["px"])
    self_check.ensure_classes(expected, request["output"], request["classes"])
    import onnxruntime as _  # noqa: F401  the import is not part of the load time

    start = time.perf_counter()
    settings = SessionSettings(**request["session"])
    model = Model(Path(request["model"]), settings, request["threads"], spinning=False)
    loaded = time.perf_counter()
    first = model(inputs[:1])
    first_ms = (time.perf_counter() - loaded) * 1e3
    self_check.ensure_classes(first, request["output"], request["classes"])
    say("loaded", load_ms=(loaded - start) * 1e3, first_ms=first_ms)
    replayed = np.concatenate([first, *(model(inputs[i : i + 1]) for i in range(1, len(inputs)))])
    say("checked", deviation=min(self_check.deviation(replayed, expected), 1e9))
    tensor = np.empty_like(inputs[:1])  # one for all frames
    del inputs, expected, first, replayed
    while questions.readinto(tensor.data.cast("B")) == tensor.nbytes:
        start = time.perf_counter()
        logits = model(tensor)[0]
        model_ms = (time.perf_counter() - start) * 1e3
        best = predictions(logits, request["output"], 1)
        say("answered", model_ms=model_ms, best=best)


if __name__ == "__main__":
    sys.exit(main())
