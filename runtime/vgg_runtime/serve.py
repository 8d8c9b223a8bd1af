"""The page on the device: an ASGI application, which is a plain function, run by uvicorn (``requirements-web.txt``).

One inference at a time, a short queue, 503 beyond it. A picture stays in memory, is decoded in a process of its own, and each
variant answers in one of its own, so that whatever dies is a card and not the end of the page.
"""

import asyncio
import contextlib
import dataclasses
import json
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from . import measure, page
from .errors import ImageError, RuntimeInputError
from .manifest import Manifest, Variant
from .preprocess import FORMATS

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_UPLOAD_BYTES = 15_000_000
DRAINED_BYTES = 60_000_000  # of a refused upload, read and thrown away
BODY_SECONDS = 15.0  # for a whole upload, however slowly it trickles
DECODE_SECONDS = 20.0
QUEUE = 8  # pictures being read, waiting or running
BUDGET_S = 1.0  # of timed runs per variant and picture
MAX_RUNS = 20
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"BM", b"GIF8", b"II*\x00", b"MM\x00*", *(b"P%d" % k for k in range(1, 7)))


class Refused(Exception):  # noqa: N818  it is an answer, not a fault
    """A request that gets an HTTP status and one sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@dataclasses.dataclass
class Server:
    """A bundle and the state of its page. ``hosts``: names under which the page may be asked for."""

    folder: Path
    manifest: Manifest
    labels: tuple[str, ...]
    threads: int
    hosts: tuple[str, ...]

    def __post_init__(self) -> None:
        self.busy = asyncio.Lock()
        self.waiting = 0
        self.content, self.policy = page.live()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        if scope["type"] != "http":
            return  # uvicorn's lifespan messages; there is nothing to start or stop
        try:
            check_origin(scope, self.hosts)
            await self._route(scope, receive, send)
        except Refused as refused:
            await _answer(send, refused.status, {"error": str(refused)})
        except RuntimeInputError as error:
            await _answer(send, 422, {"error": str(error)})

    async def _route(self, scope: Message, receive: Receive, send: Send) -> None:
        match (scope["method"], scope["path"]):
            case ("GET" | "HEAD", "/"):
                await _send(send, 200, self.content, "text/html; charset=utf-8", self.policy)
            case ("GET" | "HEAD", "/api/health"):
                await _answer(send, 200, {"status": "ok", "waiting": self.waiting})
            case ("GET" | "HEAD", "/api/bundle"):
                await _answer(send, 200, self._bundle())
            case ("POST", "/api/compare"):
                await self._compare(scope, receive, send)
            case (_, "/" | "/api/health" | "/api/bundle" | "/api/compare"):
                raise Refused(405, f"{scope['method']} is not possible here")
            case _:
                raise Refused(404, f"there is nothing at {scope['path'][:80]}; the page is at /")

    def _bundle(self) -> Message:
        """What can be compared, and the device's state now."""
        result = measure.skeleton(self.folder, self.manifest, self.labels, [], measure.Options(self.threads))
        variants = [_described(v) for v in self.manifest.variants]
        return {k: result[k] for k in ("schema", "device", "bundle")} | {
            "variants": variants,
            "max_upload_bytes": MAX_UPLOAD_BYTES,
            "formats": list(FORMATS),
        }

    async def _compare(self, scope: Message, receive: Receive, send: Send) -> None:
        if self.waiting >= QUEUE:
            raise Refused(503, f"{self.waiting} pictures are waiting already; try again in a minute")
        self.waiting += 1
        try:
            variants = self._chosen(scope)
            chunks = _chunks(receive)
            try:
                body = await read_body(scope, chunks)
            except Refused as refused:
                if refused.status in (413, 415):
                    await drain(chunks)
                raise
            async with self.busy:
                pictures = await asyncio.to_thread(decode, body, variants)
                del body
                await self._stream(variants, pictures, receive, send)
        finally:
            self.waiting -= 1

    def _chosen(self, scope: Message) -> list[Variant]:
        from urllib.parse import parse_qs

        names = parse_qs(scope["query_string"].decode("latin-1")).get("variants")
        if not names:
            return list(self.manifest.variants)
        return self.manifest.chosen(names[0])

    async def _stream(self, variants: Sequence[Variant], pictures: measure.Pictures, receive: Receive, send: Send) -> None:
        """One JSON line per event: start, running, row (with all rows so far; a variant's comes when it has answered, and again
        when it has been timed), end."""
        options = measure.Options(self.threads, BUDGET_S, MAX_RUNS)
        result = measure.skeleton(self.folder, self.manifest, self.labels, [measure.Shown(Path("upload"))], options)
        await send({"type": "http.response.start", "status": 200, "headers": _headers("application/x-ndjson")})
        await _line(send, {"event": "start", "result": result})
        gone = asyncio.create_task(_disconnected(receive))
        try:
            for variant in variants:
                await _line(send, {"event": "running", "variant": variant.id})
                row = measure.empty_row(variant)
                steps = measure.events(self.folder, self.manifest, variant, pictures, options, row)
                result["variants"].append(row)
                with contextlib.closing(steps):
                    while (event := await asyncio.to_thread(next, steps, None)) and not gone.done():
                        if event["event"] == "predicted":
                            await self._row(send, result)
                if gone.done():
                    return  # nobody is looking any more: the next picture's turn
                await self._row(send, result)
            await _line(send, {"event": "end", "result": result})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            gone.cancel()

    async def _row(self, send: Send, result: Message) -> None:
        measure.finish(result, self.manifest, self.labels, [measure.Shown(Path("upload"))])
        await _line(send, {"event": "row", "result": result})


