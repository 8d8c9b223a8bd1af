"""Reaches a board with the system's own ssh. Everything goes through one connection, so that a password is
asked for at most once.

Host keys, the agent and ~/.ssh/config are left to ssh.
"""

import contextlib
import dataclasses
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Self

from vgg_export.core.errors import BoardError, DeployError
from vgg_export.options import DeployOptions
from vgg_runtime.output import temporary_folder

from . import on_board

log = logging.getLogger(__name__)

CONNECT_S = 15
# an idle connection ends by itself after this, should this program be killed; fetching wheels takes minutes
IDLE_S = 1800
SOCKET_BYTES = 90  # a socket's path may have about 108; ssh appends 17 while it makes the socket
LOST = 255  # ssh's own exit code

OnLine = Callable[[str], None]

# Patterns of what ssh prints, each with the sentence that a person needs. The first one that fits is used.
REASONS = (
    (
        r"could not resolve hostname",
        "the name {name} is not known in this network; check its spelling, or give the board's IP address",
    ),
    (
        r"connection refused",
        "{name} is there, but no ssh server answers on that port; switch ssh on (sudo raspi-config,"
        " Interface Options) or give --port",
    ),
    (
        r"timed out|no route to host|is unreachable|host is down",
        "{name} does not answer; is it switched on and in the same network as this computer?",
    ),
    (
        r"identification has changed",
        "the host key of {name} is not the one that this computer remembers; if the board was set up anew,"
        " run 'ssh-keygen -R {known}' and"
        " connect once with 'ssh {login}', otherwise find out who answers there",
    ),
    (
        r"host key verification failed|authenticity of host",
        "the host key of {name} is not known here; connect once with 'ssh {login}' and confirm it",
    ),
    (
        r"too many authentication failures",
        "{name} refused because too many keys were offered; name the right one with --identity FILE",
    ),
    (
        r"unprotected private key",
        "others can read the key file, so ssh does not use it; run 'chmod 600' on it",
    ),
    (
        r"permission denied",
        "{name} refused the login: no key and no password was accepted; check the user name in {host},"
        " copy a key there with"
        " 'ssh-copy-id {login}', or name one with --identity FILE",
    ),
)


@dataclasses.dataclass(frozen=True)
class Answer:
    """The exit ``code``, standard output and standard error of a command on the board."""

    code: int
    out: str
    err: str


def explain(error: str, options: DeployOptions) -> str:
    """One sentence for what ssh printed when it did not connect."""
    known = f'"[{options.name}]:{options.port}"' if options.port else options.name
    login = f"-p {options.port} {options.host}" if options.port else options.host
    for pattern, sentence in REASONS:
        if re.search(pattern, error, re.IGNORECASE):
            return sentence.format(name=options.name, host=options.host, login=login, known=known)
    return (
        f"no connection to {options.name}: {last_line(error) or 'ssh gave no reason'}; 'ssh -v {login}'"
        " shows more"
    )


def last_line(text: str) -> str:
    """The last line that is not blank, without control characters, cut to 300 characters."""
    lines = ["".join(c for c in line if c.isprintable()).strip() for line in text.splitlines()]
    return next((line for line in reversed(lines) if line), "")[:300]


@contextlib.contextmanager
def connect(options: DeployOptions) -> Iterator["Connection"]:
    """Open a connection, and close it when the block ends.

    Raises:
        BoardError: this computer has no ssh, or the board cannot be reached or refuses.
    """
    if not shutil.which("ssh"):
        raise BoardError("this computer has no ssh; install it (Debian: sudo apt install openssh-client)")
    with temporary_folder(place=_short_folder()) as folder:
        connection = Connection(options, folder)
        try:
            yield connection.open()
        finally:
            connection.close()


def _short_folder() -> str | None:
    """A folder for temporary files in which a socket's path is short enough; None: the usual one."""
    return None if len(os.fsencode(tempfile.gettempdir())) < SOCKET_BYTES - 30 else "/tmp"


