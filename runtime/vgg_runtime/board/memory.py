"""Samples the resident memory of another process."""

import re
import threading
from pathlib import Path
from typing import Self

SAMPLED_EVERY_S = 0.005


class Resident:
    """The peaks of a process's anonymous and file-backed memory: ``with Resident(pid) as seen: ...``.

    They are sampled, because the kernel keeps a high-water mark only of both together. They are None where
    /proc does not give them.
    """

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self.anonymous_bytes: int | None = None
        self.file_bytes: int | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample_until_stopped, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop sampling. While something is timed, sampling would slow it down."""
        self._stop.set()
        self._thread.join()

    def _sample_until_stopped(self) -> None:
        while True:
            self.sample()
            if self._stop.wait(SAMPLED_EVERY_S):
                return

    def sample(self) -> None:
        """Take one sample."""
        try:
            text = self._status.read_text(encoding="utf-8")
        except OSError:  # it has ended, or this is not Linux
            return
        for name, key in (("RssAnon", "anonymous_bytes"), ("RssFile", "file_bytes")):
            if found := re.search(rf"^{name}:\s*(\d+) kB", text, re.MULTILINE):
                setattr(self, key, max(getattr(self, key) or 0, int(found[1]) * 1024))
