"""Streams from addresses: real servers on loopback, a real ffmpeg."""

import base64
import hashlib
import http.server
import itertools
import os
import re
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from launch import compare
from PIL import Image

from vgg_runtime import addresses, console
from vgg_runtime.errors import ModelError, RuntimeInputError
from vgg_runtime.live import frames as of_frames
from vgg_runtime.live import network, sources


def jpeg(seed: int) -> bytes:
    import io

    pixels = np.random.default_rng(seed).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((96, 64)).save(file, "JPEG")
    return file.getvalue()


PICTURES = [jpeg(k) for k in range(3)]
USER, PASSWORD = "me", "p@ss:w/rd"
FFMPEG = shutil.which("ffmpeg")
needs_ffmpeg = pytest.mark.skipif(
    not FFMPEG and not os.environ.get("VGG_EXPORT_REQUIRE_FFMPEG"), reason="needs ffmpeg (apt install ffmpeg)"
)


class Camera(http.server.BaseHTTPRequestHandler):
    """A camera: /stream, /snapshot, /basic and /digest (snapshots behind a password), /cut (it ends in the
    middle of a picture), /short (it ends after one)."""

    asked: ClassVar[Iterator[int]]
    seen: ClassVar[list[str]]

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.seen.append(self.path)
        if path == "/basic" and self.headers["Authorization"] != self.basic():
            self.refuse('Basic realm="camera"')
        elif path == "/digest" and not self.digested():
            self.refuse('Digest realm="camera", nonce="abc", qop="auth"')
        elif path in ("/stream", "/cut", "/short"):
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=b")
            self.end_headers()
            sent = PICTURES[:1] if path == "/short" else PICTURES
            body = b"".join(b"--b\r\nContent-Type: image/jpeg\r\n\r\n%s\r\n" % picture for picture in sent)
            self.wfile.write(body[:-300] if path == "/cut" else body)
        else:
            picture = PICTURES[next(self.asked) % len(PICTURES)]
            self.send_response(200)
            self.send_header("Content-Type", "image/jpeg")
            self.send_header("Content-Length", str(len(picture)))
            self.end_headers()
            self.wfile.write(picture)

    def basic(self) -> str:
        return "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

    def digested(self) -> bool:
        """RFC 2617, section 3.2.2."""
        given = dict(re.findall(r'(\w+)="?([^",]+)"?', self.headers.get("Authorization") or ""))

        def md5(text: str) -> str:
            return hashlib.md5(text.encode()).hexdigest()

        first, second = md5(f"{USER}:camera:{PASSWORD}"), md5(f"GET:{self.path}")
        middle = ":".join(given.get(name, "") for name in ("nonce", "nc", "cnonce", "qop"))
        return given.get("response") == md5(f"{first}:{middle}:{second}")

    def refuse(self, how: str) -> None:
        self.send_response(401)
        self.send_header("WWW-Authenticate", how)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def camera() -> Iterator[str]:
    Camera.asked, Camera.seen = itertools.count(), []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Camera)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def first(source: Any, count: int) -> list[Any]:
    stopped = threading.Event()
    found = list(itertools.islice(source.frames(stopped), count))
    stopped.set()
    source.close()
    return found


def test_a_stream_and_snapshots(camera: str) -> None:
    assert first(sources.open_source(f"HTTP://{camera}/stream", None), 9) == PICTURES
    snapshots = sources.open_source(f"http://{camera}/snapshot", 50.0)
    assert first(snapshots, 4) == [*PICTURES, PICTURES[0]]


