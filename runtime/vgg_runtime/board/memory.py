"""The resident memory of another process, sampled."""

import re
import threading
from pathlib import Path
from typing import Self

SAMPLED_EVERY_S = 0.005


class Resident:
    """The most anonymous and file-backed memory that a process had while this watched it, sampled: the kernel
    keeps a high-water mark only of both together. ``with Resident(pid) as seen: ...``; None where /proc says
    nothing."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self.anonymous_bytes: int | None = None
        self.file_bytes: int | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Look no more: sampling while something is timed would cost it time."""
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            self.sample()
            if self._stop.wait(SAMPLED_EVERY_S):
                return

    def sample(self) -> None:
        """Look once."""
        try:
            text = self._status.read_text(encoding="utf-8")
        except OSError:  # it has ended, or this is not Linux
            return
        for name, key in (("RssAnon", "anonymous_bytes"), ("RssFile", "file_bytes")):
            if found := re.search(rf"^{name}:\s*(\d+) kB", text, re.MULTILINE):
                setattr(self, key, max(getattr(self, key) or 0, int(found[1]) * 1024))
