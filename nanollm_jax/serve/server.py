"""The server around the app: a socket, connections that may not take for ever, and signals that let what runs finish."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import h11
import msgspec
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from nanollm_jax.errors import RequestError
from nanollm_jax.serve.app import make_app
from nanollm_jax.serve.looking import Looking
from nanollm_jax.serve.refusals import Refusal
from nanollm_jax.serve.service import Service

log = logging.getLogger("nanollm.serve")
HEADER_BYTES = 64 * 1024  # of one request's headers
HEADER_SECONDS = 20.0  # in which they have to arrive
BACKLOG = 1024
ENDING = 2.0  # seconds for the step that is under way at the end
LINGERING = 3.0  # seconds in which /health says that the engine failed, before the process ends
FAILED = 1


class Connection(H11Protocol):
    """One connection, as uvicorn has it, with two things more: headers have to arrive in time, and a request that is no
    HTTP is refused in the shape that clients read.
    """

    late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Somebody has come; the clock of the first request's headers begins."""
        super().connection_made(transport)
        self.await_headers()

    def data_received(self, data: bytes) -> None:
        """Bytes have come. Is there a beginning of a request among them, its end has to come in time."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self.headers_came()
        elif self.conn.trailing_data[0] and self.late is None:
            self.await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Somebody has gone."""
        self.headers_came()
        super().connection_lost(exc)

    def await_headers(self) -> None:
        """Start the clock."""
        self.late = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def headers_came(self) -> None:
        """Stop it."""
        if self.late is not None:
            self.late.cancel()
            self.late = None

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, or has too long headers."""
        body = msgspec.json.encode(Refusal(400, "this is no HTTP request, or its headers are too long.").body())
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class Server(uvicorn.Server):
    """Ends at the first SIGTERM or Ctrl-C when what runs has finished, or after `drain` seconds; at the second at once."""

    def __init__(self, service: Service | Looking, drain: float) -> None:
        """drain: seconds that answers under way are given."""
        self.service, self.drain = service, drain
        self.signalled = 0
        self.lingering: float | None = None
        config = uvicorn.Config(
            make_app(service, self.engine_ended), http=Connection, ws="none", lifespan="on", log_config=None,
            access_log=False, server_header=False, date_header=True, backlog=BACKLOG, timeout_keep_alive=30,
            timeout_graceful_shutdown=5, h11_max_incomplete_event_size=HEADER_BYTES, root_path=service.options.root_path,
        )  # fmt: skip
        super().__init__(config)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal has come."""
        self.signalled += 1
        if self.signalled > 1:
            os.write(2, b"nanollm: stopped at once\n")
            os._exit(128 + sig)
        self.service.draining = True
        log.warning("shutting down; answers under way have %g s, another signal ends it at once", self.drain)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: is it over?"""
        if self.lingering is not None:
            self.lingering -= 0.1
            self.should_exit = self.should_exit or self.lingering <= 0
        if self.signalled and not self.should_exit:
            self.drain -= 0.1
            if self.drain <= 0:
                for call in list(self.service.under_way.values()):
                    call.fail(Refusal(503, "this server has shut down.", code="draining"))
            self.should_exit = not self.service.under_way or self.drain <= -1
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let go of who holds a watched run open, then end as uvicorn does."""
        if self.service.watcher is not None:
            self.service.watcher.close()
        await super().shutdown(sockets)

    def engine_ended(self) -> None:
        """A step has failed or a process is lost, and everybody was told."""
        log.error("the engine failed", exc_info=self.service.thread.broken)
        self.lingering = LINGERING


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises RequestError where there can be none."""
    bound = None
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        bound = socket.socket(family, kind)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(BACKLOG)
    except OSError as error:
        if bound is not None:
            bound.close()
        raise RequestError(f"--host {host} --port {port}: {error.strerror or error}; take another.") from None
    return bound


def run(service: Service | Looking, bound: socket.socket, drain: float) -> int:
    """Serve until a signal ends it. Returns the exit code."""
    server = Server(service, drain)
    with plain_log():
        server.run(sockets=[bound])
        code = FAILED if service.thread.broken is not None else 0
        watched = service.watcher is None or service.watcher.end(ENDING)
        if not (watched and service.thread.end(ENDING)):
            os._exit(code)  # a thread inside a compiled program makes Python crash at its end
        if service.followers:
            if service.thread.warm and not code:
                service.followers.end()
            else:
                os._exit(code)  # JAX would wait for the others, who wait for this one's device
    return code


@contextlib.contextmanager
def plain_log() -> Iterator[None]:
    """Inside, what this server and uvicorn log is lines on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("nanollm: %(message)s"))
    loggers = [logging.getLogger(name) for name in ("nanollm.serve", "uvicorn")]
    for one in loggers:
        one.addHandler(handler)
        one.propagate = False
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    try:
        yield
    finally:
        for one in loggers:
            one.removeHandler(handler)
            one.propagate = True
