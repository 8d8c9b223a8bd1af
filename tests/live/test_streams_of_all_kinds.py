"""Streams whose label or end says something else than their content: the content decides."""

import contextlib
import io
import itertools
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from launch import compare
from PIL import Image

from vgg_runtime.errors import ImageError, RuntimeInputError
from vgg_runtime.live import attachments, mjpeg, network, sources


def picture(seed: int, kind: str = "JPEG", size: tuple[int, int] = (96, 64)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(file, kind)
    return file.getvalue()


PICTURES = [picture(k) for k in range(3)]
PNG = picture(7, "PNG")
STREAM = b"".join(b"--b\r\nContent-Type: image/jpeg\r\n\r\n%s\r\n" % one for one in PICTURES)
PAGE = b"<!doctype html><title>camera</title>"


def answer(kind: str | None, body: bytes, *, length: int | None = None, reason: str = "200 OK") -> bytes:
    """A raw answer of a server; ``length``: what it says of its body, None: nothing."""
    head = [f"HTTP/1.1 {reason}", "Connection: close"]
    head += [f"Content-Type: {kind}"] if kind is not None else []
    head += [f"Content-Length: {length}"] if length is not None else []
    return "\r\n".join([*head, "", ""]).encode() + body


@contextlib.contextmanager
def server(*answers: bytes, then: bytes | None = None) -> Iterator[str]:
    """The address of a server that gives one answer after the other, the last one again and again. ``then``:
    what it sends behind the last one ten times a second, None: it hangs up."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            for number in itertools.count():
                connection, _ = listening.accept()
                with connection, contextlib.suppress(OSError):
                    connection.recv(65536)
                    connection.sendall(answers[min(number, len(answers) - 1)])
                    while then is not None and number >= len(answers) - 1:
                        time.sleep(0.1)
                        connection.sendall(then)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    finally:
        listening.close()


def first(address: str, count: int, fps: float | None = None) -> list[object]:
    stopped = threading.Event()
    found: list[object] = list(itertools.islice(sources.open_source(address, fps).frames(stopped), count))
    stopped.set()
    return found


LABELS = (
    *("multipart/x-mixed-replace; boundary=b", "multipart/x-mixed-replace", "Multipart/X-Mixed-Replace;b"),
    *("multipart/mixed; boundary=other", "image/jpeg", "application/octet-stream", "video/x-motion-jpeg"),
    *("text/plain", "text/html; charset=utf-8", "", "nonsense", None, "video/mjpeg", "image/png"),
)


@pytest.mark.parametrize("body", [STREAM, b"".join(PICTURES)], ids=["parts", "bare"])
@pytest.mark.parametrize("kind", LABELS)
def test_a_stream_is_one_whatever_it_is_called(kind: str | None, body: bytes) -> None:
    with server(answer(kind, body)) as address:
        assert first(address, 9) == PICTURES


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize("kind", [label for label in LABELS if not (label or "").lower().startswith("multi")])
def test_a_snapshot_is_one_whatever_it_is_called(kind: str | None, length: bool) -> None:
    answers = [answer(kind, one, length=len(one) if length else None) for one in PICTURES]
    with server(*answers) as address:
        assert first(address, 4, fps=50.0) == [*PICTURES, PICTURES[2]]


@pytest.mark.parametrize("kind", ["image/png", "image/jpeg", "application/octet-stream", "text/plain", None])
@pytest.mark.parametrize("suffix", ["PNG", "WEBP", "GIF", "BMP"])
def test_a_snapshot_may_be_another_picture(kind: str | None, suffix: str) -> None:
    other = picture(3, suffix)
    with server(answer(kind, other)) as address:
        assert first(address, 2, fps=50.0) == [other, other]


@pytest.mark.parametrize(
    ("kind", "body", "found"),
    [
        ("text/html", PAGE, "a web page, not the picture that it shows"),
        ("image/jpeg", PAGE, "a web page, not the picture that it shows"),
        ("text/plain", b"offline", "text/plain"),
        ("application/json", b'{"error": "busy"}', "application/json"),
        ("image/heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        ("image/jpeg", b"", "image/jpeg"),
        (None, b"\0" * 5000, "text/plain"),
        ("video/mp4", b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "video/mp4|a film|a video"),
        ("image/svg+xml", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        ("nonsense\x1b[31m", b"x", "text/plain|nonsense"),
    ],
)
@pytest.mark.parametrize("length", [True, False])
def test_what_holds_no_picture_is_refused_by_its_name(
    kind: str | None, body: bytes, found: str, length: bool
) -> None:
    with (
        server(answer(kind, body, length=len(body) if length else None)) as address,
        pytest.raises(RuntimeInputError, match=f"answers with .*({found}).*; expected JPEGs") as error,
    ):
        first(address, 1)
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "body", "then", "found"),
    [
        ("text/html", PAGE, b" ", "a web page, not the picture"),
        ("image/jpeg", PAGE, b"", "a web page, not the picture"),
        ("text/event-stream", b"data: x\n\n", b"data: y\n\n", "text/event-stream"),
        ("text/plain", b"x" * 20_000, b"x" * 20_000, "text/plain"),
        ("application/octet-stream", bytes(50), b"", "application/octet-stream"),
    ],
)
def test_what_never_ends_and_holds_no_picture_is_left(
    kind: str, body: bytes, then: bytes, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "SILENCE_S", 1.0)
    begun_s = time.monotonic()
    with (
        server(answer(kind, body), then=then) as address,
        pytest.raises(RuntimeInputError, match=f"answers with {found}.*; expected JPEGs"),
    ):
        first(address, 1)
    assert time.monotonic() - begun_s < 30


def part(kind: str, body: bytes) -> bytes:
    return b"--b\r\nContent-Type: %s\r\n\r\n%s\r\n" % (kind.encode(), body)


PARTS = "multipart/x-mixed-replace; boundary=b"


@pytest.mark.parametrize("then", [None, True])
@pytest.mark.parametrize(
    ("body", "found"),
    [
        (part("image/png", PNG), "multipart/x-mixed-replace of image/png"),
        (part("text/plain", b"busy"), "multipart/x-mixed-replace of text/plain"),
        (part("text/html", PAGE), "a web page, not the picture that it shows"),
        (b"\r\n" + part("image/jpeg", PAGE), "a web page, not the picture that it shows"),
        (PAGE, "a web page, not the picture that it shows"),
        (b"--b\n\nbusy", "multipart/x-mixed-replace"),
    ],
    ids=["PNG", "text", "page", "page called a picture", "page alone", "without a kind"],
)
def test_parts_without_a_jpeg_are_refused_by_their_name(
    body: bytes, found: str, then: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "SILENCE_S", 0.5)
    with (
        server(answer(PARTS, body), then=body if then else None) as address,
        pytest.raises(RuntimeInputError, match=f"answers with {found}; expected JPEGs"),
    ):
        first(address, 1)


def test_parts_without_a_jpeg_before_the_first_one_are_passed_over() -> None:
    with server(answer(PARTS, part("text/html", PAGE) + STREAM)) as address:
        assert first(address, 9) == PICTURES


def test_a_picture_above_the_limit_is_called_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "larger than 12 MB, the most that is read of a frame"
    small = picture(3, "BMP")
    monkeypatch.setattr(network, "MAX_FRAME_BYTES", len(small))
    with server(answer("image/bmp", small), answer("image/bmp", small + b"x")) as address:
        found = first(address, 2, fps=50.0)
    assert found[0] == small
    assert isinstance(found[1], ImageError)
    assert said in str(found[1])


SECRETS = ("hunter2", "hunter3", "hunter4")


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: http://u:hunter4@h/x\r\n\r\n", "answers 302 .* not followed"),
        (b"HTTP/1.1 308 Found\r\nLocation: http://[u:hunter4@h/x\r\n\r\n", "answers 308 .* not followed"),
        (b"HTTP/1.1 302 Found\r\nLocation: u%3Ahunter4%40h\r\n\r\n", "answers 302 .* not followed"),
        (b"HTTP/1.1 302 Found\r\nLocation: file://h/?hunter4\r\n\r\n", "file://h/.…' is not allowed"),
        (b"HTTP/1.1 403 no hunter2, hunter3\r\n\r\n", "answers 403 no …, …; check the address and the pass"),
        (b"HTTP/1.1 500 at http://u:hunter4@h/x\r\n\r\n", "answers 500 at http://…@h/x; check"),
        (b"GET /?token=hunter2 HTTP\r\n\r\n", "cannot be read"),
        (b"HTTP/1.1 hunter2 x hunter3\r\n\r\n", "cannot be read"),
    ],
)
def test_what_a_server_says_is_shown_without_secrets(raw: bytes, said: str) -> None:
    with (
        server(raw) as address,
        pytest.raises(RuntimeInputError, match=said) as error,
    ):
        first(address.replace("//", "//me:hunter3@") + "?token=hunter2&x=1", 1)
    assert not [word for word in SECRETS if word in str(error.value)]


@pytest.mark.parametrize("kind", ["application/octet-stream", "image/jpeg", "video/x-motion-jpeg", None])
def test_a_stream_that_ended_after_one_picture_goes_on_as_a_stream(kind: str | None) -> None:
    short, endless = answer(kind, PICTURES[0]), answer(kind, PICTURES[1] + PICTURES[2])
    with server(short, endless, then=PICTURES[0]) as address:
        assert first(address, 5, fps=None) == [*PICTURES, PICTURES[0], PICTURES[0]]


@pytest.mark.parametrize("length", [True, False])
def test_a_preview_behind_a_snapshot_makes_no_stream(length: bool) -> None:
    body = PICTURES[0] + SMALL
    with server(answer("image/jpeg", body, length=len(body) if length else None)) as address:
        found = first(address, 3, fps=50.0)
    assert len(found) == 3
    assert all(isinstance(one, bytes) and one.startswith(PICTURES[0]) for one in found)


def test_a_snapshot_that_fails_later_is_a_damaged_frame() -> None:
    good, empty, page = (answer("image/jpeg", body) for body in (PICTURES[0], b"", PAGE))
    with server(good, empty, page, good) as address:
        found = first(address, 4, fps=50.0)
    assert [isinstance(one, ImageError) for one in found] == [False, True, True, False]
    assert "a web page" in str(found[2])


CUT = PICTURES[0][:-200]
BROKEN_OFF = (
    ("multipart/x-mixed-replace; boundary=b", STREAM[:-200], 2),
    ("multipart/x-mixed-replace; boundary=b", STREAM[: -len(PICTURES[2]) + 30], 2),
    ("image/jpeg", b"".join(PICTURES)[:-200], 2),
    ("application/octet-stream", b"".join(PICTURES)[:-200], 2),
    (None, STREAM[:-200], 2),
    ("text/plain", b"".join(PICTURES)[:-5], 2),
    ("application/octet-stream", PICTURES[0][:-200], 0),
    (None, STREAM[: len(PICTURES[0]) - 200], 0),
)


@pytest.mark.parametrize(("kind", "body", "whole"), BROKEN_OFF)
def test_a_stream_that_ends_within_a_picture_broke_off(kind: str | None, body: bytes, whole: int) -> None:
    with server(answer(kind, body)) as address:
        frames = sources.open_source(address, None).frames(threading.Event())
        assert [next(frames) for _ in range(whole)] == PICTURES[:whole]
        assert isinstance(next(frames), ImageError)
        with pytest.raises(RuntimeInputError, match="broke off in the middle of a picture"):
            next(frames)


@pytest.mark.parametrize(
    "body",
    [
        STREAM,
        STREAM.rstrip(b"\r\n"),
        STREAM + b"--b--\r\n",
        STREAM + b"--b\r\nContent-Type: image/jpeg\r\n\r\n",
    ],
    ids=["after a part", "after a picture", "with an end", "before a picture"],
)
def test_a_stream_that_ends_between_two_pictures_has_ended(body: bytes) -> None:
    with server(answer("multipart/x-mixed-replace; boundary=b", body)) as address:
        assert first(address, 9) == PICTURES


def test_a_snapshot_that_lacks_its_end_is_left_to_its_decoder() -> None:
    for length in (None, len(PICTURES[0]) - 2):
        with server(answer("image/jpeg", PICTURES[0][:-2], length=length)) as address:
            assert first(address, 2, fps=50.0) == [PICTURES[0][:-2]] * 2


def test_the_exit_codes_of_streams(bundle_folder: Path) -> None:
    for kind, body, code, said in (
        (None, STREAM, 0, "the source ended"),
        ("image/jpeg", b"".join(PICTURES)[:-200], 1, "broke off in the middle of a picture"),
        ("image/jpeg", PAGE, 2, "a web page, not the picture that it shows"),
    ):
        with server(answer(kind, body)) as address:
            done = compare("--live", "scaled", "--source", address, bundle=bundle_folder)
        assert done.returncode == code, done.stderr
        assert said in done.stdout + done.stderr


# Attachments: a phone's JPEG with further pictures behind it


def with_attachments(
    main: bytes,
    others: Sequence[bytes],
    *,
    order: str = ">",
    padding: int = 0,
    shift: int = 0,
    extra: Sequence[int] = (),
) -> bytes:
    """A file of the Multi-Picture Format. ``padding``: bytes between the pictures; ``shift``: by how much the
    index is wrong; ``extra``: further offsets in it."""
    count = 1 + len(others) + len(extra)
    fields = ((0xB000, 7, 4, b"0100"), (0xB001, 4, 1, struct.pack(f"{order}I", count)))
    directory = struct.pack(f"{order}H", 3)
    for tag, kind, number, value in fields:
        directory += struct.pack(f"{order}HHI", tag, kind, number) + value
    directory += struct.pack(f"{order}HHII", 0xB002, 7, 16 * count, 8 + 2 + 3 * 12 + 4) + bytes(4)
    index_bytes = 8 + len(directory) + 16 * count
    base = 2 + 4 + len(attachments.NAME)  # of the offsets: behind SOI, marker, length and name
    length = 2 + len(attachments.NAME) + index_bytes
    begin = len(main) + 2 + length + padding - base  # of the first attachment
    entries = struct.pack(f"{order}IIIHH", 0x20030000, len(main), 0, 0, 0)
    for other in others:
        entries += struct.pack(f"{order}IIIHH", 0x00010001, len(other), begin + shift, 0, 0)
        begin += len(other) + padding
    for offset in extra:
        entries += struct.pack(f"{order}IIIHH", 0, 1000, offset, 0, 0)
    magic = {">": b"MM\0*", "<": b"II*\0"}[order] + struct.pack(f"{order}I", 8)
    segment = b"\xff\xe2" + struct.pack(">H", length) + attachments.NAME + magic + directory + entries
    return main[:2] + segment + main[2:] + b"".join(bytes(padding) + other for other in others)


SMALL, SMALLER = picture(11, size=(48, 32)), picture(12, size=(24, 16))
PHONES = {
    "big-endian": with_attachments(PICTURES[0], [SMALL]),
    "little-endian": with_attachments(PICTURES[0], [SMALL], order="<"),
    "two": with_attachments(PICTURES[0], [SMALL, SMALLER]),
    "padding": with_attachments(PICTURES[0], [SMALL, SMALLER], padding=100),
    "of another size": with_attachments(PICTURES[0], [picture(13, size=(400, 300))]),
    "one that is not there": with_attachments(PICTURES[0], [SMALL], extra=[4_000_000_000]),
    "with attributes of its own": with_attachments(
        PICTURES[0], [with_attachments(SMALL, []).replace(b"\xb0\x02", b"\xb1\x01")]
    ),
}


def split(data: bytes, piece: int) -> list[object]:
    splitter, found = mjpeg.Splitter(), []
    for at in range(0, len(data), piece):
        found += splitter.feed(data[at : at + piece])
    return [*found, *splitter.end()]


@pytest.mark.parametrize("piece", [1, 7, 1000, 1_000_000])
@pytest.mark.parametrize("name", PHONES)
def test_an_attachment_is_no_frame(name: str, piece: int) -> None:
    phone = PHONES[name]
    for stream, count in ((phone, 1), (PICTURES[1] + phone, 2), (phone * 3, 3), (phone + PICTURES[2], 2)):
        found = split(stream, piece)
        assert len(found) == count
        assert all(isinstance(one, bytes) for one in found)
        assert not {SMALL, SMALLER} & set(found)


def test_pillow_sees_the_same_attachments() -> None:
    """The files made here are what others call the Multi-Picture Format."""
    with Image.open(io.BytesIO(PHONES["two"])) as image:
        assert (image.format, getattr(image, "n_frames", 1)) == ("MPO", 3)
    file = io.BytesIO()
    Image.open(io.BytesIO(PICTURES[0])).save(
        file, "MPO", save_all=True, append_images=[Image.open(io.BytesIO(SMALL))]
    )
    assert file.getvalue().count(b"\xff\xd8\xff") >= 2
    assert len(split(file.getvalue(), 1000)) == 1


@pytest.mark.parametrize(
    "data",
    [
        with_attachments(PICTURES[0], [SMALL], shift=1),
        with_attachments(PICTURES[0], [SMALL], shift=-30),
        with_attachments(PICTURES[0], []) + SMALL,
        PICTURES[0] + SMALL,
        # the attachment was cut off, and the next one's main picture begins where it was
        with_attachments(PICTURES[0], [SMALL])[: -len(SMALL)] + SMALL[:2] + with_attachments(SMALL, [])[2:],
        PHONES["two"].replace(b"MM\0*", b"XX\0*"),
        PHONES["big-endian"].replace(b"\xb0\x02", b"\xb0\x03"),
    ],
    ids=["one off", "too early", "not listed", "no index", "cut off", "no byte order", "another tag"],
)
def test_what_no_index_names_is_a_frame(data: bytes) -> None:
    found = split(data, 1000)
    assert len(found) > 1
    assert found[1] in (SMALL, with_attachments(SMALL, []))


@pytest.mark.parametrize("cut", range(4, 60, 5))
def test_an_index_that_is_cut_names_nothing_or_what_is_there(cut: int) -> None:
    segment = PHONES["two"][6 : 6 + cut]
    assert all(start >= 0 for start in attachments.starts(segment, 6))
    assert attachments.starts(b"", 6) == attachments.starts(b"MPF\0", 6) == []


def test_a_phones_pictures_in_a_file_and_from_a_server(bundle_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "clip.mjpeg").write_bytes(PHONES["two"] * 4)
    done = compare(
        "--live", "scaled", "--source", tmp_path / "clip.mjpeg", "--fps", "5", bundle=bundle_folder
    )
    assert done.returncode == 0, done.stderr
    assert "4 received" in done.stdout
    for kind in ("image/jpeg", "application/octet-stream"):
        with server(answer(kind, PHONES["two"])) as address:
            assert len(first(address, 3, fps=50.0)) == 3  # snapshots, again and again


def test_many_indices_cost_little() -> None:
    """A hostile picture of a hundred thousand segments."""
    segment = PHONES["big-endian"][2 : PHONES["big-endian"].index(b"MPF") + 200]
    length = 2 + int.from_bytes(segment[2:4], "big")
    hostile = PICTURES[0][:2] + segment[:length] * 20_000 + PICTURES[0][2:]
    begun_s = time.process_time()
    assert split(hostile * 2, 100_000) == [hostile] * 2
    assert time.process_time() - begun_s < 20
