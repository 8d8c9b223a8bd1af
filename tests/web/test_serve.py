"""The page's server as it runs on the device: a real process, real requests, real pictures."""

import concurrent.futures
import contextlib
import dataclasses
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    ROOT,
    ask,
    command_environment,
    interruptible,
    served,
    serving,
    status_field,
    wait_until_up,
)
from PIL import Image
from rows import a_result, a_row

from vgg_runtime.bundle.opened import Bundle
from vgg_runtime.errors import RuntimeInputError
from vgg_runtime.measure import recommend
from vgg_runtime.report import page
from vgg_runtime.result import Evaluation, Proportion, Row
from vgg_runtime.result import Image as ImageOfResult
from vgg_runtime.web import app, hosts, uploads

pytest.importorskip("uvicorn")


@pytest.fixture(scope="module")
def port(bundle_folder: Path) -> Iterator[int]:
    with served(bundle_folder) as (number, _):
        yield number


@pytest.fixture(scope="module")
def photo() -> bytes:
    return (ROOT / "calibration/images/cat.jpg").read_bytes()


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def events(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content.splitlines()]


def test_a_picture_is_answered_variant_by_variant(
    port: int, photo: bytes, bundle_folder: Path, tmp_path: Path
) -> None:
    status, content, headers = ask(port, "POST", "/api/compare", photo)
    assert (status, headers["content-type"]) == (200, "application/x-ndjson")
    told = events(content)
    assert [e["event"] for e in told] == ["start", *["running", "row", "row"] * 3, "end"]
    rows = told[-1]["result"]["variants"]
    assert [row["variant"] for row in rows] == ["baseline", "quantized", "scaled"]
    # the same as the command line says of the same file
    (tmp_path / "cat.jpg").write_bytes(photo)
    command: list[str | Path] = [
        sys.executable,
        bundle_folder / "runtime/compare.py",
        "--image",
        tmp_path / "cat.jpg",
        "--budget",
        "0.1",
        "--rounds",
        "1",
        "--json",
        tmp_path / "r.json",
    ]
    subprocess.run(command, check=True, capture_output=True)
    for row, other in zip(rows, json.loads((tmp_path / "r.json").read_text())["variants"], strict=True):
        assert row["predictions"][0]["labels"] == other["predictions"][0]["labels"]
        assert row["predictions"][0]["probabilities"] == pytest.approx(
            other["predictions"][0]["probabilities"], abs=1e-4
        )
        assert row["agreement"]["n"] == 1
        assert row["error"] is None


def test_variants_can_be_chosen(port: int, photo: bytes) -> None:
    _, content, _ = ask(port, "POST", "/api/compare?variants=scaled", photo)
    assert [row["variant"] for row in events(content)[-1]["result"]["variants"]] == ["scaled"]
    status, content, _ = ask(port, "POST", "/api/compare?variants=nope", photo)
    assert status == 422
    assert "there is no variant 'nope'" in json.loads(content)["error"]


def test_the_bundle_and_health_are_told(port: int) -> None:
    status, content, _ = ask(port, "GET", "/api/bundle")
    told = json.loads(content)
    assert status == 200
    assert [v["variant"] for v in told["variants"]] == ["baseline", "quantized", "scaled"]
    assert told["max_upload_bytes"] == uploads.MAX_UPLOAD_BYTES
    assert json.loads(ask(port, "GET", "/api/health")[1])["status"] == "ok"


