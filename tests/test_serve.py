"""The server as its clients see it: every field honoured, without effect, or refused by its name; and the bytes of a stream."""

from __future__ import annotations

import base64
import gzip
import json
import re
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
import serving
from agreement import agree

import nanollm_jax as nano
from nanollm_jax.cli import run
from nanollm_jax.engine.engine import Engine
from nanollm_jax.serve import turns
from nanollm_jax.serve.fields import REFUSED, WITHOUT_EFFECT

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "Once upon a time"}], "max_tokens": 12}
WRITE = {"model": "tiny", "prompt": "Once upon a time", "max_tokens": 12}


def chat(http, **fields):
    found = http.post("/v1/chat/completions", json=ASK | fields)
    assert found.status_code == 200, found.text
    return found.json()["choices"]


def write(http, **fields):
    found = http.post("/v1/completions", json=WRITE | fields)
    assert found.status_code == 200, found.text
    return found.json()["choices"]


def refusal(http, path="/v1/chat/completions", **fields):
    found = http.post(path, json=(WRITE if path.endswith("/completions") and "chat" not in path else ASK) | fields)
    error = found.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return found.status_code, error["param"], error["code"]


def chunks_of(text):
    """The objects of a stream, without comments and the last word."""
    events = [one for one in text.split("\n\n") if one and not one.startswith(":")]
    assert events.pop() == "data: [DONE]"
    return [json.loads(one.removeprefix("data: ")) for one in events]


# answers


def test_an_answer_is_the_engine_s(http):
    """Text, tokens, logprobs and reasons, bit for bit, are those of an engine of the same size."""
    mine = serving.alone(serving.tiny().tokenizer.encode("Once upon a time"), 12, top_logprobs=3)
    (one,) = write(http, logprobs=3)
    assert one["text"] == mine.text and one["finish_reason"] == mine.finish_reason
    assert one["logprobs"]["token_logprobs"] == mine.logprobs
    told = serving.alone(nano.encode_chat(serving.tiny(), ASK["messages"]), 12, chat=True)
    (same,) = chat(http, logprobs=True, top_logprobs=2)
    assert same["message"] == {"role": "assistant", "content": told.text, "refusal": None}
    assert [entry["logprob"] for entry in same["logprobs"]["content"]] == told.logprobs
    assert [len(entry["top_logprobs"]) for entry in same["logprobs"]["content"]] == [2] * len(told.token_ids)
    assert all(
        max(top["logprob"] for top in entry["top_logprobs"]) == entry["logprob"]
        for entry in same["logprobs"]["content"]
    )


HONOURED = [
    {"max_tokens": 5},
    {"max_completion_tokens": 12, "max_tokens": None, "stop": ["e"]},
    {"temperature": 2.0},
    {"seed": 2},
    {"top_p": 0.1},
    {"top_k": 2},
    {"min_p": 0.5},
    {"repetition_penalty": 1.9, "max_tokens": 40},
    {"frequency_penalty": 2.0, "max_tokens": 40},
    {"presence_penalty": 2.0, "max_tokens": 40},
    {"logit_bias": {"300": 100}},
    {"messages": [{"role": "user", "content": "The dog"}]},
]
DRAWN = {"temperature": 1.0, "seed": 1}


@pytest.mark.parametrize("fields", HONOURED, ids=lambda fields: ",".join(fields))
def test_a_field_that_is_honoured_changes_the_answer(http, fields):
    plain, other = chat(http, **DRAWN | {"max_tokens": fields.get("max_tokens", 12)}), chat(http, **DRAWN | fields)
    if "max_tokens" in fields and len(fields) == 1:
        plain = chat(http, **DRAWN)
    assert plain[0]["message"] != other[0]["message"]
    assert chat(http, **DRAWN | fields) == other


def test_ends_are_honoured(http):
    """min_tokens, ignore_eos and stop_token_ids, seen by the tokens that are drawn."""
    tokens = serving.alone(serving.tiny().tokenizer.encode("Once upon a time"), 12).token_ids
    end = tokens[4]
    at = tokens.index(end)
    (stopped,) = write(http, stop_token_ids=[end], logprobs=0)
    assert stopped["finish_reason"] == "stop" and len(stopped["logprobs"]["tokens"]) == at + 1
    (longer,) = write(http, stop_token_ids=[end], min_tokens=at + 2, logprobs=0)
    assert len(longer["logprobs"]["tokens"]) > at + 1
    eos = {"logit_bias": {"2": 1000}, "logprobs": 0}
    (ended,) = write(http, **eos)
    assert (ended["text"], ended["finish_reason"], ended["logprobs"]["tokens"]) == ("", "stop", ["</s>"])
    (ignored,) = write(http, **eos, ignore_eos=True)
    assert (ignored["finish_reason"], len(ignored["logprobs"]["tokens"])) == ("length", 12)


