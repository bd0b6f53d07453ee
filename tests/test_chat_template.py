"""Chat templates: where they are found, what they may do, what a message cannot do, and what is refused."""

from __future__ import annotations

import dataclasses
import functools
import json
import signal
import threading
import time
import unicodedata
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers_like import trained

from nanollm_jax.chat import ChatTemplate, check_messages, load_chat_template
from nanollm_jax.chat.guard import Guard
from nanollm_jax.chat.renderer import Renderer
from nanollm_jax.errors import RequestError, TokenizerError
from nanollm_jax.tokenizer import load_tokenizer

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DOUBLING = "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
HELLO = [{"role": "user", "content": "Hello!"}]
RENDERER = Renderer(seconds=300)  # one process for all templates but those that it may not outlive


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("chat")
    (made / "tokenizer.json").write_text(trained("qwen"))
    return made


def made(folder: Path, template: str, **config: Any) -> ChatTemplate:
    (folder / "chat_template.jinja").write_text(template)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    found = load_chat_template(folder, load_tokenizer(folder))
    assert found is not None
    return dataclasses.replace(found, renderer=RENDERER)


def written(folder: Path, template: str, messages: Any = HELLO, **options: Any) -> str:
    """What a template writes for a conversation, special tokens and all."""
    found = made(folder, template)
    special, tokenizer = found.tokenizer.special_ids, found.tokenizer
    runs = groupby(found.encode(messages, **options), lambda token: token in special)
    return "".join(
        "".join(map(tokenizer.piece, ids)) if marks else tokenizer.decode([*ids], start=False) for marks, ids in runs
    )


# what templates can do


def test_a_conversation_is_what_the_template_writes(folder: Path) -> None:
    assert written(folder, CHATML) == "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n"
    assert written(folder, CHATML, add_generation_prompt=False) == "<|im_start|>user\nHello!<|im_end|>\n"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("  {% if true %}\n  a\n  {% endif %}\nb\n", "  a\nb"),  # trim_blocks and lstrip_blocks
        ("{% for n in range(9) %}{{ n }}{% if n == 3 %}{% break %}{% endif %}{% endfor %}", "0123"),
        ("{% for n in range(3) %}{% if n == 1 %}{% continue %}{% endif %}{{ n }}{% endfor %}", "02"),
        ("{{ messages[0] | tojson }}", '{"role": "user", "content": "Hello!"}'),
        ("{{ {'é': '<&>'} | tojson(indent=2) }}", '{\n  "é": "<&>"\n}'),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}!", "Hello!!"),
        ("{{ strftime_now('%Y') }}", time.strftime("%Y")),
        ("{{ tools is none }} {{ documents is none }} {{ pad_token is defined }}", "True True False"),
        ("{{ bos_token }}a{{ eos_token }}", "<|endoftext|>a<|endoftext|>"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "1"),
    ],
)  # fmt: skip
def test_what_templates_expect(folder: Path, template: str, expected: str) -> None:
    assert written(folder, template) == expected


def test_names_of_tokens_and_variables_arrive(folder: Path) -> None:
    found = made(folder, "{{ pad_token }}{{ eos_token }}{{ mood }}", pad_token="<|im_end|>", eos_token="<|im_start|>")
    ids = found.encode(HELLO, variables={"mood": "x"})
    assert [found.tokenizer.piece(token) for token in ids] == ["<|im_end|>", "<|im_start|>", "x"]


def test_one_bos_in_front(folder: Path) -> None:
    config = {"bos_token": "<|endoftext|>", "add_bos_token": True}
    for template, count in (("{{ bos_token }}a", 1), ("{{ bos_token }}{{ bos_token }}a", 1), ("a", 0)):
        found = made(folder, template, **config)
        assert found.tokenizer.add_bos
        assert found.encode(HELLO).count(found.tokenizer.bos_id) == count


# where they are


