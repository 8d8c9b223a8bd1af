"""What systemd is told, over a real socket."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from vgg_runtime.live.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def systemd(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """The socket that the program is told to send to."""
    found = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    name = str(tmp_path / "notify") if request.param == "path" else f"@{tmp_path}/notify"
    found.bind("\0" + name[1:] if name.startswith("@") else name)
    found.settimeout(1)
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    yield found
    found.close()


def test_ready_and_alive_are_told(systemd: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")  # a sign of life every 10 s
    notifier = Notifier()
    notifier.ready()
    assert systemd.recv(100) == b"READY=1"
    notifier.alive()
    notifier.alive()
    assert systemd.recv(100) == b"WATCHDOG=1"
    systemd.settimeout(0.01)
    with pytest.raises(TimeoutError):
        systemd.recv(100)  # the second one came too soon


def test_without_a_watchdog_nothing_is_said_of_being_alive(
    systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    Notifier().alive()
    systemd.settimeout(0.05)
    with pytest.raises(TimeoutError):
        systemd.recv(100)


def test_without_systemd_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setenv("WATCHDOG_USEC", "1")
    Notifier().ready()
    Notifier().alive()
    monkeypatch.setenv("NOTIFY_SOCKET", "/no/such/socket")
    Notifier().ready()  # systemd that has gone is no error of the stream