@pytest.mark.parametrize("how", ["basic", "digest"])
def test_a_password_is_used_and_never_shown(
    how: str, camera: str, bundle_folder: Path, tmp_path: Path
) -> None:
    secret = "me:p%40ss%3Aw%2Frd"
    address = f"http://{secret}@{camera}/{how}?token=hidden"
    source = sources.open_source(address, 50.0)
    assert source.name == f"http://…@{camera}/{how}?…"
    assert first(source, 2) == PICTURES[:2]
    assert all("token=hidden" in path and "p@ss" not in path for path in Camera.seen)
    arguments = ("--live", "scaled", "--source", address, "--fps", "20", "--frames", "3")
    done = compare(*arguments, "--json", tmp_path / "r.json", bundle=bundle_folder)
    assert done.returncode == 0, done.stderr
    everything = done.stdout + done.stderr + (tmp_path / "r.json").read_text()
    assert "…@" in everything
    for word in ("p%40ss", "p@ss", "hidden"):
        assert word not in everything
    with pytest.raises(RuntimeInputError, match=r"answers 401 .*; check the address and the password"):
        first(sources.open_source(f"http://{camera}/{how}", None), 1)


def test_a_stream_that_ends_in_the_middle_of_a_picture_broke_off(camera: str, bundle_folder: Path) -> None:
    found = sources.open_source(f"http://{camera}/cut", None).frames(threading.Event())
    assert [next(found), next(found)] == PICTURES[:2]
    assert "ended in the middle" in str(next(found))
    with pytest.raises(RuntimeInputError, match="broke off in the middle of a picture"):
        next(found)
    done = compare("--live", "scaled", "--source", f"http://{camera}/cut", bundle=bundle_folder)
    assert done.returncode == 1
    assert "broke off in the middle of a picture" in done.stdout


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http:/u:secret@h/x", "http:/…@h/x"),
        ("u:secret@127.0.0.1:9/x", "…@127.0.0.1:9/x"),
        ("HTTP://u:secret@h:9/x", "HTTP://…@h:9/x"),
        ("/u:secret@h", "…"),
        ("http://u:se/secret@h/", "http://…"),
        ("http://u:se?secret@h/", "http://…"),
        ("http://u:se#secret@h/", "http://…"),
        ("http://u:se@secret@h/", "http://…@h/"),
        ("http://h/?t=secret", "http://h/?…"),
        ("http://h/#secret", "http://h/#…"),
        ("http:u:secret@h:9", "…@h:9"),
        ("rtsp://secret@h", "rtsp://…@h"),
        ("ffmpeg:async:rtsp://u:secret@h/1?secret", "ffmpeg:async:rtsp://…@h/1?…"),
        ("http://u%3Asecret%40h/x", "http://…"),
        ("http%3A%2F%2Fu%3Asecret%40h/x", "…"),
        ("u%3Asecret%40h", "…"),
        ("u%253Asecret%2540h", "…"),
        ("http://u:secret%40h/x", "http://…"),
        ("http://u\uff1asecret\uff20h/x", "http://…"),
        ("http://h/@u:secret@h", "http://…"),
        ("http://u:p@ss/secret@h/x", "http://…"),
        ("http://u:secret;h/x", "http://…"),
        ("http:/u:secret;h/x", "http:/…"),
        ("http://u:99999/x", "http://…"),
        ("rtsp://h/user=admin&password=secret&channel=1", "rtsp://h/user=admin&password=…"),
        ("rtsp://h/user=admin_password=secret_channel=1.sdp", "rtsp://h/user=admin_password=…"),
        ("http://h/snap;pwd=secret", "http://h/snap;pwd=…"),
        ("http://h/snap;pwd%3Dsecret", "http://…"),
        ("http://h/a;PASSWD=secret", "http://h/a;PASSWD=…"),
        ("http://h/access_token=secret/b?x", "http://h/access_token=…"),
        ("http://[::1]:8080/x", "http://[::1]:8080/x"),
        ("http://kamera-b\xfcro.local/x", "http://kamera-b\xfcro.local/x"),
        ("concat:http://a|http://u:secret@h/x", "concat:http://…"),
        ("http://h/a@b", "http://h/a@b"),
        ("photos/a@2x.jpg", "photos/a@2x.jpg"),
        ("x\x1b[31m", "x·[31m"),
    ],
)
def test_no_secret_of_an_address_is_shown(address: str, shown: str) -> None:
    assert addresses.without_secrets(address) == shown
    assert addresses.without_secrets(shown) == shown


