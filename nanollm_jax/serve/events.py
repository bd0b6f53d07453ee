"""An answer piece by piece: server-sent events, byte for byte as the clients of OpenAI's API read them.

    data: {"id": ..., "choices": [{"delta": {"role": "assistant", "content": "Once"}, "finish_reason": null}]}
    (an empty line)
    ...
    data: [DONE]

Headers go out when the request is taken in. The first chunk comes with the first text and not before: clients take it for the
time to the first token. A comment, which every parser skips, is sent where nothing was said for a while, because proxies cut
silent connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

Found = TypeVar("Found")
PATIENCE = 30.0  # seconds in which a reader has to take what was sent
COMMENT = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"
HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}


def event(body: object) -> bytes:
    """One object as an event."""
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


async def gone(receive: Receive) -> None:
    """Wait until the client has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(request: Request, work: Coroutine[Any, Any, Found]) -> Found | None:
    """What comes of the work; None where the client hangs up before, which ends it."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        leaving.cancel()


class EventStream:
    """A response of events. It ends, and `left` is called, when they are over or when nobody reads them any more."""

    def __init__(
        self, events: AsyncIterator[bytes], headers: Mapping[str, str], left: Callable[[], None], silence: float
    ) -> None:
        """silence: seconds before a comment; left is called once, however it ends."""
        self.events, self.left, self.silence = events, left, silence
        self.headers = [(name.encode(), value.encode()) for name, value in (HEADERS | dict(headers)).items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all of it, unless the client hangs up, or is too slow for what it asked for."""
        leaving = asyncio.ensure_future(gone(receive))
        try:
            await within(send({"type": "http.response.start", "status": 200, "headers": self.headers}))
            events = aiter(self.events)
            while True:
                coming = asyncio.ensure_future(anext(events, None))
                try:
                    while not coming.done():
                        await asyncio.wait({coming, leaving}, timeout=self.silence, return_when="FIRST_COMPLETED")
                        if leaving.done():
                            return
                        if not coming.done():
                            await within(send({"type": "http.response.body", "body": COMMENT, "more_body": True}))
                finally:
                    if not coming.done():
                        coming.cancel()
                data = coming.result()
                if data is None:
                    break
                await within(send({"type": "http.response.body", "body": data, "more_body": True}))
            await within(send({"type": "http.response.body", "body": b"", "more_body": False}))
        except TimeoutError:
            return  # a response that is not finished makes the server close the connection
        finally:
            leaving.cancel()
            self.left()


async def within(sending: Awaitable[None]) -> None:
    """Raise TimeoutError where a reader takes nothing any more."""
    async with asyncio.timeout(PATIENCE):
        await sending
