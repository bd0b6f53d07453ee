"""Tools through the app: what clients get of an answer that calls some, whole and streamed, and what they may send.

The answers are written down here and put where the engine's would come, token by token, so no model runs.
"""

from __future__ import annotations

import dataclasses
import json

import jax
import openai
import pytest
import serving
from starlette.testclient import TestClient

import nanollm_jax as nano
from nanollm_jax.chat.template import ChatTemplate
from nanollm_jax.serve.app import make_app
from nanollm_jax.serve.asking import Readers
from nanollm_jax.serve.bodies import Chat, read_body
from nanollm_jax.serve.calls import Piece
from nanollm_jax.serve.refusals import Refusal
from nanollm_jax.tokenizer.table import SHOWN

TALK = "{%- for message in messages %}{{ message.content }}{{ message.tool_calls | default('') | tojson }}{% endfor -%}"
TOLD = "{%- if tools %}{{ tools | tojson }}{% endif %}"
TAGGED = TOLD + '{# <tool_call>{"name": .., "arguments": ..}</tool_call>, <think></think> #}' + TALK
LISTED = TOLD + "{# [TOOL_CALLS] #}" + TALK
BARE = TOLD + '{# {"name": function name, "parameters": dictionary} #}' + TALK
SPECIAL = ("[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<|eom_id|>", "<think>", "</think>")
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("weather", "clock")
]
ASK = {"model": "tiny", "messages": [{"role": "user", "content": "Paris?"}], "tools": TOOLS}


@pytest.fixture(scope="module")
def model():
    """With some more special tokens behind its vocabulary."""
    tiny = serving.tiny()
    tokenizer = tiny.tokenizer
    first = tokenizer.vocab_size

    def frame(markers):
        plain = tokenizer.frame(frozenset(token for token in markers if token < first))
        return lambda parts: [
            token for part in parts if part for token in ([part] if isinstance(part, int) else plain([part]))
        ]

    more = dataclasses.replace(
        tokenizer,
        frame=frame,
        pieces=[*tokenizer.pieces, *SPECIAL],
        spellings=[*tokenizer.spellings, *[b""] * len(SPECIAL)],
        special_ids=tokenizer.special_ids | set(range(first, first + len(SPECIAL))),
        added={**tokenizer.added, **{name: first + n for n, name in enumerate(SPECIAL)}},
    )
    config = dataclasses.replace(tiny.config, max_positions=8192, vocab_size=first + len(SPECIAL))
    params = nano.init_params(config, jax.random.key(0))
    return dataclasses.replace(tiny, tokenizer=more, config=config, params=params)


def templated(model, source):
    template = ChatTemplate(model.chat_template.path, {"default": source}, model.tokenizer)
    return dataclasses.replace(model, chat_template=template)


def tokens_of(model, answer):
    """An answer as tokens, the longest first, a name of a special one being that token."""
    tokenizer = model.tokenizer
    spelled = {tokenizer.token_bytes(token): token for token in range(tokenizer.vocab_size)}
    spelled |= {name.encode(): tokenizer.added[name] for name in SPECIAL}
    ids, rest = [], answer.encode()
    while rest:
        size = next(size for size in range(len(rest), 0, -1) if rest[:size] in spelled)
        ids.append(spelled[rest[:size]])
        rest = rest[size:]
    return ids


@pytest.fixture(scope="module")
def one():
    return serving.service(context=8192)


def client_of(one, model, *answer, new=None):
    """A client of an app whose every answer is this one, in parts that share no token; up to `new` tokens of it."""
    service = serving.changed(one, unread=10**6)
    service.model = model
    service.readers = Readers(model, 8192, 16)
    ids = [*(token for part in answer for token in tokens_of(model, part)), 2][:new]

    def write(call):
        """As the engine's thread does it, a piece for each token."""
        for at, request in enumerate(call.requests):
            told, shown = request.answer(model), 0
            for token in ids:
                told.push(token, -1.0)
                certain = told.certain()
                call.put(Piece(at, told.text[shown:certain], [token], [-1.0], [[]], told.finish_reason, 0))
                shown = certain
                if told.finish_reason:
                    break
            else:
                call.put(Piece(at, "", [], [], [], "length", 0))

    class Written:
        warm, broken, timeline = True, None, None
        submit, cancel = staticmethod(write), staticmethod(lambda call: None)

    service.thread = Written()
    return TestClient(make_app(service))


