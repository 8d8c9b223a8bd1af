"""Serves the web page on the device: an ASGI application, run by uvicorn (``requirements-web.txt``).

One inference runs at a time; a few pictures may wait, and more are refused with status 503. A picture stays
in memory. It is decoded in a process of its own, and each variant runs in a process of its own, so that a
crash is shown on a card and the page goes on.
"""

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from pathlib import Path

from vgg_runtime import console
from vgg_runtime.bundle import builds
from vgg_runtime.bundle.manifest import Variant
from vgg_runtime.bundle.opened import Bundle
from vgg_runtime.bundle.preprocess import FORMATS
from vgg_runtime.errors import ImageError, RuntimeInputError
from vgg_runtime.measure import measure
from vgg_runtime.measure.process import Child, Event
from vgg_runtime.measure.running import Options, Pictures, Running
from vgg_runtime.report import page
from vgg_runtime.result import Row

from . import hosts, http_server, uploads
from .uploads import Message, Receive, Refused

Send = Callable[[Message], Awaitable[None]]

DECODE_SECONDS = 20.0
QUEUE = 8  # pictures that wait or run
BUDGET_S = 1.0  # seconds of timed runs per variant and picture
MAX_RUNS = 20
HEADER_SECONDS = 10.0  # within which a request's header must arrive
STOPPED = "the server was stopped"
UPLOADED = (measure.Shown(Path("upload")),)
LOOPBACK = ("localhost", "127.0.0.1", "::1")
ROUTES = {"/": "GET, HEAD", "/api/health": "GET, HEAD", "/api/bundle": "GET, HEAD", "/api/compare": "POST"}


