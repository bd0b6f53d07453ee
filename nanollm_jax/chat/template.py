"""Chat templates: a list of messages to the token ids that a model was trained to see for it.

The template is a program in jinja2 that comes with the checkpoint. What it writes itself may have role markers and other
special tokens; what a message says is encoded as ordinary text, whatever it looks like, so nobody can type a marker.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from nanollm_jax.chat.renderer import Renderer
from nanollm_jax.errors import RequestError
from nanollm_jax.tokenizer import Tokenizer
from nanollm_jax.tokenizer.parts import Part, PartsEncoder

Message = Mapping[str, Any]


@dataclass(frozen=True, eq=False, repr=False)
class ChatTemplate:
    """The templates of a checkpoint by name, "default" among them or not, and the tokenizer they write for."""

    path: Path
    sources: Mapping[str, str]
    tokenizer: Tokenizer
    renderer: Renderer = field(default_factory=Renderer)

    def encode(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Messages -> ids [T], the same as transformers' apply_chat_template for text that spells no special token.

        messages                {"role": "user", "content": "..."} and so on; further keys are the template's to read
        add_generation_prompt   end with the beginning of the assistant's answer
        tools                   JSON schemas of functions, for templates that read them
        template                which one, where there are several; "default", or "tool_use" when there are tools
        variables               what else a template reads, for example {"enable_thinking": False}
        The template decides on the BOS; of several in front, one is kept.
        Raises RequestError for messages that are not messages or that the template refuses, TokenizerError for a template
        that is broken, loops for ever or builds more text than fits in memory.
        """
        program = self.program(template, tools)
        messages = check_messages(messages)
        given: dict[str, Any] = {"tools": None if tools is None else list(tools), "documents": None} | dict(
            variables or {}
        )
        mark = unused_character(program.source, messages, given)
        guard = Guard(program.markers.keys(), mark)
        careful = Guard([name for name, token in program.markers.items() if token in self.tokenizer.special_ids], mark)
        # An answer may have markers that are no special tokens ("<think>"): the model wrote them, as those tokens.
        guarded = [(careful if message["role"] == "assistant" else guard).apply(message) for message in messages]
        shared = self.names() | guard.apply(given) | {"add_generation_prompt": add_generation_prompt}

        def render(chosen: list[Any]) -> str:
            return self.renderer.render(str(self.path), program.source, shared | {"messages": chosen})

        text = render(guarded)
        for role in {message["role"] for message in messages} - {"system", "user", "assistant"} - program.literals:
            # it may be written as it is, or be left out without a word
            others = [message for message in guarded if message["role"] != role]
            if others and text == render(others):
                raise RequestError(
                    f"the chat template leaves out messages of the role {role!r}; use one that it knows."
                )
        ids = program.encode_parts(split(text, program.markers, mark))
        while len(ids) > 1 and ids[0] == ids[1] == self.tokenizer.bos_id:
            del ids[0]
        return ids

    def program(self, name: str | None, tools: Any) -> Program:
        """The template of a name, made ready."""
        if name is None:
            name = "tool_use" if tools is not None and "tool_use" in self.sources else "default"
        if name not in self.sources:
            known = ", ".join(sorted(self.sources))
            raise RequestError(f"{self.path}: there is no chat template {name!r}; name one with template=: {known}.")
        if name not in self.programs:
            self.programs[name] = Program(self.path, self.sources[name], self.tokenizer, self.renderer)
        return self.programs[name]

    @cached_property
    def programs(self) -> dict[str, Program]:
        """The templates that were used, made ready."""
        return {}

    def names(self) -> dict[str, str]:
        """What templates know tokens by: {"bos_token": "<s>", ...}."""
        tokenizer = self.tokenizer
        found = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
        pieces = {name: tokenizer.piece(token) for name, token in found.items() if token is not None}
        return pieces | dict(tokenizer.names)