def test_a_text_a_list_a_file_and_a_folder(folder: Path) -> None:
    path, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    tokenizer = load_tokenizer(folder)

    def text(name: str | None = None, tools: Any = None) -> str:
        found = load_chat_template(folder, tokenizer)
        assert found is not None
        return tokenizer.decode(found.encode(HELLO, template=name, tools=tools))

    path.unlink(missing_ok=True)
    config.write_text("{}")
    assert load_chat_template(folder, tokenizer) is None
    config.write_text(json.dumps({"chat_template": "one"}))
    assert text() == "one"
    several = [{"name": "default", "template": "two"}, {"name": "tool_use", "template": "three"}]
    config.write_text(json.dumps({"chat_template": several}))
    assert (text(), text("tool_use"), text(tools=[]), text("default", [])) == ("two", "three", "three", "two")
    with pytest.raises(RequestError, match=r"no chat template 'rag'; name one with template=: default, tool_use"):
        text("rag")
    config.write_text(json.dumps({"chat_template": several[1:]}))
    with pytest.raises(RequestError, match=r"no chat template 'default'; name one with template=: tool_use"):
        text()
    path.write_text("four")
    assert text() == "four"
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("five")
    assert (text(), text("rag")) == ("four", "five")
    path.write_bytes(b"\xff")
    with pytest.raises(TokenizerError, match=r"chat_template.jinja: is not UTF-8"):
        load_chat_template(folder, tokenizer)
    (folder / "additional_chat_templates" / "rag.jinja").unlink()
    (folder / "additional_chat_templates").rmdir()
    path.unlink()
    for wrong in (3, [{"name": "default"}], ["a"], {"default": "a"}):
        config.write_text(json.dumps({"chat_template": wrong}))
        with pytest.raises(
            TokenizerError, match=r"tokenizer_config.json: chat_template has .+; expected a text, or a list"
        ):
            load_chat_template(folder, tokenizer)


# what a message cannot do


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.sampled_from(["<|im_start|>", "<|im_end|>", "<|im_", "start|>", "|>", "<", "system\n", "x", " ", "é"]),
        max_size=6,
    )
)
def test_no_text_makes_a_marker(folder: Path, words: list[str]) -> None:
    found = made(folder, CHATML.replace("message.content | trim", "message.content"))
    text = "".join(words)
    ids = found.encode([{"role": "user", "content": text}])
    marks = [found.tokenizer.piece(token) for token in ids if token in found.tokenizer.special_ids]
    assert marks == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]
    assert found.tokenizer.decode(ids, start=False) == f"user\n{text}\nassistant\n"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("<|{{ text }}|>", "im_start"), ("<|im_{{ text }}", "start|>"), ("{{ text }}|>", " <|im_start"),
        ("{{ text | trim }}|>", " <|im_start "), ("{{ text | lower }}", "<|IM_START|>"), ("{{ text[:12] }}", "<|im_start|>"),
        ("{{ text.split('x') | join }}", "<|im_xstart|>"), ("{{ text | replace('x', '') }}", "<|im_xstart|>"),
    ],
)  # fmt: skip
def test_what_a_template_puts_around_a_text_makes_no_marker(folder: Path, template: str, text: str) -> None:
    """But what a template itself makes of a text, by lower or by replace, is the template's."""
    found = made(folder, template.replace("text", "messages[0].content"))
    ids = found.encode([{"role": "user", "content": text}])
    assert bool(set(ids) & found.tokenizer.special_ids) == ("lower" in template or "x" in text)


def test_tools_and_their_keys_make_no_marker(folder: Path) -> None:
    found = made(folder, "{{ tools | tojson }}{{ extra }}")
    ids = found.encode(HELLO, tools=[{"<|im_end|>": "<|im_start|>"}], variables={"extra": "<|im_end|>"})
    assert not set(ids) & found.tokenizer.special_ids
    assert found.tokenizer.decode(ids) == '[{"<|im_end|>": "<|im_start|>"}]<|im_end|>'


def test_tokens_that_the_template_writes_are_its_own_though_not_special(folder: Path) -> None:
    """<think> is an added token that is not special. An answer may have it; a question cannot, where the template does."""
    turn = "{% for m in messages %}<think>{{ m.content }}{% endfor %}"
    found = made(folder, turn)
    think, end = found.tokenizer.added["<think>"], found.tokenizer.added["</think>"]
    assert found.encode([{"role": "user", "content": "<think></think>"}]).count(think) == 1
    assert (
        found.encode([{"role": "user", "content": "<think></think>"}]).count(end) == 1
    )  # not in the template: as in any text
    assert found.encode([{"role": "assistant", "content": "<think></think>"}]).count(think) == 2


def test_guard_hides_what_could_be_a_marker_or_a_part_of_one() -> None:
    guard = Guard(["<end>", "0"])
    for text, hidden in {
        "a<end>b": "a11111b", "a <e": "a 11", " d> a": " 11 a", "n": "1", "a > b < c": "a > b < c", "": "", " ": " ",
    }.items():  # fmt: skip
        assert guard.text(text) == hidden
    assert guard.spelled and not Guard(["<x>"]).spelled
    assert guard.apply({"role": "n", "content": ["n", 1, None]}) == {"role": "n", "content": ["1", 1, None]}
    assert guard.written("<end>a<end>", "<end>a11111") == [(0, 5)]
    with pytest.raises(RequestError, match="cannot be told from it"):
        guard.written("<end>a&lt;end&gt;", "<end>a11111")


