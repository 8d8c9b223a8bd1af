"""A contender's own process. ``python -m peers_child`` answers each JSON line on standard input with one on
standard output; ``peers_measure.Child`` is the other end.

What engines and converters print goes to standard error, which the other end keeps in a file.
"""

import ctypes
import dataclasses
import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from peers_engines import Compression, Made, NotPossibleError, Sources
from vgg_runtime.board.device import peak_rss_bytes

PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


def main() -> int:
    _die_with_the_parent()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except Exception as error:  # whatever an engine raises becomes a row of the table, with its own words
            answer = {"error": _in_words(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return 0


def _die_with_the_parent() -> None:
    """A contender is stopped when it is not its turn, and a stopped process would not notice that its pipes
    were closed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _in_words(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    if isinstance(error, ModuleNotFoundError):
        return f"not installed: {text}"
    if isinstance(error, MemoryError) or "bad_alloc" in text:
        return "did not fit: out of memory"
    if isinstance(error, NotPossibleError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def named(reference: str) -> Any:
    """The object that ``module:name`` names."""
    module, name = reference.split(":")
    return getattr(importlib.import_module(module), name)


def _without_files(made: Made) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(made).items() if name != "files"}


class Worker:
    """What can be asked: ``prepare`` in one process; ``load``, then ``run`` and ``classify`` in another."""

    def __init__(self) -> None:
        self._engine: Any = None
        self._timed: list[Any] = []
        self._turn = 0

    def prepare(self, function: str, sources: dict[str, Any], folder: str) -> dict[str, Any]:
        """Make the files of a contender."""
        onnx, checkpoint, calibration = (Path(sources[k]) for k in ("onnx", "checkpoint", "calibration"))
        given = Sources(onnx, checkpoint, calibration, sources["px"], sources["threads"])
        if asked := sources.get("compression"):
            asked |= {"pictures": Path(asked["pictures"])}
            given = dataclasses.replace(given, compression=Compression(**asked))
        made = named(function)(given, Path(folder))
        files, facts = (made.files, _without_files(made)) if isinstance(made, Made) else (made, {})
        if missing := [path.name for path in files if not path.is_file()]:
            raise NotPossibleError(
                f"the conversion ended without an error, but wrote no {' and no '.join(missing)}"
            )
        return {"facts": facts, "files": [str(path) for path in files]}

    def load(
        self, engine: str, files: list[str], threads: int, settings: dict[str, Any], pictures: str
    ) -> dict[str, Any]:
        """Create the engine and run it once. ``pictures`` is an .npy file of those that are timed."""
        self._timed = [np.ascontiguousarray(picture[None]) for picture in np.load(pictures)]
        kind = named(engine)
        for module in kind.modules:
            importlib.import_module(module)
        start = time.perf_counter()
        self._engine = kind([Path(file) for file in files], threads, settings)
        loaded = time.perf_counter()
        self._engine(self._timed[0])
        return {
            "load_ms": (loaded - start) * 1e3,
            "first_ms": (time.perf_counter() - loaded) * 1e3,
            "bfloat16": self._engine.bfloat16,
            "remark": self._engine.remark,
        }

    def run(self, runs: int, warm_up: int) -> dict[str, Any]:
        """Time single inferences; the peak memory is read here, before any other picture is in the
        process."""
        samples_ms = []
        for k in range(warm_up + runs):
            batch = self._timed[self._turn % len(self._timed)]
            self._turn += 1
            start = time.perf_counter()
            self._engine(batch)
            if k >= warm_up:
                samples_ms.append((time.perf_counter() - start) * 1e3)
        return {"samples_ms": samples_ms, "peak_rss_bytes": peak_rss_bytes()}

    def classify(self, pictures: str) -> dict[str, Any]:
        """The most probable class of each picture of an .npy file."""
        tensors = np.load(pictures, mmap_mode="r")
        return {
            "classes": [
                int(np.argmax(self._engine(np.ascontiguousarray(tensor[None]))[0])) for tensor in tensors
            ]
        }


if __name__ == "__main__":
    sys.exit(main())