class Program:
    """One template made ready: its text, the tokens that it may write, and how its output is encoded."""

    def __init__(self, path: Path, source: str, tokenizer: Tokenizer, renderer: Renderer) -> None:
        """Raises TokenizerError for a template that jinja2 cannot read within the renderer's limits."""
        self.source = source
        self.literals = renderer.literals(str(path), source)
        self.markers = {
            name: token
            for name, token in tokenizer.added.items()
            if token in tokenizer.special_ids
            or (not name.isspace() and any(name in literal for literal in self.literals))
        }
        self.encode_parts: PartsEncoder = tokenizer.parts_encoder(frozenset(self.markers.values()))


class Guard:
    """Puts a mark before every letter of a text that could be taken for part of a marker, wherever it is put."""

    def __init__(self, markers: Sequence[str] | Any, mark: str) -> None:
        """markers: texts that must not be found; mark: a character that occurs in none of them and in no message"""
        self.mark = mark
        self.names = sorted(markers, key=len, reverse=True)
        self.whole = re.compile("|".join(map(re.escape, self.names)) or "(?!)")

    def apply(self, value: Any) -> Any:
        """The same JSON value with every text in it guarded; role, type and keys keep any name that is no whole marker."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            names = ("role", "type")
            return {
                self.name(key): self.name(entry) if key in names and isinstance(entry, str) else self.apply(entry)
                for key, entry in value.items()
            }
        if isinstance(value, Sequence):
            return [self.apply(entry) for entry in value]
        return value

    def name(self, name: Any) -> Any:
        """A text that templates compare with others: guarded only where it has a whole marker in it."""
        return self.text(name) if isinstance(name, str) and self.whole.search(name) else name

    def text(self, text: str) -> str:
        """Marked are: every marker in it, its end where a marker may begin, its beginning where one may end.

        For the marker "<end>":  "a<end>b" -> "a·<·e·n·d·>b",  "a <e" -> "a ·<·e",  "d> a" -> "·d·> a".
        """
        body = text.strip()
        covered = [found.span() for found in self.whole.finditer(text)]
        start, end = text.find(body), text.find(body) + len(body)
        for name in self.names:
            if body in name:
                covered.append((start, end))
            for n in range(1, len(name)):
                if body.endswith(name[:n]):
                    covered.append((end - n, end))
                if body.startswith(name[-n:]):
                    covered.append((start, start + n))
        marked = {at for first, last in covered for at in range(first, last)}
        return "".join(self.mark + letter if at in marked else letter for at, letter in enumerate(text))


def split(text: str, markers: Mapping[str, int], mark: str) -> list[Part]:
    """What a template wrote, in parts: markers, and text without the marks.  markers: text -> id"""
    names = sorted(markers, key=len, reverse=True)
    found = re.split(f"(?<!{mark})({'|'.join(map(re.escape, names)) or '(?!)'})", text)
    return [markers[part] if n % 2 else part.replace(mark, "") for n, part in enumerate(found)]


def unused_character(*values: Any) -> str:
    """A character of the private use area that is nowhere in these JSON values."""
    used = set(json.dumps(values, ensure_ascii=False, default=str))
    return next(chr(code) for code in range(0xE000, 0xF900) if chr(code) not in used)


def check_messages(messages: Any) -> list[dict[str, Any]]:
    """Messages as plain dicts, keys that are None left out. Raises RequestError for anything that is not a message."""
    expected = 'expected a list of {"role": ..., "content": ...}'
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise RequestError(f"messages is {messages!r:.80}; {expected}, at least one.")
    checked = []
    for n, message in enumerate(messages):
        if not isinstance(message, Mapping) or not all(isinstance(key, str) for key in message):
            raise RequestError(f"message {n} is {message!r:.80}; {expected}.")
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not re.fullmatch(r"[\w-]+", role):
            raise RequestError(f"message {n} has the role {role!r:.80}; expected a name such as user or assistant.")
        if isinstance(content, list):
            for part in content:
                if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                    raise RequestError(f"message {n} has the part {part!r:.80}; only text can be read.")
        elif not isinstance(content, str) and not (content is None and message.keys() - {"role", "content"}):
            raise RequestError(f"message {n} has the content {content!r:.80}; expected a text.")
        checked.append({key: value for key, value in message.items() if value is not None})
    try:
        json.dumps(checked, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise RequestError("messages have a lone surrogate in them; pass valid Unicode.") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"messages must be JSON values: {error}.") from None
    return checked