def test_the_page_carries_a_strict_policy_that_fits_it(port: int) -> None:
    status, content, headers = ask(port, "GET", "/")
    assert status == 200
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    for path in ("/", "/api/bundle", "/nothing"):
        _, _, told = ask(port, "GET", path)
        assert told["cross-origin-resource-policy"] == "same-origin"
        assert told["x-content-type-options"] == "nosniff"
        assert (told["referrer-policy"], told["cache-control"]) == ("no-referrer", "no-store")
        assert "server" not in told  # which program answers is nobody's business
        assert not [name for name in told if name.startswith("access-control-")]
    assert b"<!--data-->" not in content
    assert not re.search(rb"""(?:src|href)=["']https?:""", content)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nope", 404),
        ("GET", "/../manifest.json", 404),
        ("GET", "/models/baseline.onnx", 404),
        ("PUT", "/", 405),
        ("GET", "/api/compare", 405),
    ],
)
def test_nothing_else_is_served(method: str, path: str, status: int, port: int) -> None:
    found, content, headers = ask(port, method, path)
    assert found == status
    assert "Token" not in json.loads(content)["error"]
    assert headers.get("allow") == {("PUT", "/"): "GET, HEAD", ("GET", "/api/compare"): "POST"}.get(
        (method, path)
    )


def hostile() -> dict[str, tuple[bytes, int]]:
    """Bodies that must be refused, with the status each gets."""
    whole = encoded(Image.effect_noise((300, 300), 80).convert("RGB"), "JPEG")
    return {
        "empty": (b"", 415),
        "text": (b"this is not a picture at all", 415),
        "script": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415),
        "truncated": (whole[: len(whole) // 2], 422),
        "bomb": (encoded(Image.new("1", (20_000, 20_000)), "PNG"), 422),
        "pixels": (encoded(Image.new("1", (9_000, 9_000)), "PNG"), 422),
        "liar": (b"\x89PNG\r\n\x1a\n" + b"\0" * 500, 422),
        "oversized": (b"\xff\xd8\xff" + b"\0" * uploads.MAX_UPLOAD_BYTES, 413),
    }


@pytest.mark.parametrize("name", list(hostile()))
def test_hostile_uploads_get_their_status_and_a_sentence(name: str, port: int) -> None:
    body, status = hostile()[name]
    found, content, _ = ask(port, "POST", "/api/compare", body)
    assert found == status
    assert len(json.loads(content)["error"]) > 20


def test_a_short_text_is_no_missing_body(port: int) -> None:
    said = [json.loads(ask(port, "POST", "/api/compare", body)[1])["error"] for body in (b"", b"text")]
    assert said[0].startswith("the file is empty; expected JPEG")
    assert said[1].startswith("this is not a picture; expected JPEG")


def test_an_oversized_stream_without_a_length_is_cut(port: int) -> None:
    def endless() -> Iterator[bytes]:
        yield b"\xff\xd8\xff"
        for _ in range(40):
            yield b"\0" * 1_000_000

    assert ask(port, "POST", "/api/compare", endless())[0] == 413
    assert ask(port, "GET", "/api/health")[0] == 200


def test_other_hosts_and_origins_are_refused(port: int, photo: bytes) -> None:
    assert ask(port, "GET", "/", Host="evil.example")[0] == 400
    assert ask(port, "POST", "/api/compare", photo, Origin="http://evil.example")[0] == 403
    assert (
        ask(port, "POST", "/api/compare?variants=scaled", photo, Origin=f"http://127.0.0.1:{port}")[0] == 200
    )


def test_a_slow_upload_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    monkeypatch.setattr(uploads, "BODY_SECONDS", 0.2)

    async def trickle() -> dict[str, object]:
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b"\xff\xd8\xff", "more_body": True}

    intake = uploads.Intake()
    with pytest.raises(uploads.Refused, match=r"took more than 0\.2 seconds") as error:
        asyncio.run(intake.read({"headers": []}, uploads.chunks(trickle)))
    assert error.value.status == 408
    assert (intake.held_bytes, intake.receiving) == (0, 0)


