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

from vgg_runtime.bundle import picture_files
from vgg_runtime.errors import ImageError, RuntimeInputError
from vgg_runtime.text import printable

from .frames import CHUNK_BYTES, HIDDEN, Item, Program, Source, hidden, pictures_in, ticks
from .mjpeg import MAX_FRAME_BYTES, Splitter

# schemes, one within the other as in ffmpeg:async:rtsp://…; host; path; what is asked
_PARTS = re.compile(r"((?:[a-zA-Z][\w+.-]*:)*//)?([^/?#]*)([^?#]*)(.*)", re.DOTALL)
FFMPEG = "ffmpeg:"  # in front of anything that ffmpeg reads
SILENCE_S = 10.0  # an address that sends nothing for longer counts as gone
SNAPSHOTS_PER_S = 1.0
WITHOUT_BYTES = 100_000  # an answer with so much before its first JPEG holds none
BACKOFF_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # between two attempts, the last one again and again


def open_address(address: str, fps: float | None, *, reconnect: bool) -> Source:
    """Open a stream. ``fps``: how often a snapshot is asked for.

    Raises:
        RuntimeInputError: it is no address, or needs ffmpeg, which is not installed.
    """
    scheme = address.partition(":")[0].lower()
    try:
        _ = urllib.parse.urlsplit(address.removeprefix(FFMPEG)).port
    except ValueError as error:
        # the error may hold a part of a password
        why = "its port is none" if "port" in str(error).lower() else "its host is none"
        raise RuntimeInputError(
            f"the address of --source, {without_secrets(address)}, cannot be read ({why}); a / ? # or @ in a"
            " password is written as %2F %3F %23 %40"
        ) from error
    source: Source = Http(address, fps) if scheme in ("http", "https") else _through_ffmpeg(address, fps)
    return Reconnecting(source) if reconnect else source


def without_secrets(address: str) -> str:
    """An address as it may be shown: without user, password and what comes behind a question mark or hash.
    Of what is meant as one but is none, such as a password with a slash in it, only the beginning is shown.
    """
    parts = _PARTS.fullmatch(address)
    assert parts  # it fits any text
    scheme, host, path, asked = (part or "" for part in parts.groups())
    behind = path + asked
    # user:password@host, where the password ends the host or there is no scheme with two slashes
    if "@" in behind and "@" not in host and (":" in host or (not scheme and ":" in path)):
        return printable(f"{scheme}{HIDDEN}", 80)
    if not scheme and ":" in host and "@" in host:
        host = f"{HIDDEN}@{host.rpartition('@')[2]}"
    shown = re.sub(r"//[^/]*@", f"//{HIDDEN}@", f"{scheme}{host}{path}")
    return printable(shown + (f"{asked[0]}{HIDDEN}" if asked else ""), 80)


def _secrets(address: str) -> tuple[str, ...]:
    """What must not be shown of an address, the longest first, as it is written and as it is meant."""
    found = urllib.parse.urlsplit(address[max(0, address.find("//")) :])
    parts = {address, found.netloc.rpartition("@")[0], found.password or "", found.query}
    parts |= {urllib.parse.unquote(part) for part in parts}
    return tuple(sorted(filter(None, parts), key=len, reverse=True))


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
    return Program(without_secrets(address), (*command, *writing), _secrets(address), SILENCE_S)


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
        self._secrets = _secrets(address)
        self._fps = fps

    def frames(self, stopped: threading.Event) -> Iterator[Item]:
        """Each picture that arrives."""
        try:
            yield from self._read(stopped)
        except urllib.error.HTTPError as error:
            raise RuntimeInputError(
                f"{self.name} answers {error.code} {printable(str(error.reason))}; check the address"
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
                yield from pictures_in(_pieces(response, stopped), cut_off=f"{self.name} broke off")
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
            yield head + b"".join(_at_most(MAX_FRAME_BYTES - len(head), pieces))
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
                if is_late or picture_files.foreign(head):
                    raise self._no_picture(kind, head)
        except TimeoutError as error:
            if splitter.has_begun or not head:
                raise
            raise self._no_picture(kind, head) from error
        if not stopped.is_set():
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
        found = picture_files.foreign(content) or printable(kind, 60)
        return NoPicture(
            f"{self.name} answers with {found}; expected JPEGs one after the other, as MJPEG cameras send"
            " them (multipart/x-mixed-replace), or a picture"
        )

    def _connect(self) -> Any:
        # A camera is in the local network, so the proxy of the environment is not used.
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        if any(self._login):
            passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
            passwords.add_password(None, self._address, *self._login)
            handlers.append(urllib.request.HTTPDigestAuthHandler(passwords))
            handlers.append(urllib.request.HTTPBasicAuthHandler(passwords))
        return urllib.request.build_opener(*handlers).open(self._address, timeout=SILENCE_S)


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
