"""The glass box over HTTP: a watched run is the generation itself, beside it what was changed; and nobody else notices."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from pathlib import Path
from types import SimpleNamespace

import httpx2
import jax.numpy as jnp
import numpy as np
import pytest
import serving
from agreement import agree
from lora import checkpoint, write_adapter
from models import random_model
from starlette.testclient import TestClient

import nanollm_jax as nano
from nanollm_jax.cli import run as cli
from nanollm_jax.engine.engine import Engine
from nanollm_jax.engine.rows import Event
from nanollm_jax.glass.changes import Edits
from nanollm_jax.glass.costs import bytes_of
from nanollm_jax.glass.runs import Run, runs_of, seen
from nanollm_jax.measure import roofline
from nanollm_jax.model import hidden_states
from nanollm_jax.serve.app import make_app
from nanollm_jax.serve.looking import Looking
from nanollm_jax.serve.pages import CHAT, GLASS
from nanollm_jax.serve.refusals import Refusal
from nanollm_jax.serve.service import Options
from nanollm_jax.serve.timeline import STEPS, Timeline
from nanollm_jax.serve.watcher import Watcher

ASK = {"prompt": "Once upon a time", "max_tokens": 12, "seed": 5, "temperature": 1.0}
STEER = {"toward": "a dog", "away": "the girl", "layer": 0, "strength": 3.0}


@pytest.fixture(scope="module")
def service():
    one = serving.service()
    one.watcher = Watcher(serving.tiny())
    return one


@contextlib.contextmanager
def followed(http, **asked):
    """A run while its stream is open: {word: [data]} until its end."""
    with http.stream("POST", "/glass/runs", json=ASK | asked) as response:
        assert response.status_code == 200, response.read()
        found: dict = {}
        event = ""
        lines = response.iter_lines()  # which is held: let go, it closes the stream
        for line in lines:
            if line.startswith("event: "):
                event = line[7:]
            elif line.startswith("data: "):
                found.setdefault(event, []).append(json.loads(line[6:]))
                if event in ("end", "error"):
                    break
        yield found


def tokens(found, row):
    return [token for data in found["token"] if data["row"] == row for token in data["tokens"]]


def values(http, found, name, **where):
    got = http.get(f"/glass/runs/{found['run'][0]['id']}/values", params={"name": name} | where)
    assert got.status_code == 200, got.text
    shape = [int(size) for size in got.headers["x-shape"].split()]
    return np.frombuffer(got.content, np.dtype(got.headers["x-dtype"]).newbyteorder("<")).reshape(shape)


def test_a_run_is_the_generation_itself(http):
    """Tokens, chances and alternatives are generate's, the values those of watch; what is asked for alone is sent."""
    model, sampling = serving.tiny(), nano.Sampling(temperature=1.0)
    asked = {"max_new_tokens": 12, "sampling": sampling, "seed": 5, "rows": 2}
    plain = nano.generate(model, ASK["prompt"], top_logprobs=5, **asked)
    with followed(http, keep=["layers.*.attention.q"]) as found:
        written = tokens(found, 0)
        assert [token["id"] for token in written] == plain.token_ids and "error" not in found
        assert "".join(token["text"] for token in written) == plain.text
        agree(np.log([token["chance"] for token in written]), plain.logprobs, 1e-5)
        best = [[np.exp(logprob) for _, logprob in tops] for tops in plain.top_logprobs]
        agree([[chance for _, chance, _ in token["tops"]] for token in written], best, 1e-5)
        weights = values(http, found, "layers.0.attention.weights")
        box = nano.watch(model, ASK["prompt"], keep="layers.0.attention.{weights,q}", **asked)
        agree(values(http, found, "layers.0.attention.q"), box["layers.0.attention.q"][0], 1e-5)
        agree(weights, box["layers.0.attention.weights"][0], 1e-5)
        np.testing.assert_array_equal(
            values(http, found, "layers.0.attention.weights", **{"from": 3, "to": 5}), weights[3:5]
        )
        head, arrays = found["summary"][-1]["head"], found["summary"][-1]["arrays"]
        assert (
            "".join(head["tokens"]) == ASK["prompt"] + plain.text and found["end"][0]["rows"][0]["text"] == plain.text
        )
        for name, array in arrays.items():
            assert list(values(http, found, name).shape) == array["shape"], name
        lens = values(http, found, "lens.words", **{"from": 2, "to": 4})
        np.testing.assert_array_equal(lens, values(http, found, "lens.words")[:, 2:4])
        assert found["end"][0]["bytes"] <= found["begin"][0]["bytes"]


