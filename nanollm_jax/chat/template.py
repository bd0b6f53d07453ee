"""Chat templates: a list of messages to the token ids that a model was trained to see for it.

The template is a program in jinja2 that comes with the checkpoint. What it writes itself may have role markers and other
special tokens; what a message says is encoded as ordinary text, whatever it looks like, so nobody can type a marker. Where no
message looks like one, which is nearly always, the text is read just as the reference reads it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from nanollm_jax.chat.forms import form_of
from nanollm_jax.chat.guard import Guard, Span
from nanollm_jax.chat.renderer import Renderer
from nanollm_jax.errors import RequestError, shown
from nanollm_jax.tokenizer import Tokenizer
from nanollm_jax.tokenizer.parts import Part, PartsEncoder

Message = Mapping[str, Any]
OWN = frozenset(
    ("messages", "tools", "add_generation_prompt")
)  # what every template is given, by encode's own arguments
MARK = "END_OF_WHAT_IS_CONTINUED "  # behind the last message while it is rendered; the space says whether spaces stay


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
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Messages -> ids [T], the same as transformers' apply_chat_template for text that spells no special token.

        messages                {"role": "user", "content": "..."} and so on; further keys are the template's to read
        add_generation_prompt   end with the beginning of the assistant's answer
        continue_final_message  end where the last message ends, which is to be continued, instead
        tools                   JSON schemas of functions, for templates that read them
        template                which one, where there are several; "default", or "tool_use" when there are tools
        variables               what else a template reads, for example {"enable_thinking": False}; none of the above
        The template decides on the BOS; of several in front, one is kept.
        Raises RequestError for messages that are not messages, that the template refuses, or that spell a marker where it is
        not certain what becomes of it; TokenizerError for a template that is broken, loops for ever or builds more text than
        fits in memory.
        """
        program = self.program(template, tools)
        messages = check_messages(messages)
        given = check_variables(tools, variables)
        names = self.names()

        def render(messages: list[Any], given: dict[str, Any]) -> str:
            begun = add_generation_prompt and not continue_final_message
            shared = names | given | {"add_generation_prompt": begun, "messages": messages}
            return self.renderer.render(str(self.path), program.source, shared)

        def written(messages: list[Any], given: dict[str, Any]) -> str:
            if not continue_final_message:
                return render(messages, given)
            *before, last = messages
            if not isinstance(last.get("content"), str):
                raise RequestError("the last message is not a text, so it cannot be continued.")
            return up_to_the_mark(render([*before, last | {"content": last["content"] + MARK}], given))

        text = render(messages, given)
        for role in {message["role"] for message in messages} - {"system", "user", "assistant"} - program.literals:
            # it may be written as it is, or be left out without a word
            others = [message for message in messages if message["role"] != role]
            if others and text == render(others, given):
                raise RequestError(
                    f"the chat template leaves out messages of the role {role!r}; use one that it knows."
                )
        text = written(messages, given) if continue_final_message else text
        guard = Guard(program.markers)
        # An answer may have markers that are no special tokens ("<think>"): the model wrote them, as those tokens.
        special = [name for name, token in program.markers.items() if token in self.tokenizer.special_ids]
        careful = Guard(special, guard.letter)
        try:
            disguised = [(careful if message["role"] == "assistant" else guard).apply(message) for message in messages]
            other = guard.apply(given)
        except RecursionError:
            raise RequestError("messages or template variables are nested too deeply; pass less.") from None
        guard.spelled |= careful.spelled
        guard.opens |= careful.opens or program.opens
        guard.closes |= careful.closes or program.closes
        own = guard.written(text, written(disguised, other)) if guard.doubtful else guard.spans(text)
        ids = program.encode(text, own)
        while len(ids) > 1 and ids[0] == ids[1] == self.tokenizer.bos_id:
            del ids[0]
        return ids

    def program(self, name: str | None, tools: Any) -> Program:
        """The template of a name, made ready."""
        if name is not None and not isinstance(name, str):
            raise RequestError(f"template is {shown(name)}; expected the name of a chat template.")
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

    def source(self, tools: Any = None) -> str:
        """The text of the template that encode takes."""
        return self.program(None, tools).source

    @cached_property
    def ends(self) -> frozenset[int]:
        """Special tokens that end a message besides EOS, in the forms of calls that the templates tell of."""
        forms = [form for source in self.sources.values() if (form := form_of(source))]
        return frozenset(self.special(name for form in forms for name in form.ends).values())

    def special(self, names: Iterable[str]) -> dict[str, int]:
        """Those of these names that special tokens have, and their ids."""
        found = {self.tokenizer.piece(token): token for token in self.tokenizer.special_ids}
        return {name: found[name] for name in names if name in found}

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
        self.tokenizer = tokenizer
        around = Guard(self.markers)
        for literal in self.literals:
            around.text(literal)
        # whether what stands in the template can begin a marker that a message ends, and the other way about
        self.opens, self.closes = around.opens, around.closes

    @cached_property
    def encode_parts(self) -> PartsEncoder:
        """For text with spelled markers in it that are none. Raises TokenizerError where the two cannot be told apart."""
        return self.tokenizer.parts_encoder(frozenset(self.markers.values()))

    @cached_property
    def unknown(self) -> frozenset[int]:
        """What a letter that no vocabulary has comes out as."""
        return frozenset(self.tokenizer.encode("\U0010fffd", bos=False))

    def encode(self, text: str, own: list[Span]) -> list[int]:
        """What a template wrote -> ids.  own: where it wrote markers

        Where these are all that it has, the whole is read as the reference reads it, by the tokenizer's own rules.
        """
        markers = [self.markers[text[first:last]] for first, last in own]
        if own == Guard(self.markers).spans(text):
            ids = self.tokenizer.encode(text, bos=False, special=True)
            found = (token for token in ids if token in self.tokenizer.special_ids - self.unknown)
            left = iter(markers)
            if all(token in left for token in found):  # a normalizer may make a marker of what spells none
                return ids
        parts: list[Part] = []
        at = 0
        for token, (first, last) in zip(markers, own, strict=True):
            parts += [text[at:first], token]
            at = last
        return self.encode_parts([*parts, text[at:]])


