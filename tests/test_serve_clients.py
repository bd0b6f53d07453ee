"""Other people's clients against a real server: each runs a chat, a stream, a tool call and a schema.

lm-evaluation-harness finds our own numbers.

make clients installs them. lm-evaluation-harness, LangChain and LiteLLM are Python's; the AI SDK is Node's, looked for in
experiments/run/clients, where make puts it.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path
from typing import Literal

import pytest
import serving

import nanollm_jax as nano
from nanollm_jax.chat.template import ChatTemplate
from nanollm_jax.engine.engine import Engine
from nanollm_jax.serve.service import Options, Service

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]

TEXT = "Once upon a time"
NODE = Path(__file__).parents[1] / "experiments" / "run" / "clients"
# the messages' texts, and calls as Hermes and Qwen write them
TEMPLATE = (
    '{%- if tools %}{# <tool_call>{"name": .., "arguments": ..}</tool_call> #}{{ tools | tojson }}{% endif %}'
    "{%- for message in messages %}{{ message.content }}{% endfor -%}"
)
CITY = {
    "title": "place", "description": "A place.", "type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"], "additionalProperties": False,
}  # fmt: skip
PLACES = ({"city": "Paris"}, {"city": "Rome"})  # all that the schema allows
WEATHER = {"name": "weather", "description": "How warm it is.", "parameters": CITY}
TOOLS = [{"type": "function", "function": WEATHER}]
FORMAT = {"type": "json_schema", "json_schema": {"name": "place", "schema": CITY}}


@pytest.fixture(scope="module")
def model():
    """The small one, with room for tools and a template that has them."""
    tiny = serving.tiny()
    return dataclasses.replace(
        tiny,
        config=dataclasses.replace(tiny.config, max_positions=1024),
        chat_template=ChatTemplate(tiny.chat_template.path, {"default": TEMPLATE}, tiny.tokenizer),
    )


@pytest.fixture(scope="module")
def base(model):
    options = Options(names=("tiny",), context=1024, hosts=serving.HOSTS)
    engine = Engine(model, serving.ROWS, piece=serving.PIECE)
    with serving.running(Service(model, engine, options, nano.__version__)) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def expected(model):
    """What the server says to TEXT, 20 tokens, greedy."""
    ids = nano.encode_chat(model, [{"role": "user", "content": TEXT}])
    return serving.alone(ids, 20, chat=True).text


@pytest.fixture
def openai_client(base):
    import openai

    return openai.OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0)


ASK = {"model": "tiny", "messages": [{"role": "user", "content": TEXT}]}


def test_openai(openai_client, expected):
    ask = ASK | {"max_tokens": 20}
    assert openai_client.chat.completions.create(**ask).choices[0].message.content == expected
    parts = [
        chunk.choices[0].delta.content or "" for chunk in openai_client.chat.completions.create(**ask, stream=True)
    ]
    assert "".join(parts) == expected


def test_openai_calls_a_tool(openai_client):
    ask = ASK | {"tools": TOOLS, "tool_choice": "required", "max_tokens": 200}
    choice = openai_client.chat.completions.create(**ask).choices[0]
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and call.function.name == "weather"
    assert json.loads(call.function.arguments) in PLACES
    with openai_client.chat.completions.stream(**ask) as stream:
        (streamed,) = stream.get_final_completion().choices[0].message.tool_calls
    assert (streamed.function.name, streamed.function.arguments) == (call.function.name, call.function.arguments)


def test_openai_has_a_schema(openai_client):
    import pydantic

    class Place(pydantic.BaseModel):
        city: Literal["Paris", "Rome"]

    parsed = (
        openai_client.chat.completions.parse(**ASK, response_format=Place, max_tokens=200).choices[0].message.parsed
    )
    assert parsed.city in ("Paris", "Rome")
    whole = openai_client.chat.completions.create(**ASK, response_format=FORMAT, max_tokens=200).choices[0]
    assert json.loads(whole.message.content) in PLACES and whole.finish_reason == "stop"


@pytest.fixture
def langchain(base):
    return pytest.importorskip("langchain_openai").ChatOpenAI(
        base_url=f"{base}/v1", api_key="none", model="tiny", max_tokens=200, max_retries=0, stream_usage=True
    )


def test_langchain(langchain, expected):
    chat = langchain.model_copy(update={"max_tokens": 20})
    answer = chat.invoke(TEXT)
    assert answer.content == expected and answer.usage_metadata["output_tokens"] == 20
    parts = list(chat.stream(TEXT))
    assert "".join(part.content for part in parts) == expected
    assert sum(part.usage_metadata["output_tokens"] for part in parts if part.usage_metadata) == 20


def test_langchain_calls_a_tool(langchain):
    bound = langchain.bind_tools(TOOLS, tool_choice="required")
    (call,) = bound.invoke(TEXT).tool_calls
    assert call["name"] == "weather" and call["args"] in PLACES
    first, *rest = bound.stream(TEXT)
    (streamed,) = sum(rest, first).tool_calls
    assert (streamed["name"], streamed["args"]) == (call["name"], call["args"])
    (named,) = langchain.bind_tools(TOOLS, tool_choice="weather").invoke(TEXT).tool_calls
    assert named["name"] == "weather" and named["args"] in PLACES


def test_langchain_has_a_schema(langchain):
    assert langchain.with_structured_output(CITY).invoke(TEXT) in PLACES
    assert langchain.with_structured_output(CITY, method="json_schema", strict=True).invoke(TEXT) in PLACES
    assert langchain.with_structured_output(CITY, method="function_calling").invoke(TEXT) in PLACES


@pytest.fixture(params=["openai", "hosted_vllm"])
def litellm(base, request, monkeypatch):
    """By both names under which it knows servers like this one."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # no list of prices from elsewhere
    library = pytest.importorskip("litellm")
    ask = {"model": f"{request.param}/tiny", "api_base": f"{base}/v1", "api_key": "none", "num_retries": 0}
    return lambda **fields: library.completion(messages=ASK["messages"], **ask, **fields)