def test_who_has_left_is_told_nothing(bundle_folder: Path, photo: bytes) -> None:
    """The picture waits for its turn when its client leaves; the server's library takes no answer then."""
    import asyncio

    server = app.Server(Bundle.read(bundle_folder), 1, app.LOOPBACK)
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": photo, "more_body": False},
        {"type": "http.disconnect"},
    ]
    scope = {"type": "http", "method": "POST", "path": "/api/compare", "query_string": b""}
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.01)
        return messages.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def visit() -> None:
        async with server.busy:  # another picture's turn
            await server(scope | {"headers": [(b"host", b"localhost")]}, receive, send)

    asyncio.run(visit())
    assert sent == []
    assert (server.intake.held_bytes, len(server.work)) == (0, 0)


def own_children() -> set[str]:
    listed = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return {child for path in listed for child in path.read_text().split()}


class Late(concurrent.futures.ThreadPoolExecutor):
    """Threads of which the first one that is asked for never comes to its turn."""

    asked = 0

    def submit(self, *arguments: Any, **named: Any) -> "concurrent.futures.Future[Any]":
        self.asked += 1
        if self.asked == 1:
            return concurrent.futures.Future()
        return super().submit(*arguments, **named)


def test_a_picture_whose_client_has_left_leaves_no_process(bundle_folder: Path, photo: bytes) -> None:
    """Not even one that has ended and is not waited for."""
    import asyncio

    variants, before = Bundle.read(bundle_folder).manifest.variants, own_children()

    async def leave() -> None:
        asyncio.get_running_loop().set_default_executor(Late())
        work = asyncio.create_task(app.decode([photo], variants))
        await asyncio.sleep(0)
        work.cancel()
        await asyncio.wait({work})
        assert work.cancelled()

    asyncio.run(leave())
    assert own_children() <= before


