"""Who may ask, how much, and what becomes of it when the server is full, ends or breaks."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import damaged_bodies
import openai
import pytest
import serving
from starlette.testclient import TestClient

from nanollm_jax.cli import access, run
from nanollm_jax.engine import memory
from nanollm_jax.serve import events, guards, server
from nanollm_jax.serve.app import make_app
from nanollm_jax.serve.calls import Call, Piece
from nanollm_jax.serve.refusals import Refusal

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "Once upon a time"}], "max_tokens": 12}
STREAM = ASK | {"stream": True, "max_tokens": 60}


def asked(service, **options):
    """A client of the app alone, for what is said before the engine is asked."""
    return TestClient(make_app(serving.changed(service, **options)))


def code(found):
    error = found.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return found.status_code, error["code"]


# who asks


def test_keys(service):
    client = asked(service, keys=("first", "second"))
    assert code(client.get("/v1/models")) == (401, "invalid_api_key")
    assert client.get("/v1/models").headers["www-authenticate"] == "Bearer"
    for wrong in ("Bearer third", "Basic first", "first", "Bearer "):
        assert code(client.get("/v1/models", headers={"authorization": wrong})) == (401, "invalid_api_key")
    for right in ("Bearer first", "bearer second"):
        assert client.get("/v1/models", headers={"authorization": right}).status_code == 200
    for path in ("/version", "/metrics", "/v1/version", "/v1/metrics"):
        assert client.get(path).status_code == 200


@pytest.mark.parametrize(
    "given",
    [
        ("--api-key", ""), ("--api-key", "two words "), ("--api-key", "schlüssel"), ("--api-key", "a\nb"),
        ("--allow-host", "https://example.com"), ("--allow-host", "*"), ("--allow-host", ""), ("--allow-host", "a:b"),
        ("--cors-origin", "example.com"), ("--cors-origin", "https://example.com/page"), ("--cors-origin", "null"),
        ("--root-path", "models"), ("--root-path", "//example.com"), ("--root-path", "/a?b"), ("--served-model-name", ""),
        ("--drain", "nan"), ("--step-limit", "nan"), ("--step-limit", "-inf"),
    ],
)  # fmt: skip
def test_what_could_never_match_is_refused_before_anything_is_loaded(given, capsys):
    """An empty key would let everybody in, another name or page nobody."""
    assert run(["serve", "--model", "/no/where", *given]) == 2
    said = capsys.readouterr().err
    assert given[0] in said and "schl" not in said and "/no/where" not in said


def test_names_and_pages_are_compared_as_clients_write_them():
    assert access.check_keys(["a key", "other"]) == ("a key", "other")
    assert access.hosts_of("127.0.0.1", []) == access.LOCAL and access.hosts_of("0.0.0.0", []) == ()
    names = ["Box.Example.com:8000", "::2", "[::3]:80"]
    assert access.hosts_of("localhost", names) == (*access.LOCAL, "box.example.com", "::2", "::3")
    assert access.hosts_of("192.168.1.5", ["box"]) == (*access.LOCAL, "192.168.1.5", "box")  # --host is a name, too
    pages = ["HTTPS://Example.com:443/", "http://localhost:3000", "app://notes", "*"]
    assert access.origins_of(pages) == ("https://example.com", "http://localhost:3000", "app://notes", "*")
    assert [access.path_of(path) for path in ("", "/", "/models/llama/")] == ["", "", "/models/llama"]


def test_callers_share_prefixes_with_nobody_else(service):
    """Each of several keys is a world of its own; so is a salt."""
    two = serving.changed(service, keys=("first", "second"))
    assert two.options.check_key("Bearer first") != two.options.check_key("Bearer second")
    worlds = {two.world(0), two.world(1), two.world(0)._replace(salt="x"), service.world(None)}
    assert len(worlds) == 4
    assert serving.changed(service, keys=("only",)).world(0) == service.world(None)


def test_hosts_and_origins(service):
    client = asked(service, hosts=("localhost", "::1"))
    for host in ("localhost", "LOCALHOST:8000", "[::1]:8000"):
        assert client.get("/version", headers={"host": host}).status_code == 200
    for host in ("evil.example", "localhost.evil.example", "", "[", "localhost@evil.example:80"):
        assert code(client.get("/version", headers={"host": host})) == (403, "host")
    same, other = {"host": "localhost:8000", "origin": "http://localhost:8000"}, {"origin": "http://localhost:9000"}
    assert client.get("/version", headers=same).status_code == 200
    assert code(client.get("/version", headers=same | other)) == (403, "origin")
    assert code(client.get("/version", headers=same | {"origin": "null"})) == (403, "origin")
    preflight = same | other | {"access-control-request-method": "POST"}
    assert client.options("/v1/completions", headers=preflight).status_code == 403
    known = asked(service, hosts=(), origins=("http://localhost:9000",))
    found = known.options("/v1/completions", headers=preflight)
    assert (found.status_code, found.headers["access-control-allow-origin"]) == (200, "http://localhost:9000")
    assert "access-control-allow-origin" not in client.get("/version", headers=same).headers


def test_a_path_that_a_proxy_cuts_off(service):
    assert (
        TestClient(make_app(serving.changed(service, root_path="/llm")), root_path="/llm")
        .get("/llm/v1/models")
        .json()["data"]
    )


# how much


def test_bodies_are_bounded(service, monkeypatch):
    client = asked(service, body=1000)
    assert code(client.post("/v1/completions", json={"prompt": "x" * 1000})) == (413, None)
    parts = (b"x" * 300 for _ in range(5))
    assert code(client.post("/v1/completions", content=parts, headers={"content-type": "application/json"})) == (
        413,
        None,
    )
    client = asked(service)
    for deep in (b"[" * 100_000, b'{"prompt":' * 50_000, b'{"prompt": ' + b"[" * 500 + b"]" * 500 + b"}"):
        found = client.post("/v1/completions", content=deep, headers={"content-type": "application/json"})
        assert code(found)[0] == 400


def raw(port, data, seconds=20.0):
    """What a connection says to some bytes before it ends."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        connection.sendall(data)
        said = b""
        while part := connection.recv(65536):
            said += part
    return said


