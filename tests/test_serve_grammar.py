"""Answers of a given form from a real server: JSON, texts of a grammar, calls of tools; or a refusal that names the field."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import re
import threading

import jsonschema
import pytest
import serving

import nanollm_jax as nano
from nanollm_jax.chat.template import ChatTemplate
from nanollm_jax.engine.engine import Engine
from nanollm_jax.engine.request import words_of
from nanollm_jax.serve.asking import Readers, World
from nanollm_jax.serve.bodies import Chat, read_body
from nanollm_jax.serve.service import Options, Service

# the messages' texts; calls as Hermes and Qwen write them, and reasoning
TEMPLATE = (
    '{%- if tools %}{# <tool_call>{"name": .., "arguments": ..}</tool_call> #}{% endif %}'
    "{%- for message in messages %}{{ message.content }}{% endfor -%}"
)
THINKS = TEMPLATE + "{# </think> #}{%- if add_generation_prompt %}<think>\n{% endif -%}"
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "place", "schema": CITY}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
STRICT = {"type": "function", "function": WEATHER["function"] | {"strict": True}}
ASK = {"model": "tiny", "messages": [{"role": "user", "content": "Once upon a time"}], "max_tokens": 90}
HOT = {"temperature": 1.0, "seed": 1}


@pytest.fixture(scope="module")
def service():
    tiny = serving.tiny()
    model = dataclasses.replace(
        tiny,
        config=dataclasses.replace(tiny.config, max_positions=256),
        chat_template=ChatTemplate(tiny.chat_template.path, {"default": TEMPLATE}, tiny.tokenizer),
    )
    engine = Engine(model, serving.ROWS, piece=serving.PIECE)
    return Service(model, engine, Options(names=("tiny",), context=256, hosts=serving.HOSTS), nano.__version__)


def chat(http, **fields):
    found = http.post("/v1/chat/completions", json=ASK | fields)
    assert found.status_code == 200, found.text
    return found.json()["choices"][0]


@pytest.mark.parametrize("strict", [True, False, None])
def test_a_schema_is_kept(client, strict):
    """By openai's own types, strict or not; streamed and whole."""
    form = FORMAT | {"json_schema": FORMAT["json_schema"] | {"strict": strict}}
    choice = client.chat.completions.create(**ASK, response_format=form).choices[0]
    jsonschema.validate(json.loads(choice.message.content), CITY)
    assert choice.finish_reason == "stop"
    with client.chat.completions.stream(**ASK, response_format=form) as stream:
        assert stream.get_final_completion().choices[0].message.content == choice.message.content


def test_other_forms(http, client):
    bias = {str(n): 7 for n in range(2048) if serving.tiny().tokenizer.token_bytes(n) in (b'"', b"}", b"]", b":", b",")}
    whole = chat(http, response_format={"type": "json_object"}, logit_bias=bias, **HOT)
    assert whole["message"]["content"].startswith("{")
    if whole["finish_reason"] == "stop":
        assert isinstance(json.loads(whole["message"]["content"]), dict)
    assert chat(http, response_format={"type": "text"}) == chat(http) == chat(http, response_format=None)
    forms = {"regex": "[0-9]{3}", "choice": ["yes", "no"], "grammar": 'start: "a" | "bc"', "json": CITY}
    wanted = {
        "regex": "[0-9]{3}",
        "choice": "yes|no",
        "grammar": "a|bc",
        "json": r'\{\s*"city"\s*:\s*"(Paris|Rome)"\s*\}',
    }
    for name, form in forms.items():
        said = chat(http, structured_outputs={name: form}, **HOT)["message"]["content"]
        assert re.fullmatch(wanted[name], said), name
        found = client.completions.create(
            model="tiny", prompt="Once", max_tokens=60, extra_body={"structured_outputs": {name: form}}
        )
        assert re.fullmatch(wanted[name], found.choices[0].text), name
    five = http.post(
        "/v1/completions", json={"prompt": ["a", "b"], "n": 2, "structured_outputs": {"regex": "[0-9]{5}"}} | HOT
    )
    assert all(re.fullmatch("[0-9]{5}", one["text"]) for one in five.json()["choices"])