def answers(client, **fields):
    """The answer whole, and put together from a stream, by the openai client; both are the same but for the ids."""
    made = openai.OpenAI(base_url="http://testserver/v1", api_key="none", max_retries=0, http_client=client)
    whole = made.chat.completions.create(**ASK | fields).choices[0]
    content, reasoning, calls, reason = None, "", [], None
    for chunk in made.chat.completions.create(**ASK | fields, stream=True):
        (choice,) = chunk.choices
        delta = choice.delta
        content = content if delta.content is None else (content or "") + delta.content
        reasoning += getattr(delta, "reasoning_content", None) or ""
        for part in delta.tool_calls or ():
            if part.id is not None:
                assert part.index == len(calls) and part.type == "function" and part.function.arguments == ""
                calls.append([part.id, part.function.name, ""])
            calls[part.index][2] += part.function.arguments
        reason = choice.finish_reason or reason
    said = [(call.function.name, call.function.arguments) for call in whole.message.tool_calls or ()]
    assert (content or "") == (whole.message.content or "") and [(name, text) for _, name, text in calls] == said
    assert reasoning == (getattr(whole.message, "reasoning_content", None) or "") and reason == whole.finish_reason
    assert len({name for name, *_ in calls}) == len(calls)
    return whole.message.content, reasoning, said, reason, [name for name, *_ in calls]


def test_a_call_is_streamed_and_whole(one, model):
    """Content, reasoning behind special tokens, two calls; whose tags are ordinary text here."""
    text = (
        "<think>\nHm.\n</think>\n\nLet me look.\n"
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich 🌦"}}\n</tool_call>'
        '\n<tool_call>\n{"name": "clock"}\n</tool_call>'
    )
    client = client_of(one, templated(model, TAGGED), text)
    content, reasoning, calls, reason, ids = answers(client)
    assert (content, reasoning, reason) == ("Let me look.", "Hm.", "tool_calls")
    assert calls == [("weather", '{"city": "Zürich 🌦"}'), ("clock", "{}")]
    assert all(name.startswith("call_") for name in ids)
    assert answers(client, parallel_tool_calls=False)[2] == calls[:1]
    assert [len(answers(client, n=1, **fields)[2]) for fields in ({"tool_choice": "none"}, {"tools": []})] == [0, 0]


def test_special_tokens_carry_the_form(one, model):
    client = client_of(
        one, templated(model, LISTED), 'Well.[TOOL_CALLS][{"name": "clock", "arguments": {}, "id": "a"}]'
    )
    content, _, calls, reason, ids = answers(client)
    assert (content, calls, reason) == ("Well.", [("clock", "{}")], "tool_calls")
    assert [len(name) for name in ids] == [9] and ids[0].isalnum()
    # where no tools are given, they print nothing, as ever
    assert answers(client, tools=[])[:3] == ('Well.[{"name": "clock", "arguments": {}, "id": "a"}]', "", [])
    # nor do letters open a call, which anybody may have had the model repeat
    client = client_of(one, templated(model, LISTED), "[TOOL_", "CALLS]clock[ARGS]{}")
    assert answers(client)[:4] == ("[TOOL_CALLS]clock[ARGS]{}", "", [], "stop")
    client = client_of(one, templated(model, LISTED), '[TOOL_CALLS]clock[ARGS]{"a": 1}[TOOL_CALLS]clock[ARGS]{}')
    assert answers(client)[2] == [("clock", '{"a": 1}'), ("clock", "{}")]


def test_what_ends_a_message_that_calls(one, model):
    """<|eom_id|> ends an answer, though neither the config nor the tokenizer says so."""
    text = '<|python_tag|>{"name": "clock", "parameters": {"zone": "UTC"}}<|eom_id|> and on'
    content, _, calls, reason, _ = answers(client_of(one, templated(model, BARE), text))
    assert (content, calls, reason) == (None, [("clock", '{"zone": "UTC"}')], "tool_calls")
    content, _, calls, reason, _ = answers(client_of(one, templated(model, BARE), '{"name": "Ada", "parameters": {}}'))
    assert (content, calls, reason) == ('{"name": "Ada", "parameters": {}}', [], "stop")


def test_a_call_that_is_cut(one, model):
    text = '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}'
    new = len(tokens_of(model, text[:-6]))
    content, _, calls, reason, _ = answers(client_of(one, templated(model, TAGGED), text, new=new), max_tokens=new)
    assert content is None and reason == "length" and len(calls) == 1
    assert '{"city": "Paris"}'.startswith(calls[0][1]) and calls[0][1]
    closed = text + "\n</tool_c"
    content, _, calls, reason, _ = answers(
        client_of(one, templated(model, TAGGED), closed, new=len(tokens_of(model, closed)))
    )
    assert (content, calls, reason) == (None, [("weather", '{"city": "Paris"}')], "length")


