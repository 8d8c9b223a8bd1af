"""Feeds a target with inputs that grow from its seeds, and keeps what it must not do: raise another error
than its own, take seconds, fill the memory.

    python tests/fuzz/fuzzing.py manifest --seconds 60 --found FOLDER

With atheris installed, what reaches new code guides the changes; without it they are random. The exit code is
1 when something was found. Each kind of finding (its error and the place of it) is kept once, as a file.
"""

import argparse
import contextlib
import dataclasses
import importlib
import json
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

if __name__ == "__main__":  # as pytest sets it up
    root = Path(__file__).resolve().parents[2]
    sys.path[:1] = [str(root / name) for name in ("tests", "export", "runtime", "calibration")]

NAMES = (
    "manifest",
    "results",
    "pictures",
    "labels",
    "torch_files",
    "keras_files",
    "onnx_files",
    "streams",
    "page",
)
LONGEST_S = 5.0  # of CPU time, for one input: a machine under load is slow
LONGEST_INPUT = 20_000  # bytes, or twice the largest seed
RAISED_BYTES = 2_000_000_000  # of memory, of the whole process
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", " ", "\0", "\ud800", "é", "../x", "/etc/passwd", "a\\b", "\x1b[31m", "x" * 5000, "-5", "1e999"),
    *([], {}, [[]], [0], [None], {"": None}, [[[[[]]]]]),
)


@dataclasses.dataclass(frozen=True)
class Target:
    """What is fed. ``seeds``: inputs that are used as they are; ``feed``: uses one; ``refusals``: the errors
    that it may raise; ``change``: makes another input of one, None: bytes are changed."""

    seeds: Callable[[], Sequence[bytes]]
    feed: Callable[[bytes], None]
    refusals: tuple[type[Exception], ...]
    change: Callable[[bytes, random.Random], bytes] | None = None


class TooSlow(Exception):  # noqa: N818  it is an answer, not a fault
    """An input took longer than ``LONGEST_S``."""


def use(target: Target, data: bytes) -> None:
    """Feed one input.

    Raises:
        Exception: the target raised another error than its own, or took too long.
    """
    with _within(LONGEST_S), contextlib.suppress(*target.refusals):
        target.feed(data)


@contextlib.contextmanager
def _within(seconds: float) -> Iterator[None]:
    def late(*_: int | FrameType | None) -> None:
        raise TooSlow(f"it took more than {seconds:g} s of CPU time")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def changed(target: Target, data: bytes, chance: random.Random) -> bytes:
    """Another input made of one."""
    if target.change and chance.random() < 0.8:
        with contextlib.suppress(ValueError, RecursionError):
            return target.change(data, chance)
    return changed_bytes(data, chance)


