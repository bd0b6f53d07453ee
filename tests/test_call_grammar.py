"""Calls and reasoning as grammars: what they let through, calls.py takes apart again."""

from __future__ import annotations

import dataclasses
import json

import pytest

from nanollm_jax.chat.call_grammar import Talk
from nanollm_jax.chat.calls import Reader
from nanollm_jax.chat.forms import FORMS, form_of
from nanollm_jax.errors import GrammarError
from nanollm_jax.grammar import Grammar, Words
from nanollm_jax.tokenizer import load_tokenizer
from nanollm_jax.tokenizer.table import SHOWN
from nanollm_jax.weights.source import find

LISTED, GRANITE, TAGGED, BARE = FORMS.values()
SINGLE = form_of("[TOOL_CALLS] [ARGS]")
CITY = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
TOOLS = {
    "weather": Grammar.json_schema(CITY | {"additionalProperties": False}),
    "f": Grammar.json_object(),
}
PARIS = '{"city": "Paris"}'


@pytest.fixture(scope="module")
def words():
    """Of the bundled tokenizer, with the tags of Mistral, Llama 3 and of reasoning as special tokens behind it."""
    tokenizer = load_tokenizer(find(None, None))
    first, names = tokenizer.vocab_size, ("[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<think>", "</think>")
    more = dataclasses.replace(
        tokenizer,
        pieces=[*tokenizer.pieces, *names],
        spellings=[*tokenizer.spellings, *[b""] * len(names)],
        special_ids=tokenizer.special_ids | set(range(first, first + len(names))),
    )
    return Words(more, more.vocab_size)


def tokens(words, text, special):
    """Text as tokens, the names of special ones being these."""
    at, found = 0, []
    while at < len(text):
        name = next((name for name in special if text.startswith(name, at)), None)
        if name is not None:
            found.append(special[name])
            at += len(name)
            continue
        found += words.table(text[at].encode())
        at += 1
    return found


def taken(words, talk, text):
    """How an answer stands that begins so: "whole" where it may end, "part" where not, "no" where it cannot be."""
    matcher = words.compile(talk.grammar()).start(())
    try:
        for token in tokens(words, text, talk.special):
            if matcher.over:
                return "no"
            matcher.take(token)
    except GrammarError:
        return "no"
    return "whole" if matcher.whole else "part"


ONE = [  # one call of `weather`, in each form
    (TAGGED, f'<tool_call>\n{{"name": "weather", "arguments": {PARIS}}}\n</tool_call>'),
    (TAGGED, f'<tool_call>{{"name": "weather", "arguments": {PARIS}}}</tool_call>'),
    (LISTED, f'[TOOL_CALLS][{{"name": "weather", "arguments": {PARIS}}}]'),
    (LISTED, f'[TOOL_CALLS] [{{"name": "weather", "arguments": {PARIS}}}]'),
    (SINGLE, f"[TOOL_CALLS]weather[ARGS]{PARIS}"),
    (GRANITE, f'<|tool_call|>[{{"name": "weather", "arguments": {PARIS}}}]'),
    (GRANITE, f'<|tool_call|>[{{"name": "weather", "arguments": {PARIS}}}]<|/tool_call|>'),
    (BARE, f'{{"name": "weather", "parameters": {PARIS}}}'),
    (BARE, f'<|python_tag|>{{"name": "weather", "parameters": {PARIS}}}'),
]
TWO = [
    (
        TAGGED,
        '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n'
        '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>',
    ),
    (LISTED, '[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "f", "arguments": {"a": 1}}]'),
    (SINGLE, '[TOOL_CALLS]f[ARGS]{}[TOOL_CALLS]f[ARGS]{"a": 1}'),
    (GRANITE, '<|tool_call|>[{"name": "f", "arguments": {}}, {"name": "f", "arguments": {"a": 1}}]'),
    (BARE, '{"name": "f", "parameters": {}}; {"name": "f", "parameters": {"a": 1}}'),
]  # fmt: skip


def special_of(words, form, special):
    return {name: token for name, token in words.special.items() if special and name in form.tokens}


def read(form, text, special):
    """The calls that are read out of an answer."""
    for name in special:
        text = text.replace(name, SHOWN + name)
    reader = Reader(form, tuple(TOOLS), special=special)
    events = reader.feed(text) + reader.finish()
    found = {}
    for event in events:
        if event.kind in ("call", "arguments"):
            name, said = found.get(event.at, (event.said, ""))
            found[event.at] = name, said + event.said * (event.kind == "arguments")
    return [(name, json.loads(said)) for name, said in found.values()]


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize(("form", "text"), ONE, ids=lambda value: str(value)[:24])
def test_one_call(words, form, text, special):
    ids = special_of(words, form, special)
    if form.opener in text and form.bare and not ids:
        pytest.skip("where it is no special token, it is text like any other")
    for free in (False, True):
        for many in (False, True):
            talk = Talk(form, TOOLS, free=free, many=many, special=ids)
            assert taken(words, talk, text) == "whole"
            assert taken(words, talk, text[: text.index("Paris")]) == "part"
            assert taken(words, talk, text.replace("Paris", "Oslo")) == "no"
            assert taken(words, talk, text.replace("weather", "whether")) == "no"
            assert taken(words, talk, "Well.") == ("whole" if free else "no")
            # behind text a bare object is text, and the token that may open one is not to be had
            behind = free and not (form.bare and form.opener in text)
            assert (taken(words, talk, f"Well. {text}") == "whole") == behind
    assert read(form, text, ids) == [("weather", {"city": "Paris"})]


@pytest.mark.parametrize(("form", "text"), TWO, ids=lambda value: str(value)[:24])
def test_several_calls(words, form, text):
    ids = special_of(words, form, True)
    assert taken(words, Talk(form, TOOLS, special=ids), text) == "whole"
    assert taken(words, Talk(form, TOOLS, special=ids, many=False), text) == "no"
    assert read(form, text, ids) == [("f", {}), ("f", {"a": 1})]


def test_letters_of_a_special_token_open_no_call(words):
    """Nor do they close reasoning; and no special token can stand inside of text."""
    ids = special_of(words, LISTED, True)
    talk = Talk(LISTED, TOOLS, free=True, special=ids)
    letters = [token for letter in "[TOOL_CALLS] is a tag" for token in words.table(letter.encode())]
    matcher = words.compile(talk.grammar()).start(())
    for token in letters:
        matcher.take(token)
    assert matcher.whole
    with pytest.raises(GrammarError):
        matcher.take(words.special["[ARGS]"])


@pytest.mark.parametrize("special", [False, True])
def test_reasoning(words, special):
    ids = {name: words.special[name] for name in ("<think>", "</think>")} if special else {}
    number = Grammar.json_schema({"type": "integer"})
    talk = Talk(content=number, thinks=True, special=ids)
    assert taken(words, talk, "12") == taken(words, talk, "<think>\nit is <b>\n</think>\n\n12") == "whole"
    assert taken(words, talk, "it is</think>12") == taken(words, talk, "<think>it</think>is") == "no"
    opened = Talk(content=number, thinks=True, thinking=True, special=ids)
    assert taken(words, opened, "it is</think>12") == "whole" and taken(words, opened, "12") == "part"
    both = Talk(TAGGED, TOOLS, free=True, thinks=True, special=ids)
    assert taken(words, both, f"<think>so</think>{ONE[0][1]}") == "whole"
