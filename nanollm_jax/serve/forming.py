"""Which form the answers to a body must have: JSON, a text of a grammar, calls of tools. It is kept, or the body is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec

from nanollm_jax.chat.call_grammar import Talk
from nanollm_jax.errors import RequestError, shown
from nanollm_jax.grammar import Grammar
from nanollm_jax.serve.bodies import Chat, Writing
from nanollm_jax.serve.messages import convert
from nanollm_jax.serve.reading import Reading
from nanollm_jax.serve.refusals import Refusal, refusal_of

Made = TypeVar("Made")
NOTHING: dict[str, Any] = {
    "type": "object",
    "properties": {},
    "additionalProperties": False,
}  # of a tool without parameters


class JsonSchema(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A schema by a name. It is kept, strict or not."""

    schema: dict[str, Any]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The form of an answer, as OpenAI has it."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None


class StructuredOutputs(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The same as vLLM has it: one of these; grammar is a Lark one."""

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class Named(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A function by its name."""

    name: str


class NamedTool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A tool by its name."""

    function: Named
    type: Literal["function"] = "function"


class Allowed(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Some of the tools, which may be called, or of which one has to be."""

    mode: Literal["auto", "required"]
    tools: list[NamedTool]


class AllowedTools(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The same with its type."""

    allowed_tools: Allowed
    type: Literal["allowed_tools"] = "allowed_tools"


class Choice(NamedTuple):
    """Which tools may be called, whether one has to be, and whether only one may."""

    names: tuple[str, ...] = ()
    forced: bool = False
    single: bool = False


class Form(NamedTuple):
    """The form that answers must have, if any; the field that says so; and parts of it, tried out first, with their fields."""

    grammar: Grammar | None = None
    place: str = ""
    parts: tuple[tuple[Grammar, str], ...] = ()


def choice_of(choice: str | dict[str, Any], tools: Sequence[str]) -> Choice:
    """What a tool_choice says of the tools that there are. Raises Refusal for one that there is not."""
    if choice in ("auto", "none"):
        return Choice(tuple(tools) if choice == "auto" else ())
    if choice == "required":
        found = Choice(tuple(tools), forced=True)
    elif isinstance(choice, dict) and choice.get("type") == "function":
        found = Choice((convert(choice, NamedTool, "tool_choice").function.name,), forced=True, single=True)
    elif isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        allowed = convert(choice, AllowedTools, "tool_choice").allowed_tools
        found = Choice(tuple(dict.fromkeys(tool.function.name for tool in allowed.tools)), allowed.mode == "required")
    else:
        message = f'tool_choice is {shown(choice)}; expected "auto", "none", "required", a function or allowed_tools.'
        raise Refusal(400, message, "tool_choice")
    if strange := [name for name in found.names if name not in tools]:
        raise Refusal(400, f"tool_choice names {shown(strange[0])}, which is none of the tools.", "tool_choice")
    if not found.names:
        raise Refusal(400, f"tool_choice is {shown(choice)} without tools; give some, or leave it out.", "tool_choice")
    return found


def form_of_text(body: Writing) -> Form:
    """The form that a body says its answers must have. Raises Refusal that names the field."""
    given, place = body.response_format, "response_format.json_schema"
    asked = None if given is None else convert(given, ResponseFormat, "response_format")
    if asked is not None and (asked.json_schema is None) != (asked.type != "json_schema"):
        what = "is missing" if asked.json_schema is None else f"beside the type {asked.type!r}; leave one out"
        raise Refusal(400, f"{place} {what}.", place)
    other = Form() if body.structured_outputs is None else structured(body.structured_outputs)
    if asked is None or asked.type == "text":
        return other
    if other.grammar is not None:
        raise Refusal(400, "structured_outputs beside response_format; leave one out.", "structured_outputs")
    if asked.json_schema is None:
        return Form(Grammar.json_object(), "response_format")
    schema = convert(asked.json_schema, JsonSchema, place).schema
    return Form(made(lambda: Grammar.json_schema(schema), f"{place}.schema"), f"{place}.schema")


def structured(given: dict[str, Any]) -> Form:
    """What structured_outputs says."""
    place = "structured_outputs"
    said = convert(given, StructuredOutputs, place)
    kinds = ("json", "regex", "choice", "grammar", "json_object")
    names = [name for name in kinds if getattr(said, name) not in (None, False)]
    if len(names) != 1:
        raise Refusal(400, f"{place} has {' and '.join(names) or 'nothing'}; expected one of its fields.", place)
    makers: dict[str, Callable[[Any], Grammar]] = {
        "json": Grammar.json_schema, "regex": Grammar.regex, "choice": Grammar.choice, "grammar": Grammar.lark,
        "json_object": lambda _: Grammar.json_object(),
    }  # fmt: skip
    place = f"{place}.{names[0]}"
    return Form(made(lambda: makers[names[0]](getattr(said, names[0])), place), place)


def form_of_chat(body: Chat, reading: Reading, choice: Choice) -> Form:
    """The form of the answers to a chat, its calls and its reasoning included. Raises Refusal that names the field.

    Calls are free, unless one is asked for, a function is strict, or only some of the tools may be called. Then those of strict
    functions keep their schema, and where one is asked for those of all functions do.
    """
    form = form_of_text(body)
    tools = {tool["function"]["name"]: (n, tool["function"]) for n, tool in enumerate(body.tools)}
    strict = {name for name in choice.names if tools[name][1].get("strict")}
    some = 0 < len(choice.names) < len(tools)
    if form.grammar is None and not (choice.forced or strict or some):
        return form
    arguments, parts = {}, [] if form.grammar is None else [(form.grammar, form.place)]
    for name in choice.names:
        n, function = tools[name]
        arguments[name] = Grammar.json_object()
        if choice.forced or name in strict:
            place = f"tools[{n}].function.parameters"
            arguments[name] = made(partial(arguments_of, function), place)
            parts.append((arguments[name], place))
    if not (arguments or reading.thinks):
        return form
    talk = Talk(
        reading.form, arguments, None if choice.forced else form.grammar, not choice.forced,
        reading.parallel and not choice.single, reading.special, reading.thinks, reading.thinking,
    )  # fmt: skip
    place = "tools" if arguments else form.place
    return Form(made(talk.grammar, place), place, tuple(parts))


def arguments_of(function: Mapping[str, Any]) -> Grammar:
    """What the arguments of a function have to be: an object, in any case. Raises RequestError for what could be none."""
    parameters = function.get("parameters")
    if parameters is not None and parameters.get("type", "object") != "object":
        raise RequestError(f'parameters are of the type {shown(parameters["type"])}; expected "object".')
    return Grammar.json_schema(NOTHING if parameters is None else {"type": "object", **parameters})


def made(make: Callable[[], Made], place: str) -> Made:
    """What is made, of a grammar. Raises Refusal that names the place."""
    try:
        return make()
    except RequestError as error:
        raise refusal_of(error, place) from None