def test_connections_are_bounded(port, monkeypatch):
    """Headers that are too long, that are none, that do not end; a body that does not come."""
    line = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
    for data in (line + b"x: " + b"y" * 100_000 + b"\r\n", b"\x16\x03\x01\x02nonsense\r\n\r\n"):
        said = raw(port, data)
        assert said.startswith(b"HTTP/1.1 400") and json.loads(said.partition(b"\r\n\r\n")[2])["error"]["message"]
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.2)
    assert raw(port, line) == b""
    monkeypatch.setattr(guards, "SECONDS", 0.2)
    slow = line + b"content-type: application/json\r\ncontent-length: 100\r\nconnection: close\r\n\r\n{"
    assert raw(port, slow).startswith(b"HTTP/1.1 408")


def test_a_full_queue_says_when_to_come_again(http, port, service, monkeypatch):
    """503 with retry-after before any header of a stream; the openai client tries again and is answered."""
    monkeypatch.setattr(service, "most", 4)
    alone = http.post("/v1/chat/completions", json=ASK).json()["choices"]
    assert serving.settled(service)
    with ThreadPoolExecutor(5) as pool, serving.gated(service) as gate:
        waiting = [pool.submit(http.post, "/v1/chat/completions", json=ASK) for _ in range(4)]
        assert serving.until(lambda: len(service.under_way) == 4)
        full = http.post("/v1/chat/completions", json=ASK | {"stream": True})
        assert code(full) == (503, "queue_full") and full.headers["retry-after"] == "1"
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=3)
        last = pool.submit(client.chat.completions.create, **ASK)
        gate.release(1000)
        assert [found.result().json()["choices"] for found in waiting] == [alone] * 4
        assert last.result().choices[0].message.content == alone[0]["message"]["content"]
    monkeypatch.setattr(service, "most", 100)
    monkeypatch.setattr(service, "tokens_under_way", 10**9)
    monkeypatch.setitem(service.under_way, 0, Call((), 1))
    assert code(http.post("/v1/chat/completions", json=ASK)) == (503, "queue_full")


