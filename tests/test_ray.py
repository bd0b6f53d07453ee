"""Replicas by a real Ray Serve on this machine: the answers of the library, by one process and by two (make test-ray)."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import httpx2
import pytest
from agreement import agree

import nanollm_jax as nano

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]
ray = pytest.importorskip("ray")

ASK = {"messages": [{"role": "user", "content": "Once upon a time"}], "max_tokens": 24, "temperature": 0}
SMALL = {"dtype": "float32", "rows": 2, "context": 128}


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    """Ray and its Serve, started for these tests; the port of its proxy is in serve.port."""
    from ray import serve

    with socket.socket() as found, pytest.MonkeyPatch.context() as patch:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
        patch.setenv("XDG_CACHE_HOME", os.environ.get("NANOLLM_TEST_PROGRAMS", str(tmp_path_factory.mktemp("cache"))))
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.port = port
    yield serve
    serve.shutdown()
    ray.shutdown()


def client_of(serve, path, **given):
    """A client of an application that is started for it."""
    from nanollm_jax.integrations.ray_serve import app

    serve.run(app(SMALL | given), name=path, route_prefix=f"/{path}")
    return httpx2.Client(base_url=f"http://127.0.0.1:{serve.port}/{path}", timeout=300)


def answer(client):
    return client.post("/v1/chat/completions", json=ASK).json()["choices"][0]["message"]["content"]


@pytest.fixture(scope="module")
def expected():
    model = nano.load(dtype="float32")
    return nano.chat(model, ASK["messages"], max_new_tokens=24, sampling=nano.Sampling(temperature=0)).text


def test_a_replica_is_the_same_app(serve, expected):
    """Whole and streamed, scores, vectors, refusals, keys; and who hangs up frees the row."""
    import openai

    with client_of(serve, "one", api_key="secret", served_model_name="tiny") as client:
        assert client.get("/health").status_code == 200  # ready before Ray says so
        assert client.post("/v1/chat/completions", json=ASK).status_code == 401
        client.headers["authorization"] = "Bearer secret"
        assert answer(client) == expected
        made = openai.OpenAI(base_url=f"{client.base_url}v1", api_key="secret", max_retries=0)
        parts = [
            part.choices[0].delta.content or ""
            for part in made.chat.completions.create(model="tiny", stream=True, **ASK)
        ]
        assert "".join(parts) == expected and len(parts) > 3
        scored = client.post(
            "/v1/completions", json={"prompt": "The dog", "echo": True, "logprobs": 1, "max_tokens": 0}
        )
        one = nano.score(nano.load(dtype="float32"), "The dog")
        agree(scored.json()["choices"][0]["logprobs"]["token_logprobs"][1:], one.logprobs, 1e-4, size=10)
        assert len(client.post("/v1/embeddings", json={"input": "x"}).json()["data"][0]["embedding"]) > 1
        refused = client.post("/v1/chat/completions", json=ASK | {"nonsense": 1})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "nonsense")
        with client.stream(
            "POST", "/v1/completions", json={"prompt": "A", "max_tokens": 120, "stream": True}
        ) as stream:
            next(stream.iter_lines())
        assert until(lambda: 'finished_reason="cancelled"' in client.get("/metrics").text)
        assert until(lambda: {row["state"] for row in client.get("/rows").json()["rows"]} == {"idle"})
    serve.delete("one")


def test_a_replica_of_two_processes(serve, expected):
    """Tensor parallel over two actors of a placement group; when one is killed Ray begins anew with both."""
    with client_of(serve, "two", processes=2, tp=2, devices=1) as client:
        assert answer(client) == expected == answer(client)
        (follower,) = running("Follower")
        os.kill(follower, signal.SIGKILL)
        assert until(lambda: running("Follower") not in ([], [follower]))
        assert until(lambda: client.post("/v1/chat/completions", json=ASK).status_code == 200)
        assert answer(client) == expected
    serve.delete("two")


def until(condition, seconds=300):
    """Does it come true?"""
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.2)
    return found


def running(actor):
    """The processes of Ray's actors of this class."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(f"ray::{actor}".encode()):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return sorted(found)


def test_what_is_not_known_is_refused():
    from nanollm_jax.integrations.ray_serve import app

    wrong = [({"rowz": 1}, "unknown field `rowz`"), ({"tp": "two"}, "Expected `int`")]
    wrong += [({"step_limit": "nan"}, r">= 1\.0"), ({"num_cpus": "nan"}, r">= 0\.0"), ({"num_gpus": "inf"}, r"<= 1024")]
    for given, said in wrong:
        with pytest.raises(nano.RequestError, match=said):
            app(given)
