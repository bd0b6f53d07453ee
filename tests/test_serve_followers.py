"""One server of several processes: what goes over the wire, who may come, and what becomes of all when one is lost.

Here two engines of one process stand for two processes, and do the same without a mesh between them; in make parity there are
two processes indeed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx2
import pytest
import serving
from law import model_of

import nanollm_jax as nano
from nanollm_jax.engine.check import result
from nanollm_jax.engine.engine import Engine
from nanollm_jax.engine.request import Request
from nanollm_jax.errors import RequestError
from nanollm_jax.ops import native
from nanollm_jax.serve import meeting, watchdog
from nanollm_jax.serve.asking import World
from nanollm_jax.serve.bodies import Chat, read_body
from nanollm_jax.serve.followers import FAILED, Followers, Leader, Lost, follow, limit_of
from nanollm_jax.serve.service import Options, Service
from nanollm_jax.serve.turns import Turn
from nanollm_jax.serve.watchdog import Watchdog
from nanollm_jax.serve.wire import decode, encode

# the wire

# one value for every field, another one than its default; a field that is new needs one here
SAMPLING = {
    "temperature": 0.1 + 0.2, "top_k": 40, "top_p": 0.95, "min_p": 1e-7, "repetition_penalty": 1.1, "presence_penalty": -0.0,
    "frequency_penalty": 2**-149, "logit_bias": {5: -math.inf, 7: 1.5}, "typical_p": 0.5, "no_repeat_ngram_size": 3,
    "min_new_tokens": 2, "begin_suppress_tokens": [1, 2], "forced_eos_token_id": 2, "ends": (4,), "max_new_tokens": 9,
}  # fmt: skip
REQUEST = {
    "ids": (1, 2, 2047), "max_new_tokens": 12, "sampling": nano.Sampling(**SAMPLING), "seed": 2**32 - 1, "ends": (2, 3),
    "stop": ("\n", 'ab"\u2028', "\ud800 \U0001f600"), "top_logprobs": 20, "streamed": True, "root": World(1, "salt"),
    "shown": (4,), "given": 1, "adapter": 2, "pooling": "labels", "labels": (3, 5),
    "grammar": nano.Grammar("lark", "start: @part0", (nano.Grammar.json_object(),)),
}  # fmt: skip


def alike(one, other):
    """Are they the same, down to the types of what is in them and the bits of numbers?"""
    assert type(one) is type(other)
    if dataclasses.is_dataclass(one):
        one, other = vars(one), vars(other)
    if isinstance(one, dict):
        one, other = list(one.items()), list(other.items())
    if isinstance(one, list | tuple):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            alike(mine, theirs)
    elif isinstance(one, float):
        assert one.hex() == other.hex()
    else:
        assert one == other


@pytest.mark.parametrize(
    ("kind", "values"), [(nano.Sampling, SAMPLING), (Request, REQUEST)], ids=["sampling", "request"]
)
def test_every_field_goes_over_the_wire_as_it_is(kind, values):
    names = {field.name for field in dataclasses.fields(kind)}
    assert set(values) == names, "a field is new: give it a value here that is not its default"
    full = kind(**values)
    for field in dataclasses.fields(kind):
        assert field.default is dataclasses.MISSING or getattr(full, field.name) is not field.default
    request = full if kind is Request else Request((1,), 1, full)
    line = encode(Turn((request,), (3, 4), True, seen=7))
    assert line.count(b"\n") == 1
    found = decode(line)
    alike(found, Turn((request,), (3, 4), True, seen=7))
    alike(decode(encode(Turn(ends=True))), Turn(ends=True))


def test_what_bodies_ask_for_goes_over_the_wire():
    """Requests as the endpoints make them, with the settings of a body and the checkpoint's own."""
    body = {
        "messages": [{"role": "user", "content": "Once"}], "max_tokens": 4, "temperature": 0.7, "logit_bias": {"5": -100},
        "stop": ["x"], "n": 2, "logprobs": True, "top_logprobs": 3, "cache_salt": "y", "stream": True, "min_tokens": 1,
    }  # fmt: skip
    readers = serving.service().readers
    requests = tuple(readers.chat(read_body(body, Chat), World(0, None)).requests)
    alike(decode(encode(Turn(requests))).new, requests)
    assert requests[0].root == World(0, "y") and hash(decode(encode(Turn(requests))).new[0].root) == hash(
        requests[0].root
    )


