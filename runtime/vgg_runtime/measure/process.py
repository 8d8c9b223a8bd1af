"""Child processes. A request is one line of JSON; the child answers with one JSON event per line, which
``answers.py`` writes."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

POLL_S = 0.1  # seconds until an interrupt is noticed
PIECE_BYTES = 1 << 16

Event = dict[str, Any]  # its name under "event"


class Child:
    """A process that runs a module of this copy of the runtime, whatever else is installed. Any thread may
    write to it or kill it. The thread that reads its events closes it."""

    def __init__(self, module: str) -> None:
        self.late = False  # whether it was killed because it took too long
        self._heard = b""
        self._complaints = _scratch()  # close() closes it
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, request: dict[str, Any], *pieces: bytes, last: bool = True) -> None:
        """Write a request, and the bytes that belong to it."""
        self.tell(json.dumps(request).encode() + b"\n", *pieces, last=last)

    def tell(self, *pieces: bytes, last: bool = False) -> None:
        """Write to its standard input; ``last`` closes it."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died; its exit status says how
            for piece in pieces:
                self._process.stdin.write(piece)
            if last:
                self._process.stdin.close()
            else:
                self._process.stdin.flush()

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Kill the process if the ``with`` block takes longer than ``seconds``."""
        timer = threading.Timer(seconds, self._give_up)
        timer.daemon = True  # an interrupt may come while it starts; a program that ends does not wait for it
        try:
            timer.start()
            yield
        finally:
            timer.cancel()

    def event(self) -> Event | None:
        """The next event; None when there are no more."""
        return self._event(lambda output: True)

    def event_unless(self, interrupted: Callable[[], bool], silence_s: float) -> Event | None:
        """The next event; None when there are no more, or when ``interrupted`` has become true. The process
        is killed after ``silence_s`` without an event. There is no timer thread as in ``within``: starting
        one would delay every frame of a stream and every picture."""
        late = time.monotonic() + silence_s

        def has_spoken(output: int) -> bool:
            while not select.select([output], [], [], POLL_S)[0]:
                if interrupted():
                    return False
                if time.monotonic() > late:
                    self._give_up()
            return True

        return self._event(has_spoken)

    def _event(self, has_spoken: Callable[[int], bool]) -> Event | None:
        """The next event; None when there are no more, or when ``has_spoken`` returns False."""
        assert self._process.stdout is not None
        output = self._process.stdout.fileno()
        # not through Python's buffer: select does not see what is already in it
        while b"\n" not in self._heard:
            if not has_spoken(output):
                return None
            piece = os.read(output, PIECE_BYTES)
            if not piece:
                return None  # a killed process may leave half a line
            self._heard += piece
        line, _, self._heard = self._heard.partition(b"\n")
        event: Event = json.loads(line)
        return event

    def events(self, silence_s: float) -> Iterator[Event]:
        """All events. The process is killed after ``silence_s`` without one."""
        while (event := self.event_unless(lambda: False, silence_s)) is not None:
            yield event

    def rest(self) -> bytes:
        """The bytes that follow the events read so far, until the process ends."""
        assert self._process.stdout is not None
        heard, self._heard = self._heard, b""
        return heard + self._process.stdout.read()

    def death(self, within_s: float | None = None) -> str | None:
        """Wait for the process to end and say in a sentence why it failed; None when its exit code is 0."""
        try:
            code = self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            return "the model's process closed its output"
        self._complaints.seek(0)
        return explain_death(code, self._complaints.read()) if code else None

    def kill(self) -> None:
        """Kill the process. A thread that reads its events then finds no more."""
        self._process.kill()

    def reap(self) -> None:
        """Kill the process and wait for its end. Its files are left to the thread that reads them."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Kill the process, wait for its end, and close its files."""
        self.reap()
        for stream in (self._process.stdin, self._process.stdout, self._complaints):
            with contextlib.suppress(OSError):  # bytes that were not written yet have no reader
                if stream:
                    stream.close()

    def _give_up(self) -> None:
        self.late = True
        self.kill()


def _scratch() -> IO[str]:
    """A file without a name; in memory where no temporary folder can be written (a full card, a container
    that is read-only)."""
    try:
        return tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
    except OSError:
        return os.fdopen(os.memfd_create("complaints"), "w+", encoding="utf-8", errors="replace")


def explain_death(code: int, complaint: str) -> str:
    """A sentence for a child's non-zero return code (negative: the signal) and its standard error."""
    if code == -signal.SIGKILL:
        return "did not fit: the process was killed, as the system does when memory runs out"
    if code == -signal.SIGILL:
        return (
            "onnxruntime uses an instruction this CPU lacks (1.21.0 does on a Pi 4): install another"
            " version, see requirements.txt"
        )
    last = complaint.strip().splitlines()[-1][:200] if complaint.strip() else "no error message"
    if code < 0:
        return f"the process died of {signal.Signals(-code).name}: {last}"
    return f"the process ended with code {code}: {last}"
