"""How the processes of one server find each other: the others connect to process 0 once, when the server starts.

They do so with a secret that JAX's own runtime has told all of them, and they say how they were started; then the socket that
listens is closed. Lines are not encrypted: who can read the network between the machines can read the prompts in them.
"""

from __future__ import annotations

import contextlib
import hmac
import importlib.metadata
import json
import socket
import time
import zlib
from collections.abc import Mapping
from typing import Any

from nanollm_jax.engine.engine import Engine
from nanollm_jax.errors import RequestError, shown

MEETING = 120.0  # seconds in which all have to come
GREETING = 10.0  # seconds for one to say who it is
LONGEST = 4096  # bytes of that
LOST = 25  # seconds of silence of a machine


def setup_of(engine: Engine, context: int) -> dict[str, Any]:
    """What has to be the same in all processes: versions, the model, and all that decides which programs run when."""
    versions = {name: importlib.metadata.version(name) for name in ("nanollm-jax", "jax")}
    dtype = engine.model.params["embedding"]["tokens"].dtype
    return versions | {
        "the model": zlib.crc32(f"{engine.config} {dtype}".encode()), "--rows": engine.rows, "--context": context,
        "--prefix-memory for blocks": engine.places, "--dp": engine.dp,
        "--speculate": str(engine.speculate), "--adapter": ", ".join(engine.model.adapters), "--cache": engine.model.cache,
        "operations in C": engine.least > 1,  # with them rows have all positions from the start
    }  # fmt: skip


def listen(host: str) -> socket.socket:
    """Where the others come: at the address by which they know this machine, at all of its own where it has another name."""
    for where in (host, ""):
        found: list[Any] = []
        with contextlib.suppress(OSError):
            found = socket.getaddrinfo(where or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, _, _, address in found:
            listener = socket.socket(family, kind)
            try:
                listener.bind(address)
                listener.listen()
                return listener
            except OSError:
                listener.close()
    raise RequestError(
        f"no socket for the other processes can be opened at {host}; give --coordinator another address."
    )


def gather(listener: socket.socket, secret: str, setup: Mapping[str, Any], count: int) -> dict[int, socket.socket]:
    """Wait for so many others -> the connection of each. setup is what has to be the same in all. Raises RequestError."""
    links: dict[int, socket.socket] = {}
    end = time.monotonic() + MEETING
    with listener, contextlib.ExitStack() as opened:
        while len(links) < count:
            listener.settimeout(max(end - time.monotonic(), 0.01))
            try:
                link, _ = listener.accept()
            except TimeoutError:
                raise RequestError(
                    f"{len(links)} of {count} other processes came within {MEETING:g} s; start all of them, and let them reach "
                    "the host of process 0 at any port."
                ) from None
            opened.callback(link.close)
            hello = greeting(link)
            if not hmac.compare_digest(str(hello.get("secret", "")).encode(), secret.encode()):
                link.close()  # somebody else
                continue
            number, theirs = hello["process"], hello["setup"]
            links[number] = link
            if wrong := [name for name, value in setup.items() if theirs.get(name) != value]:
                (name, *_) = wrong
                message = (
                    f"process {number} was started with {name} {shown(theirs.get(name))} and process 0 with "
                    f"{shown(setup[name])}; start all of them with the same command, of the same versions."
                )
                say(link, {"refused": message})
                raise RequestError(message)
            say(link, {})
            settle(link)
        opened.pop_all()
    return links


def greeting(link: socket.socket) -> dict[str, Any]:
    """What somebody says who has connected; nothing, where it is no object in JSON or does not come in time."""
    end, data = time.monotonic() + GREETING, b""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        while not data.endswith(b"\n") and len(data) < LONGEST:
            link.settimeout(max(end - time.monotonic(), 0.01))
            part = link.recv(LONGEST - len(data))
            if not part:
                break
            data += part
        hello = json.loads(data)
        if isinstance(hello, dict):
            return hello
    return {}


def attend(host: str, port: int, secret: str, number: int, setup: Mapping[str, Any]) -> socket.socket:
    """Connect to process 0. Raises RequestError where it cannot be reached, and where it was started with another setup."""
    try:
        link = socket.create_connection((host, port), timeout=MEETING)
        say(link, {"secret": secret, "process": number, "setup": dict(setup)})
        with link.makefile("rb") as lines:
            answer = json.loads(lines.readline() or b'{"refused": "process 0 wants no more of them."}')
    except OSError as error:
        raise RequestError(f"process 0 cannot be reached at {host}, port {port}: {error}.") from None
    if "refused" in answer:
        link.close()
        raise RequestError(answer["refused"])
    settle(link)
    return link


def say(link: socket.socket, words: Mapping[str, Any]) -> None:
    """One line."""
    with contextlib.suppress(OSError):  # whoever is gone is noticed when it is read from
        link.sendall(json.dumps(words).encode() + b"\n")


def settle(link: socket.socket) -> None:
    """From now on lines come when they come; a machine that is silent for LOST seconds is lost."""
    link.settimeout(None)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    named = {"TCP_KEEPIDLE": LOST - 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 1000 * LOST}
    for name, value in named.items():
        if hasattr(socket, name):  # macOS and Windows have other names, and a heartbeat of JAX's beside
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
