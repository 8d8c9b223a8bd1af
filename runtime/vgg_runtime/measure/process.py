"""Child processes: asked in JSON, a line, they answer in JSON, an event a line. ``answers.py`` is the other
end."""

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
from typing import Any

POLL_S = 0.1  # how soon an interrupt is noticed
PIECE_BYTES = 1 << 16

Event = dict[str, Any]  # its name under "event"


class Child:
    """A module of this very copy of the runtime in a process of its own, whatever else is installed. It may
    be told and killed from any thread; the one that hears it closes it."""

    def __init__(self, module: str) -> None:
        self.late = False  # whether it was ended because it took too long
        self._heard = b""
        self._complaints = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  closed by close()
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
        """Tell it a request, and what belongs to it."""
        self.tell(json.dumps(request).encode() + b"\n", *pieces, last=last)

    def tell(self, *pieces: bytes, last: bool = False) -> None:
        """Write to it; after the ``last`` it will be told nothing more."""
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
        """End it if what is done with it here takes longer."""
        timer = threading.Timer(seconds, self._give_up)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def event(self) -> Event | None:
        """What it says next; None when that is nothing more."""
        return self._event(lambda output: True)

    def event_unless(self, interrupted: Callable[[], bool], silence_s: float) -> Event | None:
        """What it says next; None also when ``interrupted`` has become true. It is ended when it is silent
        for longer; no thread watches it meanwhile, which a frame of a stream would wait for."""
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
        """What it says next, unless ``has_spoken`` waits for its output in vain."""
        assert self._process.stdout is not None
        output = self._process.stdout.fileno()
        # read past Python's buffer: what select waits for must not be in there
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
        """All that it says; it is ended when it is silent for longer."""
        while True:
            with self.within(silence_s):
                event = self.event()
            if event is None:
                return
            yield event

    def rest(self) -> bytes:
        """What it writes behind the events that were heard, until its end."""
        assert self._process.stdout is not None
        heard, self._heard = self._heard, b""
        return heard + self._process.stdout.read()

    def death(self, within_s: float | None = None) -> str | None:
        """How it ended, when it says nothing more: a sentence, None where all was well. It is waited for."""
        try:
            code = self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            return "the model's process closed its output"
        self._complaints.seek(0)
        return explain_death(code, self._complaints.read()) if code else None

    def kill(self) -> None:
        """End the process; who hears it then hears its end."""
        self._process.kill()

    def close(self) -> None:
        """End the process, whatever it does, and forget it."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._complaints):
            with contextlib.suppress(OSError):  # what was not written yet has no reader
                if stream:
                    stream.close()

    def _give_up(self) -> None:
        self.late = True
        self.kill()


def explain_death(code: int, complaint: str) -> str:
    """One sentence for a child's non-zero return code (negative: the signal) and what it wrote to standard
    error."""
    if code == -signal.SIGKILL:
        return "did not fit: the process was killed, as the system does when memory runs out"
    if code == -signal.SIGILL:
        return (
            "onnxruntime uses an instruction this CPU lacks (1.21.0 does on a Pi 4): install another"
            " version, see requirements.txt"
        )
    last = complaint.strip().splitlines()[-1][:200] if complaint.strip() else "it said nothing"
    if code < 0:
        return f"the process died of {signal.Signals(-code).name}: {last}"
    return f"the process ended with code {code}: {last}"