def test_a_form_that_is_cut(http):
    cut = chat(http, response_format=FORMAT, max_tokens=3)
    assert cut["finish_reason"] == "length" and cut["message"]["content"].startswith("{")


def calls(choice):
    return [
        (call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in choice["message"]["tool_calls"]
    ]


def test_a_call_that_is_required(http, client):
    """Of any tool, of a named one, of those that are allowed; its arguments are of its schema, strict or not."""
    tools = {"tools": [WEATHER, CLOCK], "parallel_tool_calls": False}
    for seed in range(4):
        choice = chat(http, **tools, tool_choice="required", temperature=1.0, seed=seed)
        ((name, arguments),) = calls(choice)
        assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
        jsonschema.validate(arguments, CITY if name == "weather" else {"const": {}})
    for name in ("weather", "clock"):
        named = {"type": "function", "function": {"name": name}}
        assert [call[0] for call in calls(chat(http, tools=[WEATHER, CLOCK], tool_choice=named))] == [name]
        allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}
        assert {call[0] for call in calls(chat(http, **tools, tool_choice=allowed))} == {name}
    with client.chat.completions.stream(**ASK, **tools, tool_choice="required") as stream:
        streamed = stream.get_final_completion().choices[0]
    whole = client.chat.completions.create(**ASK, **tools, tool_choice="required").choices[0]
    assert streamed.finish_reason == whole.finish_reason == "tool_calls"
    assert streamed.message.tool_calls[0].function.arguments == whole.message.tool_calls[0].function.arguments


def asked(service, template=TEMPLATE, **fields):
    """The request that a body becomes, and a model with this template."""
    tiny = service.model
    model = dataclasses.replace(
        tiny, chat_template=ChatTemplate(tiny.chat_template.path, {"default": template}, tiny.tokenizer)
    )
    (request,) = Readers(model, 256, 4).chat(read_body(ASK | fields, Chat), World(None, None)).requests
    return model, request


def follows(model, request, text):
    """May this be an answer's beginning? Token by token, as the engine takes them in. -> why it ended, None where it may not"""
    answer = dataclasses.replace(request, max_new_tokens=1000).answer(model)
    try:
        for token in words_of(model).table(text.encode()):
            assert not answer.finish_reason
            answer.push(token, -1.0)
    except nano.GrammarError:
        return None
    return answer.finish_reason


def test_a_strict_function_that_may_be_called(service, http):
    """Text stays free; where a call begins, it is of the schema; that of another function is any object."""
    free = chat(http, tools=[STRICT, CLOCK], **HOT)
    assert free["message"]["content"] and not free["message"].get("tool_calls")
    model, request = asked(service, tools=[STRICT, CLOCK])
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    assert follows(model, request, f"Well. {call}\n{call} So it is") == ""
    assert follows(model, request, call.replace("Rome", "Oslo")) is None
    assert follows(model, request, f"Well. {call.replace('weather', 'whether')}") is None
    assert follows(model, request, '<tool_call>{"name": "clock", "arguments": {"any": [1]}}</tool_call>') == ""
    assert asked(service, tools=[CLOCK])[1].grammar is None


def test_reasoning_comes_first(service):
    """Where the prompt has opened it, it is free until it is closed; then the form begins, and ends the answer."""
    model, request = asked(service, THINKS, response_format=FORMAT)
    assert follows(model, request, 'So {"city"?</think>\n\n{"city": "Rome"}') == "stop"
    assert follows(model, request, 'So</think>\n\n{"city": "Oslo"') is None
    assert follows(model, request, '{"city": "Oslo"}') == ""  # it is reasoning
    model, request = asked(service, THINKS.split("{%- if add")[0], response_format=FORMAT)
    assert follows(model, request, "<think>So</think>{") == follows(model, request, "{") == ""
    assert follows(model, request, "So") is None


def test_a_form_and_tools(service):
    """An answer is of the form, or calls something."""
    model, request = asked(service, response_format=FORMAT, tools=[CLOCK])
    assert follows(model, request, '{"city": "Rome"}') == "stop"
    assert follows(model, request, '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>') == ""
    assert follows(model, request, "Well") is None