def begun_upload(port: int, content: bytes = b"\xff\xd8\xff", length: int = 1000) -> socket.socket:
    """A connection that has sent the beginning of a picture and no more."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(
        f"POST /api/compare HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {length}\r\n\r\n".encode()
        + content
    )
    return connection


def waiting(port: int) -> int:
    return int(json.loads(ask(port, "GET", "/api/health")[1])["waiting"])


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come about within a minute")


def measuring(pid: int) -> bool:
    """Whether the server ``pid`` has a process that runs a variant."""
    with contextlib.suppress(OSError):  # one that ends while it is looked at
        children = [
            child
            for listed in Path(f"/proc/{pid}/task").glob("*/children")
            for child in listed.read_text().split()
        ]
        return any(
            b"vgg_runtime.measure.worker" in Path(f"/proc/{child}/cmdline").read_bytes() for child in children
        )
    return False


def test_slow_uploads_do_not_hold_the_places_of_others(port: int, photo: bytes) -> None:
    """Below their limit they delay no other upload; beyond it the next one gets a 503 with retry-after."""
    held = [begun_upload(port) for _ in range(uploads.RECEIVING - 1)]
    try:
        time.sleep(0.3)
        assert waiting(port) == 0
        assert ask(port, "POST", "/api/compare?variants=scaled", photo)[0] == 200
        held.append(begun_upload(port))
        time.sleep(0.3)
        status, content, headers = ask(port, "POST", "/api/compare", photo)
        assert (status, headers["retry-after"]) == (503, "60")
        assert "are being sent already" in json.loads(content)["error"]
    finally:
        for connection in held:
            connection.close()
    wait_for(lambda: ask(port, "POST", "/api/compare?variants=scaled", photo)[0] == 200)


def test_beyond_the_queue_is_503_and_who_leaves_makes_room(bundle_folder: Path, photo: bytes) -> None:
    """Each picture would take hours; it stops when its client has left."""
    script = (
        "import sys; from vgg_runtime.web import app; app.BUDGET_S = 3600.0; app.MAX_RUNS = 10**9;"
        " from vgg_runtime.compare import main;"
        f"sys.exit(main(['--serve', '--port', '0', '--bundle', {str(bundle_folder)!r}]))"
    )
    with serving([sys.executable, "-c", script], command_environment()) as (port, running):
        held = [begun_upload(port, photo, len(photo)) for _ in range(app.QUEUE)]
        wait_for(lambda: waiting(port) == app.QUEUE)
        status, content, _ = ask(port, "POST", "/api/compare", photo)
        assert status == 503
        assert "8 pictures are waiting already" in json.loads(content)["error"]
        wait_for(lambda: measuring(running.pid))
        for connection in held:
            connection.close()
        wait_for(lambda: waiting(port) == 0)
        wait_for(lambda: not measuring(running.pid))


def test_all_pictures_together_stay_within_the_memory_kept_for_them(
    bundle_folder: Path, photo: bytes
) -> None:
    """Eight clients with a large picture each; what does not fit is told to come back, and the server stays
    small."""
    large = photo + b"\0" * (uploads.MAX_UPLOAD_BYTES - len(photo))  # what follows a JPEG's end is ignored
    with served(bundle_folder) as (port, running), concurrent.futures.ThreadPoolExecutor(8) as clients:
        ask(port, "POST", "/api/compare?variants=scaled", photo)
        before = status_field(running.pid, "VmHWM")  # differs by machine and by numpy's build
        answers = list(
            clients.map(lambda _: ask(port, "POST", "/api/compare?variants=scaled", large)[0], range(8))
        )
        assert set(answers) <= {200, 503}
        assert 200 in answers or ask(port, "POST", "/api/compare?variants=scaled", large)[0] == 200
        assert status_field(running.pid, "VmHWM") - before <= 2 * uploads.HELD_BYTES  # of eight times as much


def test_silent_connections_do_not_block_the_page(bundle_folder: Path) -> None:
    script = (
        "import sys; from vgg_runtime.web import app; app.HEADER_SECONDS = 1.0; from vgg_runtime.compare"
        " import main;"
        f"sys.exit(main(['--serve', '--port', '0', '--bundle', {str(bundle_folder)!r}]))"
    )
    with serving([sys.executable, "-c", script], command_environment()) as (port, _):
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(30)]
        half = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
        for connection in half:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: ")
        wait_for(lambda: ask(port, "GET", "/api/health")[0] == 200)
        for connection in (*silent, *half):
            connection.settimeout(5)
            assert connection.recv(1000) == b""  # closed by the server
            connection.close()
        kept = http.client.HTTPConnection("127.0.0.1", port)
        for _ in range(3):  # an open connection that goes on asking is not cut
            kept.request("GET", "/api/health")
            assert kept.getresponse().read()
            time.sleep(0.6)


def test_an_interrupt_ends_the_running_variant_and_says_so(bundle_folder: Path, photo: bytes) -> None:
    command = [sys.executable, str(bundle_folder / "runtime/compare.py"), "--serve", "--port", "0"]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **interruptible()
    )
    assert running.stdout is not None
    found = re.search(r":(\d+)/", running.stdout.readline())
    assert found
    port = int(found[1])
    wait_until_up(port)
    with concurrent.futures.ThreadPoolExecutor(2) as clients:
        answers = [clients.submit(ask, port, "POST", "/api/compare", photo) for _ in range(2)]
        wait_for(lambda: waiting(port) == 2)
        wait_for(lambda: measuring(running.pid))  # the first; the second waits
        running.send_signal(signal.SIGINT)
        _, complaints = running.communicate(timeout=60)
        told = sorted((a.result()[:2] for a in answers), key=lambda found: found[0])
    assert running.returncode == 0
    assert all(line.startswith("checking ") for line in complaints.splitlines()), complaints
    assert told[0][0] == 200
    assert events(told[0][1])[-1] == {"event": "error", "error": "the server was stopped"}
    assert (told[1][0], json.loads(told[1][1])["error"]) == (503, "the server was stopped")


@pytest.mark.parametrize(
    ("host", "right"),
    [
        ("192.0.2.7:8000", True),
        ("203.0.113.9", True),
        ("[fe80::1]:8000", True),
        ("[fe80::1%25eth0]:8000", True),
        ("LocalHost:8000", True),
        ("board.lan:8000", True),
        ("board.lan.:8000", True),
        ("board.lan..", False),
        ("evil.example", False),
        ("192.0.2.7.evil.example", False),
        ("1.2.3", False),
        ("", False),
        ("[::ffff:192.0.2.7]:8000", True),  # an IPv4 address as IPv6 has it
        ("[2001:db8::7]", True),
        ("[::1", False),
        ("[::1]:", True),
        ("::1", False),  # only in brackets
        ("[::1].evil.example", False),
        ("[::1]evil.example:80", False),
        ("[::1]:80evil.example", False),
        ("[::1]:80:80", False),
        ("[127.0.0.1]", False),
        ("[localhost]", False),
        ("[::1%lo]", False),  # a zone belongs to a link
        ("[2001:db8::7%eth0]", False),
        ("[fe80::1%]", False),
        ("[fe80::1%eth0/evil.example]", False),
        ("[fe80::1%eth0%evil.example]", False),
        ("[fe80::1%wlan0.1_a-b]", True),
        ("1.2.3.4%evil.example", False),
        ("1.2.3.4%evil.example:8000", False),
        ("127.0.0.1:evil.example", False),
        ("board.lan:evil.example", False),
        ("board.lan:8000:8000", False),
        ("board.lan:", True),
        (":8000", False),
        ("127.0.0.1:8000", True),
        ("10.0.2.2:8000", True),  # the host, seen from a virtual machine
        ("172.17.0.1:8000", True),  # the host, seen from a container
        ("100.64.0.1:8000", True),  # behind a carrier's address translation
        ("board.local:8000", False),  # a name that was not told
        ("board.lan.evil.example:8000", False),
        ("evil.example#board.lan", False),
        ("evil.example@board.lan", False),
        ("0x7f.1", False),
        ("2130706433", False),  # 127.0.0.1 as one number; browsers write it out
        ("127.1", False),
        ("localhost.evil.example", False),
        ("xn--bard-5qa.lan", False),
        ("BOARD.LAN:8000", True),
    ],
)
def test_an_address_in_numbers_and_a_told_name_are_right(host: str, right: bool) -> None:
    scope = {"headers": [(b"host", host.encode())]}
    names = (*app.LOOPBACK, "Board.lan")
    if right:
        app.check_origin(scope, names)
        return
    advice = "use localhost, or start it with --name and the name alone, without a port"
    with pytest.raises(uploads.Refused, match=advice) as error:
        app.check_origin(scope, names)
    assert error.value.status == 400


@pytest.mark.parametrize(
    "given",
    [
        "",
        " ",
        "board lan",
        "board.lan:8000",
        "http://board.lan",
        "board.lan/",
        "a..b",
        ".",
        "[::1]",
        "::1%lo",
        "user@board.lan",
        "-board",
        "board\n",
        "1.2.3.4%eth0",
        "münchen.local:8000",
        "\udc80.lan",
        "ü" * 64,
    ],
)
@pytest.mark.parametrize("flag", ["--name", "--host"])
def test_only_a_host_alone_is_taken_as_a_name(flag: str, given: str) -> None:
    sentence = f"^{flag} takes a host's name or address alone, .* port goes into --port$"
    with pytest.raises(RuntimeInputError, match=sentence) as error:
        hosts.alone(flag, given)
    assert f"found {given!r};" in str(error.value)


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("board.lan", "board.lan"),
        ("Board.lan.", "Board.lan."),
        ("my_board-2", "my_board-2"),
        ("münchen.local", "xn--mnchen-3ya.local"),
        ("MÜNCHEN.local", "xn--mnchen-3ya.local"),
        ("xn--mnchen-3ya.local", "xn--mnchen-3ya.local"),
        ("192.0.2.7", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::1%eth0"),
    ],
)
def test_a_name_is_taken_as_browsers_send_it(given: str, taken: str) -> None:
    assert hosts.alone("--name", given) == taken


def listening_names(host: str, *others: str) -> tuple[str, ...]:
    """The names that a server for ``host`` would answer to."""
    told: list[tuple[str, ...]] = []

    def server(names: tuple[str, ...]) -> app.Server:
        told.append(names)
        raise ImportError

    with pytest.raises(RuntimeInputError, match="the page needs uvicorn"):
        app.run(server, host, 0, print, others)
    return told[0]


def test_a_told_name_that_is_not_ascii_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "zürich")
    names = listening_names("0.0.0.0", "münchen.local")
    for name in ("xn--mnchen-3ya.local", "xn--zrich-kva", "xn--zrich-kva.local", "localhost"):
        app.check_origin({"headers": [(b"host", f"{name}:8000".encode())]}, names)
    assert listening_names("127.0.0.1") == app.LOOPBACK


@pytest.mark.parametrize(
    ("host", "remedy"),
    [
        ("203.0.113.5", "use --host 0.0.0.0 --name 203.0.113.5"),
        ("2001:db8::7", "use --host :: --name 2001:db8::7"),
        ("nowhere.invalid", "use --host 0.0.0.0 --name nowhere.invalid"),
    ],
)
def test_a_host_that_is_not_this_machine_s_says_how_to_be_reached_by_it(host: str, remedy: str) -> None:
    with pytest.raises(RuntimeInputError, match=f"cannot listen on {host} port 0 .* {remedy}$"):
        hosts.listen(host, 0)


def test_a_taken_port_asks_for_another() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(RuntimeInputError, match=r"Address already in use\); choose another --port$"),
    ):
        hosts.listen("127.0.0.1", taken.getsockname()[1])


def test_half_a_character_is_answered_as_json_has_it() -> None:
    """No form of UTF-8 has it; the names of files and of a bundle's classes may."""
    import asyncio

    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app._line(send, {"label": "caf\udce9 ü"}))
    asyncio.run(app._answer(send, 422, {"error": "caf\udce9 ü"}))
    bodies = [message["body"] for message in sent if "body" in message]
    assert bodies == [b'{"label": "caf\\udce9 \xc3\xbc"}\n', b'{"error": "caf\\udce9 \xc3\xbc"}\n']
    assert json.loads(bodies[0]) == {"label": "caf\udce9 ü"}


