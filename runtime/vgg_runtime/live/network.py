"""Streams from addresses: MJPEG and JPEG snapshots over HTTP, and whatever ffmpeg reads, RTSP first of all.

Passwords and tokens in an address are used and never shown.
"""

import http.client
import itertools
import re
import shutil
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Generator, Iterator
from typing import Any

from vgg_runtime import addresses
from vgg_runtime.addresses import without_secrets
from vgg_runtime.bundle import picture_files
from vgg_runtime.errors import ImageError, RuntimeInputError
from vgg_runtime.text import printable

from .frames import CHUNK_BYTES, Item, Program, Source, hidden, ticks
from .mjpeg import MAX_FRAME_BYTES, TOO_LARGE, Splitter

FFMPEG = "ffmpeg:"  # in front of anything that ffmpeg reads
SILENCE_S = 10.0  # an address that sends nothing for longer counts as gone
SNAPSHOTS_PER_S = 1.0
WITHOUT_BYTES = 100_000  # an answer with so much before its first JPEG holds none
# what begins an answer of several parts: the head of the first one
_PART = re.compile(rb"\s*--[^\r\n]*\r?\n((?:[^\r\n]+\r?\n)*)\r?\n")
_KIND = re.compile(rb"(?i)(?:^|\n)content-type:[ \t]*([\w.+/-]+)")
BACKOFF_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # between two attempts, the last one again and again


def open_address(address: str, fps: float | None, *, reconnect: bool) -> Source:
    """Open a stream. ``fps``: how often a snapshot is asked for.

    Raises:
        RuntimeInputError: it is no address, or needs ffmpeg, which is not installed.
    """
    scheme = address.partition(":")[0].lower()
    try:
        found = urllib.parse.urlsplit(address.removeprefix(FFMPEG))
        _ = found.port
        if "%" in found.netloc.rpartition("@")[2].partition("[")[0]:
            raise ValueError("a host whose : and @ are encoded; they are decoded when it is asked")
    except ValueError as error:
        # the error may hold a part of a password
        why = "its port is none" if "port" in str(error).lower() else "its host is none"
        raise RuntimeInputError(
            f"the address of --source, {without_secrets(address)}, cannot be read ({why}); a / ? # or @ in a"
            " password is written as %2F %3F %23 %40"
        ) from error
    source: Source = Http(address, fps) if scheme in ("http", "https") else _through_ffmpeg(address, fps)
    return Reconnecting(source) if reconnect else source


def _through_ffmpeg(address: str, fps: float | None) -> Program:
    address = address.removeprefix(FFMPEG)
    if fps is not None:
        raise RuntimeInputError(
            f"--fps is for a folder, a file, a camera or snapshots; {without_secrets(address)} sends at its"
            " own pace"
        )
    if not shutil.which("ffmpeg"):
        raise RuntimeInputError(f"reading {without_secrets(address)} needs ffmpeg: sudo apt install ffmpeg")
    transport = ("-rtsp_transport", "tcp") if address.lower().startswith("rtsp") else ()
    command = ("ffmpeg", "-nostdin", "-loglevel", "error", *transport, "-i", address)
    writing = ("-an", "-c:v", "mjpeg", "-q:v", "3", "-f", "mjpeg", "-")
    return Program(without_secrets(address), (*command, *writing), addresses.secrets(address), SILENCE_S)


class NoPicture(RuntimeInputError):  # noqa: N818  it is an answer, not a fault
    """An answer holds no picture."""