def bomb(depth):
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def schema(value):
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}}


ALLOWED = {"type": "allowed_tools"}
SCHEMA = "response_format.json_schema.schema"
WRONG = [
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_object", "json_schema": {"schema": {}}}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, SCHEMA),
    ({"response_format": FORMAT | {"colour": 1}}, "response_format.colour"),
    (schema({"not": {}}), SCHEMA),
    (schema({"maxlength": 3}), SCHEMA),
    (schema({"$ref": "http://127.0.0.1:1/x"}), SCHEMA),
    ({"response_format": bomb(200)}, SCHEMA),
    (schema({"enum": ["x" * 100] * 5000}), SCHEMA),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "(" * 9999}}, "structured_outputs.regex"),
    ({"structured_outputs": {"choice": [""]}}, "structured_outputs.choice"),
    ({"structured_outputs": {"grammar": "x"}}, "structured_outputs.grammar"),
    ({"structured_outputs": {"whitespace_pattern": " "}}, "structured_outputs.whitespace_pattern"),
    ({"structured_outputs": {"regex": "a"}, "response_format": FORMAT}, "structured_outputs"),
    ({"guided_regex": "a"}, "guided_regex"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
    ({"tools": [CLOCK], "tool_choice": {"type": "function"}}, "tool_choice.function"),
    ({"tools": [CLOCK], "tool_choice": ALLOWED | {"allowed_tools": {"mode": "auto", "tools": []}}}, "tool_choice"),
    (
        {"tools": [CLOCK, {"type": "function", "function": {"name": "f", "strict": True, "parameters": {"not": {}}}}]},
        "tools[1].function.parameters",
    ),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {"type": "string"}}}]},
        "tools[0].function.parameters",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), WRONG, ids=lambda value: str(value)[:50])
def test_what_is_wrong_is_named(http, fields, param):
    found = http.post("/v1/chat/completions", json=ASK | fields)
    assert (found.status_code, found.json()["error"]["param"]) == (400, param), found.text


def test_nobody_else_waits_for_a_grammar(service, http, monkeypatch):
    """While one is tried out for ever, those who ask for none are answered."""
    words, gate, begun = words_of(service.model), threading.Event(), threading.Event()

    def stuck(whole):
        begun.set()
        assert gate.wait(60)

    monkeypatch.setattr(words, "try_out", stuck)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        forms = [pool.submit(chat, http, structured_outputs={"regex": f"[a-z]{{{n}}}"}) for n in range(60, 66)]
        assert begun.wait(60)
        assert chat(http)["message"]["content"]
        gate.set()
        assert [len(form.result()["message"]["content"]) for form in forms] == list(range(60, 66))


def test_rows_beside_keep_every_bit(http):
    """Plain answers while forms are written, refused and hung up on: those that they have alone."""
    ask = {"prompt": "Once upon a time", "max_tokens": 24, "logprobs": 2}
    expected = [http.post("/v1/completions", json=ask | HOT | {"seed": seed}).json()["choices"] for seed in range(4)]

    def beside(n):
        forms = [
            {"response_format": FORMAT},
            {"structured_outputs": {"regex": "[a-z]{40}"}},
            schema({"not": {}}),
            {"tools": [WEATHER], "tool_choice": "required"},
        ]
        if n % 2:
            return http.post("/v1/chat/completions", json=ASK | forms[n // 2 % 4] | HOT).status_code
        return (
            http.post("/v1/completions", json=ask | HOT | {"seed": n // 2 % 4}).json()["choices"]
            == expected[n // 2 % 4]
        )

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(beside, range(24)))
    assert all(found[::2]) and set(found[1::2]) == {200, 400}


def test_nothing_was_compiled_meanwhile(service, http):
    """By all of the above: programs know nothing of grammars. And the rows are free again."""
    assert serving.settled(service)
    lines = http.get("/metrics").text.splitlines()
    (compiled,) = [line.split()[-1] for line in lines if line.startswith("nanollm:compiled_programs_total")]
    assert float(compiled) == 0
