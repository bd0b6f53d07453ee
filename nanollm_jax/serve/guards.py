"""Before anything is read: who asks, from where, and how much. One layer around all routes, plain ASGI.

A page of another host must not talk to a server on somebody's own machine (DNS rebinding, requests across sites): so the Host
header has to be a name of this server, and the Origin header, which browsers send, one that it serves or was told of.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from typing import Any
from urllib.parse import urlsplit

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanollm_jax.serve.bodies import read_object
from nanollm_jax.serve.refusals import Refusal
from nanollm_jax.serve.service import Options, Service

log = logging.getLogger("nanollm.serve")
OPEN = frozenset(("/", "/glass", "/health", "/version", "/metrics"))  # without a key
GONE = 499  # nobody reads this answer; a number for the log
SHOWN = 4000  # bytes of a body that the log has, where it may have any
SECONDS = 60.0  # in which a body has to arrive


class Json(Response):
    """A response in JSON."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Its bytes."""
        return msgspec.json.encode(content)


def refused(refusal: Refusal) -> Json:
    """A refusal as a response."""
    return Json(refusal.body(), refusal.status, refusal.headers)


def service_of(request: Request) -> Service:
    """What all routes share."""
    return request.app.state.service


class Guards:
    """Around the app: refuses what must not come in, says so in one shape, and writes the log."""

    def __init__(self, app: ASGIApp, options: Options) -> None:
        self.app, self.options = app, options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 0
        name = uuid.uuid4().hex

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", name.encode())]
            await send(message)

        try:
            scope["key"] = self.check(scope)
            await self.app(scope, receive, noting)
        except Refusal as refusal:
            await refused(refusal)(scope, receive, noting)
        except ClientDisconnect:
            status = GONE
        except Exception:
            log.exception("%s %s failed, request %s", scope["method"], scope["path"], name)
            if not status:
                await refused(Refusal(500, "something went wrong here; the log of this server says what."))(
                    scope, receive, noting
                )
        finally:
            said = f"{scope['method']} {printable(scope['path'])} {status} {time.perf_counter() - begun:.3f} s"
            if (usage := scope.get("usage")) is not None:
                said += f", {usage.prompt} + {usage.completion} tokens, {usage.cached} cached"
            log.info("%s, request %s", said, name)

    def check(self, scope: Scope) -> int | None:
        """The number of the caller's key. Raises Refusal."""
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        options = self.options
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if options.hosts and hostname(host) not in options.hosts:
            raise Refusal(
                403, "the Host header names another server; nanollm serve --allow-host adds one.", code="host"
            )
        origin = headers.get(b"origin", b"").decode("latin-1")
        origins = () if path.startswith("/glass") else options.origins  # what is inside is for this server's own page
        if origin and origin not in origins and "*" not in origins and site(origin) != host:
            raise Refusal(
                403, "the Origin header names another site; nanollm serve --cors-origin adds one.", code="origin"
            )
        if (
            path.removeprefix("/v1") in OPEN
            or path.startswith(("/page/", "/glass/page/"))
            or scope["method"] == "OPTIONS"
        ):
            return None
        return options.check_key(headers.get(b"authorization", b"").decode("latin-1"))


def hostname(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def site(origin: str) -> str:
    """The host and port of an Origin header."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def printable(text: str) -> str:
    """A path for one line of a log."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:200])


async def read_json(request: Request) -> dict[str, Any]:
    """The body as a JSON object. Raises Refusal for another type of content, and for too much of it."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise Refusal(415, f"the body is {kind[:80] or 'of no type'}; send content-type: application/json.")
    if (coding := request.headers.get("content-encoding", "identity").strip().lower()) != "identity":
        raise Refusal(415, f"the body is compressed ({coding[:80]}); send it as it is.")
    options: Options = request.app.state.options
    most = options.body
    too_much = Refusal(413, f"the body is larger than {most:,} bytes.")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length[:20]) > most:
        raise too_much
    data = bytearray()
    try:
        async with asyncio.timeout(SECONDS):
            async for part in request.stream():
                data += part
                if len(data) > most:
                    raise too_much
    except TimeoutError:
        raise Refusal(408, f"the body did not arrive within {SECONDS:g} s.") from None
    if options.log_prompts:
        log.info("asked: %s", data[:SHOWN].decode("utf-8", "replace").encode("unicode_escape").decode())
    return read_object(bytes(data))
