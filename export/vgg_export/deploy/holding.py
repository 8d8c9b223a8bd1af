"""Keeps two deployments from working in one folder of a board at once."""

import contextlib
import logging
import subprocess
import threading
from collections.abc import Iterator
from typing import IO, Any

from . import on_board
from .ssh import LOST, Answer, Connection, answer_in, as_line, as_script

log = logging.getLogger(__name__)

# A board does not always notice that a connection broke. So its part hears of us, and ends when it does not.
SIGN_OF_LIFE_S, SILENT_S = 15.0, on_board.SILENT_S
ENDING_S = 5.0


@contextlib.contextmanager
def held(connection: Connection, python: str, root: str) -> Iterator[None]:
    """Have the folder ``root`` of the board for this program while the block runs. Another deployment that
    works there, or the program that one left running, is waited for.

    Raises:
        BoardError: the folder cannot be made, or is full.
        DeployError: the connection broke, or the board's part did not start.
    """
    request = {"do": "hold", "root": root, "silent_s": SILENT_S}
    complaints, ended = connection.folder / "complaints of the holder", threading.Event()
    with complaints.open("wb") as file:
        running = connection.start(as_script(python), file)
    assert running.stdin
    assert running.stdout
    signs = threading.Thread(target=_give_signs, args=(running.stdin, request, ended), daemon=True)
    signs.start()
    try:
        answers = _until_held(running.stdout, connection.options.name)
        if not any("held" in answer for answer in answers):
            code = running.wait()
            connection.ensure_there(code)
            said = complaints.read_text(encoding="utf-8", errors="replace")
            connection.raise_for(request, answers, Answer(code, "", said))
        if not connection.takes_another():
            connection.ensure_there(LOST)
            log.warning(
                "%s lets one ssh session run at a time (MaxSessions), so nothing keeps another deployment out"
                " of the folder meanwhile",
                connection.options.name,
            )
            _end(running, signs, ended)
        elif answers[-1]["held"]:
            connection.holder = running
        yield
    finally:
        connection.holder = None
        _end(running, signs, ended)


def _give_signs(stdin: IO[bytes], request: dict[str, Any], ended: threading.Event) -> None:
    """Send the request and then a line from time to time; closes ``stdin`` in the end."""
    with contextlib.suppress(BrokenPipeError), stdin:  # the other end may be gone, which a later step tells
        line = as_line(request)
        while True:
            stdin.write(line)
            stdin.flush()
            if ended.wait(SIGN_OF_LIFE_S):
                return
            line = b"\n"


def _until_held(stdout: IO[bytes], name: str) -> list[dict[str, Any]]:
    """The answers to the one that says that the folder is ours, or to the end, without those that say who has
    it: these are logged."""
    answers: list[dict[str, Any]] = []
    for raw in stdout:
        answer = answer_in(raw.decode("utf-8", errors="replace").rstrip("\r\n")) or {}
        if "waiting" in answer:
            log.info("%s on %s; waiting until it has ended", answer["waiting"], name)
        elif answer:
            answers.append(answer)
        if "held" in answer:
            break
    return answers


def _end(running: subprocess.Popen[bytes], signs: threading.Thread, ended: threading.Event) -> None:
    """Its standard input is closed, so that it ends by itself, unless the network is gone."""
    ended.set()
    signs.join()
    assert running.stdout
    running.stdout.close()
    try:
        running.wait(ENDING_S)
    except subprocess.TimeoutExpired:
        running.kill()
        running.wait()