def changed_bytes(data: bytes, chance: random.Random) -> bytes:
    """Some bytes flipped, overwritten, doubled, moved or taken away."""
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        at = chance.randrange(len(found) + 1)
        length = chance.choice((1, 1, 2, 4, 8, 64, 512))
        match chance.randrange(6):
            case 0:
                found[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                found[at : at + length] = chance.choice((b"\0", b"\xff", b"\x7f")) * min(length, 8)
            case 2:
                del found[at : at + length]
            case 3:
                found[at:at] = found[at : at + length]
            case 4:
                start = chance.randrange(len(found) + 1)
                found[at:at] = found[start : start + length]
            case _:
                found = found[: max(at, len(found) // 2)]
    return bytes(found)


def changed_json(data: bytes, chance: random.Random) -> bytes:
    """A document with one to three of its values replaced by odd ones, taken away, doubled or moved."""
    document = json.loads(data)
    for _ in range(chance.choice((1, 1, 2, 3))):
        places = list(_places(document))
        if not places:
            break
        node, key = chance.choice(places)
        match chance.randrange(7):
            case 0:
                del node[key]
            case 1:
                other, from_key = chance.choice(places)
                node[key] = json.loads(json.dumps(other[from_key]))
            case 2 if isinstance(node[key], list) and node[key]:
                node[key] = node[key] * chance.choice((2, 3))
            case 3 if isinstance(node[key], int | float):
                node[key] = chance.choice((-node[key], node[key] + 1, node[key] * 1000, str(node[key])))
            case _:
                node[key] = chance.choice(ODD)
    return json.dumps(document).encode()


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield node, key
        yield from _places(value)


@dataclasses.dataclass
class Run:
    """One target fed for a while. ``found``: a folder for what was found, by kind."""

    name: str
    target: Target
    found: Path

    def __post_init__(self) -> None:
        self.kinds: dict[str, int] = {}
        self.fed = 0
        self.found.mkdir(parents=True, exist_ok=True)

    def feed(self, data: bytes) -> None:
        self.fed += 1
        try:
            use(self.target, data)
        except Exception as error:
            self._keep(data, error)

    def _keep(self, data: bytes, error: Exception) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if "vgg_" in frame.filename] or frames
        kind = f"{type(error).__name__}-{Path(own[-1].filename).stem}-{own[-1].lineno}"
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        if self.kinds[kind] == 1:
            (self.found / f"{self.name}-{kind}").write_bytes(data)
            words = "".join(traceback.format_exception(error))
            (self.found / f"{self.name}-{kind}.txt").write_text(words, errors="backslashreplace")
            print(f"FOUND {kind}: {error!r:.300}", flush=True)

    def report(self) -> None:
        print(
            f"{self.name}: {self.fed} inputs, {time.process_time():.0f} s of CPU,"
            f" {len(self.kinds)} kinds found"
        )


def fuzz_randomly(run: Run, seconds: float, seed: int) -> None:
    """Change the seeds without looking at what the changes reach."""
    chance, seeds, end = random.Random(seed), run.target.seeds(), time.monotonic() + seconds
    for data in seeds:
        run.feed(data)
    while time.monotonic() < end:
        run.feed(changed(run.target, chance.choice(seeds), chance))


def fuzz_with_coverage(atheris: Any, run: Run, seconds: float, seed: int, corpus: Path) -> None:
    """Let atheris choose; it ends the process."""
    seeds = run.target.seeds()
    for k, data in enumerate(seeds):
        (corpus / f"seed-{k}").write_bytes(data)
        run.feed(data)
    longest = max(LONGEST_INPUT, 2 * max(map(len, seeds)))

    def change(data: bytes, most: int, number: int) -> bytes:
        chance = random.Random(number)
        if run.target.change and chance.random() < 0.7:
            return changed(run.target, data, chance)[:most]
        return bytes(atheris.Mutate(data, most))

    end = time.monotonic() + seconds

    def feed(data: bytes) -> None:
        run.feed(data)
        if time.monotonic() > end:
            finish(run)

    limits = [f"-seed={seed}", f"-max_len={longest}", "-timeout=60", f"-rss_limit_mb={RAISED_BYTES // 10**6}"]
    atheris.Setup(["fuzzing", *limits, "-verbosity=0", str(corpus)], feed, custom_mutator=change)
    atheris.Fuzz()


def finish(run: Run) -> None:
    """Say what was found and end, past atheris, which would end the process with its own code."""
    import os

    run.report()
    sys.stdout.flush()
    os._exit(1 if run.kinds else 0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", choices=NAMES)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--found", type=Path, required=True, help="folder for what is found")
    parser.add_argument("--corpus", type=Path, help="folder in which inputs that reach new code are kept")
    typed = parser.parse_args()
    try:
        atheris: Any = importlib.import_module("atheris")
        watched = atheris.instrument_imports(include=["vgg_runtime", "vgg_export"])
    except ImportError:
        print("atheris is not installed: inputs are changed without looking at what they reach")
        atheris, watched = None, contextlib.nullcontext()
    with watched:
        target: Target = importlib.import_module(f"fuzz.{typed.target}").TARGET
    run = Run(typed.target, target, typed.found)
    for data in target.seeds():  # the first use of a library loads it, which takes seconds
        with contextlib.suppress(Exception):
            target.feed(data)
    if atheris is None:
        fuzz_randomly(run, typed.seconds, typed.seed)
    else:
        corpus = typed.corpus or typed.found / f"{typed.target}-corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        fuzz_with_coverage(atheris, run, typed.seconds, typed.seed, corpus)
    finish(run)


if __name__ == "__main__":
    # the target imports this module by its name, too
    from fuzz.fuzzing import main as run_it

    run_it()