def test_litellm(litellm, expected):
    assert litellm(max_tokens=20).choices[0].message.content == expected
    parts = [chunk.choices[0].delta.content or "" for chunk in litellm(max_tokens=20, stream=True)]
    assert "".join(parts) == expected


def test_litellm_calls_a_tool(litellm):
    # hosted_vllm leaves additionalProperties out, and a random model may go on and on: room for it, and no second call
    ask = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 500}
    choice = litellm(**ask).choices[0]
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    deltas = [chunk.choices[0].delta.tool_calls for chunk in litellm(**ask, stream=True)]
    arguments = "".join(part.function.arguments or "" for parts in deltas if parts for part in parts)
    assert arguments == call.function.arguments


def test_litellm_has_a_schema(litellm):
    assert json.loads(litellm(response_format=FORMAT, max_tokens=200).choices[0].message.content) in PLACES


SCRIPT = """
import { generateText, streamText, tool, jsonSchema, Output } from "ai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
const [base, prompt, schema, kind] = process.argv.slice(2);
const provider = createOpenAICompatible({
  name: "nanollm", baseURL: base + "/v1", includeUsage: true, supportsStructuredOutputs: true,
});
const ask = { model: provider("tiny"), prompt, maxRetries: 0, maxOutputTokens: kind === "chat" ? 20 : 200 };
if (kind === "tool") {
  ask.tools = { weather: tool({ description: "How warm it is.", inputSchema: jsonSchema(JSON.parse(schema)) }) };
  ask.toolChoice = "required";
}
if (kind === "schema") ask.output = Output.object({ schema: jsonSchema(JSON.parse(schema)) });
const whole = await generateText(ask);
const stream = streamText(ask);
let text = "";
for await (const part of stream.textStream) text += part;
const called = (calls) => calls.map((call) => [call.toolName, call.input]);
console.log(JSON.stringify({
  whole: whole.text, text, reason: await stream.finishReason, tokens: (await stream.usage).outputTokens,
  calls: [called(whole.toolCalls), called(await stream.toolCalls)], made: kind === "schema" ? whole.output : null,
}));
"""