@pytest.mark.parametrize("name", sorted(WITHOUT_EFFECT))
def test_a_field_without_effect_changes_nothing(http, name):
    assert chat(http, **{name: {"a": "b"} if name == "metadata" else "x"}) == chat(http)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_field_that_is_refused_is_named(http, name):
    """Unless its value asks for nothing; null never does."""
    assert refusal(http, **{name: {"never": "heard"}}) == (400, name, "unsupported_parameter")
    for harmless in (None, *REFUSED[name][0]):
        assert chat(http, **{name: harmless}) == chat(http)


WRONG = [
    ({"nonsense": 1}, "nonsense"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"temperature": -1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": 100000}, "n"),
    ({"seed": 2**32}, "seed"),
    ({"stop": [""]}, "stop"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": "x" * 257}, "stop"),
    ({"stop_token_ids": [99999]}, "stop_token_ids"),
    ({"min_tokens": 13}, "min_tokens"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"99999": 1}}, "logit_bias"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
    ({"stream_options": {"x": 1}}, "stream_options.x"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"chat_template_kwargs": {"add_generation_prompt": False}}, "chat_template_kwargs"),
    ({"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "high"}}, "reasoning_effort"),
    ({"max_tokens": 4, "max_completion_tokens": 5}, "max_tokens"),
]


@pytest.mark.parametrize(("fields", "param"), WRONG, ids=lambda value: str(value)[:40])
def test_what_is_wrong_is_named(http, fields, param):
    assert refusal(http, **fields)[:2] == (400, param)


def test_other_refusals(http):
    assert refusal(http, model="gpt-4") == (404, "model", "model_not_found")
    assert refusal(http, max_tokens=128) == (400, "messages", "context_length_exceeded")
    assert refusal(http, max_tokens=None, max_completion_tokens=0)[:2] == (400, "max_completion_tokens")
    assert refusal(http, "/v1/completions", prompt=[]) == (400, "prompt", None)
    assert refusal(http, "/v1/completions", prompt=[99999])[:2] == (400, "prompt")
    assert refusal(http, "/v1/completions", logprobs=21)[:2] == (400, "logprobs")
    assert refusal(http, "/v1/embeddings", input=[[]], messages=None, max_tokens=None)[:2] == (400, "input")
    assert refusal(http, "/v1/completions", best_of=2)[:2] == (400, "best_of")
    assert refusal(http, "/v1/completions", prompt=["x"] * 300)[:2] == (400, "prompt")
    assert refusal(http, "/v1/completions", n=300)[:2] == (400, "n")
    assert refusal(http, "/v1/completions", max_tokens=0)[:2] == (400, "max_tokens")
    assert http.get("/v1/nothing").json()["error"]["code"] == "not_found"
    assert http.get("/v1/chat/completions").status_code == 405
    assert http.post("/v1/completions", content=b"x", headers={"content-type": "text/plain"}).status_code == 415
    assert http.post("/v1/completions", content=b"x", headers={"content-type": "application/json"}).status_code == 400
    packed = {"content-type": "application/json", "content-encoding": "gzip"}
    assert http.post("/v1/completions", content=gzip.compress(b"{}"), headers=packed).status_code == 415
    assert http.post("/v1/completions/", json=WRITE).json()["error"]["code"] == "not_found"  # and no way to http://


def test_what_one_of_a_few_values_must_be_is_said(http):
    """At any depth."""

    def said(path, **fields):
        return http.post(path, json=fields).json()["error"]["message"]

    ask = {"messages": ASK["messages"]}
    assert said("/v1/embeddings", input="x", pooling="max").endswith("'max'; expected 'mean', 'last'.")
    assert "expected 'text', 'json_object', 'json_schema'" in said(
        "/v1/chat/completions", **ask, response_format={"type": "regex"}
    )
    tools = {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "auto", "tools": [{"type": "x", "function": {"name": "f"}}]},
    }
    assert "tools[0].type: invalid enum value 'x'; expected 'function'." in said(
        "/v1/chat/completions", **ask, tool_choice=tools
    )


def test_messages_as_clients_send_them(http):
    """Parts are joined; a developer is a system, which this template refuses."""
    parts = [{"type": "text", "text": "Once upon "}, {"type": "text", "text": "a time"}]
    assert chat(http, messages=[{"role": "user", "content": parts, "name": "Ada"}]) == chat(http)
    assert refusal(http, messages=[{"role": "developer", "content": "x"}, *ASK["messages"]])[:2] == (400, "messages")


def test_a_last_message_is_continued(http):
    """The prompt ends where it ends; and where it is not the beginning of an answer, so does add_generation_prompt."""
    messages = [*ASK["messages"], {"role": "assistant", "content": ", there was"}]
    (one,) = chat(http, messages=messages, continue_final_message=True)
    (same,) = write(http, prompt="Once upon a time, there was")
    assert one["message"]["content"] == same["text"]


def test_prompts_of_every_form(http):
    ids = serving.tiny().tokenizer.encode("Once upon a time")
    (one,) = write(http)
    assert write(http, prompt=ids) == [one]
    both = write(http, prompt=[ids, "The dog"], n=2, temperature=1.0, seed=5)
    assert [choice["index"] for choice in both] == [0, 1, 2, 3]
    for at, prompt in enumerate((ids, "The dog")):
        for i in range(2):
            (alone,) = write(http, prompt=prompt, temperature=1.0, seed=5 + i)
            assert both[2 * at + i] == alone | {"index": 2 * at + i}


def test_any_answer_can_be_had_again(http):
    """With the seed that its header names."""
    first = http.post("/v1/chat/completions", json=ASK | {"temperature": 1.0})
    again = chat(http, temperature=1.0, seed=int(first.headers["x-nanollm-seed"]))
    assert again == first.json()["choices"]


def test_echo_with_logprobs_is_the_score_of_the_prompt(http):
    """As lm-evaluation-harness asks for it; and the drawn token behind it."""
    ids = serving.tiny().tokenizer.encode("Once upon a time, there was")
    score = nano.score(serving.tiny(), [ids], top_logprobs=1)[0]
    (one,) = write(http, prompt=ids, echo=True, logprobs=1, max_tokens=1)
    about = one["logprobs"]
    assert about["token_logprobs"][0] is about["top_logprobs"][0] is None
    agree(about["token_logprobs"][1:-1], score.logprobs, 1e-5)
    best = [
        logprob == max(top.values())
        for logprob, top in zip(about["token_logprobs"][1:-1], about["top_logprobs"][1:-1], strict=True)
    ]
    assert best == score.best
    assert one["text"].startswith("Once upon a time, there was")
    ends = [*about["text_offset"][1:], len(one["text"])]
    shown = [one["text"][a:b] for a, b in zip(about["text_offset"], ends, strict=True)]
    assert [name.strip() for name in about["tokens"][1:]] == [text.strip() for text in shown[1:]]
    (only,) = write(http, prompt="Once upon", echo=True, max_tokens=0)
    assert (only["text"], only["finish_reason"]) == ("Once upon", "length")


# streams


def test_the_bytes_of_a_stream(http):
    """Golden: the role with the first text, a reason in a chunk of its own, the usage in another, then [DONE]."""
    body = ASK | {"stream": True, "stream_options": {"include_usage": True}}
    found = http.post("/v1/chat/completions", json=body)
    assert found.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert found.headers["cache-control"] == "no-cache" and found.headers["x-accel-buffering"] == "no"
    assert all(one.startswith(("data: ", ": keep-alive")) for one in found.text.split("\n\n")[:-1])
    chunks = chunks_of(found.text)
    assert len({chunk["id"] for chunk in chunks}) == 1 and {chunk["object"] for chunk in chunks} == {
        "chat.completion.chunk"
    }
    *spoken, end, cost = chunks
    assert cost["choices"] == [] and cost["usage"]["completion_tokens"] == 12
    assert cost["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert end["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}]
    assert spoken[0]["choices"][0]["delta"]["role"] == "assistant" and spoken[0]["choices"][0]["delta"]["content"]
    assert all(set(chunk["choices"][0]["delta"]) == {"content"} for chunk in spoken[1:])
    assert all(chunk["choices"][0]["finish_reason"] is None and chunk["usage"] is None for chunk in spoken)
    text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in spoken)
    assert text == chat(http)[0]["message"]["content"]


