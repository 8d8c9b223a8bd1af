"""Measures contenders side by side. Each has a process of its own that stays alive; they take turns of a few
runs, in rotated order.

Only one process works at a time. The others are stopped (SIGSTOP): the threads of most engines keep spinning
for a while after a run, which would be measured as the next contender's slowness.
"""

import contextlib
import dataclasses
import json
import os
import select
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from peers_contenders import Contender
from vgg_runtime.bundle.input_spec import InputSpec
from vgg_runtime.bundle.metrics import proportion

Report = Callable[[str], None]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Options:
    """In each of ``rounds`` a contender makes ``runs`` timed inferences, after ``warm_up`` untimed ones,
    because the others have used the caches since. An answer, such as that of a conversion, may take
    ``patience_s`` at most."""

    threads: int
    rounds: int = 12
    runs: int = 5
    warm_up: int = 1
    patience_s: float = 1800


@dataclasses.dataclass(frozen=True)
class Pictures:
    """.npy files of preprocessed pictures by preprocessing: a few to be timed, and those to be classified, if
    any. ``labels``: the classes of the latter, None where unknown."""

    timed: dict[InputSpec, Path]
    test: dict[InputSpec, Path]
    labels: tuple[int | None, ...] = ()


class ContenderError(Exception):
    """Why a contender has no figures, in one sentence."""


class Child:
    """A contender's process, stopped whenever it has nothing to do."""

    def __init__(self, folder: Path, threads: int, patience_s: float) -> None:
        self._patience_s = patience_s
        self._log = (folder / "log.txt").open("a+", encoding="utf-8", errors="replace")
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "OMP_NUM_THREADS": str(threads),
            # not the user's, where an earlier run may have left its work
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",  # no further processes, whose memory would not be counted
        }
        command = [sys.executable, "-P", "-m", "peers_child"]
        # a session of its own, so that a converter it started is stopped and ended with it
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """End the process and all that it started; it may be gone already."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            with contextlib.suppress(BrokenPipeError):
                if stream:
                    stream.close()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """Send a request; returns the answer.

        Raises:
            ContenderError: the contender failed, died or took too long; the message says which.
        """
        line = self._line(json.dumps({"do": do, **fields}) + "\n")
        if not line:
            raise ContenderError(f"during '{do}': {self._death()}")
        self._signal(signal.SIGSTOP)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ContenderError(answer["error"])
        return answer

    def _line(self, question: str) -> str:
        """One line of answer, empty when the process is gone."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._signal(signal.SIGCONT)
        try:
            self._process.stdin.write(question)
            self._process.stdin.flush()
        except BrokenPipeError:
            return ""
        if not select.select([self._process.stdout], [], [], self._patience_s)[0]:
            self._signal(signal.SIGKILL)
            raise ContenderError(f"no answer within {self._patience_s:.0f} s")
        return self._process.stdout.readline()

    def _death(self) -> str:
        code = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        last = lines[-1][:200] if lines else "it printed nothing"
        if code == -signal.SIGKILL:
            return "the process was killed, as the system does when memory runs out"
        how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return f"the process {how}: {last}"


def rotated(items: Sequence[T], number: int) -> list[T]:
    """The items in the order of round ``number``: each round begins with the next one."""
    start = number % len(items) if items else 0
    return [*items[start:], *items[:start]]


def measure(
    contenders: Sequence[Contender],
    sources: dict[str, Any],
    pictures: Pictures,
    work: Path,
    options: Options,
    report: Report,
) -> list[dict[str, Any]]:
    """A row per contender, in their order; the first is what the others are compared with."""
    rows = [empty_row(contender) for contender in contenders]
    contest = Contest(contenders, rows, pictures, options, report)
    contest.prepare(sources, work)
    with contextlib.ExitStack() as stack:
        contest.load(work, stack)
        contest.take_turns()
        contest.classify()
    relate(rows, pictures.labels)
    return rows


def empty_row(contender: Contender) -> dict[str, Any]:
    """What is not measured is None."""
    return {
        "contender": contender.name,
        "packages": list(contender.packages),
        "settings": contender.settings,
        "input_px": contender.preprocessing.px if contender.preprocessing else None,
        "parameters": contender.facts.get("parameters"),
        "macs": contender.facts.get("macs"),
        "size_bytes": None,
        "load_ms": None,
        "first_ms": None,
        "p50_ms": None,
        "samples_ms": [],
        "speedup": None,
        "peak_rss_bytes": None,
        "agreement": None,
        "top1": None,
        "classes": [],
        "bfloat16": None,
        "made": "",
        "remark": "",
        "error": None,
    }