def test_what_nobody_knows_is_not_sent():
    with pytest.raises(TypeError, match="a complex cannot be sent"):
        encode(Turn((Request((1,), 1, nano.Sampling(temperature=1j)),)))


# who may come


def greeted(listener, *lines):
    """Strangers, who say this."""
    port = listener.getsockname()[1]
    for line in lines:
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(line)


def test_only_who_knows_the_secret_comes_in():
    listener, setup = meeting.listen("127.0.0.1"), {"--rows": 4}
    assert listener.getsockname()[0] == "127.0.0.1"
    port, found = listener.getsockname()[1], {}
    one = threading.Thread(target=lambda: found.update(meeting.gather(listener, "secret", setup, 1)))
    one.start()
    hello = {"secret": "another", "process": 1, "setup": setup}
    greeted(
        listener, b"GET / HTTP/1.1\r\n\r\n", b"\n", b"[" * 5000, b"\xff\n", b"[1]\n", json.dumps(hello).encode() + b"\n"
    )
    link = meeting.attend("127.0.0.1", port, "secret", 1, setup)
    one.join(30)
    assert list(found) == [1] and link.gettimeout() is None
    for end in (link, found[1]):
        assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)  # a machine that is silent is missed
    with pytest.raises(OSError):  # nobody listens any more
        socket.create_connection(("127.0.0.1", port), timeout=5)
    link.close()
    assert found[1].recv(1) == b""
    found[1].close()


def test_all_are_started_alike():
    listener, said = meeting.listen("127.0.0.1"), []

    def first():
        with pytest.raises(RequestError) as error:
            meeting.gather(listener, "secret", {"jax": "1", "--rows": 4}, 2)
        said.append(str(error.value))

    one = threading.Thread(target=first)
    one.start()
    with pytest.raises(RequestError) as error:
        meeting.attend("127.0.0.1", listener.getsockname()[1], "secret", 1, {"jax": "1", "--rows": 8})
    one.join(30)
    assert said == [str(error.value)] and "process 1 was started with --rows 8 and process 0 with 4" in said[0]


def test_rows_of_other_lengths_are_no_servers_of_one(compiled_in_c):
    """With operations in C rows have all their positions from the start; a process that has none would make other programs."""
    model = model_of("llama")
    mine = meeting.setup_of(Engine(model, 4, context=500), 500)
    with native.portable(True):
        theirs = meeting.setup_of(Engine(model, 4, context=500), 500)
    assert dict(mine.items() - theirs.items()) == {"operations in C": True}


def test_who_does_not_come_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(meeting, "MEETING", 0.05)
    with pytest.raises(RequestError, match="0 of 1 other processes came"):
        meeting.gather(meeting.listen("127.0.0.1"), "secret", {}, 1)


# what the others do


@contextlib.contextmanager
def two():
    """A service, an engine that follows it, the tickets of both, and what became of the follower: [] or how it left."""
    mine, theirs = socket.socketpair()
    engines = [Engine(serving.tiny(), serving.ROWS, piece=serving.PIECE) for _ in range(2)]
    tickets: list[list] = [[], []]
    for engine, kept in zip(engines, tickets, strict=True):
        submit = engine.submit
        engine.submit = lambda request, submit=submit, kept=kept: kept.append(submit(request)) or kept[-1]
    options = Options((serving.NAME,), 128, hosts=serving.HOSTS)
    service = Service(serving.tiny(), engines[0], options, nano.__version__, Followers({1: mine}))
    left: list = []
    leader = Leader(theirs, lambda *said: left.append(said))

    def run():
        try:
            follow(engines[1], leader, 128, Watchdog(60, lambda: None))
        except Lost as error:
            left.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield service, engines, tickets, left, thread, theirs
    finally:
        mine.close()
        theirs.close()


