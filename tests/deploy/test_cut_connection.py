"""``vgg-export deploy`` through a connection that is cut at any of its steps: the board holds the old bundle
or the new one as a whole, one sentence says what happened, and the same command goes on."""

import contextlib
import dataclasses
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import command_environment
from loopback import MISSING, TOOLS, Loopback, loopback

from vgg_runtime.bundle import manifest

CUTS = int(os.environ.get("VGG_EXPORT_CUTS", "2"))
PATIENCE_S = 60.0

needs_sshd = pytest.mark.skipif(not TOOLS and not os.environ.get("VGG_EXPORT_REQUIRE_SSHD"), reason=MISSING)


class Cutter:
    """Passes a TCP connection on to ``port``, and cuts it.

    ``turns`` counts how often the direction changed, ``sent`` the bytes of both; the connection is cut when
    either reaches its limit. Each step of a deployment takes turns, and only the copying many bytes.
    """

    def __init__(self, port: int, last_turn: int | None = None, last_byte: int | None = None) -> None:
        self.turns, self.sent, self.was_cut = 0, 0, False
        self._to, self._limits, self._last = port, (last_turn, last_byte), -1
        self._lock = threading.Lock()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
                for number, pair in enumerate(((near, far), (far, near))):
                    threading.Thread(target=self._pump, args=(*pair, number), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, direction: int) -> None:
        with contextlib.suppress(OSError):
            while (data := source.recv(16384)) and not self._ends(direction, len(data)):
                target.sendall(data)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _ends(self, direction: int, count: int) -> bool:
        with self._lock:
            self.turns += direction != self._last
            self.sent, self._last = self.sent + count, direction
            found = (self.turns, self.sent)
            self.was_cut |= any(
                limit is not None and n >= limit for n, limit in zip(found, self._limits, strict=True)
            )
            return self.was_cut


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    with loopback(tmp_path_factory.mktemp("board")) as found:
        yield found


def deploy(there: Loopback, port: int, bundle: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """The command, from ``folder``, over ``port``."""
    user, _, _, *identity = there.arguments
    command = [sys.executable, "-m", "vgg_export", "deploy", user, "--port", str(port), *identity]
    command += ["--bundle", str(bundle), "--path", "board", "--variants", "scaled", "--budget", "0.1"]
    known = there.folder / "known_hosts"
    public = known.read_text().splitlines()[0].partition(" ")[2]
    known.write_text(f"[127.0.0.1]:{there.port} {public}\n[127.0.0.1]:{port} {public}\n")
    return subprocess.run(
        command,
        cwd=folder,
        env=command_environment() | there.environment,
        capture_output=True,
        text=True,
        timeout=10 * PATIENCE_S,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # without a terminal to ask on
        check=False,
    )


def names(root: Path) -> list[str]:
    """The variants of the bundle in ``root``, after all its hashes were compared."""
    found = manifest.read(root)
    manifest.verify(root, found.all_files())
    return [v.id for v in found.variants]


def wait_until_quiet(there: Loopback) -> None:
    end = time.monotonic() + PATIENCE_S
    while there.running() or there.sessions():
        assert time.monotonic() < end, there.running()
        time.sleep(0.1)


def restore(root: Path, old: Path) -> None:
    """The board as it was before: the old bundle and a virtual environment."""
    for path in root.iterdir():
        if path.name != "venv":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(old, root, dirs_exist_ok=True)


@pytest.fixture
def old(bundle_folder: Path, tmp_path: Path) -> Path:
    """A bundle without the variant that is to be deployed."""
    folder = tmp_path / "old"
    shutil.copytree(bundle_folder, folder)
    whole = manifest.read(folder)
    less = dataclasses.replace(whole, variants=tuple(v for v in whole.variants if v.id != "scaled"))
    (folder / manifest.FILE_NAME).write_text(json.dumps(less.to_json()))
    for path in (folder / "models").glob("scaled*"):
        path.unlink()
    return folder


@needs_sshd
@pytest.mark.release
@pytest.mark.timeout(1500 + 200 * CUTS)
def test_a_connection_that_breaks_anywhere_loses_nothing(
    there: Loopback, bundle_folder: Path, old: Path, tmp_path: Path
) -> None:
    root = there.home / "board"
    first = deploy(there, there.port, bundle_folder, tmp_path)
    assert first.returncode == 0, first.stderr
    before, after = names(old), names(root)
    assert "scaled" in after
    assert "scaled" not in before
    restore(root, old)
    counter = Cutter(there.port)
    assert deploy(there, counter.port, bundle_folder, tmp_path).returncode == 0
    counter.close()
    assert not counter.was_cut
    assert counter.turns > 20
    chance, ended = random.Random(CUTS), []
    for k in range(CUTS):
        restore(root, old)
        place = (k + chance.random()) / CUTS
        limit = (int(place * counter.turns), None) if k % 2 else (None, int(place * counter.sent))
        what, folder = f"cut at turn {limit[0]} or byte {limit[1]}", tmp_path / f"pc-{k}"
        folder.mkdir()
        cutter = Cutter(there.port, *limit)
        done = deploy(there, cutter.port, bundle_folder, folder)
        cutter.close()
        assert "Traceback" not in done.stdout + done.stderr, f"{what}: {done.stderr}"
        if cutter.was_cut and done.returncode:
            assert done.returncode in (1, 2), f"{what}: {done.stderr}"
            assert done.stderr.count("Error: ") == 1, f"{what}: {done.stderr}"
        else:
            assert done.returncode == 0, f"{what}: {done.stderr}"
        wait_until_quiet(there)
        assert names(root) in (before, after), what
        ended.append((what, done.returncode, done.stderr.strip().splitlines()[-1]))
        for written in folder.rglob("*.json"):
            json.loads(written.read_text())  # whole, or not there
        again = deploy(there, there.port, bundle_folder, folder)
        assert again.returncode == 0, f"{what}: {again.stderr}"
        assert names(root) == after, what
        assert not (root / ".deploy/incoming").exists(), what
        assert (folder / "results/127.0.0.1/result.json").is_file()
    print(*ended, sep="\n")
    assert any(code for _, code, _ in ended)