def _described(v: Variant) -> Message:
    return {
        "variant": v.id,
        "title": v.title,
        "description": v.description,
        "steps": list(v.steps),
        "size_bytes": v.model.bytes,
        "built": v.evaluation,
    }


def check_origin(scope: Message, hosts: Sequence[str]) -> None:
    """Refuse names that are not ours (DNS rebinding) and other sites' pages.

    Raises:
        Refused: 400 for a wrong Host, 403 for a foreign Origin.
    """
    headers = dict(scope["headers"])
    host = headers.get(b"host", b"").decode("latin-1")
    if _name_of(host).lower() not in {name.lower() for name in hosts}:
        raise Refused(400, f"this server does not answer to {host[:80]!r}; use {hosts[0]}")
    origin = headers.get(b"origin")
    if origin is not None and origin.decode("latin-1") not in (f"http://{host}", f"https://{host}"):
        raise Refused(403, "another site's page may not use this server")


def _name_of(host: str) -> str:
    """The name in a Host header, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host


async def read_body(scope: Message, chunks: AsyncIterator[bytes]) -> bytes:
    """The uploaded file, in memory.

    Raises:
        Refused: 411, 413, 415, 408 or 400, as soon as it is known.
    """
    length = dict(scope["headers"]).get(b"content-length")
    if length is not None and (not length.isdigit() or int(length) > MAX_UPLOAD_BYTES):
        raise Refused(413, f"the file has {length.decode('latin-1')[:20]} bytes; at most {MAX_UPLOAD_BYTES} are taken")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in chunks:
                body += chunk
                if len(body) > MAX_UPLOAD_BYTES:
                    raise Refused(413, f"the file has more than {MAX_UPLOAD_BYTES} bytes")
                if len(body) >= 8 and not bytes(body[:8]).startswith(_SIGNATURES):
                    raise Refused(415, f"this is not a picture; taken are {', '.join(FORMATS)}")
    except TimeoutError as error:
        raise Refused(408, f"the upload took more than {BODY_SECONDS:g} seconds") from error
    if len(body) < 8:
        raise Refused(415, f"a picture is needed as the body of the request; taken are {', '.join(FORMATS)}")
    return bytes(body)


async def drain(chunks: AsyncIterator[bytes]) -> None:
    """Let a client finish sending what is not wanted, within bounds: one that is cut off in the middle never reads the answer."""
    left = DRAINED_BYTES
    with contextlib.suppress(TimeoutError, Refused):
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in chunks:
                left -= len(chunk)
                if left < 0:
                    return


async def _chunks(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "the upload was broken off")
        yield message.get("body", b"")
        more = message.get("more_body", False)


async def _disconnected(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def decode(body: bytes, variants: Sequence[Variant]) -> measure.Pictures:
    """The picture as one tensor per input size, decoded in a process of its own.

    Raises:
        ImageError: what is wrong with the picture.
    """
    sizes = {v.preprocessing.crop_px: v.preprocessing for v in variants}
    request = json.dumps({"bytes": len(body), "preprocessings": [p.to_json() for p in sizes.values()]}).encode()
    child = measure.start("vgg_runtime.decode", subprocess.DEVNULL)
    try:
        output, _ = child.communicate(request + b"\n" + body, timeout=DECODE_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ImageError(f"the picture could not be decoded within {DECODE_SECONDS:g} seconds; make it smaller first") from error
    finally:
        child.kill()
        child.wait()
    line, _, content = output.partition(b"\n")
    if child.returncode or not line:
        raise ImageError("the picture cannot be decoded: it is damaged, or too large for this device's memory")
    answer = json.loads(line)
    if "error" in answer:
        raise ImageError(answer["error"])
    tensors, start = {}, 0
    for px, count in zip(sizes, answer["tensor_bytes"], strict=True):
        tensors[px] = content[start : start + count]
        start += count
    return measure.Pictures(tensors=tensors)


async def _line(send: Send, event: Message) -> None:
    body = json.dumps(event, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _answer(send: Send, status: int, data: Message) -> None:
    await _send(send, status, json.dumps(data, ensure_ascii=False).encode() + b"\n", "application/json")


async def _send(send: Send, status: int, body: bytes, kind: str, policy: str | None = None) -> None:
    headers = _headers(kind, policy)
    if status in (408, 413, 415, 503):
        headers.append((b"connection", b"close"))  # the rest of the upload is not read
    if status == 503:
        headers.append((b"retry-after", b"60"))
    with contextlib.suppress(OSError):
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _headers(kind: str, policy: str | None = None) -> list[tuple[bytes, bytes]]:
    return [
        (b"content-type", kind.encode()),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"content-security-policy", (policy or "default-src 'none'; frame-ancestors 'none'").encode()),
    ]


def run(server: Callable[[tuple[str, ...]], Server], host: str, port: int, report: Callable[[str], None]) -> None:
    """Serve until interrupted; ``server`` makes the application for the names under which it may be asked.

    Raises:
        RuntimeInputError: uvicorn is not installed, or the port is taken.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise RuntimeInputError("the page needs uvicorn: pip install -r requirements-web.txt (beside this compare.py)") from error
    names = (*LOOPBACK, *own_names(host)) if host not in LOOPBACK else LOOPBACK
    try:
        listening = listen(host, port)
    except OSError as error:
        raise RuntimeInputError(f"cannot listen on {host} port {port} ({error.strerror}); choose another --port") from error
    shown = next((name for name in names if name not in LOOPBACK), "localhost")
    report(f"The page is at http://{shown}:{listening.getsockname()[1]}/ (Ctrl-C ends it)")
    if host not in LOOPBACK:
        report("Everybody in this network can open it, because of --host.")
    config = uvicorn.Config(
        server(names),
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_keep_alive=10,
        limit_concurrency=64,
        ws="none",
        h11_max_incomplete_event_size=16_384,
        server_header=False,
        timeout_graceful_shutdown=2,
    )
    uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> "Any":
    """A listening socket."""
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((host, port))
    listening.listen(64)
    return listening


def own_names(host: str) -> tuple[str, ...]:
    """Names under which others reach this machine when the page is open to the network."""
    import socket

    name = socket.gethostname()
    names = [name, f"{name}.local"]
    if host not in ("0.0.0.0", "::"):
        return (host, *names)
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # no packet is sent: it only asks which address this machine would use
        names.insert(0, probe.getsockname()[0])
    return tuple(names)