@pytest.mark.parametrize(
    ("sentence", "shown"),
    [
        ("unrecognized arguments: a http://u:secret@h/x b", "unrecognized arguments: a http://…@h/x b"),
        ("there is no file http:/u:secret@h/x.jpg.", "there is no file http:/…@h/x.jpg."),
        ("there is no variant 'http://u:my secret@h/x'; a", "there is no variant 'http://…@h/x'; a"),
        ("no arguments: --src=rtsp://h/pwd=secret, u:secret@h", "no arguments: --src=rtsp://h/pwd=…, …@h"),
        ("found 'http%3A%2F%2Fu%3Asecret%40h'", "found '…'"),
        ("found 'u\uff1asecret\uff20h' (none)", "found '…' (none)"),
        ("found http://h/?secret; no", "found http://h/?…; no"),
        ("pi@board:/x, expected mqtt://HOST[:PORT]/TOPIC or mqtts://…", None),
        ("open http://127.0.0.1:8000/ (or http://[::1]:8000/). 3:4 a@b /a/b:c", None),
    ],
)
def test_no_secret_of_an_address_in_a_sentence_is_shown(sentence: str, shown: str | None) -> None:
    assert addresses.hidden_in(sentence) == (shown or sentence)


def test_no_error_of_a_command_line_shows_a_password(capsys: pytest.CaptureFixture[str]) -> None:
    address = "http://u:secret@h/x"
    parser = console.Parser(prog="compare.py")
    parser.add_argument("--fps", type=console.rate)
    for arguments in ([address], ["--fps", address]):
        with pytest.raises(SystemExit):
            parser.parse_args(arguments)
        assert "http://…@h/x" in (said := capsys.readouterr().err)
        assert "secret" not in said
    for error, code in (
        (RuntimeInputError(f"there is no file {Path(address)}"), 2),
        (ModelError(f"there is no file {Path(address)}"), 1),
        (FileNotFoundError(2, "there is none", str(Path(address))), 1),
    ):

        def fail(error: Exception = error) -> int:
            raise error

        assert console.ended(fail) == code
        assert "http:/…@h/x" in (said := capsys.readouterr().err)
        assert "secret" not in said


def test_a_long_sentence_is_looked_through_soon() -> None:
    begun_s = time.process_time()
    for word in ("a", "a:", "pass", "x:/", "a:b@", "http://u:"):
        addresses.hidden_in(word * 20_000)
    assert time.process_time() - begun_s < 20


@pytest.mark.parametrize(
    "address",
    [
        "http:/u:secret@h/x",
        "u:secret@h/x",
        "http://u:secret@[::1/",
        "http://u:secret/@h/",
        "http://h:secret/",
        "http://u%3Asecret%40127.0.0.1/x",
        "http://u%3Asecret/x",
        "http://u:secret%40h/x",
        "http://u:secret;h/x",
        "http://u\uff1asecret\uff20h/x",
    ],
)
def test_an_address_that_is_none_is_refused_without_its_secrets(address: str) -> None:
    with pytest.raises(RuntimeInputError, match=r"cannot be (used|read)") as error:
        sources.open_source(address, None)
    assert "secret" not in str(error.value)


def test_an_address_that_cannot_be_asked_is_told_without_its_secrets() -> None:
    with pytest.raises(RuntimeInputError, match="cannot be read") as error:
        first(sources.open_source("http://h/a b?token=secret", None), 1)
    assert "secret" not in str(error.value)


def test_fps_is_for_snapshots(camera: str) -> None:
    with pytest.raises(RuntimeInputError, match="is a stream, which sends at its own pace"):
        first(sources.open_source(f"http://{camera}/stream", 5.0), 1)


