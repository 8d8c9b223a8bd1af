"""A systemd user service on the board, which classifies a stream from the start of the board on."""

import re
import shlex
from collections.abc import Callable, Sequence

from vgg_export.core.errors import BoardError, DeployError
from vgg_export.options import DeployOptions

from .ssh import Connection, last_line

NAME = "vgg-export"
UNIT = f"{NAME}.service"
PYTHON = "venv/bin/python"
WATCHDOG_S = 120  # without a sign of life
START_S = 330  # to hash and load a large model from a card
LEAST_MEMORY_BYTES, PROGRAM_BYTES = 256_000_000, 160_000_000
NO_LINGER = "without linger"
STATE = "LoadState,ActiveState,SubState,NRestarts,ExecMainStartTimestamp,MemoryCurrent"
LINES = 100  # of the log that are shown
# a command over ssh may be no session of its own, which would have set it
TO_THE_MANAGER = 'export XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-/run/user/$(id -u)}"'

Show = Callable[[str], None]


def unit(root: str, arguments: Sequence[str], model_bytes: int) -> str:
    """The unit file (systemd.exec(5)). ``root``: the bundle's absolute path on the board. ``arguments``: what
    follows ``compare.py --live``. ``model_bytes``: the size of the model, of which the limit of memory
    follows: weights are packed while their file is still mapped."""
    limit = max(LEAST_MEMORY_BYTES, PROGRAM_BYTES + 3 * model_bytes)
    command = [f"{root}/{PYTHON}", f"{root}/runtime/compare.py", "--live", *arguments]
    return f"""\
[Unit]
Description=Classifies a camera's stream (vgg-export)
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
WorkingDirectory={_escaped(root)}
ExecStart={" ".join(map(_quoted, command))}
Restart=always
RestartSec=5
TimeoutStartSec={START_S}
WatchdogSec={WATCHDOG_S}
MemoryMax={limit}
UMask=0077
PrivateUsers=yes
PrivateTmp=yes
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths="{_escaped(root)}"
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
LockPersonality=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RemoveIPC=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources

[Install]
WantedBy=default.target
"""


def _escaped(word: str) -> str:
    """A word without systemd's specifiers."""
    return word.replace("%", "%%")


def _quoted(word: str) -> str:
    """A word of a command as systemd reads it (systemd.service(5), COMMAND LINES)."""
    escaped = _escaped(word).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{escaped}"'


def install(connection: Connection, root: str, arguments: Sequence[str], model_bytes: int) -> bool:
    """Write the unit, and start the service now and whenever the board starts. Returns whether it will start
    with the board, and not only with this user's next login.

    Raises:
        BoardError: the board has no systemd for users.
        DeployError: it does not start; the message has its last words.
    """
    text = unit(root, arguments, model_bytes)
    script = f"""\
umask 077  # the arguments may hold a camera's password
command -v systemctl > /dev/null || {{ echo "there is no systemctl" >&2; exit 3; }}
{TO_THE_MANAGER}
folder="${{XDG_CONFIG_HOME:-$HOME/.config}}/systemd/user"
mkdir -p "$folder" && printf %s {shlex.quote(text)} > "$folder/{UNIT}" || exit 4
loginctl enable-linger > /dev/null 2>&1 || echo "{NO_LINGER}"
systemctl --user daemon-reload || exit 5
systemctl --user enable {UNIT} && systemctl --user restart {UNIT} && exit 0
systemctl --user status --no-pager --lines 20 {UNIT} >&2
exit 6
"""
    done = connection.run(script)
    if done.code == 3:
        raise BoardError(
            f"{connection.options.name} has no systemd; start compare.py --live there by its own means"
        )
    if done.code == 5:
        raise BoardError(
            f"{connection.options.name} runs no systemd for users ({last_line(done.err)}); log in there once,"
            " or install dbus-user-session"
        )
    if done.code:
        raise DeployError(
            f"the service does not start on {connection.options.name}: {_last_words(done.err)}; --logs shows"
            " more"
        )
    return NO_LINGER not in done.out


def _last_words(text: str) -> str:
    """The last line of a program's that says something, without the journal's head."""
    lines = [re.sub(r"^\w{3} \d\d [\d:]+ \S+ \S+\[\d+\]: ", "", line) for line in text.splitlines()]
    return next((line.strip() for line in reversed(lines) if line.strip()), "it gave no reason")


def ask(options: DeployOptions, connection: Connection, show: Show) -> int:
    """Stop the service, or show its state or its log; returns the exit code, 1 where it does not run."""
    asked = options.asked_of_service
    assert asked
    script = {
        "stop": f"systemctl --user disable --now {UNIT}",
        # not "status", which shows the arguments and a camera's password among them
        "status": f"systemctl --user show -p {STATE} {UNIT} && systemctl --user -q is-active {UNIT}",
        "logs": f"journalctl --user --no-pager --lines {LINES} --unit {UNIT}",
    }[asked]
    done = connection.run(f"{TO_THE_MANAGER}; {script}", on_line=show)
    if done.code and (asked != "status" or done.err.strip()):
        raise DeployError(f"systemd on {connection.options.name} says: {_last_words(done.err)}")
    return 1 if done.code else 0
