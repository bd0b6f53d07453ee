"""The JSON that clients send, field by field. What is declared here is honoured; null is absent everywhere.

msgspec checks the types and names the place of what does not fit: "Expected `int`, got `str` - at `$.max_tokens`".
"""

from __future__ import annotations

import re
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from nanollm_jax.serve.fields import without_tables
from nanollm_jax.serve.refusals import Refusal

Prompt = str | list[str | int | list[int]]


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """usage in a last chunk, or in every one; obfuscation, which pads chunks against who listens, changes nothing here."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class Body(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What every endpoint takes: the name of a model."""

    model: str | None = None


class Writing(Body, kw_only=True):
    """What both endpoints that write take."""

    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    n: int = 1
    seed: int | None = None
    stop: str | list[str] = ()  # type: ignore[assignment]  # msgspec makes no default of a list
    stop_token_ids: list[int] = ()  # type: ignore[assignment]
    ignore_eos: bool = False
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    cache_salt: str | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None


class Completion(Writing, kw_only=True):
    """POST /v1/completions. logprobs: how many of the best tokens beside each; echo: the prompt in front of the answer."""

    prompt: Prompt
    logprobs: int | None = None
    echo: bool = False
    best_of: int | None = None


class Chat(Writing, kw_only=True):
    """POST /v1/chat/completions. chat_template_kwargs: what the checkpoint's template reads besides messages."""

    messages: list[dict[str, Any]]
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    reasoning_effort: str | None = None
    tools: list[dict[str, Any]] = ()  # type: ignore[assignment]
    tool_choice: str | dict[str, Any] = "auto"
    parallel_tool_calls: bool = True


class Tokenize(Body, kw_only=True):
    """POST /tokenize of a prompt. add_special_tokens: a BOS in front where the model wants one."""

    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool = False


class TokenizeChat(Body, kw_only=True):
    """POST /tokenize of messages."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = ()  # type: ignore[assignment]
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool = False
    return_token_strs: bool = False


class Detokenize(Body, kw_only=True):
    """POST /detokenize."""

    tokens: list[int]


class Embedding(Body, kw_only=True):
    """POST /v1/embeddings. pooling: of the last layer's states, their mean or the last one."""

    input: Prompt
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    pooling: Literal["mean", "last"] = "mean"
    normalize: bool = True


class Rerank(Body, kw_only=True):
    """POST /v1/rerank, as Jina and Cohere have it. instruction: what is looked for, in words."""

    query: str
    documents: list[str | dict[str, Any]]
    top_n: int | None = None
    return_documents: bool = True
    instruction: str | None = None


B = TypeVar("B", bound=Body)


def read_object(data: bytes) -> dict[str, Any]:
    """A body as JSON. Raises Refusal for what is none, and for what is no object."""
    try:
        given = msgspec.json.decode(data)
    except RecursionError:
        raise Refusal(400, "the body is nested too deeply.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refusal(400, f"the body is not JSON: {error}.") from None
    if not isinstance(given, dict):
        raise Refusal(400, f"the body is a JSON {type(given).__name__}; expected an object.")
    return given


def read_body(given: dict[str, Any], kind: type[B]) -> B:
    """An object as the body of an endpoint. Raises Refusal that names the field."""
    try:
        return msgspec.convert(without_tables(given, kind.__struct_fields__), kind)
    except msgspec.ValidationError as error:
        raise blamed(str(error), kind) from None
    except RecursionError:
        raise Refusal(400, "the body is nested too deeply.") from None


def blamed(message: str, kind: type[msgspec.Struct], place: str = "") -> Refusal:
    """What msgspec found wrong with an object of this kind, as a refusal that names the field."""
    found = re.search(r" - at `\$\.?(.*)`$", message)
    where = ".".join(filter(None, (place, found[1] if found else "")))
    missing = re.search(r"(?:missing required|contains unknown) field `(.*?)`", message)
    if missing is not None:
        where = ".".join(filter(None, (where, missing[1])))
        known = "is missing" if "missing" in message else "is not known here; leave it out"
        code = "missing_required_parameter" if "missing" in message else "unknown_parameter"
        return Refusal(400, f"{where} {known}.", where, code)
    plain = message.partition(" - at `")[0]
    if found and plain.startswith("Invalid enum value"):
        plain += f"; expected {', '.join(map(repr, choices(kind, found[1])))}"
    return Refusal(400, f"{where or 'the body'}: {plain[0].lower()}{plain[1:]}.", where or None, "invalid_type")


def choices(kind: Any, place: str) -> tuple[Any, ...]:
    """The values that a field may have, one of a few, at this place of an object of this kind."""
    for name in re.sub(r"\[.*?\]", "", place).split("."):
        kind = get_type_hints(kind)[name]
        kind = get_args(kind)[0] if get_origin(kind) is list else kind
    return get_args(kind)