def test_what_is_guessed_wrong_is_in_the_plan(http):
    """And the text is the one without guesses."""
    asked = {"prompt": [5, 6, 7] * 8, "max_tokens": 40, "temperature": 0}
    with followed(http, **asked) as found:
        plain = [token["id"] for token in tokens(found, 0)]
    with followed(http, speculate="lookup:4", **asked) as found:
        assert [token["id"] for token in tokens(found, 0)] == plain
        assert found["end"][0]["bytes"] <= found["begin"][0]["bytes"]
        drafted = [event for data in found["event"] for event in data["events"] if event[0] == "drafted"]
        assert sum(amount for *_, amount in drafted) > 10


def test_what_is_kept_is_freed_when_nobody_looks(http, service):
    with followed(http, max_tokens=2) as found:
        name = found["run"][0]["id"]
        assert name in service.watcher.runs
        values(http, found, "surprise")
    assert serving.until(lambda: set(service.watcher.runs) == {"example"})
    gone = http.get(f"/glass/runs/{name}/values", params={"name": "surprise"})
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found")


def test_edits_beside_the_plain_text(http):
    """At strength 0 with the bits of the plain row; else another text of the same seed, of one program."""
    with followed(http) as found:
        plain = tokens(found, 0)
    for edits, same in (
        ({"steer": STEER | {"strength": 0}}, True),
        ({"steer": STEER}, False),
        ({"steer": STEER | {"since": "answer"}}, False),
        ({"heads": [[0, 0], [0, 3]]}, False),
        ({"patch": {"text": "One day a dog", "layer": 0, "position": 4}}, False),
    ):
        with followed(http, edits=edits) as found:
            assert tokens(found, 0) == plain
            assert (tokens(found, 1) == plain) == same, edits
            if "patch" in edits:
                other = nano.watch(serving.tiny(), "One day a dog", keep="layers.0.out", max_new_tokens=1, rows=2)
                agree(values(http, found, "layers.0.out", row=1)[4], other["layers.0.out"][0][4], 1e-5)
            if "heads" in edits:
                mixed = values(http, found, "layers.0.attention.mixed", row=1)
                assert not mixed[:, [0, 3]].any() and mixed[:, [1, 2]].any()
            if edits == {"steer": STEER}:
                vector = 3 * nano.glass.steer(serving.tiny(), [("a dog", "the girl")], "layers.0.out").vector
                change = values(http, found, "layers.0.out", row=1)[0] - values(http, found, "layers.0.out")[0]
                agree(change, vector, 1e-4)


def test_watching_changes_no_answer_of_others(http, service):
    """The law of load, with runs that are watched beside: the same bits as alone."""
    ids = nano.encode(serving.tiny(), "One day")
    alone = serving.alone(ids, 40)
    body = {"prompt": ids, "max_tokens": 40, "temperature": 0, "logprobs": 0, "seed": 0}
    with followed(http, max_tokens=60, edits={"steer": STEER}) as _:
        pass
    answers = []
    asking = threading.Thread(
        target=lambda: answers.extend(http.post("/v1/completions", json=body).json() for _ in range(3))
    )
    asking.start()
    for _ in range(2):
        with followed(http, max_tokens=60, edits={"steer": STEER}) as found:
            assert "end" in found
    asking.join(60)
    assert [answer["choices"][0]["text"] for answer in answers] == [alone.text] * 3
    assert [answer["choices"][0]["logprobs"]["token_logprobs"] for answer in answers] == [alone.logprobs] * 3
    assert b"compiled_programs_total" in http.get("/metrics").content
    assert re.search(r"compiled_programs_total{.*} 0\.0", http.get("/metrics").text)


def test_the_example_is_there_for_everybody(http):
    for _ in range(2):
        said = http.get("/glass/example").text
        words = re.findall(r"^event: (\w+)$", said, re.MULTILINE)
        assert words[:2] == ["run", "begin"] and words[-1] == "end"
    assert (words.count("summary"), words.count("cache")) == (2, 1)  # the last of each row, and the last
    assert http.get("/glass/runs/example/values", params={"name": "surprise"}).status_code == 200


def test_who_comes_first_hears_all_of_it(http):
    """While it is written each story and each state of the cache is told; what comes later takes the place of it."""
    with followed(http, max_tokens=60) as found:
        assert [event for data in found["event"] for event, *_ in data["events"]].count("freed") == 1
        assert len(found["cache"]) > 5 and found["cache"][-1]["length"][0] == 5 + 59
        assert [data["number"] for data in found["summary"]] == list(range(len(found["summary"])))