def test_logprobs_beside_calls(one, model):
    """Each token has its own, said or not."""
    client = client_of(one, templated(model, TAGGED), 'Well.\n<tool_call>{"name": "clock"}</tool_call>')
    fields = ASK | {"logprobs": True}
    whole = client.post("/v1/chat/completions", json=fields).json()["choices"][0]
    text = client.post("/v1/chat/completions", json=fields | {"stream": True}).text
    chunks = [json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")]
    streamed = [entry for chunk in chunks for entry in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert streamed == whole["logprobs"]["content"] and len(streamed) > 10
    assert whole["message"]["tool_calls"][0]["function"] == {"name": "clock", "arguments": "{}"}


# what clients send

CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
TURNS = [
    {"role": "user", "content": "Paris?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "abcdefghi", "content": [{"type": "text", "text": '{"sky": "grey"}'}]},
]


def read(model, **fields):
    """What the template makes of a body, as text, and how the answer will be read."""
    ids, reading, _ = Readers(model, 8192, 4).read_chat(read_body(ASK | fields, Chat))
    tokenizer = model.tokenizer
    decoder = tokenizer.decoder(shown=tokenizer.special_ids)
    return "".join(map(decoder.push, ids)), reading


def test_earlier_calls_as_templates_want_them(model):
    """Their arguments are objects, where a template does not put them between texts as they are."""
    text, _ = read(templated(model, TAGGED), messages=TURNS)
    assert json.dumps(TOOLS) in text and '"arguments": {"city": "Paris"}' in text and text.endswith('{"sky": "grey"}""')
    joined = TAGGED + "{{ messages[1].tool_calls[0].function.arguments + '.' }}"
    assert read(templated(model, joined), messages=TURNS)[0].endswith('{"city": "Paris"}.')


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("Qwen-Qwen2.5-7B-Instruct", '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'),
        ("Qwen-Qwen3-0.6B", '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'),
        (
            "mistralai-Mistral-Nemo-Instruct-2407",
            '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Paris"}, "id": "abcdefghi"}]',
        ),
        ("meta-llama-Llama-3.1-8B-Instruct", '{"name": "weather", "parameters": {"city": "Paris"}}'),
    ],
)
def test_published_templates_write_what_is_read(data, model, name, written):
    """A call, an answer to it, and back: what the template writes of a call is read as that call."""
    source = (data / "templates" / f"{name}.jinja").read_text()
    text, reading = read(templated(model, source), messages=TURNS)
    assert written in text and "grey" in text and "weather" in text.split(written)[0]
    for name in reading.special:
        written = written.replace(name, SHOWN + name)
    events = (reader := reading.reader()).feed(written) + reader.finish()
    assert "".join(event.said for event in events if event.kind == "arguments") == '{"city": "Paris"}'


def test_reasoning_that_the_prompt_has_opened(model):
    source = TAGGED + "{%- if add_generation_prompt %}<think>\n{% endif -%}"
    assert read(templated(model, source))[1].thinking and not read(templated(model, TAGGED))[1].thinking
    last = [*ASK["messages"], {"role": "assistant", "content": "<think>So"}]
    assert read(templated(model, TAGGED), messages=last, continue_final_message=True)[1].thinking


def without(message, name):
    return {key: value for key, value in message.items() if key != name}


WRONG = [
    ({"tool_choice": {"type": "function", "function": {"name": "watch"}}}, "tool_choice"),
    ({"tool_choice": "sometimes"}, "tool_choice"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "custom", "function": {"name": "f"}}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "function": {"name": "f", "strict": "yes"}}]}, "tools[0].function.strict"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
    ({"tools": [TOOLS[0], TOOLS[0]]}, "tools[1].function.name"),
    ({"messages": [TURNS[0], TURNS[1] | {"role": "user"}]}, "messages[1].tool_calls"),
    ({"messages": [*TURNS[:2], without(TURNS[2], "tool_call_id")]}, "messages[2].tool_call_id"),
    ({"messages": [TURNS[0] | {"tool_call_id": "x"}]}, "messages[0].tool_call_id"),
    ({"messages": [TURNS[0], without(TURNS[1], "tool_calls")]}, "messages[1].content"),
    (
        {"messages": [TURNS[0], TURNS[1] | {"tool_calls": [CALL | {"function": {"name": "f", "arguments": "{"}}]}]},
        "messages[1].tool_calls[0].function.arguments",
    ),
]


@pytest.mark.parametrize(("fields", "param"), WRONG, ids=lambda value: str(value)[:40])
def test_what_is_wrong_is_named(model, fields, param):
    with pytest.raises(Refusal) as refused:
        read(templated(model, TAGGED), **fields)
    assert (refused.value.status, refused.value.param) == (400, param)


def test_a_template_that_tells_of_no_tools(model):
    """Tools are refused, unless none may be called."""
    with pytest.raises(Refusal) as refused:
        read(templated(model, TALK))
    assert (refused.value.status, refused.value.param) == (400, "tools")
    text, reading = read(templated(model, TALK), tool_choice="none")
    assert text.startswith("Paris?") and reading.form is None
