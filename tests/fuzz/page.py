"""The page's HTTP: bytes of a client on a connection, through uvicorn's parser to the answers. What a picture
is compared with is left out: each upload is answered at once."""

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fuzz import documents, pictures
from fuzz.fuzzing import Target

from vgg_runtime.bundle.manifest import Manifest, Variant
from vgg_runtime.bundle.opened import Bundle
from vgg_runtime.web import app, http_server, uploads

PAUSE_S = 0.3  # without a byte; a client that waits for more is answered after BODY_SECONDS only


class Page(app.Server):
    async def _work(self, upload: uploads.Upload, variants: Sequence[Variant], send: app.Send) -> None:
        assert upload.bytes == sum(map(len, upload.pieces)) <= uploads.MAX_UPLOAD_BYTES
        await app._answer(send, 200, {"variants": [variant.id for variant in variants]})


def seeds() -> list[bytes]:
    picture = pictures.seeds()[0]
    post = b"POST /api/compare?variants=baseline HTTP/1.1\r\nHost: localhost\r\n"
    pieces = b"%x\r\n" % len(picture) + picture + b"\r\n0\r\n\r\n"
    return [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /api/bundle HTTP/1.1\r\nHost: [::1]:80\r\n\r\n"
        b"HEAD /api/health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        post + b"Content-Length: %d\r\n\r\n" % len(picture) + picture,
        post + b"Transfer-Encoding: chunked\r\n\r\n" + pieces,
        post + b"Origin: http://evil\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nabcde",
        b"OPTIONS * HTTP/1.0\r\nHost: a%00b\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    ]


def feed(data: bytes) -> None:
    faults: list[BaseException] = []
    asyncio.run(_converse(data, faults))
    if faults:
        raise faults[0]


async def _converse(data: bytes, faults: list[BaseException]) -> None:
    bundle = Bundle(Path(tempfile.gettempdir()), Manifest.from_json(documents.manifest()))
    page = Page(bundle, 1, app.LOOPBACK)

    async def watched(scope: uploads.Message, receive: uploads.Receive, send: app.Send) -> None:
        try:
            await page(scope, receive, send)
        except Exception as error:
            faults.append(error)

    server = http_server.server(watched, page.stop, app.HEADER_SECONDS)
    server.config.load()
    from uvicorn.server import ServerState

    loop, (ours, theirs) = asyncio.get_running_loop(), socket.socketpair()
    loop.set_exception_handler(
        lambda _, about: faults.append(about.get("exception") or RuntimeError(str(about)))
    )
    state = ServerState()
    await loop.connect_accepted_socket(
        lambda: server.config.http_protocol_class(config=server.config, server_state=state, app_state={}),
        ours,
    )
    reader, writer = await asyncio.open_connection(sock=theirs)
    with contextlib.suppress(OSError):
        writer.write(data)
        await writer.drain()
        writer.write_eof()
    with contextlib.suppress(TimeoutError, OSError):
        while await asyncio.wait_for(reader.read(1 << 16), PAUSE_S):
            pass
    writer.close()
    await asyncio.sleep(0)
    for task in state.tasks:
        task.cancel()
    await asyncio.gather(*state.tasks, return_exceptions=True)
    assert page.intake.held_bytes == 0
    assert page.intake.receiving == 0


TARGET = Target(seeds, feed, ())