class Connection:
    """Runs commands on the board, each as a session of one shared connection.

    ``folder`` is a temporary folder that holds the connection's socket; callers may put files there, too.
    """

    def __init__(self, options: DeployOptions, folder: Path) -> None:
        self.options, self.folder = options, folder
        socket = str(folder / "s").replace("%", "%%")
        # these override what ~/.ssh/config may say
        forward = (
            "ClearAllForwardings=yes",
            "Tunnel=no",
            "ForwardAgent=no",
            "ForwardX11=no",
        )  # the board needs none
        own = ("RemoteCommand=none", *forward, f"ControlPath={socket}")
        self.holder: subprocess.Popen[bytes] | None = None  # while it runs, the folder there is ours
        self._shared = ["ssh", "-T", *(argument for option in own for argument in ("-o", option))]

    def open(self) -> Self:
        """Log in. On the terminal ssh asks for a password, or whether a new host key is right.

        Raises:
            BoardError: the board cannot be reached or refuses.
        """
        options = self.options
        command = [*self._shared, "-f", "-N", "-o", "ControlMaster=yes", "-o", f"ControlPersist={IDLE_S}"]
        command += [
            "-o",
            f"ConnectTimeout={CONNECT_S}",
            "-o",
            "ServerAliveInterval=15",
            "-o",
            "ServerAliveCountMax=4",
        ]
        command += ["-p", str(options.port)] if options.port else []
        command += ["-o", "IdentitiesOnly=yes", "-i", str(options.identity)] if options.identity else []
        # a file, because the connection stays in the background and would keep a pipe open
        complaints = self.folder / "complaints"
        with complaints.open("wb") as file:
            code = subprocess.run(
                [*command, "--", options.host], stdin=subprocess.DEVNULL, stderr=file, check=False
            ).returncode
        if code:
            raise BoardError(explain(complaints.read_text(encoding="utf-8", errors="replace"), options))
        return self

    def close(self) -> None:
        """Log out."""
        subprocess.run(
            [*self._shared, "-O", "exit", "--", self.options.host], capture_output=True, check=False
        )

    def command(self) -> list[str]:
        """ssh's command line for the shared connection, without host and remote command. It asks nothing."""
        # where the board refuses another session ssh would connect anew, without this port and key
        never_anew = ("-o", "ProxyCommand=false")
        return [*self._shared, "-o", "ControlMaster=no", "-o", "BatchMode=yes", *never_anew]

    def start(self, script: str, errors: IO[bytes] | int) -> subprocess.Popen[bytes]:
        """Start a script with the board's sh, whatever the login shell is. ``errors`` takes what it prints on
        standard error.

        A terminal sends Ctrl-C to all processes of the program's group. This ssh is in another, so that it
        ends when this program ends it: after what it holds or stops on the board. It has no terminal either,
        so that nothing in ~/.ssh/config can wait for one.
        """
        command = [*self.command(), "--", self.options.host, f"sh -c {shlex.quote(script)}"]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        )

    def run(
        self,
        script: str,
        feed: Iterable[bytes] = (),
        on_line: OnLine | None = None,
        on_complaint: OnLine | None = None,
        *,
        stop: str = "",
    ) -> Answer:
        """Run a script with the board's sh, whatever the login shell is.

        Args:
            feed: bytes for its standard input.
            on_line: called with each line that it prints; ``on_complaint`` the same for standard error.
            stop: a script that is run there when this call is interrupted: what ssh started on the board goes
                on when ssh ends here.

        Raises:
            DeployError: the connection broke.
        """
        self.ensure_held()
        running = self.start(script, subprocess.PIPE)
        assert running.stdin
        assert running.stdout
        assert running.stderr
        complaints: list[str] = []
        reader = threading.Thread(
            target=_collect, args=(running.stderr, complaints, on_complaint), daemon=True
        )
        lines: list[str] = []
        try:
            reader.start()
            with contextlib.suppress(BrokenPipeError):  # a program that stops reading says why in its output
                for block in feed:
                    running.stdin.write(block)
                running.stdin.close()
            _collect(running.stdout, lines, on_line)
            code = running.wait()
            reader.join()
        except BaseException:
            running.kill()
            running.wait()
            if stop:
                self._stop(stop)
            raise
        finally:
            with contextlib.suppress(BrokenPipeError):  # now that nothing waits for the rest to be read
                running.stdin.close()
        self.ensure_there(code)
        return Answer(code, "\n".join(lines), "\n".join(complaints))

    def _stop(self, script: str) -> None:
        """Run the script that stops a program on the board. What ended the program here stays what is told
        in the end; that the other may go on is told besides."""
        try:
            answer = self.run(script)
            why = "it could not be stopped" if answer.code else ""
        except DeployError as error:
            why = str(error)
        if why:
            log.warning("what was started on %s may still run there: %s", self.options.name, why)

    def ensure_held(self) -> None:
        """Check that the folder on the board is still ours, where it was taken.

        Raises:
            DeployError: it is not: this program was stopped for a while, or the board ended its part.
        """
        if self.holder and (code := self.holder.poll()) is not None:
            self.ensure_there(code)
            raise DeployError(
                f"{self.options.name} does not keep the folder for this command any more, and another one may"
                " work there; run the same command again"
            )

    def takes_another(self) -> bool:
        """Whether the board lets a further session run beside one that runs (``MaxSessions`` of its sshd)."""
        command = [*self.command(), "--", self.options.host, "true"]
        return (
            subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode
            == 0
        )

    def ensure_there(self, code: int) -> None:
        """Check that the connection did not break, after a command that ended with ``code``.

        Raises:
            DeployError: it broke.
        """
        if code == LOST and not self.alive():
            raise DeployError(
                f"the connection to {self.options.name} broke; run the same command again to resume"
            )

    def alive(self) -> bool:
        check = [*self._shared, "-O", "check", "--", self.options.host]
        return subprocess.run(check, capture_output=True, check=False).returncode == 0

    def work(
        self,
        root: str,
        arguments: Sequence[str],
        on_line: OnLine | None = None,
        on_complaint: OnLine | None = None,
    ) -> Answer:
        """Run a program in a folder of the board. When this call is interrupted, so is the program there.

        It keeps a lock (see ``on_board.program_runs``), so that it is noticed where the connection breaks and
        it goes on: pip would change what the next deployment's pip changes.
        """
        folder = shlex.quote(root)
        lock = f"exec 9< {on_board.OWN}; flock -n 9 2> /dev/null"  # a board may have no flock(1)
        program = f"export LC_ALL=C.UTF-8; exec {shlex.join(arguments)}"
        script = f"cd {folder} && echo $$ > {on_board.PID} && {{ {lock}; {program}; }}"
        # the process number may belong to another process by now
        ours = '[ "$(readlink "/proc/$p/cwd")" = "$(pwd -P)" ]'
        stop = f"cd {folder} && p=$(cat {on_board.PID}) && {ours} && kill -INT $p"
        return self.run(script, on_line=on_line, on_complaint=on_complaint, stop=stop)

    def ask(
        self,
        python: str,
        request: dict[str, Any],
        feed: Iterable[bytes] = (),
        on_answer: Callable[[dict[str, Any]], None] | None = None,
    ) -> list[dict[str, Any]]:
        """Send a request to ``on_board``; returns its answers.

        Args:
            feed: bytes that follow the request.
            on_answer: called with each answer as it arrives.

        Raises:
            BoardError: the board's disk is full, a file there cannot be written or read, or a path leads out
                of the bundle's folder.
            DeployError: ``on_board`` failed or did not answer.
        """
        answers: list[dict[str, Any]] = []

        def take_line(line: str) -> None:
            if (answer := answer_in(line)) is not None:
                answers.append(answer)
                if on_answer:
                    on_answer(answer)

        def content() -> Iterator[bytes]:
            yield as_line(request)
            yield from feed

        done = self.run(as_script(python), content(), take_line)
        self.raise_for(request, answers, done)
        return answers

    def raise_for(self, request: dict[str, Any], answers: Sequence[dict[str, Any]], done: Answer) -> None:
        """Raise what ``ask`` raises, where the answers, or how the program ended, call for it."""
        for answer in answers:
            if "refused" in answer:
                raise BoardError(f"on {self.options.name}, {answer['refused']}")
            if answer.get("full"):
                raise disk_full(self.options.name)
            if "error" in answer:
                raise BoardError(
                    f"{answer['file']} on {self.options.name}: {answer['error']}; choose another folder"
                    " with --path, or let the user who logs in write there"
                )
        if done.code or not answers:
            raise DeployError(
                f"{self.options.name} did not finish the step '{request['do']}'"
                f" ({last_line(done.err) or f'exit code {done.code}'}); run the same command again"
            )


def as_script(python: str) -> str:
    """The script that runs ``on_board``; a request follows on its standard input."""
    source = Path(on_board.__file__).read_text(encoding="utf-8")
    return f"exec {shlex.join([python, '-c', source])}"


def as_line(request: dict[str, Any]) -> bytes:
    """A request as ``on_board`` reads it."""
    return json.dumps(request).encode() + b"\n"


def answer_in(line: str) -> dict[str, Any] | None:
    """The answer of ``on_board`` that a line holds; None where it holds none, or the connection broke within
    it, which is told where the step ends."""
    if not line.startswith(on_board.MARK):
        return None
    try:
        found: dict[str, Any] = json.loads(line.removeprefix(on_board.MARK))
    except ValueError:
        return None
    return found


def disk_full(name: str) -> BoardError:
    return BoardError(
        f"the disk of {name} is full; free some space there (df -h shows how much is left), or copy fewer"
        " --variants"
    )


def _collect(stream: IO[bytes], lines: list[str], on_line: OnLine | None) -> None:
    for raw in stream:
        line = raw.decode("utf-8", errors="replace").rstrip("\r\n")
        lines.append(line)
        if on_line:
            on_line(line)