@pytest.mark.parametrize(
    ("origin", "right"),
    [
        (None, True),  # no page of a browser asks
        ("http://board.lan:8000", True),
        ("https://board.lan:8000", True),  # behind a server that adds TLS
        ("http://board.lan", False),  # another port is another site
        ("http://board.lan:8001", False),
        ("http://localhost:8000", False),
        ("http://evil.example", False),
        ("null", False),  # a file, or a frame in a sandbox
        ("file://", False),
        ("", False),
        ("http://board.lan:8000.evil.example", False),
        ("http://evil.example/board.lan:8000", False),
        ("chrome-extension://abc", False),
    ],
)
def test_only_the_page_itself_may_send_pictures(origin: str | None, right: bool) -> None:
    headers = [(b"host", b"board.lan:8000")] + ([(b"origin", origin.encode())] if origin is not None else [])
    if right:
        app.check_origin({"headers": headers}, ("board.lan",))
        return
    with pytest.raises(uploads.Refused, match="pages of other sites may not use this server") as error:
        app.check_origin({"headers": headers}, ("board.lan",))
    assert error.value.status == 403


@pytest.mark.parametrize(
    ("host", "address", "open_to_all"),
    [
        ("127.0.0.2", "http://127.0.0.2:", False),
        ("::1", "http://[::1]:", False),
        ("0.0.0.0", "http://", True),
    ],
)
def test_the_address_that_is_told_works(
    host: str, address: str, open_to_all: bool, bundle_folder: Path
) -> None:
    if ":" in host and not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    command = [
        sys.executable,
        str(bundle_folder / "runtime/compare.py"),
        "--serve",
        "--port",
        "0",
        "--host",
        host,
    ]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert running.stdout is not None
        line = running.stdout.readline()
        if not line and running.stderr is not None and "cannot listen" in running.stderr.read():
            pytest.skip(f"this machine has no {host}")
        assert address in line
        url = re.search(r"http://\S+", line)
        assert url
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

        def up() -> bool:
            with contextlib.suppress(urllib.error.URLError):
                return bool(opener.open(url[0], timeout=5).status == 200)
            return False

        wait_for(up)
        if open_to_all:
            assert "Everybody in this network" in running.stdout.readline()
    finally:
        running.terminate()
        assert running.communicate(timeout=20)[0] == ""  # loopback says nothing of a network