class Contest:
    """The contenders with their rows. One that fails takes no further part, and its row gets the reason."""

    def __init__(
        self,
        contenders: Sequence[Contender],
        rows: list[dict[str, Any]],
        pictures: Pictures,
        options: Options,
        report: Report,
    ) -> None:
        self._contenders, self._rows = contenders, rows
        self._pictures, self._options, self._report = pictures, options, report
        self._files: dict[int, list[str]] = {}
        self._children: dict[int, Child] = {}

    def prepare(self, sources: dict[str, Any], work: Path) -> None:
        """Make the files; contenders with the same ``prepare`` share them, and share its failure."""
        known: dict[str, dict[str, Any] | ContenderError] = {}
        for number, contender in enumerate(self._contenders):
            try:
                made = self._made(contender, sources | contender.sources, work, known)
            except ContenderError as error:
                self._fail(number, error)
                continue
            self._files[number] = made["files"]
            size = sum(Path(file).stat().st_size for file in made["files"])
            self._rows[number] |= made["facts"] | {"size_bytes": size}

    def _made(
        self,
        contender: Contender,
        sources: dict[str, Any],
        work: Path,
        known: dict[str, dict[str, Any] | ContenderError],
    ) -> dict[str, Any]:
        """The ``files`` of a contender, and the ``facts`` about its network that its row gets."""
        if contender.absent:
            raise ContenderError(contender.absent)
        made: dict[str, Any] = {"files": [str(path) for path in contender.files], "facts": {}}
        steps = [step for step in (contender.after, contender.prepare) if step]
        for number, step in enumerate(steps):
            key = "+".join(name.split(":")[1] for name in steps[: number + 1])
            if key not in known:
                self._report(f"preparing {contender.name}")
                given = sources | {"onnx": made["files"][0]} if number else sources
                known[key] = self._prepared(step, given, work / key)
            found = known[key]
            if isinstance(found, ContenderError):
                raise found
            made = {"files": found["files"], "facts": made["facts"] | found["facts"]}
        return made

    def _prepared(self, step: str, sources: dict[str, Any], folder: Path) -> dict[str, Any] | ContenderError:
        folder.mkdir(parents=True, exist_ok=True)
        with Child(folder, self._options.threads, self._options.patience_s) as child:
            try:
                return child.ask("prepare", function=step, sources=sources, folder=str(folder))
            except ContenderError as error:
                return error

    def load(self, work: Path, stack: contextlib.ExitStack) -> None:
        """Start a process for each that is ready; ``stack`` ends them."""
        for number, files in self._files.items():
            contender = self._contenders[number]
            self._report(f"loading {contender.name}")
            folder = work / f"run-{number}"
            folder.mkdir(parents=True, exist_ok=True)
            child = stack.enter_context(Child(folder, self._options.threads, self._options.patience_s))
            self._children[number] = child
            request = {
                "engine": contender.engine,
                "files": files,
                "settings": contender.settings,
                "threads": self._options.threads,
            }
            self._ask(
                number,
                "load",
                **request,
                pictures=str(self._pictures.timed[_preprocessing(contender, self._contenders)]),
            )

    def take_turns(self) -> None:
        """Time the contenders, round by round."""
        for number in range(self._options.rounds):
            self._report(f"round {number + 1} of {self._options.rounds}")
            for k in rotated(list(self._children), number):
                before = self._rows[k]["samples_ms"]
                self._ask(k, "run", runs=self._options.runs, warm_up=self._options.warm_up)
                self._rows[k]["samples_ms"] = before + self._rows[k]["samples_ms"]
        for k in self._children:
            self._rows[k]["p50_ms"] = statistics.median(self._rows[k]["samples_ms"])

    def classify(self) -> None:
        """Let each contender classify the test pictures, where there are any."""
        for k in list(self._children):
            preprocessing = _preprocessing(self._contenders[k], self._contenders)
            if preprocessing in self._pictures.test:
                self._report(f"classifying with {self._contenders[k].name}")
                self._ask(k, "classify", pictures=str(self._pictures.test[preprocessing]))

    def _ask(self, number: int, do: str, **fields: Any) -> None:
        """Enter the answer into the row, or the reason why there is none."""
        try:
            self._rows[number] |= self._children[number].ask(do, **fields)
        except ContenderError as error:
            self._fail(number, error)

    def _fail(self, number: int, error: ContenderError) -> None:
        """Enter the reason into the row. Only the file size stays: the other figures are incomplete."""
        kept = {"size_bytes": self._rows[number]["size_bytes"], "error": str(error)}
        self._rows[number] |= empty_row(self._contenders[number]) | kept
        if child := self._children.pop(number, None):
            child.end()
        self._report(f"  {self._contenders[number].name}: {error}")


def _preprocessing(contender: Contender, contenders: Sequence[Contender]) -> InputSpec:
    """A contender's own preprocessing, or that of the first contender, the baseline."""
    found = contender.preprocessing or contenders[0].preprocessing
    assert found is not None
    return found


def relate(rows: Sequence[dict[str, Any]], labels: Sequence[int | None] = ()) -> None:
    """Enter speed against and agreement with the first row, where both rows were measured, and top-1 on the
    test pictures with ``labels``."""
    first = rows[0]
    labelled = [(number, label) for number, label in enumerate(labels) if label is not None]
    for row in rows:
        classes = row["classes"]
        if row["p50_ms"] and first["p50_ms"]:
            row["speedup"] = first["p50_ms"] / row["p50_ms"]
        if classes and len(classes) == len(first["classes"]):
            same = sum(a == b for a, b in zip(classes, first["classes"], strict=True))
            row["agreement"] = proportion(same, len(classes)).to_json()
        if classes and labelled:
            right = sum(classes[number] == label for number, label in labelled)
            row["top1"] = proportion(right, len(labelled)).to_json()