class Http:
    """A server that sends one JPEG after the other, as network cameras do, or one picture at a time.

    An answer of several parts is a stream, and one that calls itself an image and says its length is a
    snapshot. What any other is its content decides: it is a snapshot where it ends after one picture, and
    asked for again.
    """

    def __init__(self, address: str, fps: float | None) -> None:
        self.name = without_secrets(address)
        found = urllib.parse.urlsplit(address)
        netloc = found.netloc.rpartition("@")[2]
        self._address = urllib.parse.urlunsplit(found._replace(scheme=found.scheme.lower(), netloc=netloc))
        self._login = (urllib.parse.unquote(found.username or ""), urllib.parse.unquote(found.password or ""))
        self._secrets = addresses.secrets(address)
        self._fps = fps

    def frames(self, stopped: threading.Event) -> Iterator[Item]:
        """Each picture that arrives."""
        try:
            yield from self._read(stopped)
        except urllib.error.HTTPError as error:
            reason = hidden(str(error.reason), self._secrets)
            raise RuntimeInputError(
                f"{self.name} answers {error.code} {reason}; check the address"
                + (" and the password" if error.code in (401, 403) else "")
            ) from error
        except TimeoutError as error:
            raise RuntimeInputError(
                f"{self.name} has sent nothing for {SILENCE_S:.0f} s; is the camera switched on?"
            ) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = hidden(str(getattr(error, "reason", error)), self._secrets) or type(error).__name__
            raise RuntimeInputError(f"{self.name} cannot be read ({reason}); check the address") from error

    def close(self) -> None:
        """The connection ends with the thread that reads it."""

    def _read(self, stopped: threading.Event) -> Iterator[Item]:
        if (yield from self._answer(stopped, is_first=True)) != 1:
            return
        for _ in ticks(self._fps or SNAPSHOTS_PER_S, stopped, at_once=False):
            if (yield from self._answer(stopped, is_first=False)) != 1:
                return  # it was a stream that had broken off

    def _answer(self, stopped: threading.Event, *, is_first: bool) -> Generator[Item, None, int]:
        """The pictures of one answer; returns how many there were: one is a snapshot, and what is none counts
        as one, unless it is the first."""
        with self._connect() as response:
            kind = response.headers.get_content_type()
            if kind.startswith("multipart/"):
                self._refuse_pace()
                yield from self._items(_pieces(response, stopped), kind, stopped, may_lack_end=False)
                return 0
            try:
                return (yield from self._pictures(response, kind, stopped))
            except NoPicture as error:
                if is_first:
                    raise
                yield ImageError(f"a frame is damaged: {error}")
                return 1

    def _refuse_pace(self) -> None:
        if self._fps is not None:
            raise RuntimeInputError(
                f"--fps is for snapshots; {self.name} is a stream, which sends at its own pace"
            )

    def _pictures(self, response: Any, kind: str, stopped: threading.Event) -> Generator[Item, None, int]:
        """The pictures of an answer that does not call itself a stream; returns how many there were."""
        is_image = kind.startswith("image/")
        if is_image and response.length is not None and response.length <= MAX_FRAME_BYTES:
            content = response.read(MAX_FRAME_BYTES)  # whatever lies behind the picture
            if not picture_files.may_be_one(content):
                raise self._no_picture(kind, content)
            yield content
            return 1
        pieces = _pieces(response, stopped)
        head = b""
        while len(head) < picture_files.HEAD_BYTES and (piece := next(pieces, b"")):
            head += piece
        if picture_files.may_be_one(head) and picture_files.kind(head) != picture_files.JPEG:
            content = head + b"".join(_at_most(MAX_FRAME_BYTES + 1 - len(head), pieces))
            is_whole = len(content) <= MAX_FRAME_BYTES
            yield content if is_whole else ImageError(f"a frame cannot be used: {TOO_LARGE}")
            return 1
        # a snapshot may lack its end, and its decoder finds out how much is missing
        may_lack_end = is_image or response.length is not None
        items = self._items(itertools.chain([head], pieces), kind, stopped, may_lack_end=may_lack_end)
        return (yield from self._counted(items, is_image=is_image))

    def _items(
        self, pieces: Iterator[bytes], kind: str, stopped: threading.Event, *, may_lack_end: bool
    ) -> Iterator[Item]:
        """The JPEGs of an answer, and what its end left of one.

        Raises:
            NoPicture: none begins in ``WITHOUT_BYTES`` and some seconds.
            RuntimeInputError: the answer broke off.
        """
        splitter, count = Splitter(), 0
        for piece in self._until_a_picture(pieces, kind, splitter, stopped):
            for item in splitter.feed(piece):
                count += 1
                yield item
        is_broken = count > 0 or not may_lack_end
        if rest := splitter.end(broke_off=is_broken):
            yield from rest
            if is_broken and not splitter.without_ends and not stopped.is_set():
                raise RuntimeInputError(f"{self.name} broke off in the middle of a picture")

    def _until_a_picture(
        self, pieces: Iterator[bytes], kind: str, splitter: Splitter, stopped: threading.Event
    ) -> Iterator[bytes]:
        """The pieces. It raises NoPicture where no picture has begun when there should be one."""
        head, begun_s = b"", time.monotonic()
        try:
            for piece in pieces:
                yield piece
                if splitter.has_begun:
                    yield from pieces
                    return
                head += piece
                is_late = len(head) > WITHOUT_BYTES or time.monotonic() - begun_s > SILENCE_S
                if is_late or (picture_files.foreign(head) and not kind.startswith("multipart/")):
                    raise self._no_picture(kind, head)
        except TimeoutError as error:
            if splitter.has_begun or not head:
                raise
            raise self._no_picture(kind, head) from error
        # a stream that ends before its first part has sent nothing wrong
        if not stopped.is_set() and (head.strip() or not kind.startswith("multipart/")):
            raise self._no_picture(kind, head)

    def _counted(self, items: Iterator[Item], *, is_image: bool) -> Generator[Item, None, int]:
        """The items; returns how many there were. The second one of an answer that calls itself one picture
        is held until a third comes: it may be a preview behind the picture, which makes no stream."""
        count, held = 0, None
        for item in items:
            count += 1
            if count == 2 and is_image:
                held = item
                continue
            if count > 1:
                self._refuse_pace()
            if held is not None:
                yield held
                held = None
            yield item
        return 1 if held is not None else count

    def _no_picture(self, kind: str, content: bytes) -> "NoPicture":
        if part := _PART.match(content) if kind.startswith("multipart/") else None:
            named = _KIND.search(part[1])
            kind += f" of {named[1].decode('latin-1')}" if named else ""
            content = content[part.end() :]
        found = picture_files.foreign(content) or printable(kind, 100)
        return NoPicture(
            f"{self.name} answers with {found}; expected JPEGs one after the other, as MJPEG cameras send"
            " them (multipart/x-mixed-replace), or a picture"
        )

    def _connect(self) -> Any:
        # A camera is in the local network, so the proxy of the environment is not used.
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({}), _Redirects()]
        if any(self._login):
            passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
            passwords.add_password(None, self._address, *self._login)
            handlers.append(urllib.request.HTTPDigestAuthHandler(passwords))
            handlers.append(urllib.request.HTTPBasicAuthHandler(passwords))
        return urllib.request.build_opener(*handlers).open(self._address, timeout=SILENCE_S)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a server to another address, unless that one holds a user or password: these are not used by
    urllib, and would be in its errors."""

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        if addresses.holds_login(headers.get("Location") or headers.get("URI") or ""):
            reason = "and sends on to an address with a user or password, which is not followed"
            raise urllib.error.HTTPError(req.full_url, code, reason, headers, fp)
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _at_most(count: int, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Pieces until they have so many bytes or more."""
    for piece in pieces:
        yield piece
        if (count := count - len(piece)) <= 0:
            return


def _pieces(response: Any, stopped: threading.Event) -> Iterator[bytes]:
    while not stopped.is_set() and (piece := response.read1(CHUNK_BYTES)):
        yield piece


class Reconnecting:
    """A source that is asked again whenever it ends or breaks off, after a while that grows to half a minute.
    ``reconnected``: how often that was."""

    def __init__(self, source: Source) -> None:
        self.name = source.name
        self.reconnected = 0
        self.last_failure: str | None = None
        self._source = source

    def frames(self, stopped: threading.Event) -> Iterator[Item]:
        """Each frame, until ``stopped`` is set."""
        failed = 0
        while not stopped.is_set():
            try:
                for item in self._source.frames(stopped):
                    failed = 0
                    yield item
                self.last_failure = f"{self.name} ended the stream"
            except RuntimeInputError as error:
                self.last_failure = str(error)
            if stopped.wait(BACKOFF_S[min(failed, len(BACKOFF_S) - 1)]):
                return
            failed += 1
            self.reconnected += 1

    def close(self) -> None:
        """Close the source."""
        self._source.close()
