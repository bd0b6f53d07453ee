"""Calls of tools and reasoning out of answers: the published forms, and any borders of the pieces in which they come."""

from __future__ import annotations

import json
from itertools import groupby, pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nanollm_jax.chat.calls import Reader
from nanollm_jax.chat.forms import FORMS, form_of, reasons, wants_text
from nanollm_jax.chat.json_pieces import Json
from nanollm_jax.tokenizer.table import SHOWN

LISTED, GRANITE, TAGGED, BARE = FORMS.values()
NAMES = ("get_weather", "f")


def events(pieces, form, **settings):
    """What a reader makes of pieces, neighbours of one kind joined; the texts of all of them are the answer."""
    reader = Reader(form, NAMES, **settings)
    found = [event for piece in pieces for event in reader.feed(piece)] + reader.finish()
    assert "".join(event.text for event in found) == "".join(pieces)
    joined = [(kind, index, list(some)) for (kind, index), some in groupby(found, lambda one: (one.kind, one.at))]
    return [(kind, index, "".join(e.text for e in some), "".join(e.said for e in some)) for kind, index, some in joined]


def read(text, form, **settings):
    """Content, reasoning, and calls as (name, arguments, whole?), of an answer in one piece."""
    content, reasoning, calls = "", "", []
    for kind, index, _, said in events([text], form, **settings):
        content += said * (kind == "content")
        reasoning += said * (kind == "reasoning")
        if kind == "call":
            assert index == len(calls)
            calls.append([said, "", False])
        if kind == "arguments":
            calls[index][1] += said
        if kind == "end":
            calls[index][2] = True
    return content, reasoning, [tuple(call) for call in calls]


PARIS = '{"city": "Paris", "days": [1, 2.5e3, null], "note": "a } \\" \\u00e9 </tool_call>"}'
CALL = ("get_weather", PARIS, True)
WHOLE = [
    # as the models' own pages show them
    (TAGGED, f'<tool_call>\n{{"name": "get_weather", "arguments": {PARIS}}}\n</tool_call>', "", [CALL]),
    (TAGGED, f'<tool_call>\n{{"arguments": {PARIS}, "name": "get_weather"}}\n</tool_call>', "", [CALL]),
    (
        TAGGED,
        f'Let me look.\n<tool_call>\n{{"name": "get_weather", "arguments": {PARIS}}}\n</tool_call>\n'
        '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n',
        "Let me look.",
        [CALL, ("f", "{}", True)],
    ),
    (TAGGED, '<tool_call>{"name": "f"}</tool_call> so it is', " so it is", [("f", "{}", True)]),
    (TAGGED, '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("f", '{"a": 1}', True)]),
    (TAGGED, '<tool_call>{"name": "f", "arguments": null}</tool_call>', "", [("f", "{}", True)]),
    (TAGGED, '<tool_call>[{"name": "f", "arguments": {}}]</tool_call>', "", [("f", "{}", True)]),
    (TAGGED, '<tool_call>{"name": "f", "arguments": {}}', "", [("f", "{}", True)]),
    (LISTED, f'[TOOL_CALLS][{{"name": "get_weather", "arguments": {PARIS}}}]', "", [CALL]),
    (
        LISTED,
        f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {PARIS}, "id": "VvvODy9mT"}}, '
        '{"arguments": {}, "name": "f"}]',
        "",
        [CALL, ("f", "{}", True)],
    ),
    (LISTED, f"[TOOL_CALLS]get_weather[ARGS]{PARIS}[TOOL_CALLS]f[ARGS]{{}}", "", [CALL, ("f", "{}", True)]),
    (LISTED, f"Well.[TOOL_CALLS]get_weather[CALL_ID]VvvODy9mT[ARGS]{PARIS}", "Well.", [CALL]),
    (LISTED, '[TOOL_CALLS]f{"a": 1, "a": 2}', "", [("f", '{"a": 1, "a": 2}', True)]),
    (GRANITE, f'<|tool_call|>[{{"name": "get_weather", "arguments": {PARIS}}}]<|/tool_call|>', "", [CALL]),
    (BARE, f'{{"name": "get_weather", "parameters": {PARIS}}}', "", [CALL]),
    (BARE, f'\n<|python_tag|>{{"type": "function", "name": "get_weather", "parameters": {PARIS}}}', "", [CALL]),
    (
        BARE,
        '{"name": "f", "parameters": {}}; {"name": "f", "parameters": {"a": 1}}',
        "",
        [("f", "{}", True), ("f", '{"a": 1}', True)],
    ),
    (BARE, '{"name": "f", "parameters": {"a": 1}', "", [("f", '{"a": 1}', True)]),  # as small models often end
    # cut, or no longer JSON: begun, and never ended
    (TAGGED, '<tool_call>{"name": "f", "arguments": {"a": "b', "", [("f", '{"a": "b', False)]),
    (TAGGED, '<tool_call>{"name": "f", "arguments": {"a": oops}}', "oops}}", [("f", '{"a": ', False)]),
]  # fmt: skip


