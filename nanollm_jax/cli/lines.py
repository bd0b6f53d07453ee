"""The lines of `nanollm generate --input`: what each asks for, and the line that answers it. One JSON object each way."""

from __future__ import annotations

import codecs
import dataclasses
import json
import math
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanollm_jax import files
from nanollm_jax.checks import check_counts
from nanollm_jax.cli.forms import FORMS, form_of
from nanollm_jax.errors import NanoLLMError, RequestError, shown

if TYPE_CHECKING:
    from nanollm_jax.engine.answer import Generation
    from nanollm_jax.engine.request import Request
    from nanollm_jax.grammar import Grammar
    from nanollm_jax.loading import Model

LONGEST = 2**26  # bytes of a line
ONE_OF = ("prompt", "messages")
LISTS = ("prompt", "messages", "tools", "stop", "stop_ids", "begin_suppress_tokens")  # keys whose value may be a list
OBJECTS = ("logit_bias", "variables", "schema")  # and those whose value is an object
FLAGS = ("special", "truncate")
OTHERS = (
    "id", "tools", "variables", "max_new_tokens", "seed", "stop", "stop_ids", "n", "top_logprobs", "adapter", *FORMS, *FLAGS,
)  # fmt: skip


@dataclass(frozen=True)
class Defaults:
    """What the command line says, for the lines that do not say otherwise."""

    max_new_tokens: int
    seed: int | None
    stop: list[str]
    stop_ids: list[int]
    special: bool
    truncate: bool
    settings: dict[str, Any]
    form: Grammar | None = dataclasses.field(default=None, repr=False)
    adapter: str | None = dataclasses.field(default=None, repr=False)


@dataclass(frozen=True)
class Asked:
    """A line: its number, what it says, its digest, and what is wrong with it."""

    number: int
    said: dict[str, Any]
    request: str
    error: NanoLLMError | None = None


def lines_of(name: str) -> Iterator[tuple[int, bytes]]:
    """Number, from 1, and bytes of each line of a file, or of standard input for "-"; empty ones are left out."""
    opened = nullcontext(sys.stdin.buffer) if name == "-" else open(name, "rb")  # noqa: SIM115
    with opened as file:
        number = 0
        while line := file.readline(LONGEST + 1):
            number += 1
            if len(line) > LONGEST:
                raise RequestError(f"line {number} has more than {LONGEST:,} bytes; make it several.")
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if line.strip():
                yield number, line.strip()


def parse(line: bytes) -> dict[str, Any]:
    """What a line says, all that can be checked without a model. null is as if the key were not there.

    Raises RequestError naming the key.
    """
    from nanollm_jax.cli.options import given_settings

    try:
        found = files.parse(line)
    except ValueError as error:
        raise RequestError(f"is no JSON object ({error}).") from None
    if not isinstance(found, dict):
        raise RequestError(f'is a JSON {type(found).__name__}; expected an object such as {{"prompt": "Once"}}.')
    known = (*ONE_OF, *OTHERS, *sampling_keys())
    if unknown := [key for key in found if key not in known]:
        raise RequestError(f"has the key {shown(unknown[0])}; known are {', '.join(known)}.")
    found = {key: value for key, value in found.items() if value is not None}
    if len(given := [key for key in ONE_OF if key in found]) != 1:
        raise RequestError(f"has {' and '.join(given) or 'neither prompt nor messages'}; expected one of the two.")
    for key, value in found.items():
        inside = isinstance(value, list) and key not in ("messages", "tools") and list in map(type, value)
        if inside or (isinstance(value, list) and key not in LISTS):
            raise RequestError(f"{key} is {shown(value)}; expected one value, for this line has one prompt.")
        if isinstance(value, dict) != (key in OBJECTS) and not isinstance(value, list):
            expected = "an object" if key in OBJECTS else "no object"
            raise RequestError(f"{key} is {shown(value)}; expected {expected}.")
        if key in FLAGS and not isinstance(value, bool):
            raise RequestError(f"{key} is {shown(value)}; expected true or false.")
    if "id" in found and (isinstance(found["id"], bool) or not isinstance(found["id"], str | int)):
        raise RequestError(f"id is {shown(found['id'])}; expected a text or a whole number.")
    where = {"tools": "messages", "variables": "messages", "special": "prompt", "truncate": "prompt"}
    if wrong := [key for key, other in where.items() if key in found and other not in found]:
        raise RequestError(f"has {wrong[0]} without {where[wrong[0]]}; leave it out.")
    if "logit_bias" in found:
        found["logit_bias"] = {token(key): value for key, value in found["logit_bias"].items()}
    given_settings(**{key: found[key] for key in sampling_keys(alone=True) if key in found})
    form_of(found)
    return found


