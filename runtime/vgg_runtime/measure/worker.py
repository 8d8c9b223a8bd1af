"""Runs a variant in its own process: load, self-check, time, predict. ``python -m
vgg_runtime.measure.worker`` reads one JSON request line from standard input and writes one JSON event per
line to standard output, which ``running.py`` reads. A picture comes as a path, as JSON in a line of its own
behind the request (they may be thousands), or as a float32 tensor of ``tensor_bytes`` bytes there (the page's
pictures are never written to disk).

The order matters. The peak memory is read before any picture is decoded, so that it is that of the model and
not of a photograph. A tensor is classified before the check and the timing: it needs no decoding, and
somebody is waiting for its answer.
"""

import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vgg_runtime.board import device
from vgg_runtime.bundle import self_check
from vgg_runtime.bundle.ahead import ahead
from vgg_runtime.bundle.input_spec import InputSpec
from vgg_runtime.bundle.manifest import SessionSettings
from vgg_runtime.bundle.outputs import predictions
from vgg_runtime.bundle.preprocess import load
from vgg_runtime.bundle.session import Model

from .answers import TIMED_PICTURES, failure, say

WARM_UP_RUNS = 2
LEAST_RUNS = 5
TOP = 5


def main() -> int:
    request = json.loads(sys.stdin.buffer.readline())
    try:
        serve(request)
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # whatever onnxruntime raises becomes a row of the table
        say("error", message=failure(error))
    return 0


def serve(request: dict[str, Any]) -> None:
    """Answer one request with the events loaded, checked, timed, predicted (per picture) and answered."""
    preprocessing, output = InputSpec.from_json(request["preprocessing"]), request["output"]
    inputs, expected = self_check.load_expected(Path(request["expected"]), request["check"], preprocessing.px)
    self_check.ensure_classes(expected, output, request["classes"])
    import onnxruntime as _  # noqa: F401  the import is not part of the load time of the first variant

    start = time.perf_counter()
    model = Model(Path(request["model"]), SessionSettings(**request["session"]), request["threads"])
    loaded = time.perf_counter()
    first = model(inputs[:1])
    first_ms = (time.perf_counter() - loaded) * 1e3
    self_check.ensure_classes(first, output, request["classes"])
    say("loaded", load_ms=(loaded - start) * 1e3, first_ms=first_ms)
    if request["tensor_bytes"]:
        say("predicted", index=0, **_prediction(model(_tensor(request, preprocessing))[0], output))
    replayed = np.concatenate([first, *(model(inputs[i : i + 1]) for i in range(1, len(inputs)))])
    say("checked", deviation=min(self_check.deviation(replayed, expected), 1e9))
    samples_ms = _timed(model, inputs[:1], request["budget_s"], request["max_runs"])
    say("timed", samples_ms=samples_ms, peak_rss_bytes=device.peak_rss_bytes())
    paths = (Path(json.loads(line)) for line in sys.stdin.buffer)
    _answer(model, paths, request["first"], preprocessing, output)


def _answer(model: Model, paths: Iterator[Path], first: int, preprocessing: InputSpec, output: str) -> None:
    """Classify pictures, which are numbered from ``first`` on. The event answered has, for each of the first
    ones, the time of decoding and preprocessing and the time with the model added, in ms. The others are
    decoded while the model runs, which would make both longer."""
    prepare_ms, end_to_end_ms = list[float](), list[float]()
    for path in itertools.islice(paths, TIMED_PICTURES):
        start = time.perf_counter()
        batch = load(path, preprocessing)[None]
        prepared = time.perf_counter()
        logits = model(batch)[0]
        end_to_end_ms.append((time.perf_counter() - start) * 1e3)
        prepare_ms.append((prepared - start) * 1e3)
        say("predicted", index=first + len(prepare_ms) - 1, **_prediction(logits, output))
    if prepare_ms:
        say("answered", prepare_ms=prepare_ms, end_to_end_ms=end_to_end_ms)
    if len(prepare_ms) == TIMED_PICTURES:
        decoded = ahead(lambda path: load(path, preprocessing)[None], paths)
        for index, tensor in enumerate(decoded, first + TIMED_PICTURES):
            say("predicted", index=index, **_prediction(model(tensor())[0], output))


def _tensor(request: dict[str, Any], preprocessing: InputSpec) -> npt.NDArray[np.float32]:
    """Read the float32 tensor [1, channels, px, px] behind the request line."""
    values = np.frombuffer(sys.stdin.buffer.read(request["tensor_bytes"]), np.float32)
    return values.reshape(1, *preprocessing.shape)


def _timed(model: Model, batch: npt.NDArray[np.float32], budget_s: float, max_runs: int) -> list[float]:
    """Steady-state latencies in ms: after a warm-up, until the budget or the number of runs is used up."""
    for _ in range(WARM_UP_RUNS):
        model(batch)
    samples: list[float] = []
    end = time.perf_counter() + budget_s
    while len(samples) < max_runs and (len(samples) < LEAST_RUNS or time.perf_counter() < end):
        start = time.perf_counter()
        model(batch)
        samples.append((time.perf_counter() - start) * 1e3)
    return samples


def _prediction(logits: npt.NDArray[np.float32], output: str) -> dict[str, Any]:
    """The most probable labels, most probable first; ``logits`` [outputs]."""
    best = predictions(logits, output, TOP)
    return {"classes": [label for label, _ in best], "probabilities": [share for _, share in best]}


if __name__ == "__main__":
    sys.exit(main())
