"""Tells systemd that the program is ready and alive (sd_notify(3)), where systemd started it."""

import contextlib
import os
import socket
import time

SOCKET, WATCHDOG = "NOTIFY_SOCKET", "WATCHDOG_USEC"


class Notifier:
    """Sends to the socket that systemd names; does nothing where it names none."""

    def __init__(self) -> None:
        self._address = os.environ.pop(SOCKET, "")  # the programs that this one starts are not asked
        limit_s = int(os.environ.get(WATCHDOG) or 0) / 1e6
        self._every_s, self._due = limit_s / 3, 0.0

    def ready(self) -> None:
        """The model is loaded."""
        self._send(b"READY=1")

    def alive(self) -> None:
        """Still running; sent a few times within the time after which systemd would start it anew."""
        now = time.monotonic()
        if self._every_s and now >= self._due:
            self._due = now + self._every_s
            self._send(b"WATCHDOG=1")

    def _send(self, message: bytes) -> None:
        if not self._address:
            return
        # a name that begins with @ is abstract
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
            to.sendto(message, address)