@dataclasses.dataclass
class Server:
    """A bundle and the state of its page. ``hosts``: the host names that requests may use; ``memory``: as in
    running.Options."""

    bundle: Bundle
    threads: int
    hosts: tuple[str, ...]
    memory: str = builds.AUTO

    def __post_init__(self) -> None:
        self.busy = asyncio.Lock()
        self.intake = uploads.Intake()
        self.work: set[asyncio.Task[None]] = set()  # one per picture that waits or runs
        self.content, self.policy = page.live()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        if scope["type"] != "http":
            return  # a lifespan message of uvicorn; there is nothing to start or stop
        try:
            check_origin(scope, self.hosts)
            await self._route(scope, receive, send)
        except Refused as refused:
            await _answer(send, refused.status, {"error": str(refused)}, refused.headers)
        except RuntimeInputError as error:
            await _answer(send, 422, {"error": str(error)})

    def stop(self) -> None:
        """Cancel the running and the waiting comparisons; each gets an answer."""
        for work in self.work:
            work.cancel()

    async def _route(self, scope: Message, receive: Receive, send: Send) -> None:
        match (scope["method"], scope["path"]):
            case ("GET" | "HEAD", "/"):
                await _send(send, 200, self.content, _headers("text/html; charset=utf-8", self.policy))
            case ("GET" | "HEAD", "/api/health"):
                await _answer(send, 200, {"status": "ok", "waiting": len(self.work)})
            case ("GET" | "HEAD", "/api/bundle"):
                await _answer(send, 200, self._about())
            case ("POST", "/api/compare"):
                await self._compare(scope, receive, send)
            case (method, path) if path in ROUTES:
                raise Refused(
                    405, f"{method[:20]} is not allowed here; use {ROUTES[path]}", allow=ROUTES[path]
                )
            case _:
                raise Refused(404, f"there is nothing at {scope['path'][:80]}; the page is at /")

    def _about(self) -> Message:
        """The bundle, its variants, the device and its state now, and the limits of uploads."""
        result = measure.skeleton(self.bundle, [], Options(self.threads)).to_json()
        variants = [_described(v) for v in self.bundle.manifest.variants]
        return {k: result[k] for k in ("schema", "device", "bundle")} | {
            "variants": variants,
            "max_upload_bytes": uploads.MAX_UPLOAD_BYTES,
            "formats": list(FORMATS),
        }

    async def _compare(self, scope: Message, receive: Receive, send: Send) -> None:
        chunks = uploads.chunks(receive)
        try:
            variants = self._chosen(scope)
            self._check_queue()
            upload = await self.intake.read(scope, chunks)
        except (Refused, RuntimeInputError):
            await uploads.drain(chunks)
            raise
        with contextlib.closing(upload):
            self._check_queue()
            work = asyncio.create_task(self._work(upload, variants, send))
            self.work.add(work)
            work.add_done_callback(self.work.discard)
            gone = asyncio.create_task(uploads.disconnected(receive))
            try:
                await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                has_left = gone.done()
                work.cancel()  # if it is not done, its client has gone: the next picture's turn
                gone.cancel()
            await asyncio.wait({work})
        if work.cancelled():
            if has_left:
                return  # nobody is there to be told
            raise Refused(503, STOPPED)
        work.result()

    def _check_queue(self) -> None:
        if len(self.work) >= QUEUE:
            raise Refused(503, f"{len(self.work)} pictures are waiting already; try again in a minute")

    async def _work(self, upload: uploads.Upload, variants: Sequence[Variant], send: Send) -> None:
        """Wait for the turn of this picture, then compare the variants on it."""
        async with self.busy:
            pictures = await decode(upload.pieces, variants)
            upload.close()
            await self._stream(variants, pictures, send)

    def _chosen(self, scope: Message) -> list[Variant]:
        from urllib.parse import parse_qs

        names = parse_qs(scope["query_string"].decode("latin-1")).get("variants")
        if not names:
            return list(self.bundle.manifest.variants)
        return self.bundle.manifest.chosen(names[0])

    async def _stream(self, variants: Sequence[Variant], pictures: Pictures, send: Send) -> None:
        """Send one JSON line per event: start, running, row, end; or error, when the server is stopped. A row
        has all rows so far; a variant's row comes when it has answered, and again when it has been timed."""
        options = Options(self.threads, BUDGET_S, MAX_RUNS, memory=self.memory)
        begun = result = measure.skeleton(self.bundle, UPLOADED, options)
        await send(
            {"type": "http.response.start", "status": 200, "headers": _headers("application/x-ndjson")}
        )
        await _line(send, {"event": "start", "result": begun.to_json()})
        rows: list[Row] = []
        try:
            for variant in variants:
                await _line(send, {"event": "running", "variant": variant.id})
                running = Running(self.bundle, variant, pictures, options)
                async with contextlib.aclosing(_answers(running)) as answers:
                    async for row in answers:
                        result = measure.finish(begun, [*rows, row], self.bundle, UPLOADED)
                        await _line(send, {"event": "row", "result": result.to_json()})
                rows.append(running.row)
            await _line(send, {"event": "end", "result": result.to_json()})
        except asyncio.CancelledError:
            await _line(send, {"event": "error", "error": STOPPED})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _answers(running: Running) -> AsyncGenerator[Row]:
    """The row of a variant when it has answered, and again at its end. Its process is killed when this
    generator is closed."""
    events = running.events()
    try:
        while event := await asyncio.to_thread(next, events, None):
            if event["event"] == "predicted":
                yield running.row
    finally:
        running.kill()
    yield running.row


def _described(v: Variant) -> Message:
    return {
        "variant": v.id,
        "title": v.title,
        "description": v.description,
        "steps": list(v.steps),
        "size_bytes": v.build.bytes,
        "built": v.build.evaluation and v.build.evaluation.to_json(),
    }


def check_origin(scope: Message, names: Sequence[str]) -> None:
    """Refuse requests for another host name (DNS rebinding) and from pages of other sites. An address in
    numbers is allowed, whatever it is: behind address translation it is not this machine's own, and only a
    name can be made to lead elsewhere.

    Raises:
        Refused: 400 for a wrong Host, 403 for a foreign Origin.
    """
    headers = dict(scope["headers"])
    host = headers.get(b"host", b"").decode("latin-1")
    name = hosts.same(hosts.in_header(host))
    if name not in {hosts.same(known) for known in names} and not hosts.is_address(name):
        raise Refused(
            400,
            f"this server does not answer to {host[:80]!r}; use {names[0]}, or start it with --name and the"
            " name alone, without a port",
        )
    origin = headers.get(b"origin")
    if origin is not None and origin.decode("latin-1") not in (f"http://{host}", f"https://{host}"):
        raise Refused(403, "pages of other sites may not use this server")


