"""POST /v1/rerank: how well each of some documents answers a query, the best first."""

from __future__ import annotations

import uuid

from starlette.requests import Request
from starlette.responses import Response

from nanollm_jax.engine.embed import INSTRUCTION, LABELS, chance_of, judgement, label_ids, pair_ids
from nanollm_jax.errors import NanoLLMError
from nanollm_jax.serve.asking import Readers
from nanollm_jax.serve.bodies import Rerank, read_body
from nanollm_jax.serve.events import unless_gone
from nanollm_jax.serve.guards import GONE, Json, read_json, service_of
from nanollm_jax.serve.refusals import Refusal, refusal_of


async def rerank(request: Request) -> Response:
    """Documents are read as prompts are, between the chunks of those that write; what they begin alike is read once."""
    service = service_of(request)
    body = read_body(await read_json(request), Rerank)
    name = service.check_model(body.model)
    service.check_ready()
    texts, rows, labels = await service.readers.read(pairs_of, body)
    adapter, world = service.model.adapter(service.readers.adapter(body)), service.world(request.scope["key"])
    tickets = await unless_gone(request, service.read([judgement(ids, labels, adapter, root=world) for ids in rows]))
    if tickets is None:
        return Response(status_code=GONE)
    found = [chance_of(ticket) for ticket in tickets]
    results = [
        {"index": n, "relevance_score": found[n]} | ({"document": {"text": texts[n]}} if body.return_documents else {})
        for n in sorted(range(len(found)), key=lambda n: -found[n])
    ]
    tokens = sum(map(len, rows))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    head = {"id": f"rerank-{uuid.uuid4().hex}", "object": "list", "model": name}
    return Json(head | {"results": results[: body.top_n], "usage": usage})


def pairs_of(readers: Readers, body: Rerank) -> tuple[list[str], list[list[int]], tuple[int, int]]:
    """The documents, what is asked of each as ids, and the tokens between which it is judged."""
    if body.top_n is not None and body.top_n < 1:
        raise Refusal(400, f"top_n is {body.top_n}; expected 1 or more.", "top_n")
    if not 0 < len(body.documents) <= readers.answers:
        raise Refusal(400, f"{len(body.documents)} documents; expected 1 to {readers.answers}.", "documents")
    texts = []
    for n, document in enumerate(body.documents):
        text = document if isinstance(document, str) else document.get("text")
        if not isinstance(text, str):
            raise Refusal(
                400, f"documents[{n}] is no text and has none; give a text, or an object with one.", "documents"
            )
        texts.append(text)
    instruction = INSTRUCTION if body.instruction is None else body.instruction
    try:
        rows = [pair_ids(readers.renderer, body.query, text, instruction) for text in texts]
        labels = label_ids(readers.model, LABELS)
    except NanoLLMError as error:
        raise refusal_of(error, "documents") from None
    if (longest := max(map(len, rows))) > readers.context:
        message = f"a document and the query have {longest} tokens, more than the {readers.context} of this server; shorten it."
        raise Refusal(400, message, "documents", "context_length_exceeded")
    return texts, rows, labels
