"""The service under a real systemd: a manager for users runs in a namespace of its own, and the board's ssh
reaches it with the real systemctl."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import export_in
from loopback import MISSING, TOOLS, Loopback, loopback, script

from vgg_export.deploy import service

MANAGER = Path("/lib/systemd/systemd")
NAMESPACE = ("unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child")
# What the system's manager leaves at boot: the folder by which sd_booted(3) knows it, and the nodes that hide
# what a service must not see.
BEGIN = """
mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system /run/systemd/inaccessible/dir || exit 1
cd /run/systemd/inaccessible && touch reg && mkfifo fifo && mknod chr c 0 0 && mknod blk b 0 0 || exit 1
{python} -c 'import socket; socket.socket(socket.AF_UNIX).bind("sock")'
chmod 000 *
{manager} --user > {log} 2>&1 &
wait
"""


def can_be_had() -> bool:
    """Whether a manager for users can be started here: systemd is installed, and namespaces may be made."""
    if not MANAGER.exists() or not shutil.which("unshare"):
        return False
    tried = subprocess.run(
        [*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/run"], capture_output=True, check=False
    )
    return tried.returncode == 0


pytestmark = [
    pytest.mark.release,
    pytest.mark.skipif(not can_be_had(), reason="needs systemd and the right to make namespaces"),
    pytest.mark.skipif(not TOOLS, reason=MISSING),
]


@pytest.fixture
def board() -> Iterator[Loopback]:
    """A board with a systemd for its user. Its home is not in /tmp, which the service does not see."""
    with (
        tempfile.TemporaryDirectory(prefix=".board-", dir=Path.home()) as folder,
        loopback(Path(folder)) as there,
    ):
        there.reset()
        runtime = Path(folder) / "run"
        runtime.mkdir(0o700)
        environment = os.environ | {
            "HOME": str(there.home),
            "XDG_RUNTIME_DIR": str(runtime),
            "SYSTEMD_LOG_TARGET": "console",
        }
        environment.pop("XDG_CONFIG_HOME", None)
        log = Path(folder) / "systemd.log"
        script_ = BEGIN.format(python=sys.executable, manager=MANAGER, log=log)
        running = subprocess.Popen([*NAMESPACE, "sh", "-c", script_], env=environment)
        try:
            until(lambda: (runtime / "systemd/private").exists(), log)
            inside = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()[0]
            # systemd talks to nobody whose process it cannot see
            enter = f"exec nsenter --target {inside} --mount --pid /usr/bin/systemctl"
            script(there.bin / "systemctl", f'XDG_RUNTIME_DIR={runtime} {enter} "$@"')
            yield there
        finally:
            running.kill()
            running.wait()


def until(found: Callable[[], bool], log: Path) -> None:
    """Wait for something."""
    for _ in range(600):
        if found():
            return
        time.sleep(0.1)
    pytest.fail(log.read_text()[-2000:] if log.exists() else "systemd did not start")


def test_systemd_starts_it_again_and_stops_it(board: Loopback, bundle_folder: Path, tmp_path: Path) -> None:
    def deploy(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return export_in(tmp_path, "deploy", *board.arguments, *arguments, timeout_s=500, **board.environment)

    app = board.home / "app"
    live = f"scaled --source samples --fps 5 --log {app / 'answers.jsonl'}"
    done = deploy("--bundle", bundle_folder, "--path", "app", "--service", live)
    assert done.returncode == 0, done.stdout + done.stderr
    assert any((app / "samples").iterdir())

    def state() -> dict[str, str]:
        shown = deploy("--status")
        return dict(line.split("=", 1) for line in shown.stdout.splitlines() if "=" in line)

    log = app / "answers.jsonl"
    until(lambda: log.exists() and bool(log.read_text()), log)
    found = state()
    assert (found["ActiveState"], found["SubState"], found["NRestarts"]) == ("active", "running", "0")
    (main,) = [pid for pid, command in processes() if f"{app}/runtime/compare.py" in command]
    os.kill(main, signal.SIGKILL)
    until(lambda: state().get("NRestarts") == "1" and state()["ActiveState"] == "active", log)
    before = len(log.read_text().splitlines())
    until(lambda: len(log.read_text().splitlines()) > before, log)
    assert deploy("--stop").returncode == 0
    assert deploy("--status").returncode == 1
    assert not [pid for pid, command in processes() if str(app) in command]
    assert all(json.loads(line)["label"] for line in log.read_text().splitlines()[-3:])
    assert service.UNIT in {path.name for path in (board.home / ".config/systemd/user").iterdir()}


def processes() -> list[tuple[int, str]]:
    """The processes of this machine with their commands."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            found.append((int(folder.name), command))
    return found
