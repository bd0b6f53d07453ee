"""POST /v1/embeddings: texts as vectors."""

from __future__ import annotations

import base64
import struct
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from nanollm_jax.engine.embed import vector, vector_of
from nanollm_jax.serve.asking import Readers
from nanollm_jax.serve.bodies import Embedding, read_body
from nanollm_jax.serve.events import unless_gone
from nanollm_jax.serve.guards import GONE, Json, read_json, service_of
from nanollm_jax.serve.refusals import Refusal


async def embeddings(request: Request) -> Response:
    """Texts are read as prompts are, between the chunks of those that write. The answer says how their states were pooled."""
    service = service_of(request)
    body = read_body(await read_json(request), Embedding)
    name = service.check_model(body.model)
    service.check_ready()
    rows = await service.readers.read(ids_of, body)
    adapter, world = service.model.adapter(service.readers.adapter(body)), service.world(request.scope["key"])
    asked = [vector(ids, body.pooling, adapter, root=world) for ids in rows]
    found = await unless_gone(request, service.read(asked))
    if found is None:
        return Response(status_code=GONE)
    vectors = [vector_of(ticket, body.normalize).tolist() for ticket in found]
    data = [
        {"object": "embedding", "index": n, "embedding": packed(one) if body.encoding_format == "base64" else one}
        for n, one in enumerate(vectors)
    ]
    tokens = sum(map(len, rows))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return Json({"object": "list", "data": data, "model": name, "usage": usage, "pooling": body.pooling})


def ids_of(readers: Readers, body: Embedding) -> list[list[int]]:
    """The ids of each text."""
    rows, _ = readers.prompts(body.input, "input")
    width = readers.model.config.hidden_size
    if not rows:
        raise Refusal(400, "input is an empty list; give a text, or ids.", "input")
    if len(rows) > readers.answers:
        raise Refusal(400, f"{len(rows)} texts are too many; at most {readers.answers}.", "input")
    if (longest := max(map(len, rows))) > readers.context:
        message = f"a text of {longest} tokens is longer than the {readers.context} of this server; shorten it."
        raise Refusal(400, message, "input", "context_length_exceeded")
    if body.dimensions not in (None, width):
        raise Refusal(400, f"dimensions is {body.dimensions}; the vectors have {width}, and are not cut.", "dimensions")
    return rows


def packed(vector: list[float]) -> str:
    """float32 numbers, the lowest byte first, in base64."""
    data: Any = struct.pack(f"<{len(vector)}f", *vector)
    return base64.b64encode(data).decode("ascii")