def up_to_the_mark(text: str) -> str:
    """What a template wrote in front of the mark that its last message ends with."""
    before, mark, behind = text.rpartition(MARK.strip())
    if not mark:
        raise RequestError("the chat template does not write all of the last message, so it cannot be continued.")
    return before if behind.startswith(" ") else before.rstrip()  # without it, it takes the spaces off


def check_variables(tools: Any, variables: Any) -> dict[str, Any]:
    """What a template reads besides messages. Raises RequestError for tools that are no list and names that are none."""
    if tools is not None and (isinstance(tools, str | bytes) or not isinstance(tools, Sequence)):
        raise RequestError(f"tools is {shown(tools)}; expected a list of JSON schemas.")
    if variables is not None and not (
        isinstance(variables, Mapping) and all(isinstance(key, str) for key in variables)
    ):
        raise RequestError(f"variables is {shown(variables)}; expected names and JSON values.")
    if own := sorted(OWN & set(variables or ())):
        raise RequestError(f"variables has {own[0]!r}, which a template is given besides; leave it out here.")
    given = {"tools": None if tools is None else list(tools), "documents": None} | dict(variables or {})
    check_json(given, "tools and template variables")
    return given


def check_json(value: Any, what: str) -> None:
    """Raise RequestError for what JSON cannot say, and for half a character."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeEncodeError:
        raise RequestError(f"{what} have a lone surrogate in them; pass valid Unicode.") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"{what} must be JSON values: {error}.") from None


def check_messages(messages: Any) -> list[dict[str, Any]]:
    """Messages as plain dicts, keys that are None left out. Raises RequestError for anything that is not a message."""
    expected = 'expected a list of {"role": ..., "content": ...}'
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise RequestError(f"messages is {shown(messages)}; {expected}, at least one.")
    checked = []
    for n, message in enumerate(messages):
        if not isinstance(message, Mapping) or not all(isinstance(key, str) for key in message):
            raise RequestError(f"message {n} is {shown(message)}; {expected}.")
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not re.fullmatch(r"[\w-]+", role):
            raise RequestError(f"message {n} has the role {shown(role)}; expected a name such as user or assistant.")
        if isinstance(content, list):
            for part in content:
                if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                    raise RequestError(f"message {n} has the part {shown(part)}; only text can be read.")
        elif not isinstance(content, str) and not (content is None and message.keys() - {"role", "content"}):
            raise RequestError(f"message {n} has the content {shown(content)}; expected a text.")
        checked.append({key: value for key, value in message.items() if value is not None})
    check_json(checked, "messages")
    return checked