@pytest.fixture(scope="module")
def ai_sdk(base):
    """A function: what kind of request, to what the script printed."""
    if shutil.which("node") is None or not (NODE / "node_modules" / "ai").is_dir():
        pytest.skip("no node, or make clients has not installed the AI SDK")
    script = NODE / "ask.mjs"
    script.write_text(SCRIPT)

    def run(kind):
        command = ["node", str(script), base, TEXT, json.dumps(CITY), kind]
        found = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert found.returncode == 0, found.stderr
        return json.loads(found.stdout)

    return run


def test_ai_sdk(ai_sdk, expected):
    found = ai_sdk("chat")
    assert (found["whole"], found["text"], found["reason"], found["tokens"]) == (expected, expected, "length", 20)


def test_ai_sdk_calls_a_tool(ai_sdk):
    found = ai_sdk("tool")
    (whole,), (streamed,) = found["calls"]
    assert whole == streamed and whole[0] == "weather" and whole[1] in PLACES and found["reason"] == "tool-calls"


def test_ai_sdk_has_a_schema(ai_sdk):
    found = ai_sdk("schema")
    assert found["made"] in PLACES and json.loads(found["text"]) == found["made"] and found["reason"] == "stop"


def test_lm_eval(base, monkeypatch):
    """local-completions over HTTP: the log-likelihoods and greedy flags of the model in this process."""
    for needed in ("lm_eval", "tenacity", "aiohttp"):
        pytest.importorskip(needed)
    from agreement import agree
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from nanollm_jax.integrations.lm_eval import NanoLLM

    monkeypatch.setattr(nano, "load", lambda *_, **__: serving.tiny())
    ours = NanoLLM(batch_size=1)
    theirs = LocalCompletionsAPI(
        model="tiny", base_url=f"{base}/v1/completions", tokenizer_backend="remote", max_length=128, num_concurrent=4
    )
    assert theirs.tokenizer.eos_token_id == ours.eot_token_id == 2
    assert theirs.tokenizer.decode(theirs.tok_encode(TEXT)) == TEXT
    texts = [(TEXT, ", there was a dog."), ("The dog", " ran."), ("A cat and", " a bird, and so on, and so forth.")]
    pairs = [((a, b), [1, *theirs.tok_encode(a)], theirs.tok_encode(b)) for a, b in texts]
    # and one that is the greedy answer
    ids = [1, *theirs.tok_encode(TEXT)]
    pairs.append(((TEXT, "?"), ids, serving.alone(ids, 3).token_ids))
    found, known = (one._loglikelihood_tokens(pairs, disable_tqdm=True) for one in (theirs, ours))
    assert [greedy for _, greedy in found] == [greedy for _, greedy in known] and found[-1][1]
    agree([value for value, _ in found], [value for value, _ in known], 1e-5)


def test_litellm_asks_the_other_server_where_one_is_full(base, expected):
    """Two replicas behind its router, of which one says 503."""
    litellm = pytest.importorskip("litellm")
    one = serving.service()
    with serving.running(one) as port:
        one.draining = True
        urls = (f"http://127.0.0.1:{port}/v1", f"{base}/v1")
        models = [
            {"model_name": "tiny", "litellm_params": {"model": "openai/tiny", "api_base": url, "api_key": "none"}}
            for url in urls
        ]
        router = litellm.Router(model_list=models, allowed_fails=0)
        ask = {"model": "tiny", "messages": [{"role": "user", "content": TEXT}], "max_tokens": 20}
        found = [router.completion(**ask).choices[0].message.content for _ in range(6)]
        assert found == [expected] * 6