def test_the_others_do_the_same():
    """Chats, streams that are left, scores, several answers and vectors: all engines hold the same of all of them."""
    ask = {"messages": [{"role": "user", "content": "Once upon a time"}], "max_tokens": 20, "temperature": 1.0, "n": 3}
    with two() as (service, engines, tickets, left, thread, _):
        with serving.running(service) as port, httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
            assert http.get("/health").status_code == 200
            whole = http.post("/v1/chat/completions", json=ask | {"seed": 5})
            assert whole.status_code == 200
            score = {"prompt": ["The dog", [5, 6, 7] * 12], "echo": True, "logprobs": 2, "max_tokens": 1}
            assert http.post("/v1/completions", json=score).status_code == 200
            long = {"prompt": "A", "max_tokens": 100, "ignore_eos": True, "stream": True}
            with serving.gated(service) as gate:  # who hangs up is noticed before the answer has ended
                with http.stream("POST", "/v1/completions", json=long) as stream:
                    gate.release(8)
                    next(stream.iter_lines())
                assert serving.until(lambda: not service.under_way)
            assert http.post("/v1/embeddings", json={"input": ["x", "y"]}).status_code == 200
            form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer"}}}
            assert http.post("/v1/chat/completions", json=ask | {"response_format": form, "seed": 6}).status_code == 200
            again = http.post("/v1/chat/completions", json=ask | {"seed": 5})
            assert again.json()["choices"] == whole.json()["choices"]
            assert serving.settled(service)
        service.followers.end()
        thread.join(60)
        assert not thread.is_alive() and not left
        assert engines[1].idle and sum(one.made for one in tickets[1]) == 2
        assert any(one.request.grammar for one in tickets[1])
        told = [[(one.cancelled, *result(one)) for one in kept] for kept in tickets]
        assert told[0] == told[1] and len(told[0]) == 16 and [one[0] for one in told[0]].count(True) == 1
        assert [len(prefixes) for prefixes in engines[0].prefixes] == [
            len(prefixes) for prefixes in engines[1].prefixes
        ]


def test_a_follower_that_is_lost_ends_the_server():
    """At once: health is 503, whoever waits is told, and the process ends with an error."""
    with two() as (service, _, _, _, _, theirs):
        made, thread, client = serving.begun(service)
        with client, serving.gated(service) as gate:  # the device waits for the other process, and so for ever
            assert client.get("/health").status_code == 200
            long = {"prompt": "A", "max_tokens": 100, "ignore_eos": True, "stream": True}
            with client.stream("POST", "/v1/completions", json=long) as stream:
                gate.release(8)
                lines = stream.iter_lines()
                assert '"text"' in next(lines)
                theirs.shutdown(socket.SHUT_RDWR)
                rest = [line for line in lines if line]
            assert json.loads(rest[-2].removeprefix("data: "))["error"]["type"] == "server_error"
            assert rest[-1] == "data: [DONE]"
            found = client.get("/health")
            assert (found.status_code, found.json()["error"]["code"]) == (503, "broken")
            assert client.post("/v1/completions", json={"prompt": "A"}).status_code == 503
        thread.join(30)
        assert not thread.is_alive() and made.should_exit
        assert str(service.thread.broken) == "process 1 of this run ended, or cannot be reached"


def test_who_writes_something_else_is_lost():
    engine = Engine(serving.tiny(), serving.ROWS, piece=serving.PIECE)
    turns = [Turn((Request((5, 6), 4, nano.Sampling()),), steps=True), Turn(steps=True, seen=1)]
    with pytest.raises(Lost, match="wrote different tokens"):
        follow(engine, turns, 128, Watchdog(60, lambda: None))


@pytest.mark.parametrize(
    "said", [b"", encode(Turn(steps=True)), b"{}\n", b'{"record": "os", "fields": {}}\n'], ids=repr
)
def test_without_process_0_the_others_end(said):
    """It is gone, in the middle or before, or says what is no turn."""
    mine, theirs = socket.socketpair()
    left: list = []
    leader = Leader(theirs, lambda *how: left.append(how))
    mine.sendall(said)
    mine.close()
    assert serving.until(lambda: left) and left == [(FAILED, "process 0 is gone")]
    assert leader.turns.qsize() == said.startswith(b'{"record":"Turn"')


def test_who_is_stuck_when_the_server_ends_leaves(monkeypatch):
    monkeypatch.setattr("nanollm_jax.serve.followers.ENDING", 0.05)
    mine, theirs = socket.socketpair()
    left: list = []
    Leader(theirs, lambda *how: left.append(how))
    mine.sendall(encode(Turn(ends=True)))
    assert serving.until(lambda: left) and left == [(0, "")]
    mine.close()