def test_a_camera_is_asked_again(camera: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "BACKOFF_S", (0.01, 0.02))
    source = sources.open_source(f"http://{camera}/short", None, reconnect=True)
    assert isinstance(source, network.Reconnecting)
    assert first(source, 4) == [PICTURES[0]] * 4
    assert source.reconnected == 3
    gone = sources.open_source("http://127.0.0.1:9/", None, reconnect=True)
    assert isinstance(gone, network.Reconnecting)
    stopped = threading.Event()
    threading.Timer(0.5, stopped.set).start()
    assert list(gone.frames(stopped)) == []
    assert gone.reconnected > 3
    assert "cannot be read" in (gone.last_failure or "")


def test_it_waits_longer_and_longer_and_from_a_frame_on_again_little(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    class Stopped(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            waited.append(timeout)
            return len(waited) > 9

    class Flaky:
        name, begun = "flaky", 0

        def frames(self, _: threading.Event) -> Iterator[bytes]:
            self.begun += 1
            if self.begun == 8:
                yield PICTURES[0]
            raise RuntimeInputError("it broke off")

        def close(self) -> None:
            pass

    assert list(network.Reconnecting(Flaky()).frames(Stopped())) == [PICTURES[0]]
    assert waited == [1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 30.0, 1.0, 2.0, 4.0]


def test_what_a_person_may_not_see_of_an_address() -> None:
    shown = {
        "rtsp://u:p@cam.local:554/live?user=a&password=b": "rtsp://…@cam.local:554/live?…",
        "http://cam/x": "http://cam/x",
        "http://u@cam/x\x1b[2J": "http://…@cam/x·[2J",
        "async:rtsp://u:p@cam/x?k=v": "async:rtsp://…@cam/x?…",
        "clips/a.mkv": "clips/a.mkv",
    }
    assert {address: addresses.without_secrets(address) for address in shown} == shown
    secrets = addresses.secrets("rtsp://u:p%40ss@cam/live?key=b")
    assert of_frames.hidden("cannot open rtsp://u:p%40ss@cam/live?key=b with p@ss", secrets) == (
        "cannot open … with …"
    )
    secrets = addresses.secrets("http://u:p%40ss@cam/user=a_pwd=p1234_x=1?token=t%201234&fps=15")
    said = "15 t%201234, t 1234, p1234, dTpwQHNz at http://x:y@other/"
    assert of_frames.hidden(said, secrets) == "15 …, …, …, … at http://…@other/"


@needs_ffmpeg
def test_ffmpeg_reads_a_video_file(tmp_path: Path, bundle_folder: Path) -> None:
    clip = tmp_path / "clip.mkv"
    making = ["ffmpeg", "-loglevel", "error", "-f", "lavfi", "-i", "testsrc=size=160x120:rate=10:duration=1"]
    subprocess.run([*making, "-c:v", "mpeg4", clip], check=True)
    found = first(sources.open_source(f"ffmpeg:{clip}", None), 100)
    assert len(found) == 10
    assert all(picture.startswith(b"\xff\xd8\xff") for picture in found)
    done = compare("--live", "scaled", "--source", f"ffmpeg:{clip}", bundle=bundle_folder)
    assert done.returncode == 0, done.stderr
    missing = "rtsp://me:secret@127.0.0.1:9/live"
    done = compare("--live", "scaled", "--source", missing, bundle=bundle_folder)
    assert done.returncode == 2
    assert "rtsp://…@127.0.0.1:9/live: ffmpeg ended with code" in done.stderr
    assert "secret" not in done.stderr + done.stdout


@needs_ffmpeg
def test_ffmpeg_is_ended_with_the_stream(camera: str) -> None:
    source = sources.open_source("ffmpeg:http://" + camera + "/stream", None)
    assert isinstance(source, of_frames.Program)
    stopped = threading.Event()
    assert next(iter(source.frames(stopped)))
    stopped.set()
    source.close()
    assert source._process is not None
    assert source._process.poll() is not None
    with urllib.request.urlopen(f"http://{camera}/snapshot") as answer:
        assert answer.status == 200
