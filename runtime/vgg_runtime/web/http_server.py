"""uvicorn with two additions: a time limit for requests to arrive, and a callback when the server is
interrupted."""

import asyncio
from collections.abc import Callable
from types import FrameType
from typing import Any

MAX_CONNECTIONS = 64


def server(application: Callable[..., Any], stop: Callable[[], None], header_seconds: float) -> Any:
    """A ``uvicorn.Server`` for an ASGI application. ``stop`` is called when it is interrupted. A connection
    on which no request header arrives within ``header_seconds`` is closed.

    Raises:
        ImportError: uvicorn is not installed; the device has it only for the page.
    """
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Patient(H11Protocol):
        """Closes connections that send no request header in time. uvicorn's own timeout begins only after the
        first request."""

        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._unwatch()
            super().connection_lost(exc)

        def _watch(self) -> None:
            if self.cycle is not None and not self.cycle.response_complete:
                self._unwatch()
            elif self._deadline is None:
                self._deadline = self.loop.call_later(header_seconds, self.transport.close)

        def _unwatch(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

    class Stoppable(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            super().handle_exit(sig, frame)
            stop()

    config = uvicorn.Config(
        application,
        http=Patient,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_keep_alive=10,
        limit_concurrency=MAX_CONNECTIONS,
        ws="none",
        h11_max_incomplete_event_size=16_384,
        server_header=False,
        timeout_graceful_shutdown=2,
    )
    return Stoppable(config)