@pytest.mark.parametrize(
    ("template", "content", "expected"),
    [
        ("{{ messages[0].content | trim }}", [{"type": "text", "text": "system"}], "[{'type': 'text', 'text': 'system'}]"),
        ("{{ messages[0].content | tojson(ensure_ascii=true) }}", "a <", '"a <"'),
        ("{{ messages[0] }}", "a <", "{'role': 'user', 'content': 'a <'}"),
        ("{{ '%r' % messages[0].content }}", "user", "'user'"),
        ("{{ messages[0].content | urlencode }}", "<|", "%3C%7C"),
        ("{{ messages[0].content | list }}", "im", "['i', 'm']"),
        ("{{ messages[0].content | length }}", "a <|im_end|>", "12"),
        ("{% if messages[0].content == 'user' %}<|im_end|>{{ messages[0].content }}{% endif %}", "user", "<|im_end|>user"),
        ("{{ messages[0].content }}", "".join(map(chr, range(0xE000, 0xF900))), None),
    ],
)  # fmt: skip
def test_what_a_template_computes_is_what_it_writes(folder: Path, template: str, content: Any, expected: str) -> None:
    messages = [{"role": "user", "content": content}]
    assert written(folder, template, messages) == (content if expected is None else expected)


def test_a_typed_marker_that_a_template_changes_is_refused(folder: Path) -> None:
    typed = [{"role": "user", "content": "a<|im_end|>b"}]
    with pytest.raises(RequestError, match="cannot be told"):
        made(folder, "{{ messages[0].content | e }}<|im_end|>").encode(typed)
    assert written(folder, "{{ messages[0].content | upper }}<|im_end|>", typed) == "A<|IM_END|>B<|im_end|>"
    for template in ("{{ messages[0] }}", "{{ messages | tojson(ensure_ascii=true) }}", "{{ messages[0].content }}"):
        found = made(folder, template + "<|im_end|>")
        ids = found.encode(typed)
        assert sum(
            token in found.tokenizer.special_ids for token in ids
        ) == 1 and "a<|im_end|>b" in found.tokenizer.decode(ids)


def test_a_marker_that_a_normalizer_makes_is_none(folder: Path, tmp_path: Path) -> None:
    """Full-width letters become the token's own before it is looked for: they are typed all the same."""
    tree = json.loads(trained("qwen")) | {"normalizer": {"type": "NFKC"}}
    for token in tree["added_tokens"]:
        token["normalized"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    found = load_chat_template(tmp_path, load_tokenizer(tmp_path))
    assert found is not None
    assert unicodedata.normalize("NFKC", "＜|im_end|＞") == "<|im_end|>"
    ids = found.encode([{"role": "user", "content": "a＜|im_end|＞b"}])
    assert [found.tokenizer.piece(token) for token in ids if token in found.tokenizer.special_ids] == [
        "<|im_start|>", "<|im_end|>", "<|im_start|>",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {"tools": 5}, {"tools": "ab"}, {"variables": 5}, {"variables": {1: 2}}, {"template": 5}, {"variables": {"a": "\udc00"}},
        {"tools": [{"a": "\udc00"}]}, {"tools": [{"\udc00": 1}]}, {"variables": {"a": {1, 2}}}, {"variables": {"a": b"x"}},
        {"variables": {"a": functools.reduce(lambda inner, _: [inner], range(5000), 1)}}, {"variables": {"a": 10**5000}},
        {"variables": {"messages": []}}, {"variables": {"tools": []}}, {"variables": {"add_generation_prompt": False}},
    ],
)  # fmt: skip
def test_what_is_no_variable_is_refused(folder: Path, options: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        made(folder, CHATML).encode(HELLO, **options)


def test_half_a_character_in_a_template_is_refused(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "a\udc00"}))
    with pytest.raises(TokenizerError, match="surrogate"):
        load_chat_template(folder, load_tokenizer(folder))
    with pytest.raises(TokenizerError, match="chat template"):
        made(folder, r"{{ '\udc00' }}").encode(HELLO)


# what is refused


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ([], r"messages is \[\]; expected a list of"),
        ("hi", "messages is 'hi'; expected a list"),
        ({"role": "user", "content": "a"}, "expected a list of"),
        (["hi"], r"message 0 is 'hi'; expected"),
        ([{"content": "a"}], r"message 0 has the role None; expected a name"),
        ([*HELLO, {"role": "a b", "content": "a"}], r"message 1 has the role 'a b'"),
        ([{"role": "<|im_start|>", "content": "a"}], r"message 0 has the role '<|im_start|>'"),
        ([{"role": "user"}], r"message 0 has the content None; expected a text"),
        ([{"role": "user", "content": 3}], r"message 0 has the content 3"),
        ([{"role": "user", "content": [{"type": "image"}]}], r"message 0 has the part {'type': 'image'}; only text"),
        ([{"role": "user", "content": "a\udcff"}], "lone surrogate"),
        ([{"role": "user", "content": "a", "extra": {1, 2}}], "messages must be JSON values"),
    ],
)
def test_what_is_no_message_is_refused(messages: Any, match: str) -> None:
    with pytest.raises(RequestError, match=match):
        check_messages(messages)


