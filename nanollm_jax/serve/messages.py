"""Messages, and the tools that there are, as clients send them and as templates take them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import msgspec

from nanollm_jax.errors import shown
from nanollm_jax.serve.bodies import blamed
from nanollm_jax.serve.refusals import Refusal

NAME = r"[A-Za-z0-9_.-]{1,64}"  # of a tool
Read = TypeVar("Read", bound=msgspec.Struct)


class Called(msgspec.Struct, forbid_unknown_fields=True):
    """Which function was called, and with what: JSON as a text."""

    name: str
    arguments: str = ""


class ToolCall(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A call in an answer that was given before; index is left over from a stream."""

    id: str
    function: Called
    type: Literal["function"] = "function"
    index: int | None = None


class Message(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One message of a conversation; parts are joined. An answer may have calls, which messages of the role tool answer."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] = []
    tool_call_id: str | None = None


class Function(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A function that may be called; parameters are a schema of JSON."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A tool, all of which are functions."""

    function: Function
    type: Literal["function"] = "function"


def convert(given: dict[str, Any], kind: type[Read], place: str) -> Read:
    """An object as what it has to be; null is absent. Raises Refusal that names the place."""
    try:
        return msgspec.convert({name: value for name, value in given.items() if value is not None}, kind)
    except msgspec.ValidationError as error:
        raise blamed(str(error), kind, place) from None


def read_messages(given: list[dict[str, Any]], *, arguments_as_text: bool = False) -> list[dict[str, Any]]:
    """Messages as templates take them: parts joined, `developer` a word for `system`. Raises Refusal that names the place.

    arguments_as_text: of calls, as they were sent; otherwise the objects that they are.
    """
    return [read_message(one, f"messages[{n}]", arguments_as_text) for n, one in enumerate(given)]


def read_message(given: dict[str, Any], place: str, as_text: bool) -> dict[str, Any]:
    """One of them."""
    for name in ("function_call", "audio"):
        if given.get(name):
            raise Refusal(400, f"{place}.{name}: only text is read.", f"{place}.{name}", "unsupported_parameter")
    message = convert(given, Message, place)
    role = "system" if message.role == "developer" else message.role
    fields = {name: getattr(message, name) for name in ("name", "reasoning_content", "tool_call_id")}
    said: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
    if message.tool_calls and role != "assistant":
        raise Refusal(400, f"{place}.tool_calls: only an assistant calls tools.", f"{place}.tool_calls")
    if (role == "tool") != (message.tool_call_id is not None):
        what = "is missing" if role == "tool" else "is for messages of the role tool"
        raise Refusal(400, f"{place}.tool_call_id {what}.", f"{place}.tool_call_id")
    if message.tool_calls:
        places = [f"{place}.tool_calls[{n}]" for n in range(len(message.tool_calls))]
        said["tool_calls"] = [read_call(*one, as_text) for one in zip(message.tool_calls, places, strict=True)]
    if message.content is None and "tool_calls" not in said:
        raise Refusal(400, f"{place}.content is missing.", f"{place}.content", "missing_required_parameter")
    return {"role": role, "content": joined(message.content or "", place), **said}


def read_call(given: Any, place: str, as_text: bool) -> dict[str, Any]:
    """A call that was made before."""
    call = convert(given, ToolCall, place)
    text = call.function.arguments.strip() or "{}"
    try:
        arguments = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        where = f"{place}.function.arguments"
        raise Refusal(400, f"{where} is {shown(text)}; expected an object of JSON, as a text.", where)
    function = {"name": call.function.name, "arguments": text if as_text else arguments}
    return {"id": call.id, "type": call.type, "function": function}


def joined(content: str | list[dict[str, Any]], place: str) -> str:
    """The text of a message, or of its parts."""
    if isinstance(content, str):
        return content
    for n, part in enumerate(content):
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            found = (
                f"a part of type {str(part.get('type'))[:40]!r}"
                if part.get("type") != "text"
                else "a part without text"
            )
            where = f"{place}.content[{n}]"
            raise Refusal(400, f"{where} is {found}; only text is read.", where, "unsupported_parameter")
    return "".join(part["text"] for part in content)


def read_tools(given: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Tools by their names, as templates take them. Raises Refusal for what is none."""
    tools = {}
    for n, one in enumerate(given):
        place = f"tools[{n}]"
        function = convert(one, Tool, place).function
        if not re.fullmatch(NAME, function.name):
            where = f"{place}.function.name"
            raise Refusal(
                400, f"{where} is {shown(function.name)}; expected letters, digits, _ . and -, up to 64.", where
            )
        if function.name in tools:
            raise Refusal(400, f"{place}: there are two tools {function.name!r}.", f"{place}.function.name")
        said = {name: value for name, value in one["function"].items() if value is not None and name != "strict"}
        tools[function.name] = {"type": "function", "function": said}
    return tools