def test_who_comes_and_goes_leaves_nothing_behind(http, service):
    """While all rows are taken: requests that are given up are in no queue, and never take a row."""
    alone = http.post("/v1/chat/completions", json=ASK).json()["choices"]
    assert serving.settled(service)
    with ThreadPoolExecutor(3) as pool, serving.gated(service) as gate:
        seated = [pool.submit(http.post, "/v1/chat/completions", json=ASK) for _ in range(serving.ROWS)]
        assert serving.until(lambda: len(service.under_way) == serving.ROWS)
        for _ in range(5):
            with http.stream("POST", "/v1/chat/completions", json=STREAM):
                assert serving.until(lambda: len(service.under_way) == serving.ROWS + 1)
            assert serving.until(lambda: len(service.under_way) == serving.ROWS)
        gate.release(2)
        assert serving.until(lambda: not service.thread.notes and not service.engine.queue)
        gate.release(1000)
        assert [found.result().json()["choices"] for found in seated] == [alone] * serving.ROWS
    assert serving.settled(service)


def test_slow_readers_are_cut(service):
    """By what waits for them, and by the clock where they take nothing at all."""

    async def unread():
        call = Call((), most=10)
        call.open = 1
        service.thread.deliver([(call, 0, Piece(0, "x", [1] * 6, [0.0] * 6, [[]] * 6, "", 0))])
        assert not call.slow
        service.thread.deliver([(call, 0, Piece(0, "x", [1] * 6, [0.0] * 6, [[]] * 6, "", 0))])
        assert [len(await call.take())] == [2]
        with pytest.raises(Refusal, match="not read as fast as it was written"):
            await call.take()

    asyncio.run(unread())
    left = []

    async def stuck():
        async def send(message):
            await asyncio.sleep(1000)

        async def receive():
            await asyncio.sleep(1000)

        async def words():
            yield b"x"

        await events.EventStream(words(), {}, lambda: left.append(1), 10.0)({}, receive, send)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(events, "PATIENCE", 0.05)
        asyncio.run(stuck())
    assert left == [1]


# what comes along


def test_nothing_that_comes_along_breaks_it(http, service):
    """Only 2xx or a shaped 4xx, and the same answer as before to who asks rightly; make soak tries two thousand."""
    rng = random.Random(0)
    before = http.post("/v1/chat/completions", json=ASK).json()["choices"]
    for _ in range(150):
        path, data = damaged_bodies.damaged(rng)
        found = http.post(path, content=data, headers={"content-type": "application/json"})
        assert not damaged_bodies.wrong(found.status_code, found.headers["content-type"], found.text), (path, data)
    assert http.post("/v1/chat/completions", json=ASK).json()["choices"] == before
    assert serving.settled(service) and service.metrics.compiled._value.get() == 0


# how it ends


def test_a_signal_lets_what_runs_finish_and_a_second_one_does_not(monkeypatch):
    one = serving.service()
    made, thread, client = serving.begun(one)
    left = []
    monkeypatch.setattr(server.os, "_exit", left.append)
    with client, ThreadPoolExecutor(1) as pool:
        alone = client.post("/v1/chat/completions", json=STREAM).text
        assert serving.settled(one)
        with serving.gated(one) as gate:
            running = pool.submit(client.post, "/v1/chat/completions", json=STREAM)
            assert serving.until(lambda: one.under_way)
            made.handle_exit(signal.SIGTERM, None)
            assert code(client.get("/health")) == (503, "draining") and not left
            assert code(client.post("/v1/chat/completions", json=ASK)) == (503, "draining")
            made.handle_exit(signal.SIGTERM, None)
            assert left == [128 + signal.SIGTERM]
            gate.release(1000)
            said = running.result().text
        plain = [text[text.index('"choices"') :] for text in (alone, said) if text]
        assert plain[0].count("data") == plain[1].count("data")
    thread.join(20)
    assert not thread.is_alive() and one.thread.end(20)


