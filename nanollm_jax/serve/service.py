"""What all routes share: the model and its names, who may come in, and what is under way."""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nanollm_jax.engine.engine import Engine
from nanollm_jax.engine.request import Request
from nanollm_jax.engine.rows import Ticket
from nanollm_jax.errors import RequestError
from nanollm_jax.loading import Model
from nanollm_jax.serve.asking import Readers, World
from nanollm_jax.serve.calls import Call
from nanollm_jax.serve.engine_thread import BROKEN, EngineThread
from nanollm_jax.serve.followers import Followers
from nanollm_jax.serve.metrics import Metrics
from nanollm_jax.serve.refusals import Refusal, busy
from nanollm_jax.serve.watcher import Watcher

log = logging.getLogger("nanollm.serve")


@dataclass(frozen=True)
class Options:
    """How a server is set up.

    names        under which the model is served, the first one in answers
    context      tokens of a prompt and its answer together
    queue        requests that may wait for a row, and queue_tokens of their prompts; beyond either the answer is 503
    body         bytes of a body
    unread       tokens that may wait for a reader before it is cut
    keys         one of which a request needs, if there are any
    hosts        names that a Host header may have; any, if there are none
    origins      pages of other hosts whose scripts may ask
    silence      seconds before a comment in a stream
    step_limit   seconds that one step of the engine may take; a longer one is taken for stuck
    root_path    what a proxy cuts off in front of every path
    log_prompts  whether the log may have what was asked and answered
    """

    names: tuple[str, ...]
    context: int
    queue: int = 256
    queue_tokens: int = 1_000_000
    body: int = 16 * 2**20
    unread: int = 4096
    keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    silence: float = 10.0
    step_limit: float = math.inf
    root_path: str = ""
    log_prompts: bool = False

    def check_key(self, authorization: str) -> int | None:
        """Whose request it is: the number of its key, None where none is needed. Raises Refusal."""
        if not self.keys:
            return None
        kind, _, given = authorization.partition(" ")
        same = [hmac.compare_digest(key.encode(), given.strip().encode()) for key in self.keys]
        if kind.lower() != "bearer" or not any(same):
            message = "the API key is missing or wrong; send it as the header `Authorization: Bearer KEY`."
            raise Refusal(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
        return same.index(True)


@dataclass
class Service:
    """One model, one engine, and the requests under way.

    followers are the other processes that run the same engine; watcher has the glass box, where there is one.
    """

    model: Model
    engine: Engine
    options: Options
    version: str
    followers: Followers = field(default_factory=Followers)
    watcher: Watcher | None = None
    draining: bool = False
    under_way: dict[int, Call] = field(default_factory=dict)
    tokens_under_way: int = 0

    def __post_init__(self) -> None:
        if twice := sorted({*self.options.names} & {*self.model.adapters}):
            raise RequestError(f"the model and an adapter are both called {twice[0]!r}; give one of them another name.")
        self.metrics = Metrics(self.options.names[0])
        options = self.options
        self.thread = EngineThread(self.engine, self.metrics, options.context, self.followers, options.step_limit)
        self.most = self.engine.rows + self.options.queue
        self.readers = Readers(self.model, self.options.context, self.most)
        # answers of servers with the same one have the same bits, where the model, how it is kept, and the machine are the same
        block = f"-block{1 + self.engine.spare}" if self.engine.spare else ""
        self.fingerprint = f"nanollm-{self.version}-rows{self.engine.rows}-piece{self.engine.piece}{block}"

    def begin(self, loop: asyncio.AbstractEventLoop, ended: Callable[[], None]) -> None:
        """The loop has begun; ended() is called in it when the engine has failed, after everybody was told."""

        def engine_ended() -> None:
            self.engine_ended()
            ended()

        self.thread.begin(loop, engine_ended)
        if self.watcher is not None:
            if self.model.mesh is not None:
                self.watcher.turn = self.thread.turn
            self.watcher.begin(loop)

    def check_model(self, name: str | None) -> str:
        """The name of the model that is asked for, or of an adapter to it. Raises Refusal for another one."""
        if name is not None and name not in (*self.options.names, *self.model.adapters):
            known = ", ".join((*self.options.names, *self.model.adapters))
            raise Refusal(404, f"there is no model {name[:200]!r}; there is {known}.", "model", "model_not_found")
        return name or self.options.names[0]

    def world(self, key: int | None) -> World:
        """Who shares beginnings of prompts with this caller: with several keys, those with the same one."""
        return World(key if len(self.options.keys) > 1 else None, None)

    def check_ready(self) -> None:
        """Raise Refusal where nothing new is taken in."""
        if self.thread.broken is not None:
            raise Refusal(503, "the engine failed and this server ends; ask another one.", code="broken")
        if self.draining:
            raise busy("this server is shutting down; ask another one.", "draining")
        if not self.thread.warm:
            raise busy("this server is compiling its programs; ask again in a while.", "warming_up")

    def admit(self, requests: Sequence[Request]) -> Call:
        """Take requests in, for whom release is to be called. Raises Refusal where too much waits already."""
        self.check_ready()
        count, tokens = len(requests), sum(len(request.ids) for request in requests)
        if sum(len(call.requests) for call in self.under_way.values()) + count > self.most:
            raise busy(f"{self.options.queue} requests wait already; ask again later.", "queue_full")
        if self.under_way and self.tokens_under_way + tokens > self.options.queue_tokens:
            raise busy("prompts of too many tokens wait already; ask again later.", "queue_full")
        # who waits for whole answers does not read at all before they are there
        streamed = any(request.streamed for request in requests)
        call = Call(requests, self.options.unread * count if streamed else sys.maxsize)
        self.under_way[id(call)] = call
        self.tokens_under_way += tokens
        self.thread.submit(call)
        return call

    async def read(self, requests: Sequence[Request]) -> list[Ticket]:
        """Have texts read that nobody goes on with, as many at a time as there are rows. -> their tickets. Raises Refusal."""
        found: list[Ticket] = []
        for first in range(0, len(requests), self.engine.rows):
            call = self.admit(requests[first : first + self.engine.rows])
            try:
                while await call.take():
                    pass
            finally:
                self.release(call)
            found += call.tickets
        return found

    def engine_ended(self) -> None:
        """A step has failed: nobody will get any more, whether the engine had heard of it or not."""
        for call in self.under_way.values():
            call.fail(BROKEN)

    def release(self, call: Call) -> None:
        """Nobody waits for a call any more, because it has its answers or does not want them."""
        if self.under_way.pop(id(call), None) is not None:
            self.tokens_under_way -= sum(len(request.ids) for request in call.requests)
            if call.open:
                self.thread.cancel(call)
