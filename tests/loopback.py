"""A board that is this machine: a real sshd on a free port of the loopback device, with its own keys and its
own home folder."""

import contextlib
import dataclasses
import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
TOOLS = all((SSHD, shutil.which("ssh"), shutil.which("ssh-keygen"), shutil.which("rsync")))
MISSING = "needs sshd, ssh and rsync (Debian: apt install openssh-server openssh-client rsync)"

_SSHD_CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
ForceCommand {folder}/login
"""
_SSH_CONFIG = """\
Host *
    GlobalKnownHostsFile /dev/null
    UserKnownHostsFile {folder}/known_hosts
    IdentityAgent none
    UpdateHostKeys no
    RemoteCommand top
    RequestTTY force
"""


@dataclasses.dataclass
class Loopback:
    """``home`` is the board's home folder; ``folder`` holds keys and configuration."""

    folder: Path
    port: int
    sshd: subprocess.Popen[bytes]

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def bin(self) -> Path:
        """Programs that the board finds before the real ones."""
        return self.folder / "bin"

    @property
    def arguments(self) -> tuple[str, ...]:
        """The arguments of ``vgg-export deploy`` for this board."""
        return (
            f"{getpass.getuser()}@127.0.0.1",
            "--port",
            str(self.port),
            "--identity",
            str(self.folder / "user"),
        )

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a PC whose ssh reads our configuration instead of the user's."""
        return {"PATH": f"{self.folder / 'pc'}:{os.environ['PATH']}"}

    def login(self, **variables: str) -> None:
        """Write the login script of the board: it sets the environment and then runs ``_then``."""
        then = variables.pop("_then", "")
        path = f"{self.bin}:{sys.base_prefix}/bin:/usr/bin:/bin"
        pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        cache = {"PIP_CACHE_DIR": str(Path.home() / ".cache/pip")}
        given = {"HOME": str(self.home), "PATH": path, "OMP_NUM_THREADS": "1", **cache, **pip, **variables}
        lines = [f"export {name}={shlex.quote(value)}" for name, value in given.items()]
        script(
            self.folder / "login",
            "unset PYTHONPATH",
            *lines,
            'cd "$HOME" || exit 1',
            then,
            'exec sh -c "$SSH_ORIGINAL_COMMAND"',
        )

    def without_internet(self) -> None:
        """Leave pip without an index."""
        self.login(
            PIP_CONFIG_FILE="/dev/null",
            PIP_INDEX_URL="http://127.0.0.1:9/simple",
            PIP_FIND_LINKS="",
            PIP_EXTRA_INDEX_URL="",
        )

    def reset(self) -> None:
        """Restore the board to its first state, apart from its home folder."""
        shutil.rmtree(self.bin, ignore_errors=True)
        self.bin.mkdir()
        self.login()

    def sessions(self) -> list[int]:
        """Processes of sshd that serve a connection."""
        return [
            int(pid)
            for pid in Path(f"/proc/{self.sshd.pid}/task/{self.sshd.pid}/children").read_text().split()
        ]

    def running(self) -> list[str]:
        """The command lines of processes that still run below the home folder."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (process / "cwd").readlink().is_relative_to(self.home):
                    found.append((process / "cmdline").read_text().replace("\0", " "))
        return found


def script(path: Path, *lines: str) -> None:
    """An executable for sh."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    path.chmod(0o755)


@contextlib.contextmanager
def loopback(folder: Path) -> Iterator[Loopback]:
    """A board for as long as the block takes."""
    assert SSHD
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name in ("host", "user", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    public = " ".join((folder / "host.pub").read_text().split()[:2])
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {public}\n")
    (folder / "sshd_config").write_text(_SSHD_CONFIG.format(port=port, folder=folder))
    (folder / "ssh_config").write_text(_SSH_CONFIG.format(folder=folder))
    (folder / "home").mkdir()
    script(folder / "pc/ssh", f'exec {shutil.which("ssh")} -F {folder}/ssh_config "$@"')
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd insists on it
    command = [SSHD, "-D", "-e", "-f", str(folder / "sshd_config")]
    with (folder / "sshd.log").open("wb") as log:
        sshd = subprocess.Popen(
            command, stderr=log, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
        )
    try:
        _wait_for(port, folder / "sshd.log")
        board = Loopback(folder, port, sshd)
        board.reset()
        yield board
    finally:
        sshd.terminate()
        sshd.wait(timeout=20)


def _wait_for(port: int, log: Path) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise AssertionError(f"sshd did not come up: {log.read_text()}")
