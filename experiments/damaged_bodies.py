"""Bodies of requests that once were right: fields changed and added, or bytes changed; for tests and the soak of the server."""

from __future__ import annotations

import json
import random
from typing import Any

SCHEMA = {
    "type": "object", "required": ["a"],
    "properties": {"a": {"type": "integer", "minimum": 3}, "b": {"anyOf": [{"enum": ["x", 1]}, {"pattern": "x+"}]}},
    "$defs": {"c": {"items": {"$ref": "#/$defs/c"}}},
}  # fmt: skip
RIGHT = (
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Once upon a time"}], "max_tokens": 12}),
    ("/v1/completions", {"prompt": "Once", "max_tokens": 3}), ("/tokenize", {"prompt": "a"}),
    ("/detokenize", {"tokens": [1, 5]}), ("/v1/embeddings", {"input": "a"}),
    ("/v1/chat/completions", {
        "messages": [{"role": "user", "content": "Once"}], "max_tokens": 3,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}},
    }),
    ("/v1/completions", {"prompt": "Once", "max_tokens": 3, "structured_outputs": {"regex": "(a|b){2,5}[^c]*"}}),
    ("/v1/completions", {"prompt": "Once", "max_tokens": 3, "structured_outputs": {"grammar": 'start: A ("b" A)*\nA: /0+/'}}),
    ("/v1/chat/completions", {
        "messages": [{"role": "user", "content": "Once"}], "max_tokens": 3, "tool_choice": "required",
        "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA, "strict": True}}],
    }),
)  # fmt: skip
ODD = (
    None, True, -1, 0, 1.5, 2**31, 2**70, 1e308, "", "x", "\x00", "é🙂", "</s><s>[INST]", [], [1], ["x"], [[]], [[1]], [None],
    {}, {"a": 1}, {"1": 1}, [{"role": "user", "content": "x"}], [{"role": "x" * 5000, "content": []}], "y" * 3000,
)  # fmt: skip
FIELDS = (
    "model messages prompt max_tokens max_completion_tokens n seed stop stop_token_ids ignore_eos min_tokens temperature "
    "top_p top_k min_p repetition_penalty presence_penalty frequency_penalty logit_bias cache_salt stream stream_options "
    "logprobs top_logprobs echo best_of add_generation_prompt continue_final_message chat_template_kwargs reasoning_effort "
    "input tokens tools tool_choice response_format structured_outputs pooling encoding_format dimensions normalize "
    "return_token_strs add_special_tokens user nonsense"
).split()


def damaged(rng: random.Random) -> tuple[str, bytes]:
    """A path and a body for it."""
    path, right = rng.choice(RIGHT)
    body = dict(right)
    for _ in range(rng.randint(1, 3)):
        if rng.random() < 0.6:
            body[rng.choice([*body, *FIELDS])] = rng.choice(ODD)
        else:
            key = rng.choice(list(body))
            body[key] = deeply(rng, body[key])
    data = json.dumps(body).encode()
    return path, bent(rng, data) if rng.random() < 0.3 else data


def deeply(rng: random.Random, value: Any) -> Any:
    """A value with something odd anywhere inside of it."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        return value | {rng.choice((key, key, key, "x", "not")): deeply(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        return [*value[:at], deeply(rng, value[at]), *value[at + 1 :]]
    return rng.choice(ODD)


def bent(rng: random.Random, data: bytes) -> bytes:
    """Bytes of which a few are others."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def wrong(status: int, kind: str, text: str) -> bool:
    """Is this no answer to give? Right are 2xx, an error of 4xx in the one shape, and that too much waits already."""
    if status == 200:
        return kind.startswith("text/event-stream") and not text.endswith("data: [DONE]\n\n")
    if not (400 <= status < 500 or status == 503):
        return True
    try:
        return set(json.loads(text)["error"]) != {"message", "type", "param", "code"}
    except (ValueError, KeyError, TypeError):
        return True