@pytest.mark.parametrize(("form", "text", "content", "calls"), WHOLE, ids=range(len(WHOLE)))
def test_calls_as_they_are_published(form, text, content, calls):
    assert read(text, form) == (content, "", calls)
    for _, arguments, whole in calls:
        assert not whole or isinstance(json.loads(arguments), dict)


TEXT = [
    (TAGGED, 'use <tool_call> like {"name": "f"}'),
    (TAGGED, '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
    (TAGGED, '<tool_call>{"name": "a b", "arguments": {}}</tool_call>'),
    (TAGGED, '<tool_call>{"name": "f", "name": "f", "arguments": {}}</tool_call>'),
    (TAGGED, '<tool_call>{"name": "f", "arguments": "[1]"}</tool_call>'),
    (TAGGED, '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>'),
    (TAGGED, '<tool_call>{"name": "f"'),
    (TAGGED, "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>"),
    (TAGGED, '{"name": "f", "arguments": {}}'),
    (LISTED, "[TOOL_CALLS][]"),
    (LISTED, "[TOOL_CALLS]f of x " + "y" * 300 + '{"a": 1}'),
    (LISTED, "[TOOL_CALL] \n"),
    (BARE, '{"name": "Ada", "parameters": {"age": 36}}'),  # JSON that was asked for
    (BARE, '{"name": "f"}'),
    (BARE, 'As JSON: {"name": "f", "parameters": {}}'),
    (BARE, "<|python_tag|>print(1)"),
    (BARE, " \n"),
]


@pytest.mark.parametrize(("form", "text"), TEXT, ids=range(len(TEXT)))
def test_what_only_looks_like_a_call_is_text(form, text):
    assert read(text, form) == (text, "", [])


def test_a_call_behind_one_that_is_none():
    assert read('<tool_call>no<tool_call>{"name": "f"}</tool_call>', TAGGED) == (
        "<tool_call>no",
        "",
        [("f", "{}", True)],
    )
    assert read('<tool_call><tool_call>{"name": "f"}', TAGGED) == ("<tool_call>", "", [("f", "{}", True)])


def test_letters_are_no_special_tokens():
    """Where an opener is one, only that one opens; and what is said has no trace of how it was told apart."""
    call = '[TOOL_CALLS]f[ARGS]{"a": 1}'
    assert read(call, LISTED, special=LISTED.tokens) == (call, "", [])
    own = call.replace("[", SHOWN + "[")
    assert read(f"{call} {own}", LISTED, special=LISTED.tokens) == (call, "", [("f", '{"a": 1}', True)])
    assert read(f"{SHOWN}[TOOL_CALLS] no", LISTED, special=LISTED.tokens) == ("[TOOL_CALLS] no", "", [])
    assert read(f"{SHOWN}<think>Hm</think>{SHOWN}</think>Yes", None, thinks=True, special=["<think>", "</think>"]) == (
        "Yes", "Hm</think>", [],
    )  # fmt: skip


def test_only_the_first_call_where_one_is_wanted():
    text = "Well.[TOOL_CALLS]f[ARGS]{}[TOOL_CALLS]f[ARGS]{}"
    assert read(text, LISTED, parallel=False) == ("Well.", "", [("f", "{}", True)])


def test_reasoning():
    """In front of the answer, begun by the model or by the prompt; what looks like a call in it is none."""
    call = '<tool_call>{"name": "f"}</tool_call>'
    assert read(f"<think>\nHm.\n{call}\n</think>\n\nYes.", TAGGED, thinks=True) == ("Yes.", f"Hm.\n{call}", [])
    assert read(f"Hm.\n</think>\n\n{call}", TAGGED, thinking=True) == ("", "Hm.", [("f", "{}", True)])
    assert read("<think>Hm.</think> \n  a", None, thinking=True) == ("  a", "Hm.", [])
    assert read('<think>\n\n</think>\n\n{"name": "f", "parameters": {}}', BARE, thinks=True) == (
        "",
        "",
        [("f", "{}", True)],
    )
    assert read("<think>Hm", None, thinks=True) == ("", "Hm", [])
    assert read(" Yes <think>", None, thinks=True) == (" Yes <think>", "", [])
    assert read("<think>Hm.</think>", None) == ("<think>Hm.</think>", "", [])


def test_arguments_come_as_they_are_written():
    """The name with the first letter of the arguments; of these what there is."""
    reader = Reader(TAGGED)
    assert reader.feed('Well. <tool_call>{"name": "f", "arguments": ')[-1].said == "Well."
    assert [(one.kind, one.said) for one in reader.feed('{"a"')] == [("call", "f"), ("arguments", '{"a"')]
    assert [(one.kind, one.said) for one in reader.feed(': "b')] == [("arguments", ': "b')]
    assert [(one.kind, one.said) for one in reader.feed('"}}')] == [("arguments", '"}'), ("end", "")]


MARKERS = [*(token for form in FORMS.values() for token in form.tokens), "<think>", "</think>"]
PARTS = """{"name": "|{"name": "f", "|", "arguments": {|", "parameters": {"|": |": "|"|{|}|[|]|,|;|:|\\|\\u00e|null|-1e|01|<"""
words = st.sampled_from(
    [
        *MARKERS,
        *(SHOWN + marker for marker in MARKERS),
        *PARTS.split("|"),
        *NAMES,
        "arguments",
        "parameters",
        " ",
        "\n",
        "\n\n",
    ]
)
answers = st.lists(words, max_size=12).map("".join) | st.sampled_from([text for _, text, *_ in WHOLE + TEXT])


@settings(max_examples=400, deadline=None)
@given(
    answer=st.lists(answers, min_size=1, max_size=2).map("".join),
    form=st.sampled_from([None, *FORMS.values()]),
    how=st.sampled_from(
        [{}, {"thinks": True}, {"thinking": True}, {"parallel": False}, {"special": MARKERS, "thinks": True}]
    ),
    cuts=st.lists(st.integers(0, 200), max_size=8),
)
@example('<tool_call>{"name": "f", "arguments": {"a": 1}, "x": 2 oops', TAGGED, {}, [40])
def test_the_borders_of_pieces_change_nothing(answer, form, how, cuts):
    """In one piece, letter by letter, and cut anywhere: the same events, whose texts are the answer."""
    whole = events([answer], form, **how)
    assert events(answer, form, **how) == whole
    places = [0, *sorted(min(cut, len(answer)) for cut in cuts), len(answer)]
    assert events([answer[a:b] for a, b in pairwise(places)], form, **how) == whole
    for kind, index, text, said in whole:
        if kind == "content":
            assert said == text.replace(SHOWN, "")
        if kind == "end":
            (arguments,) = [one[3] for one in whole if one[:2] == ("arguments", index)]
            assert isinstance(json.loads(arguments), dict)


@settings(max_examples=400, deadline=None)
@given(
    parts=st.lists(
        st.sampled_from(
            [*'{}[]:,"\\' + "\n", '"a"', '"a": ', '{"a": ', "1", "-0.5e+3", "01", "null", "nul", "\\u00e9"]
        ),
        max_size=9,
    )
)
def test_json_is_what_python_reads(parts):
    """Letter by letter: whole exactly where json.loads reads it, and given up where nothing that follows could save it."""

    def loads(text):
        try:
            json.loads(text)
        except ValueError:
            return False
        return True

    text = "{" + "".join(parts)
    scan = Json()
    taken = 0
    while taken < len(text) and scan.take(text[taken]):
        taken += 1
    assert (taken == len(text) and scan.done) == loads(text)


def test_long_answers_take_time_in_proportion():
    """What was looked at once is not looked at again, whatever an answer is made to repeat."""
    looked = 0

    class Counted(Reader):
        def begins(self, text, at):
            nonlocal looked
            looked += 1
            return super().begins(text, at)

        def object(self):
            nonlocal looked
            looked -= self.call.at
            found = super().object()
            looked += self.call.at
            return found

    for unit in ('<tool_call>{"a":"', '<tool_call>{"name":"', "<tool_call>[", '<tool_call>{"a":[{"', "<tool_call>{"):
        looked = 0
        reader = Counted(TAGGED)
        reader.feed(unit * 500)
        reader.finish()
        assert looked <= 2 * len(unit) * 500


def test_the_form_is_what_the_template_says():
    told = r"<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call>"
    assert form_of(told) is TAGGED and form_of("<tool_call>\n<function=f>") is None
    assert form_of("[TOOL_CALLS]") is LISTED and form_of("plain") is None
    assert form_of('Respond in the format {"name": function name, "parameters": dictionary}') is BARE
    assert reasons("'</think>' in content") and not reasons("<thinking>")
    assert wants_text("'```json\\n' + tool['function']['arguments'] + '\\n```'")
    assert not wants_text("tool_call.arguments | tojson") and not wants_text("{{ call.arguments.items() }}")


@pytest.mark.parametrize(
    ("name", "form", "thinks"),
    [
        ("Qwen-Qwen2.5-7B-Instruct", TAGGED, False), ("Qwen-Qwen3-0.6B", TAGGED, True),
        ("mistralai-Mistral-Nemo-Instruct-2407", LISTED, False), ("ibm-granite-granite-3.3-2B-Instruct", GRANITE, True),
        ("meta-llama-Llama-3.1-8B-Instruct", BARE, False), ("meta-llama-Llama-3.2-3B-Instruct", BARE, False),
        ("google-gemma-2-2b-it", None, False), ("microsoft-Phi-3.5-mini-instruct", None, False),
    ],
)  # fmt: skip
def test_published_templates(data, name, form, thinks):
    source = (data / "templates" / f"{name}.jinja").read_text()
    assert form_of(source) is form and reasons(source) == thinks and not wants_text(source)
