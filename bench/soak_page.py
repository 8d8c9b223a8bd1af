"""Shows whether ``compare.py --serve`` would grow in hours: visitors of all kinds come one after the other,
and what the server holds is read from outside.

    python bench/soak_page.py --bundle artifacts --minutes 120

The visitors look at the page, send pictures, damaged pictures and what is none, name another host, leave in
the middle of their upload or of the answer, come several at once, or send half a header and wait. After each
the resident memory, the open descriptors, the threads and the child processes of the server are read from
/proc. The exit code is 1 when an answer was not the one that is due, when the memory grew by more than
--limit-mb between the first tenth of the run and its end, when more descriptors are held then, or more
threads than asyncio's pool may have, or when a child process is left.

Needs uvicorn (``requirements-web.txt``).
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import http.client
import io
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image

from readings import Growth, Reading, growth, reading, verdict
from soak import LAUNCHER, pictures

PATIENCE_S = 120.0
IDLE_S = 20.0  # within which the work of a visitor who left must be over
REST_S = 0.4
AT_ONCE = 3
POOL = min(32, (os.cpu_count() or 1) + 4)  # threads at most of asyncio.to_thread; they are kept


@dataclasses.dataclass(frozen=True)
class Page:
    """The server that is visited, and what is sent to it: a picture for each turn, and a variant's name."""

    port: int
    photos: Sequence[bytes]
    variant: str

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Status and content of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def send(self, content: bytes) -> None:
        """Write to a new connection, and leave."""
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE_S) as connection:
            connection.sendall(content)


def looks(page: Page, _turn: int) -> bool:
    """Opens the page, and what it asks for."""
    return all(page.ask("GET", path)[0] == 200 for path in ("/", "/api/bundle", "/api/health"))


def compares(page: Page, turn: int) -> bool:
    """Sends a picture and waits for every variant."""
    return _is_complete(page.ask("POST", "/api/compare", page.photos[turn % len(page.photos)]))


def chooses(page: Page, turn: int) -> bool:
    """Sends a picture for one variant."""
    path = f"/api/compare?variants={page.variant}"
    return _is_complete(page.ask("POST", path, page.photos[turn % len(page.photos)]))