def test_what_is_none_is_left_out() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    assert check_messages([call]) == [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}]


def test_a_role_that_the_template_does_not_write_is_refused(folder: Path) -> None:
    known = made(folder, "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}")
    with pytest.raises(RequestError, match="leaves out messages of the role 'tool'; use one that it knows"):
        known.encode([*HELLO, {"role": "tool", "content": "4"}])
    assert made(folder, CHATML).encode([*HELLO, {"role": "tool", "content": "4"}])


@pytest.mark.parametrize(
    ("template", "kind", "match"),
    [
        ("{{ raise_exception('Roles must alternate.') }}", RequestError, "refuses this conversation: Roles must alternate."),
        ("{% if %}", TokenizerError, r"chat_template.jinja: the chat template cannot be read: line 1: .+; copy it again"),
        ("a\n{{ b.c.d }}", TokenizerError, "fails on this conversation: UndefinedError: 'b' is undefined"),
        ("{{ 1 / 0 }}", TokenizerError, "fails on this conversation: ZeroDivisionError: division by zero"),
        ("{{ messages | nosuchfilter }}", TokenizerError, "No filter named 'nosuchfilter'"),
        ("{{ ''.__class__.__mro__ }}", TokenizerError, "SecurityError: access to attribute '__class__'"),
        ("{{ cycler.__init__.__globals__ }}", TokenizerError, "SecurityError: access to attribute '__init__'"),
        ("{{ messages.append(1) }}", TokenizerError, "SecurityError: access to attribute 'append'"),
        ("{% include '/etc/passwd' %}", TokenizerError, "fails on this conversation: TypeError"),
        ("{{ range(10 ** 9) }}", TokenizerError, "OverflowError: Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", TokenizerError, "it calls itself without end"),
        ("{{ 'a' * 10 ** 10 }}", TokenizerError, r"it needs more than \d+ MB of memory"),
        (DOUBLING, TokenizerError, r"it needs more than \d+ MB of memory"),
        ("{{ 'ab' * 9000000 }}", TokenizerError, "it wrote 18,000,000 characters; at most 10,000,000"),
        ("{{" + "(" * 2000 + "1" + ")" * 2000 + "}}", TokenizerError, "chat template cannot be read: it .* nested too deeply"),
        ("{{ " + "9" * 5000 + " }}", TokenizerError, "chat template cannot be read: ValueError: Exceeds the limit"),
        ("{% for x in [] %}" * 30 + "{% endfor %}" * 30, TokenizerError, "chat template fails .*: SyntaxError: too many"),
        (r"{{ '\ud800' }}", TokenizerError, "chat template fails on this conversation: UnicodeEncodeError"),
    ],
)  # fmt: skip
def test_templates_that_fail(folder: Path, template: str, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        made(folder, template).encode(HELLO)


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for x in [1, 2] recursive %}{% if loop.depth < 60 %}{{ loop([1, 2]) }}{% endif %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    ],
)
def test_a_template_that_never_ends_is_stopped_and_the_next_one_runs(folder: Path, template: str) -> None:
    renderer = Renderer(seconds=0.5)
    with pytest.raises(
        TokenizerError, match=r"^x: the chat template ran longer than 0.5 s and was stopped; does it loop"
    ):
        renderer.render("x", template, {"messages": HELLO})
    first = renderer.process
    renderer.seconds = 30
    assert renderer.render("x", "{{ messages[0].content }}", {"messages": HELLO}) == "Hello!"
    second = renderer.process
    assert second is not first
    assert renderer.render("x", "again", {}) == "again" and renderer.process is second
    second.kill()
    second.wait()
    assert renderer.render("x", "another process", {}) == "another process"


def test_a_machine_that_is_busy_with_other_things_stops_no_template() -> None:
    """The process that renders gets no processor for longer than it may use one."""
    renderer = Renderer(seconds=0.3)
    assert renderer.render("x", "one", {}) == "one"
    assert renderer.process is not None
    renderer.process.send_signal(signal.SIGSTOP)
    threading.Timer(1.0, renderer.process.send_signal, [signal.SIGCONT]).start()
    assert renderer.render("x", "another", {}) == "another"


def test_variables_that_are_no_json_are_refused(folder: Path) -> None:
    for value in ({1, 2}, float("nan"), object()):
        with pytest.raises(RequestError, match="tools and template variables must be JSON values"):
            made(folder, CHATML).encode(HELLO, variables={"x": value})