def sampling_keys(alone: bool = False) -> list[str]:
    """The settings of sampling that a line may have; alone: those that can be checked without a vocabulary."""
    from nanollm_jax.settings import ALLOWED, Sampling

    names = [field.name for field in dataclasses.fields(Sampling) if field.name not in ("ends", "max_new_tokens")]
    return [name for name in names if not alone or name in ALLOWED]


def token(key: str) -> int:
    """A token's id as JSON has it for a key."""
    if not key.isdecimal() or len(key) > 20:
        raise RequestError(f"logit_bias names token {shown(key)}; expected an id.")
    return int(key)


def requests_of(model: Model, line: Mapping[str, Any], defaults: Defaults) -> list[Request]:
    """What a line asks for, n requests. Raises RequestError, or TokenizerError for what a template does with it."""
    import nanollm_jax as nano
    from nanollm_jax.cli.options import fitted
    from nanollm_jax.engine import request
    from nanollm_jax.engine.conversation import read_chat
    from nanollm_jax.settings import with_settings

    new = line.get("max_new_tokens", defaults.max_new_tokens)
    bos = None if model.tokenizer is None else model.tokenizer.bos_id
    if "messages" in line:
        ids = read_chat(model, line["messages"], tools=line.get("tools"), variables=line.get("variables"))
    elif isinstance(line["prompt"], str):
        special = line.get("special", defaults.special)
        ids = [bos] if bos is not None and not line["prompt"] else nano.encode(model, line["prompt"], special=special)
    else:
        ids = request.check_ids(model, line["prompt"])
    if "prompt" in line and line.get("truncate", defaults.truncate):
        (counted,) = check_counts(max_new_tokens=new)
        ids = fitted(ids, bos, model.config.max_positions, counted, truncate=True)
    own = {key: line[key] for key in sampling_keys() if key in line}
    return request.requests_of(
        model, [ids], new, with_settings(with_settings(model.defaults.sampling, defaults.settings), own),
        line.get("seed", defaults.seed), line.get("stop", defaults.stop), line.get("stop_ids", defaults.stop_ids),
        grammar=form_of(line) or defaults.form, top_logprobs=line.get("top_logprobs", 0), n=line.get("n", 1),
        chat="messages" in line, adapter=line.get("adapter", defaults.adapter),
    )  # fmt: skip


def digest(line: bytes, run: str) -> str:
    """By which an answer is known as that of a line in a run of this kind: the model and what the command line says."""
    return f"{zlib.crc32(line, zlib.crc32(run.encode())):08x}"


def record(asked: Asked, answers: list[Generation] | NanoLLMError) -> bytes:
    """The line that answers a line, with its end."""
    said = asked.said
    head = {"line": asked.number} | ({"id": said["id"]} if "id" in said else {}) | {"request": asked.request}
    if isinstance(answers, NanoLLMError):
        body: dict[str, Any] = {"error": str(answers)}
    else:
        each = [answer_of(answer, bool(said.get("top_logprobs"))) for answer in answers]
        body = {"answers": each} if "n" in said else each[0]
    return json.dumps(head | body).encode("ascii") + b"\n"


def answer_of(answer: Generation, tops: bool) -> dict[str, Any]:
    """One answer, in what JSON has."""
    finite = lambda value: value if math.isfinite(value) else None  # noqa: E731
    found = {
        "text": answer.text, "token_ids": answer.token_ids, "logprobs": [*map(finite, answer.logprobs)],
        "finish_reason": answer.finish_reason, "prompt_tokens": answer.prompt_tokens, "seed": answer.seed,
    }  # fmt: skip
    best = [[[token, finite(logprob)] for token, logprob in one] for one in answer.top_logprobs]
    return found | ({"top_logprobs": best} if tops else {})


def regular(name: str) -> bool:
    """A file that can be read twice, as a pipe cannot?"""
    return name != "-" and Path(name).is_file()