def test_who_does_not_finish_in_time_is_told(monkeypatch):
    one = serving.service()
    made, thread, client = serving.begun(one, drain=0.2)
    with client, ThreadPoolExecutor(1) as pool:
        with serving.gated(one):
            running = pool.submit(client.post, "/v1/chat/completions", json=STREAM)
            assert serving.until(lambda: one.under_way)
            made.handle_exit(signal.SIGTERM, None)
            said = running.result().text
        assert json.loads(said.split("\n\n")[-3].removeprefix("data: "))["error"]["code"] == "draining"
        assert said.endswith("data: [DONE]\n\n")
    thread.join(20)
    assert not thread.is_alive() and one.thread.end(20)


def test_a_step_that_fails_is_told_to_everybody_and_ends_the_server(monkeypatch, caplog):
    """A stream has an error in its middle, the others a shaped 500, and no word of what it was; the process ends."""
    one = serving.service()
    made, thread, client = serving.begun(one)
    with client, ThreadPoolExecutor(3) as pool:
        with serving.gated(one) as gate:
            scored = pool.submit(client.post, "/v1/embeddings", json={"input": "x"})
            streamed = pool.submit(client.post, "/v1/chat/completions", json=STREAM)
            whole = pool.submit(client.post, "/v1/chat/completions", json=ASK)
            assert serving.until(lambda: len(one.under_way) == 3)
            monkeypatch.setattr(one.engine, "seat", lambda: 1 / 0)
            gate.release(1)
            said, error = streamed.result().text, whole.result()
            assert code(scored.result()) == (500, None)
        assert code(error) == (500, None) and "division" not in error.text
        middle = json.loads(said.split("\n\n")[-3].removeprefix("data: "))["error"]
        assert middle["type"] == "server_error" and said.endswith("data: [DONE]\n\n")
    thread.join(20)
    assert not thread.is_alive() and isinstance(one.thread.broken, ZeroDivisionError)
    assert made.should_exit and "ZeroDivisionError" in caplog.text


def test_the_log_has_no_prompts_unless_asked(service, caplog):
    caplog.set_level("INFO", "nanollm.serve")
    for wanted in (False, True):
        caplog.clear()
        asked(service, log_prompts=wanted).post("/tokenize", json={"prompt": "a secret\n"})
        assert "POST /tokenize 200" in caplog.text
        assert ("a secret" in caplog.text) == wanted


def test_what_the_command_refuses(capsys, monkeypatch):
    with server.bind("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        for arguments, said in (
            (["--log-level", "loud"], "--log-level loud: expected debug, info, warning, error"),
            (["--port", port], f"--host 127.0.0.1 --port {port}: Address already in use; take another"),
            (["--port", "0", "--context", "513"], "--context 513 is more than the model's 512 positions"),
            (["--host", "no.such.host.invalid", "--port", "0"], "--host no.such.host.invalid --port 0:"),
        ):
            assert run(["serve", *arguments]) == 2
            assert said in capsys.readouterr().err
    monkeypatch.setattr(memory, "free", lambda: 10**6)
    assert run(["serve", "--port", "0", "--rows", "64"]) == 2
    assert "64 rows of 512 positions need more memory than the device has" in capsys.readouterr().err


def test_no_memory_is_the_server_s_fault(http, service, monkeypatch):
    """503 for who wanted more than there is, an answer, scores or a vector; the others, and who comes later, are answered."""
    alone = http.post("/v1/chat/completions", json=ASK).json()["choices"]
    assert serving.settled(service)
    seat = service.engine.seat

    def fails():
        monkeypatch.setattr(service.engine, "seat", seat)
        seat()
        raise memory.NoRoomError("1 row of 512 positions needs more memory than the device has.")

    score = {"prompt": "Once upon a time", "echo": True, "logprobs": 1, "max_tokens": 0}
    for path, body in (("/chat/completions", ASK), ("/completions", score), ("/embeddings", {"input": "Once"})):
        monkeypatch.setattr(service.engine, "seat", fails)
        assert code(http.post(f"/v1{path}", json=body)) == (503, "no_memory")
    assert http.post("/v1/chat/completions", json=ASK).json()["choices"] == alone
    assert serving.settled(service)