def test_work_that_does_not_end_is_noticed_once(monkeypatch):
    monkeypatch.setattr(watchdog, "TICK", 0.001)
    said: list = []
    one = Watchdog(0.02, lambda: said.append(1))
    for _ in range(3):
        with one.watching():
            pass
    one.start()
    time.sleep(0.1)  # nothing is under way
    assert not said
    with one.watching():
        one.join(60)
    assert said == [1]


def test_a_step_may_take_its_time_where_nobody_waits():
    """A processor may read long prompts of many rows in one step; what waits for another process is not waited for for ever."""
    assert limit_of(None, 1) == math.inf and limit_of(None, 2) == 300 and limit_of(5.0, 1) == limit_of(5.0, 2) == 5


def test_a_step_that_does_not_end_ends_the_server(monkeypatch):
    monkeypatch.setattr(watchdog, "TICK", 0.01)
    one = serving.service(step_limit=0.5)
    made, thread, client = serving.begun(one)
    with client:
        with serving.gated(one):
            error = client.post("/v1/completions", json={"prompt": "A"})
            assert error.status_code == 500
            assert client.get("/health").status_code == 503
        thread.join(30)
    assert not thread.is_alive() and str(one.thread.broken) == "a step has not ended within 0.5 s"


# two processes indeed


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def processes(*words):
    """Both processes of a server, tp=2 over them, ready; and a client of it."""
    port, where = free_port(), f"127.0.0.1:{free_port()}"
    options = "serve --dtype float32 --tp 2 --devices 1 --rows 2 --context 32 --distributed --num-processes 2"
    command = [sys.executable, "-m", "nanollm_jax", *options.split(), "--port", str(port), "--coordinator", where]
    run = [
        subprocess.Popen([*command, *words, "--process-id", str(process_id)], stderr=subprocess.DEVNULL)
        for process_id in (0, 1)
    ]
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:

            def ready():
                time.sleep(0.2)
                with contextlib.suppress(httpx2.HTTPError):
                    return client.get("/health").status_code == 200
                return run[0].poll() is not None

            assert serving.until(ready, 600) and run[0].poll() is None
            yield client, run
    finally:
        for process in run:
            process.kill()
            process.wait()


ASK = {"messages": [{"role": "user", "content": "Once upon a time"}], "max_tokens": 24, "temperature": 0}


def answer(client):
    return client.post("/v1/chat/completions", json=ASK).json()["choices"][0]["message"]["content"]


@pytest.mark.parity
def test_two_processes_answer_as_one_and_end_together():
    model = nano.load(dtype="float32")
    expected = nano.chat(model, ASK["messages"], max_new_tokens=24, sampling=nano.Sampling(temperature=0)).text
    with processes() as (client, run):
        assert answer(client) == expected == answer(client)
        vector = client.post("/v1/embeddings", json={"input": "Once"}).json()["data"][0]["embedding"]
        assert vector == pytest.approx(nano.embed(model, "Once").tolist(), rel=1e-3)
        run[1].send_signal(signal.SIGTERM)  # as where all processes of a run are told to stop: 0 decides
        assert answer(client) == expected
        run[0].send_signal(signal.SIGTERM)
        assert [process.wait(60) for process in run] == [0, 0]


@pytest.mark.parity
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stuck"])
def test_a_process_that_is_lost_ends_the_other(how):
    """Killed: health says so at once. Stopped, which is as if it hung: after a step that does not end."""
    with processes("--step-limit", "3") as (client, run):
        os.kill(run[1].pid, how)
        if how == signal.SIGSTOP:
            assert client.post("/v1/chat/completions", json=ASK).status_code == 500
        assert serving.until(lambda: client.get("/health").status_code == 503, 10)
        assert run[0].wait(60) == 1
        os.kill(run[1].pid, signal.SIGCONT)  # of one that goes on, too
        assert run[1].wait(60) != 0


@pytest.mark.parity
def test_without_process_0_nobody_stays():
    with processes() as (_, run):
        run[0].kill()
        assert run[1].wait(60) != 0