async def decode(pieces: Sequence[bytes], variants: Sequence[Variant]) -> Pictures:
    """Decode a picture in a process of its own: one float32 tensor [channels, px, px] per input
    size of ``variants``.

    Raises:
        ImageError: the picture cannot be decoded; the error says why.
    """
    sizes = {v.preprocessing.px: v.preprocessing for v in variants}
    request = {"bytes": sum(map(len, pieces)), "preprocessings": [p.to_json() for p in sizes.values()]}
    child = Child("vgg_runtime.web.decode")
    try:
        answer, content = await asyncio.to_thread(_converse, child, request, pieces)
    finally:  # a client that left may have ended this before the thread began, which would close it
        await asyncio.to_thread(child.reap)
    if answer is None:
        raise ImageError("the picture cannot be decoded: it is damaged, or too large for this device")
    if answer["event"] == "error":
        raise ImageError(answer["message"])
    tensors, start = {}, 0
    for px, count in zip(sizes, answer["tensor_bytes"], strict=True):
        tensors[px] = content[start : start + count]
        start += count
    return Pictures(tensors=tensors)


def _converse(child: Child, request: Message, pieces: Sequence[bytes]) -> tuple[Event | None, bytes]:
    """Send a picture to a decoder and wait for its end: its answer, None if it died, and the bytes of the
    tensors."""
    with contextlib.closing(child), child.within(DECODE_SECONDS):
        child.ask(request, *pieces)
        answer, content = child.event(), child.rest()
        return (None if child.death() else answer), content


async def _line(send: Send, event: Message) -> None:
    body = _json(event) + b"\n"
    await send({"type": "http.response.body", "body": body, "more_body": True})


def _json(data: Message) -> bytes:
    """JSON in UTF-8. Half a character, as odd names of files and classes have them, is escaped: UTF-8 has no
    form for it, and the escape that Python writes is also that of JSON."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False).encode(errors="backslashreplace")


async def _answer(send: Send, status: int, data: Message, more: dict[str, str] | None = None) -> None:
    await _send(
        send,
        status,
        _json(data) + b"\n",
        _headers("application/json", more=more),
    )


async def _send(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    if status in (408, 413, 415, 503):
        headers.append((b"connection", b"close"))  # the rest of the upload is not read
    if status == 503:
        headers.append((b"retry-after", b"60"))
    with contextlib.suppress(OSError):
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _headers(
    kind: str, policy: str | None = None, more: dict[str, str] | None = None
) -> list[tuple[bytes, bytes]]:
    return [
        *((name.encode(), value.encode()) for name, value in (more or {}).items()),
        (b"content-type", kind.encode()),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cross-origin-resource-policy", b"same-origin"),
        (b"content-security-policy", (policy or "default-src 'none'; frame-ancestors 'none'").encode()),
    ]


def run(
    server: Callable[[tuple[str, ...]], Server],
    host: str,
    port: int,
    report: Callable[[str], None],
    others: Sequence[str] = (),
) -> None:
    """Serve until interrupted; ``server`` makes the application for the host names that requests may use.
    ``others``: names of this machine that it does not know itself.

    Raises:
        RuntimeInputError: uvicorn is not installed, a name is no host's alone, ``host`` is not this
            machine, or the port is taken.
    """
    host, others = hosts.alone("--host", host), [hosts.alone("--name", other) for other in others]
    local = hosts.is_loopback(host)
    names = (*(() if local else hosts.own_names(host)), *LOOPBACK, *others)
    try:
        serving = http_server.server(application := server(names), application.stop, HEADER_SECONDS)
    except ImportError as error:
        raise RuntimeInputError(
            f"the page needs uvicorn: {console.install('requirements-web.txt')}"
        ) from error
    listening = hosts.listen(host, port)
    shown = host if local and host != LOOPBACK[1] else names[0]
    report(f"The page is at http://{hosts.bracketed(shown)}:{listening.getsockname()[1]}/ (Ctrl-C ends it)")
    if not local:
        report("Everybody in this network can open it, because --host is set.")
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again after an orderly end
        serving.run(sockets=[listening])
