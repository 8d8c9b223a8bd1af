"""The bench that lets visitors come to the page for hours: what it calls wrong, and a short real run."""

import contextlib
import http.server
import json
import os
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import soak_page
from readings import Reading

pytest.importorskip("uvicorn")

FLAT = [Reading(50_000_000, 12, 3)] * 20


@pytest.mark.parametrize(
    ("found", "code", "said"),
    [
        (soak_page.Soaked(Counter(looks=20), Counter(), FLAT), 0, None),
        (soak_page.Soaked(Counter(looks=20), Counter(looks=2), FLAT), 0, "looks: 2 wrong answers"),
        (soak_page.Soaked(Counter(looks=20), Counter(), FLAT, 1), 0, "1 times a child process was left"),
        (soak_page.Soaked(Counter(looks=20), Counter(), FLAT), 1, "compare.py ended with code 1"),
        (
            soak_page.Soaked(Counter(), Counter(), [Reading(10**7 * (1 + k), 12, 3) for k in range(20)]),
            *(0, "the server grew by 160.0 MB"),
        ),
        (
            soak_page.Soaked(Counter(), Counter(), [Reading(10**7, 12 + k, 3) for k in range(20)]),
            *(0, "the server holds 30 descriptors, 14 after the first tenth"),
        ),
    ],
)
def test_what_fails_a_soak_of_the_page(found: soak_page.Soaked, code: int, said: str | None) -> None:
    failure = found.failure(code, 4e6)
    assert failure == said


@contextlib.contextmanager
def _agreeable() -> Iterator[int]:
    """A server that answers everything with status 200 and nothing else."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(min(10**6, int(self.headers.get("Content-Length", 0))))
            self.send_response(200)
            self.send_header("Content-Length", "3")
            self.end_headers()
            self.wfile.write(b"{}\n")

        do_POST = do_GET  # noqa: N815  the library's name

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def test_a_server_that_agrees_with_everything_is_found_out() -> None:
    """Each visit knows the answer that is due; those without one are named."""
    silent = {"looks", "leaves_while_sending", "leaves_before_the_answer", "is_slow", "claims_much"}
    visits = {visit.__name__: visit for visit in soak_page.VISITS}
    with _agreeable() as port:
        page = soak_page.Page(port, soak_page.photos(), "scaled")
        for name in sorted(set(visits) - silent):
            assert not visits[name](page, 0), name


def test_a_child_that_stays_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak_page, "IDLE_S", 0.2)
    child = subprocess.Popen(["sleep", "60"])
    try:
        assert not soak_page._idle(os.getpid())
    finally:
        child.kill()
        child.wait()
    assert soak_page._idle(os.getpid())


@pytest.mark.release
@pytest.mark.timeout(1500)
def test_visitors_of_all_kinds_leave_nothing_behind(
    bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--bundle",
        str(bundle_folder),
        "--variant",
        "scaled",
        "--minutes",
        "0.1",
        "--every-s",
        "0.1",
    ]
    code = soak_page.main([*arguments, "--limit-mb", "20", "--json", str(tmp_path / "found.json")])
    said = capsys.readouterr().out
    assert code == 0, said
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found["visits"]) == {visit.__name__ for visit in soak_page.VISITS}
    assert found["wrong"] == {}
    assert found["left"] == 0


def test_a_connection_that_is_about_to_close_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    held = iter([Reading(1, 8, 4), Reading(1, 8, 4), Reading(2, 7, 4), Reading(3, 7, 4)])
    monkeypatch.setattr(soak_page, "reading", lambda _: next(held))
    assert soak_page.at_rest(1) == Reading(2, 7, 4)