@pytest.mark.release
@pytest.mark.parametrize("uploaded", [48, 200])
def test_uploads_from_eight_clients_half_of_them_hostile(
    uploaded: int, bundle_folder: Path, photo: bytes
) -> None:
    bodies = list(hostile().values())
    before = {p for p in bundle_folder.rglob("*") if "__pycache__" not in p.parts}
    with served(bundle_folder) as (port, running):

        def upload(k: int) -> tuple[int, int, bytes]:
            body, expected = bodies[(k // 2) % len(bodies)] if k % 2 else (photo, 200)
            while True:
                status, content, _ = ask(port, "POST", "/api/compare?variants=scaled", body)
                if status != 503:
                    return status, expected, content
                time.sleep(0.1)

        with concurrent.futures.ThreadPoolExecutor(8) as clients:
            list(clients.map(upload, range(16)))
            memory = status_field(running.pid, "VmRSS")
            answers = list(clients.map(upload, range(uploaded)))
        assert [status for status, _, _ in answers] == [expected for _, expected, _ in answers]
        said = {
            json.dumps(events(c)[-1]["result"]["variants"][0]["predictions"])
            for s, _, c in answers
            if s == 200
        }
        assert len(said) == 1  # every good one answered, and alike
        assert status_field(running.pid, "VmRSS") < memory + uploads.MAX_UPLOAD_BYTES
        assert not list(Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split())
    assert {p for p in bundle_folder.rglob("*") if "__pycache__" not in p.parts} == before


def test_the_pc_opens_the_same_page(bundle_folder: Path, photo: bytes) -> None:
    command = [sys.executable, "-m", "vgg_export", "serve", "--bundle", str(bundle_folder), "--port", "0"]
    with serving(command, command_environment()) as (number, _):
        content = ask(number, "GET", "/")[1]
        status, answer, _ = ask(number, "POST", "/api/compare?variants=scaled", photo)
    assert content == page.live()[0]
    assert (status, events(answer)[-1]["event"]) == (200, "end")


def test_the_server_itself_is_small(bundle_folder: Path) -> None:
    with served(bundle_folder) as (_, running):
        assert status_field(running.pid, "VmHWM") <= 60_000_000


def test_a_variant_that_dies_is_a_row(bundle_copy: Path, photo: bytes) -> None:
    with served(bundle_copy) as (port, _):
        (bundle_copy / "models/quantized.onnx").write_bytes(b"damaged after the start")
        status, content, _ = ask(port, "POST", "/api/compare", photo)
        assert status == 200
        errors = [row["error"] is not None for row in events(content)[-1]["result"]["variants"]]
        assert errors == [False, True, False]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--serve", "--json", "x.json"), "--json does not go with --serve"),
        (("--port", "1"), "--port, --host and --name belong to --serve"),
        (
            ("--serve", "--host", "not-of-this-machine.invalid"),
            "if others reach it by that one, use --host 0.0.0.0 --name not-of-this-machine.invalid",
        ),
        (
            ("--serve", "--host", "0.0.0.0", "--name", "board.lan:8000"),
            "--name takes a host's name or address",
        ),
        (("--serve", "--port", "70000"), "expected 0 to 65535"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    arguments: tuple[str, ...], sentence: str, bundle_folder: Path
) -> None:
    done = subprocess.run(
        [sys.executable, bundle_folder / "runtime/compare.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_without_uvicorn_there_is_one_sentence(bundle_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "uvicorn.py").write_text("raise ImportError('not here')\n")
    command: list[str | Path] = [sys.executable, bundle_folder / "runtime/compare.py", "--serve"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        timeout=60,
    )
    assert done.returncode == 2
    install = f"{sys.executable} -m pip install -r {bundle_folder}/runtime/requirements-web.txt\n"
    assert done.stderr == f"Error: the page needs uvicorn: {install}"


def test_the_report_is_the_same_page_with_the_result_in_it(bundle_copy: Path, tmp_path: Path) -> None:
    result = a_result(images=(ImageOfResult("x</script><script>alert(1)</script>.png", "<b>"),))
    Image.new("RGB", (900, 600), "red").save(tmp_path / "x.png")
    text = page.report(result, [tmp_path / "x.png"])
    assert text.count("</script>") == 2  # of the data and of the program
    data = re.search(r'<script type="application/json" id="result">(.*?)</script>', text, re.DOTALL)
    assert data
    loaded = json.loads(data[1])
    assert loaded["images"][0]["file"] == result.images[0].file
    assert loaded["images"][0]["thumbnail"].startswith("data:image/jpeg;base64,")
    template = page.TEMPLATE.read_text()
    assert page.policy(template, live=False) in text
    assert "connect-src 'none'" in text


def built(top1: float | None, agreement: float, **more: Any) -> Evaluation:
    def proportion(rate: float) -> Proportion:
        return Proportion(rate, 1000, (0.0, 1.0))

    right = None if top1 is None else proportion(top1)
    made = Evaluation(n=1000, top1=right, agreement=proportion(agreement))
    return dataclasses.replace(made, **more)


def row(name: str, p50: float | None, figures: Evaluation | None, error: str | None = None) -> Row:
    speedup = None if p50 is None else 100 / p50
    return a_row(name, p50_ms=p50, speedup=speedup, built=figures, error=error)


def test_the_fastest_that_loses_little_is_recommended() -> None:
    rows = [
        row("baseline", 100, built(0.90, 1)),
        row("good", 50, built(0.895, 0.97)),
        row("fast", 20, built(0.88, 0.99)),
        row("dead", None, built(0.90, 1), "did not fit"),
    ]
    chosen = recommend.recommend(rows, "baseline")
    assert chosen.variant == "good"
    assert "89.5 % against 90.0 % on 1,000 test images" in chosen.reason
    assert recommend.recommend(rows, "baseline", 2.5).variant == "fast"
    unsure = [
        row("baseline", 100, built(0.90, 1)),
        row("a", 10, built(0.90, 0.97, loss_error_points=1.2)),
    ]
    unsure.append(row("b", 20, built(0.895, 0.97, loss_error_points=0.5)))
    # a loses nothing, give or take more than is allowed
    assert recommend.recommend(unsure, "baseline").variant == "a"
    assert recommend.recommend(unsure, "baseline", sure=True).variant == "b"
    unlabelled = [
        row("baseline", 100, built(None, 1)),
        row("a", 10, built(None, 0.98)),
        row("b", 20, built(None, 0.995)),
    ]
    assert recommend.recommend(unlabelled, "baseline").variant == "b"
    few = [row("baseline", 100, built(0.9, 1, n=40)), row("a", 10, built(0.9, 0.5, n=40))]
    assert recommend.recommend(few, "baseline").variant is None
    assert "40 test images are too few" in recommend.recommend(few, "baseline").reason
    alone = recommend.recommend([row("a", 10, built(0.9, 0.98))], "baseline")
    assert (alone.variant, "the baseline was not run" in alone.reason) == (None, True)
    nothing = recommend.recommend([row("baseline", 100, None)], "baseline")
    assert nothing.variant is None
    assert "no figures on test images" in nothing.reason
