"""A small server for tests: a random model with the bundled tokenizer and template, on a free port of this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterator
from functools import cache
from typing import Any

import httpx2
import jax
import jax.numpy as jnp

import nanollm_jax as nano
from nanollm_jax.engine.engine import Engine
from nanollm_jax.engine.request import requests_of
from nanollm_jax.serve.server import Server, bind
from nanollm_jax.serve.service import Options, Service

CONFIG = {
    "model_type": "llama", "vocab_size": 2048, "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
NAME, ROWS, PIECE = "tiny", 3, 16
HOSTS = ("127.0.0.1", "localhost", "testserver")


@cache
def tiny() -> nano.Model:
    """The model: its weights are large enough to make its texts differ."""
    config, _ = nano.read_config(CONFIG)
    params = jax.tree.map(lambda x: 2 * x, nano.init_params(config, jax.random.key(3), jnp.float32))
    bundled = nano.load(dtype="float32")
    return nano.Model(config, params, bundled.tokenizer, nano.Defaults(eos_ids=(2,)), bundled.chat_template)


def service(**options: Any) -> Service:
    """A service of it."""
    options = {"names": (NAME, "also"), "context": 128, "hosts": HOSTS, "silence": 0.2} | options
    return Service(tiny(), Engine(tiny(), ROWS, piece=PIECE), Options(**options), nano.__version__)


@contextlib.contextmanager
def running(one: Service) -> Iterator[int]:
    """Serve, ready for requests, in a thread of this process. Yields the port."""
    bound = bind("127.0.0.1", 0)
    server = Server(one, drain=5.0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    while not one.thread.warm:
        assert one.thread.broken is None, one.thread.broken
        time.sleep(0.02)
    try:
        yield bound.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive() and one.thread.end(20)


def begun(one: Service, drain: float = 20.0) -> tuple[Server, threading.Thread, httpx2.Client]:
    """A server of its own, in a thread, that can be sent signals: the server, its thread, a client."""
    bound = bind("127.0.0.1", 0)
    made = Server(one, drain)
    thread = threading.Thread(target=made.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    assert until(lambda: one.thread.warm, 120)
    return made, thread, httpx2.Client(base_url=f"http://127.0.0.1:{bound.getsockname()[1]}", timeout=60)


def alone(prompt: list[int], new: int, **fields: Any) -> nano.Generation:
    """The answer of an engine of the same size that nobody else asks: the same programs, and so the same bits."""
    engine = Engine(tiny(), ROWS, piece=PIECE)
    (request,) = requests_of(tiny(), [prompt], new, tiny().defaults.sampling, 0, (), (), **fields)
    ticket = engine.submit(request)
    while not engine.idle:
        engine.step()
    return ticket.result(engine.spent)


@contextlib.contextmanager
def gated(one: Service) -> Iterator[threading.Semaphore]:
    """Inside, the engine makes a step when the semaphore that this yields is released, and not before."""
    gate, step = threading.Semaphore(0), one.engine.step

    def waiting() -> list[Any]:
        gate.acquire()
        return step()

    one.engine.step = waiting  # type: ignore[method-assign]
    try:
        yield gate
    finally:
        one.engine.step = step  # type: ignore[method-assign]
        gate.release(1000)


def until(condition: Any, seconds: float = 30.0) -> bool:
    """Does it come true?"""
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.005)
    return bool(found)


def settled(one: Service, seconds: float = 20.0) -> bool:
    """Are all rows nobody's, soon?"""
    return until(
        lambda: one.engine.idle and not one.under_way and not one.thread.owners and not one.metrics.times, seconds
    )


def changed(one: Service, **options: Any) -> Service:
    """The same service, on the same engine, with other options; for an app that is asked without a server."""
    other = dataclasses.replace(one, options=dataclasses.replace(one.options, **options), under_way={})
    other.thread, other.metrics, other.readers = one.thread, one.metrics, one.readers
    return other