HEAD = (
    '{"id":"chatcmpl-0","object":"chat.completion.chunk","created":0,"model":"tiny",'
    f'"system_fingerprint":"nanollm-{nano.__version__}-rows3-piece16",'
)
GOLDEN = """\
data: HEAD\
"choices":[{"index":0,"delta":{"role":"assistant","content":"FIRST"},"logprobs":null,"finish_reason":null}],"usage":null}

data: HEAD\
"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}],"usage":null}

data: HEAD\
"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":1,"total_tokens":6,"prompt_tokens_details":{"cached_tokens":0}}}

data: [DONE]

"""


def test_golden_bytes(http):
    """Every byte of a stream of one token but its id, its time, the version and the word itself."""
    said = chat(http, max_tokens=1)[0]["message"]["content"]
    body = ASK | {"max_tokens": 1, "stream": True, "stream_options": {"include_usage": True}}
    found = http.post("/v1/chat/completions", json=body).text.replace(": keep-alive\n\n", "")
    found = re.sub(r"chatcmpl-[0-9a-f]{32}", "chatcmpl-0", re.sub(r'"created":\d+', '"created":0', found))
    assert found == GOLDEN.replace("HEAD", HEAD).replace("FIRST", said)


def test_a_stream_is_the_whole_answer(http, client):
    """Text, tokens, logprobs and reasons of several answers at once, by the openai client."""
    fields = ASK | {"n": 3, "temperature": 1.0, "seed": 3, "logprobs": True, "top_logprobs": 2, "stop": ["q"]}
    whole = client.chat.completions.create(**fields)
    texts, entries, reasons = [""] * 3, [[], [], []], [None] * 3
    for chunk in client.chat.completions.create(**fields, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            entries[choice.index] += choice.logprobs.content if choice.logprobs else []
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    for one, text, found, reason in zip(whole.choices, texts, entries, reasons, strict=True):
        assert (one.message.content, one.finish_reason) == (text, reason)
        assert one.logprobs.content == found
    legacy = WRITE | {"echo": True, "logprobs": 1}
    whole = client.completions.create(**legacy).choices[0]
    parts = [chunk.choices[0] for chunk in client.completions.create(**legacy, stream=True)]
    assert "".join(part.text for part in parts) == whole.text
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        joined = [value for part in parts if part.logprobs for value in getattr(part.logprobs, name)]
        assert joined == getattr(whole.logprobs, name)


def test_usage_in_every_chunk(client):
    fields = ASK | {"stream": True, "extra_body": {"stream_options": {"continuous_usage_stats": True}}}
    counts = [chunk.usage.completion_tokens for chunk in client.chat.completions.create(**fields)]
    assert counts == sorted(counts) and counts[0] >= 1 and counts[-1] == 12


def test_silence_is_broken_by_comments(http, service):
    """Proxies cut silent connections; here nothing is said because somebody else has the engine."""
    hold, held = threading.Event(), threading.Event()
    service.thread.leave(lambda: (held.set(), hold.wait(30)))
    assert held.wait(30)
    with http.stream("POST", "/v1/chat/completions", json=ASK | {"stream": True}) as found:
        parts = found.iter_raw()
        assert next(parts) == b": keep-alive\n\n"
        hold.set()
        rest = b"".join(parts).replace(b": keep-alive\n\n", b"")
    assert rest.startswith(b"data: {") and rest.endswith(b"data: [DONE]\n\n")


# the law of load


def test_an_answer_is_the_same_under_load(http, service):
    """Alone, then twelve at once, twice (the second time their prompts are cached), streamed or not: tokens and logprobs ==."""
    story = "Once upon a time, there was a girl named Lily. She loved to play. One day "
    bodies = [
        WRITE | {"prompt": story * (1 + n % 2) + "abcdefghijkl"[n], "max_tokens": 5 + 3 * n, "logprobs": 2}
        | ({} if n % 3 else {"temperature": 1.0, "seed": n, "top_p": 0.9}) | ({} if n % 4 else {"echo": True})
        for n in range(12)
    ]  # fmt: skip
    alone = [http.post("/v1/completions", json=body).json()["choices"] for body in bodies]

    def streamed(body):
        found = http.post("/v1/completions", json=body | {"stream": True}).text
        choices = [chunk["choices"][0] for chunk in chunks_of(found)]
        about = [choice["logprobs"] for choice in choices if choice["logprobs"]]
        logprobs = {name: [value for one in about for value in one[name]] for name in about[0]}
        text = "".join(choice["text"] for choice in choices)
        return [{"index": 0, "text": text, "logprobs": logprobs, "finish_reason": choices[-1]["finish_reason"]}]

    def whole(body):
        return http.post("/v1/completions", json=body).json()["choices"]

    before = service.metrics.hits._value.get()
    for ask in (whole, streamed):
        with ThreadPoolExecutor(12) as pool:
            assert list(pool.map(ask, bodies)) == alone
    assert service.metrics.hits._value.get() > before
    assert serving.settled(service)
    assert service.metrics.compiled._value.get() == 0


def test_nobody_who_writes_waits_for_the_pool_of_prefixes_to_be_made(monkeypatch):
    """A server that is ready has it."""
    engine = Engine(serving.tiny(), serving.ROWS, piece=serving.PIECE)
    monkeypatch.setattr(turns, "warm", lambda *args, **rest: 0)  # which is tried elsewhere
    turns.ready(engine, 128, print)
    assert engine.pool is not None and engine.pool.layers[0].k.shape[:2] == (2 * engine.places, serving.PIECE)


def test_a_disconnect_frees_the_row_within_two_chunks(http, service):
    """In mid-stream; before the first byte; and of a request that does not stream. Its neighbour's answer stays as it is."""
    expected = chat(http, max_tokens=90)[0]["message"]["content"]
    assert serving.settled(service)
    long = ASK | {"max_tokens": 100, "ignore_eos": True}
    rows = service.engine.slots
    with ThreadPoolExecutor(1) as pool, serving.gated(service) as gate:
        beside = pool.submit(http.post, "/v1/chat/completions", json=ASK | {"max_tokens": 90, "stream": True})
        assert serving.until(lambda: len(service.under_way) == 1)
        with http.stream("POST", "/v1/chat/completions", json=long | {"stream": True}) as found:
            assert serving.until(lambda: len(service.under_way) == 2)
            for part in found.iter_raw():  # comments, until it has its first text
                if b"assistant" in part:
                    break
                gate.release()
        for after in ("its first text", "nothing but comments", "nothing"):
            if after == "nothing but comments":
                with http.stream("POST", "/v1/chat/completions", json=long | {"stream": True}):
                    assert serving.until(lambda: len(service.under_way) == 2)
            elif after == "nothing":
                with pytest.raises(httpx2.TimeoutException):
                    http.post("/v1/chat/completions", json=long, timeout=1.0)
            assert serving.until(lambda: len(service.under_way) == 1)
            gate.release(3)  # one was waited for already, and two chunks
            assert serving.until(lambda: gate._value == 0)
            assert sum(slot.ticket is not None for slot in rows) == 1
        gate.release(1000)
        said = [chunk["choices"][0]["delta"] for chunk in chunks_of(beside.result().text)]
        assert "".join(delta.get("content", "") for delta in said) == expected
    assert serving.settled(service)


# tokens, vectors, and what is asked about the server


def test_tokens(http):
    tokenizer = serving.tiny().tokenizer
    ids = tokenizer.encode("Once upon a time")
    found = http.post(
        "/tokenize", json={"model": "tiny", "prompt": "Once upon a time", "return_token_strs": True}
    ).json()
    assert (found["tokens"], found["count"], found["max_model_len"]) == (ids, len(ids), 128)
    assert found["token_strs"][0] == "<s>" and "".join(found["token_strs"][1:]).strip() == "Once upon a time"
    assert http.post("/tokenize", json={"prompt": "Once", "add_special_tokens": False}).json()["tokens"][0] != 1
    assert http.post("/tokenize", json={"prompt": "</s>", "add_special_tokens": False}).json()["tokens"] == [2]
    asked = http.post("/v1/tokenize", json={"messages": ASK["messages"]}).json()["tokens"]
    assert asked == nano.encode_chat(serving.tiny(), ASK["messages"])
    assert http.post("/detokenize", json={"tokens": ids}).json() == {"prompt": "Once upon a time"}
    assert refusal(http, "/detokenize", tokens=[99999], messages=None, max_tokens=None)[:2] == (400, "tokens")
    info = http.get("/tokenizer_info").json()
    assert (info["bos_token"], info["eos_token"]) == ("<s>", "</s>") and "messages" in info["chat_template"]


def test_vectors(client, http):
    """As nano.embed makes them, by the client that asks for base64 without saying so."""
    mine = nano.embed(serving.tiny(), ["The dog", "A cat"])
    found = client.embeddings.create(model="tiny", input=["The dog", "A cat"])
    for one, row in zip(found.data, mine, strict=True):
        agree(one.embedding, row, 1e-5)
    body = {"model": "tiny", "input": "The dog", "pooling": "last", "normalize": False}
    plain = http.post("/v1/embeddings", json=body).json()
    assert plain["pooling"] == "last"
    agree(plain["data"][0]["embedding"], nano.embed(serving.tiny(), "The dog", pooling="last", normalize=False), 1e-5)
    packed = http.post("/v1/embeddings", json=body | {"encoding_format": "base64"}).json()["data"][0]["embedding"]
    assert list(struct.unpack("<24f", base64.b64decode(packed))) == plain["data"][0]["embedding"]
    assert refusal(http, "/v1/embeddings", input="x", messages=None, max_tokens=None, dimensions=5)[1] == "dimensions"


def test_what_is_asked_about_the_server(http, client, service):
    assert [model.id for model in client.models.list()] == ["tiny", "also"]
    assert client.models.retrieve("also").max_model_len == 128
    assert http.get("/health").status_code == http.get("/v1/health").status_code == 200
    assert http.get("/version").json() == {"version": nano.__version__}
    serving.settled(service)
    before = http.get("/metrics").text
    chat(http)
    assert serving.settled(service)
    after = http.get("/metrics").text

    def value(text, name):
        (line,) = [line for line in text.splitlines() if line.startswith(f'nanollm:{name}{{model_name="tiny"}}')]
        return float(line.split()[-1])

    assert value(after, "generation_tokens_total") - value(before, "generation_tokens_total") == 12
    assert value(after, "e2e_request_latency_seconds_count") - value(before, "e2e_request_latency_seconds_count") == 1
    assert value(after, "num_requests_running") == value(after, "num_requests_waiting") == 0
    assert value(after, "compiled_programs_total") == 0


def ended(http):
    """How many requests came to an end, by the reason; and tokens that were looked up in the prefix store, and found there."""
    text = http.get("/metrics").text
    reasons = re.findall(r'request_success_total\{finished_reason="(\w+)".*?\} (\S+)', text)
    counts = re.findall(r"(prefix_cache_\w+)_total\{.*?\} (\S+)", text)
    return {name: float(value) for name, value in (*reasons, *counts)}


def test_texts_that_nobody_goes_on_with_are_counted_as_what_they_are(http, service):
    """Scored where log-probabilities are wanted, pooled where a vector is; of the last state alone what is cached counts."""
    assert serving.settled(service)
    before, text = ended(http), "One day a little girl went to the park with her dog and saw a big tree there."
    write(http, echo=True, logprobs=1, max_tokens=0)
    for pooling in ("mean", "last", "last"):
        assert http.post("/v1/embeddings", json={"input": text, "pooling": pooling}).status_code == 200
    assert serving.settled(service)
    grown = {name: value - before.get(name, 0) for name, value in ended(http).items() if value != before.get(name, 0)}
    size = len(serving.tiny().tokenizer.encode(text))
    assert grown == {"scored": 1, "pooled": 3, "prefix_cache_queries": 2 * size, "prefix_cache_hits": size // 16 * 16}


def test_top(service, port, http, capsys):
    """Each row as a lane, of a server that is at work; and a clear word where none is."""
    assert serving.settled(service)
    with ThreadPoolExecutor(1) as pool, serving.gated(service) as gate:
        asked = pool.submit(chat, http, max_tokens=100)
        gate.release(3)  # of 16 tokens each: it is not at its end however late somebody looks
        assert serving.until(lambda: any(lane.written >= 8 for lane in service.metrics.lanes))
        assert run(["top", f"http://127.0.0.1:{port}/v1", "--once"]) == 0
        gate.release(1000)
        asked.result()
    lines = capsys.readouterr().out.splitlines()
    assert "tokens/s · 0 waiting" in lines[0]
    (busy,) = [line for line in lines if "/100" in line]
    assert busy.count("*") > 0 and sum("idle" in line for line in lines) == serving.ROWS - 1
    assert run(["top", "http://127.0.0.1:1"]) == 2
    assert "is nanollm serve running there?" in capsys.readouterr().err