def sends_damage(page: Page, turn: int) -> bool:
    """Sends a picture of which the second half is missing."""
    photo = page.photos[turn % len(page.photos)]
    return page.ask("POST", "/api/compare", photo[: len(photo) // 2])[0] == 422


def sends_rubbish(page: Page, turn: int) -> bool:
    """Sends what is no picture."""
    return page.ask("POST", "/api/compare", b"%PDF-1.7 " * (1 + turn % 1000))[0] == 415


def claims_much(page: Page, _turn: int) -> bool:
    """Announces more bytes than are allowed."""
    return page.ask("POST", "/api/compare", b"", {"Content-Length": "99999999999"})[0] == 413


def is_a_stranger(page: Page, _turn: int) -> bool:
    """Names another host, comes from another site, asks for what is not there."""
    return [
        page.ask("GET", "/", headers={"Host": "example.org"})[0],
        page.ask("POST", "/api/compare", b"x", {"Origin": "http://example.org"})[0],
        page.ask("GET", "/nothing")[0],
        page.ask("POST", "/api/compare?variants=nothing", page.photos[0])[0],
    ] == [400, 403, 404, 422]


def leaves_while_sending(page: Page, turn: int) -> bool:
    """Leaves in the middle of the upload."""
    photo = page.photos[turn % len(page.photos)]
    page.send(_head(len(photo)) + photo[: len(photo) // 2])
    return True


def leaves_before_the_answer(page: Page, turn: int) -> bool:
    """Leaves when the picture is sent."""
    photo = page.photos[turn % len(page.photos)]
    page.send(_head(len(photo)) + photo)
    return True


def is_slow(page: Page, _turn: int) -> bool:
    """Sends half a header and waits; the server hangs up."""
    with socket.create_connection(("127.0.0.1", page.port), PATIENCE_S) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: local")
        connection.settimeout(PATIENCE_S)
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(4096):
                pass
    return True


def come_at_once(page: Page, turn: int) -> bool:
    """Several send a picture at the same moment."""
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        return all(pool.map(lambda k: chooses(page, turn + k), range(AT_ONCE)))


VISITS: tuple[Callable[[Page, int], bool], ...] = (
    *(looks, compares, sends_damage, chooses, leaves_while_sending, chooses, sends_rubbish, chooses),
    *(leaves_before_the_answer, claims_much, come_at_once, is_a_stranger, chooses, is_slow),
)


def _head(length: int) -> bytes:
    lines = ("POST /api/compare HTTP/1.1", "Host: localhost", f"Content-Length: {length}", "", "")
    return "\r\n".join(lines).encode()


def _is_complete(answer: tuple[int, bytes]) -> bool:
    """Whether every variant of an answer ran."""
    status, content = answer
    if status != 200:
        return False
    try:
        last = json.loads(content.splitlines()[-1])
        return last["event"] == "end" and all(row["error"] is None for row in last["result"]["variants"])
    except (ValueError, LookupError, TypeError):
        return False  # it is no answer of this page


@dataclasses.dataclass
class Soaked:
    """What a run gave. ``visits``: how many came of each kind; ``wrong``: those whose answer was not the one
    that is due; ``left``: how often a child process of the server was there ``IDLE_S`` after a visit."""

    visits: Counter[str]
    wrong: Counter[str]
    readings: list[Reading]
    left: int = 0

    def failure(self, code: int, limit_bytes: float) -> str | None:
        """What went wrong, or None.

        Raises:
            ValueError: there were too few readings.
        """
        found = [f"{name}: {count} wrong answers" for name, count in sorted(self.wrong.items())]
        if self.left:
            found.append(f"{self.left} times a child process was left")
        grown = {"the server": self.grown()}
        found.append(verdict(code, grown, limit_bytes, self.readings[0].threads + POOL) or "")
        return "; ".join(filter(None, found)) or None

    def grown(self) -> Growth:
        return growth(self.readings)


def soak(page: Page, pid: int, minutes: float, every_s: float) -> Soaked:
    """Let visitors come for ``minutes``, and until each kind has come twice: one each ``every_s`` where the
    last one has left by then."""
    found = Soaked(Counter(), Counter(), [])
    end = time.monotonic() + 60 * minutes
    for turn in itertools.count():
        visit = VISITS[turn % len(VISITS)]
        due = time.monotonic() + every_s
        try:
            good = visit(page, turn)
        except (OSError, http.client.HTTPException, ValueError) as error:
            print(f"{visit.__name__}: {type(error).__name__}: {error}", flush=True)
            good = False
        found.visits[visit.__name__] += 1
        found.wrong.update([] if good else [visit.__name__])
        found.left += not _idle(pid)
        try:
            found.readings.append(at_rest(pid))
        except OSError:
            return found  # the server is gone; its exit code says so
        if time.monotonic() > end and turn + 1 >= 2 * len(VISITS):
            return found
        time.sleep(max(0.0, due - time.monotonic()))
    raise AssertionError


def at_rest(pid: int) -> Reading:
    """What a process holds when a visitor has left: of some readings in ``REST_S`` the one with the fewest
    descriptors, because a connection is closed some time after its answer."""
    readings = []
    for _ in range(4):
        readings.append(reading(pid))
        time.sleep(REST_S / 4)
    return min(readings, key=lambda one: one.descriptors)


def _idle(pid: int) -> bool:
    """Wait until a process has no child; whether that came within ``IDLE_S``."""
    end = time.monotonic() + IDLE_S
    while time.monotonic() < end:
        try:
            children = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
        except OSError:
            continue  # a thread ended in between
        if not "".join(children).split():
            return True
        time.sleep(0.05)
    return False


@contextlib.contextmanager
def serving(bundle: Path) -> Iterator[tuple[int, "subprocess.Popen[str]"]]:
    """The port and the process of ``compare.py --serve``."""
    command = [sys.executable, str(LAUNCHER), "--bundle", str(bundle), "--serve", "--port", "0"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert running.stdout is not None
        line = running.stdout.readline()
        address = re.search(r":(\d+)/", line)
        if not address:
            raise SystemExit(f"the page does not open: {line.strip() or 'nothing was printed'}")
        yield int(address[1]), running
    finally:
        running.terminate()
        running.wait()


def photos() -> list[bytes]:
    """JPEGs of several sizes, a PNG and one that lies on its side."""
    made = pictures(4)
    image = Image.open(io.BytesIO(made[0]))
    turned = Image.Exif()
    turned[0x0112] = 6
    for kind, options in (("PNG", {}), ("JPEG", {"exif": turned.tobytes()})):
        file = io.BytesIO()
        image.save(file, kind, **options)
        made.append(file.getvalue())
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    wanted = _parser().parse_args(arguments)
    manifest = json.loads((wanted.bundle / "manifest.json").read_text())
    variant = wanted.variant or manifest["variants"][-1]["id"]
    with serving(wanted.bundle) as (port, running):
        found = soak(Page(port, photos(), variant), running.pid, wanted.minutes, wanted.every_s)
        code = running.poll() or 0
    for name, count in sorted(found.visits.items()):
        print(f"{count:6} {name}, {found.wrong[name]} wrong")
    try:
        failure = found.failure(code, wanted.limit_mb * 1e6)
    except ValueError as error:
        failure = str(error)
    else:
        print(f"the server: {found.grown()}")
    if wanted.json:
        counts = {"visits": dict(found.visits), "wrong": dict(found.wrong), "left": found.left}
        readings = [dataclasses.asdict(one) for one in found.readings]
        wanted.json.write_text(json.dumps(counts | {"readings": readings}, indent=1))
    print(f"FAILED: {failure}" if failure else f"flat, after {found.visits.total()} visits")
    return 1 if failure else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="soak_page.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--bundle", type=Path, default=Path("artifacts"), metavar="DIR", help="default: %(default)s")
    add("--variant", metavar="NAME", help="which most visitors choose (default: the last of the bundle)")
    add("--minutes", type=float, default=120.0, metavar="N", help="default: %(default)s")
    add("--every-s", type=float, default=2.0, metavar="S", help="between visitors (default: %(default)s)")
    add("--limit-mb", type=float, default=4.0, metavar="MB", help="how much it may grow (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write what was found")
    return parser


if __name__ == "__main__":
    sys.exit(main())