def test_one_at_a_time_and_so_many_wait(http, service, monkeypatch):
    """What waits is bounded, and so is what all runs together may keep."""
    gate = threading.Event()
    monkeypatch.setattr(service.watcher, "waiting", 1)
    assert serving.until(lambda: not service.watcher.left)
    service.watcher.loop.call_soon_threadsafe(service.watcher.submit, gate.wait)
    try:
        assert serving.until(lambda: service.watcher.left == 1)
        with http.stream("POST", "/glass/runs", json=ASK) as waits:
            assert waits.status_code == 200
            full = http.post("/glass/runs", json=ASK)
            assert (full.status_code, full.json()["error"]["code"]) == (503, "queue_full")
    finally:
        gate.set()
    assert serving.until(lambda: not service.watcher.left)
    with followed(http) as found:
        monkeypatch.setattr(
            service.watcher, "limit", service.watcher.runs["example"].run.bytes + found["begin"][0]["bytes"]
        )
        full = http.post("/glass/runs", json=ASK | {"max_tokens": 2})
        assert (full.status_code, full.json()["error"]["code"]) == (503, "no_memory")
    assert serving.until(lambda: len(service.watcher.runs) == 1)
    monkeypatch.setattr(service.watcher, "limit", 1000)
    full = http.post("/glass/runs", json=ASK)
    assert full.status_code == 400 and "bytes would be kept" in full.json()["error"]["message"]


@pytest.mark.parametrize(
    "path,body,said",
    [
        ("runs", {}, "prompt is missing"),
        ("runs", ASK | {"color": 1}, "color is not known here"),
        ("runs", ASK | {"max_tokens": 0}, "max_tokens is 0"),
        ("runs", ASK | {"max_tokens": 500}, "500 new tokens is more than the model's 128 positions"),
        ("runs", ASK | {"temperature": -1}, "temperature is -1"),
        ("runs", ASK | {"speculate": "guess"}, "speculate is 'guess'"),
        ("runs", ASK | {"keep": ["layers.0.atention.q"]}, "no value is named layers.0.atention.q; did you mean"),
        ("runs", ASK | {"edits": {"heads": [[1, 0]]}}, "heads: a layer is 1; expected one from 0 to 0"),
        ("runs", ASK | {"edits": {"heads": [[0, 4]]}}, "heads: a head is 4; expected one from 0 to 3"),
        ("runs", ASK | {"edits": {"heads": [[0]]}}, "edits.heads"),
        ("runs", ASK | {"edits": {"steer": STEER | {"layer": 7}}}, "steer.layer is 7"),
        ("runs", ASK | {"edits": {"steer": STEER | {"strength": 1e300}}}, "steer.strength is 1e"),
        ("runs", ASK | {"edits": {"steer": STEER | {"since": "never"}}}, "steer.since is 'never'"),
        ("runs", ASK | {"edits": {"patch": {"text": "a", "layer": 0, "position": 9}}}, "patch.position is 9"),
        ("runs", ASK | {"edits": {"patch": {"text": "a", "layer": 0}}}, "edits.patch.position is missing"),
        ("tree", {"prompt": "One", "width": 100}, "width is 100"),
        ("tree", {"prompt": "One", "depth": 0}, "depth is 0"),
        ("tree", {"prompt": [99999]}, "token 99999"),
        ("tree", {"prompt": "One", "given": -1}, "given is -1"),
        ("tree", {"prompt": "One", "edits": {"heads": [[0, 9]]}}, "a head is 9"),
        ("patch", {"clean": "a dog", "corrupted": "a dog"}, "the same tokens"),
        ("patch", {"clean": "a dog", "corrupted": "a"}, "tokens"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused(http, path, body, said):
    found = http.post(f"/glass/{path}", json=body)
    assert found.status_code == 400 and said in found.json()["error"]["message"], found.text


def test_numbers_that_are_not_there(http):
    assert http.get("/glass/example").status_code == 200  # whose values are there when it was read
    at = "/glass/runs/example/values"
    for query, said in (
        ({"name": "layers.9.out"}, "layers.9.out was not kept"),
        ({"name": "surprise", "row": 7}, "row is 7"),
        ({"name": "surprise", "from": 5, "to": 2}, "from is 5 and to is 2"),
        ({"name": "surprise", "from": -1}, "from is '-1'"),
        ({"name": "surprise", "to": "²"}, "to is"),
        ({}, "was not kept"),
    ):
        found = http.get(at, params=query)
        assert found.status_code == 400 and said in found.json()["error"]["message"], found.text


def test_tools(http):
    model = serving.tiny()
    found = http.post("/glass/tree", json={"prompt": "One day", "width": 2, "depth": 3}).json()
    root = nano.glass.tree(model, "One day", width=2, depth=3)
    while root.children:
        assert [child["token"] for child in found["children"]] == [child.token for child in root.children]
        agree([child["total"] for child in found["children"]], [child.total for child in root.children], 1e-5)
        found, root = found["children"][0], root.children[0]
    edits = {"steer": STEER | {"since": "answer"}, "heads": [[0, 2]]}
    with followed(http, edits=edits, temperature=0) as run:
        written, given = [token["id"] for token in tokens(run, 1)], run["begin"][0]["ids"]
        assert written != [token["id"] for token in tokens(run, 0)]
    asked = {"prompt": given + written[:2], "width": 1, "depth": 3, "edits": edits, "given": len(given)}
    found = http.post("/glass/tree", json=asked).json()
    for token in written[2:5]:
        (found,) = found["children"]
        assert found["token"] == token
    found = http.post("/glass/patch", json={"clean": "One day a dog", "corrupted": "One day a girl"}).json()
    assert found["places"] == ["layers.0.out"]
    agree(found["recovered"], nano.glass.patch(model, "One day a dog", "One day a girl").recovered, 1e-4)
    assert [abs(round(share, 3)) for share in found["recovered"][0]] == [
        0,
        0,
        0,
        0,
        1,
    ]  # one layer: the last place is all


def test_what_the_serving_engine_does(http):
    begun = http.get("/glass/engine").json()["next"]
    http.post("/v1/completions", json={"prompt": [5, 6, 7] * 12, "max_tokens": 9, "seed": 1})
    told = http.get("/glass/engine", params={"since": begun}).json()
    events = [event for step in told["steps"] for event in step["events"]]
    assert told["rows"] == serving.ROWS and told["next"] == begun + len(told["steps"])
    assert [what for what, *_ in events if what != "chunk"] == ["admitted", "piece", "piece", "piece", "freed"]
    assert sum(amount for what, *_, amount in events if what == "piece") == 36
    assert all(step["from"] <= step["to"] for step in told["steps"])
    model, slots = random_model("mistral"), [SimpleNamespace(ticket=1, filled=n) for n in (5, 5, 40)]
    timeline = Timeline(SimpleNamespace(rows=3, model=model, slots=slots))  # its rings see 7 positions
    for n in range(STEPS + 5):
        timeline.note(0.0, [Event("piece", 1, 0, 5), Event("chunk", -1, 2, n)])
    steps = timeline.since(STEPS + 3)["steps"]
    assert [step["events"][1][3] for step in steps] == [STEPS + 3, STEPS + 4]
    assert steps[0]["read"] == (STEPS + 3) * roofline.step_bytes(model.config, 2, 5, "float32")
    del slots[:2]
    one = roofline.step_bytes(model.config, 1, 40, "float32")
    assert bytes_of(timeline.engine, [Event("chunk", -1, 1, 3)]) == 3 * one
    assert len(timeline.since(0)["steps"]) == STEPS and len(timeline.since(10**9)["steps"]) == STEPS


def test_who_may_look(service):
    """A key where there are any, this server's names, and no page of another site, even one that may ask for answers."""
    for path in ("/glass/about", "/glass/example", "/glass/engine", "/glass/runs/example/values"):
        asked = TestClient(make_app(serving.changed(service, keys=("first",))))
        assert asked.get(path).status_code == 401
    assert asked.get("/glass").status_code == asked.get("/glass/page/look.js").status_code == 200
    local = TestClient(make_app(serving.changed(service, hosts=("localhost",), origins=("http://localhost:9000",))))
    assert local.get("/glass/about", headers={"host": "evil.example"}).status_code == 403
    host = {"host": "localhost:8000"}
    assert local.get("/glass/about", headers=host).status_code == 200
    other = host | {"origin": "http://localhost:9000", "access-control-request-method": "POST"}
    assert local.options("/v1/completions", headers=other).status_code == 200
    for found in (local.options("/glass/runs", headers=other), local.get("/glass/about", headers=other)):
        assert found.status_code == 403 and "access-control-allow-origin" not in found.headers
    without = serving.changed(service)
    without.watcher = None
    without = TestClient(make_app(without))
    assert without.get("/glass").status_code == without.get("/glass/about").status_code == 404


def test_a_run_is_its_callers_alone(http, service):
    with followed(http) as found:
        kept = service.watcher.runs[found["run"][0]["id"]]
        kept.key = 1
        assert http.get(f"/glass/runs/{kept.name}/values", params={"name": "surprise"}).status_code == 404
        kept.key = None


def test_a_server_of_the_glass_box_alone():
    """It has its page at /, and no OpenAI routes; when it ends, whoever looks is let go at once."""
    looking = Looking(Watcher(serving.tiny()), Options(names=("tiny",), context=128, hosts=serving.HOSTS))
    with serving.running(looking) as port, httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
        assert "glass/page/look.js" in http.get("/").text and http.get("/v1/models").status_code == 404
        about = http.get("/glass/about").json()
        assert (about["name"], about["layers"], about["heads"], about["engine"]) == ("tiny", 1, 4, False)
        assert http.get("/glass/engine").status_code == 404
        with followed(http, max_tokens=3) as found:
            assert len(tokens(found, 0)) == 3


def asked_of(port):
    """What a run with edits, a tree and a patch say over HTTP."""
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=300) as http:
        with followed(http, max_tokens=8, edits={"steer": STEER, "heads": [[0, 2]]}) as found:
            texts = [[token["id"] for token in tokens(found, row)] for row in (0, 1)]
            weights = values(http, found, "heads.weights", row=1).astype(np.float32)
        tree = http.post("/glass/tree", json={"prompt": "One day", "width": 2, "depth": 2}).json()
        patch = http.post("/glass/patch", json={"clean": "One day a dog", "corrupted": "One day a girl"}).json()
    return texts, weights, [child["total"] for child in tree["children"]], patch["recovered"]


def same(found, expected):
    assert found[0] == expected[0] and expected[0][0] != expected[0][1]
    for ours, theirs, tolerance in zip(found[1:], expected[1:], (1e-2, 1e-4, 1e-3), strict=True):
        agree(ours, theirs, tolerance)


@pytest.mark.parity
def test_the_glass_box_of_a_mesh(port):
    """Rows and heads over four devices: what it says of one device."""
    mesh = nano.shard(serving.tiny(), nano.make_mesh(2, 2))
    looking = Looking(Watcher(mesh, prompt="One day"), Options(names=("tiny",), context=128, hosts=serving.HOSTS))
    with serving.running(looking) as other:
        same(asked_of(other), asked_of(port))


@pytest.mark.parity
def test_beside_the_engine_of_a_mesh(port):
    """They take turns on its devices: nobody waits for ever, and other answers have the bits that they have alone."""
    model = nano.shard(serving.tiny(), nano.make_mesh(2, 2))
    one = serving.Service(
        model, Engine(model, 2, piece=16), Options(names=("tiny",), context=128, hosts=serving.HOSTS), "0"
    )
    one.watcher = Watcher(model)
    body = {"prompt": [5, 6, 7], "max_tokens": 30, "temperature": 0, "logprobs": 0, "seed": 0}
    with serving.running(one) as other, httpx2.Client(base_url=f"http://127.0.0.1:{other}", timeout=300) as http:
        ask = lambda: http.post("/v1/completions", json=body).json()["choices"]  # noqa: E731
        alone, answers, over = ask(), [], threading.Event()

        def ask_on():
            while not over.is_set():
                answers.append(ask())

        asking = threading.Thread(target=ask_on)
        asking.start()
        try:
            same(asked_of(other), asked_of(port))
        finally:
            over.set()
            asking.join(300)
        assert len(answers) > 3 and all(answer == alone for answer in answers)
    with pytest.raises(Refusal, match="the engine failed"):  # it has ended
        one.thread.turn(lambda: None)


@pytest.mark.parity
def test_an_adapter_beside_the_plain_text(tmp_path):
    """The row that takes it is generate's with it; what is asked of it elsewhere, a tree or a patch, is its as well."""
    path, base = checkpoint("llama", tmp_path)
    write_adapter(tmp_path / "a", base, "proj", size=2.0)
    model = nano.load(path, dtype="float32", adapters={"a": tmp_path / "a"})
    run = Run(model, [5, 6, 7], max_new_tokens=9, seed=3, edits=Edits(heads=((0, 1),), adapter="a"))
    *_, (_, told) = run.write()
    plain = nano.generate(model, [[5, 6, 7]] * 2, max_new_tokens=9, seed=3, adapter=[None, "a"], rows=2)
    assert run.box.answers[0].token_ids == plain[0].token_ids != run.box.answers[1].token_ids
    gates = lambda value, seen: value.at[:, :, 1].set(0)  # noqa: E731
    edited = nano.watch(
        model, [5, 6, 7], change={"layers.0.attention.mixed": gates}, adapter="a", max_new_tokens=9, rows=2
    )
    assert edited.answers[0].token_ids == run.box.answers[1].token_ids
    assert run.stories[1][1].head["adapter"] == "a" and run.stories[0][1].head["adapter"] is None
    with pytest.raises(nano.RequestError, match="there is no adapter 'b'; loaded are a"):
        Run(model, [5, 6, 7], edits=Edits(adapter="b"))
    app = TestClient(make_app(Looking(Watcher(nano.load(dtype="float32")), Options(names=("x",), context=64))))
    found = app.post("/glass/patch", json={"clean": "a dog", "corrupted": "a girl", "adapter": "b"})
    assert found.status_code == 400 and "there is no adapter 'b'" in found.json()["error"]["message"]


def test_the_files_of_the_page_are_whole():
    """What one of them names is there, nothing is from elsewhere, and the package has them all."""
    for files in (CHAT, GLASS):
        for name, data in files.items():
            text = data.decode()
            assert not re.findall(r"""(?:src|href|from|import|url)\W{1,3}(?:https?:)?//""", text), name
            assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text), name
            for other in re.findall(r'from "\./([\w.]+)"', text) + re.findall(r'="(?:glass/)?page/([\w.]+)"', text):
                assert other in files, (name, other)
    root = Path(nano.__file__).parent
    assert {path.name for path in (root / "glass" / "page").iterdir()} == set(GLASS)


@pytest.mark.parity
@pytest.mark.parametrize("family", ["gpt2", "mistral", "gemma2", "mixtral"])
def test_a_run_of_other_families(family):
    """Experts, rings, caps and all: the plain row is generate's, heads that are off give nothing, both rows have a story."""
    model, ids = random_model(family), [3, 14, 15, 9, 26]
    run = Run(model, ids, max_new_tokens=12, seed=5, edits=Edits(heads=((0, 0), (1, 1))))
    told = list(run.write())
    plain = nano.generate(model, ids, max_new_tokens=12, seed=5, rows=2)
    assert run.box.answers[0].token_ids == plain.token_ids
    agree(run.box.answers[0].logprobs, plain.logprobs, 1e-5)
    assert [word for word, _ in told][-3:] == ["summary", "summary", "end"] and told[-1][1]["bytes"] <= run.bytes
    assert not run.box["layers.0.attention.mixed"][1][:, 0].any()


def test_slots_of_a_cache_as_runs():
    """Of a ring that has gone round, too: row 0 has read 9 positions into 7 slots, row 1 three."""
    assert runs_of(np.array([4, 5, 2, -1])) == [[0, 4, 2], [2, 2, 1]] and runs_of(np.array([-1, -1])) == []
    model = random_model("mistral")
    cache = nano.init_cache(model.config, 2, 16, jnp.float32)
    told = jnp.zeros((2, 9), jnp.int32)
    _, cache = hidden_states(model.params, told, jnp.array([9, 3]), cache, config=model.config)
    (layers,) = seen(cache)["layers"]
    assert layers["kind"] == "ring" and layers["rows"] == [[[0, 7, 2], [2, 2, 5]], [[0, 0, 3]]]


@pytest.mark.parametrize(
    "arguments,said",
    [
        ("serve --glass --host 0.0.0.0", "--glass with --host 0.0.0.0"),
        ("serve --glass --distributed", "--glass with --distributed: what somebody looks at runs in process 0 alone"),
        ("look --model no/such/folder", "no/such/folder"),
        ("look --adapter a=folder --merge b", "--merge b: expected the name of the one --adapter b=SOURCE"),
        ("look --context 100000 --port 0", "context 100000 is more than the model's"),
    ],
)
def test_commands(arguments, said, capsys):
    assert cli(arguments.split()) == 2
    assert said in capsys.readouterr().err


def test_a_run_that_fails_says_so(http, service, monkeypatch):
    """Of an error that nobody has thought of, only that there was one."""
    monkeypatch.setattr("nanollm_jax.glass.runs.watch_stream", lambda *a, **k: 1 / 0)
    with followed(http) as found:
        assert found["error"][0]["type"] == "server_error" and "division" not in found["error"][0]["message"]
