"""The two endpoints that write: chat completions and completions, whole or piece by piece."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from nanollm_jax.engine.request import Request as Wanted
from nanollm_jax.serve.asking import Asked, Readers
from nanollm_jax.serve.bodies import Chat, Completion, Writing, read_body
from nanollm_jax.serve.calls import Call, Piece
from nanollm_jax.serve.events import DONE, EventStream, event, unless_gone
from nanollm_jax.serve.guards import GONE, Json, read_json, service_of
from nanollm_jax.serve.refusals import Refusal
from nanollm_jax.serve.replies import ChatChoice, Choice, Head, TextChoice, Usage, joined
from nanollm_jax.serve.service import Service


async def chat_completions(request: Request) -> Response:
    """POST /v1/chat/completions"""
    service = service_of(request)
    body = read_body(await read_json(request), Chat)
    head = Head("chat.completion", service.check_model(body.model), service.fingerprint)
    service.check_ready()
    asked = await service.readers.ask(Readers.chat, body, service.world(request.scope["key"]))
    tokenizer = service.model.tokenizer
    choices: list[Choice] = [ChatChoice(n, tokenizer, body.logprobs, asked.reading) for n in range(len(asked.requests))]
    return await answer(request, body, asked, head, choices)


async def completions(request: Request) -> Response:
    """POST /v1/completions"""
    service = service_of(request)
    body = read_body(await read_json(request), Completion)
    head = Head("text_completion", service.check_model(body.model), service.fingerprint)
    service.check_ready()
    asked = await service.readers.ask(Readers.completion, body, service.world(request.scope["key"]))
    echoes = await unless_gone(request, echoed(service, body, asked))
    if echoes is None:
        return Response(status_code=GONE)
    tokenizer = service.model.tokenizer
    choices: list[Choice] = []
    for prompt, echo in zip(asked.prompts, echoes, strict=True):
        for _ in range(body.n):
            choices.append(TextChoice(len(choices), tokenizer, body.logprobs, prompt, echo))
    return await answer(request, body, asked, head, choices)


async def echoed(service: Service, body: Completion, asked: Asked) -> list[Piece | None]:
    """Each prompt as a piece, where it is wanted in front of its answer; with the log-probabilities of its tokens."""
    if not body.echo:
        return [None] * len(asked.prompts)
    scores = iter(await scored(service, asked.scores))
    found: list[Piece | None] = []
    for text, ids in zip(asked.texts, asked.prompts, strict=True):
        piece = Piece(0, text, [], [], [], "", 0)
        if body.logprobs is not None:
            rest = next(scores) if len(ids) > 1 else piece
            first: list[Any] = [None]  # the first token has nothing before it
            piece = piece._replace(tokens=ids, logprobs=first + rest.logprobs, tops=first + rest.tops)
        found.append(piece)
    return found


async def scored(service: Service, requests: Sequence[Wanted]) -> list[Piece]:
    """How likely texts are, each as one piece."""
    if not requests:
        return []
    call = service.admit(requests)
    try:
        return await collected(call)
    finally:
        service.release(call)


async def answer(request: Request, body: Writing, asked: Asked, head: Head, choices: Sequence[Choice]) -> Response:
    """Have the requests answered, in the form that the body asks for."""
    service = service_of(request)
    usage = Usage(sum(map(len, asked.prompts)))
    request.scope["usage"] = usage  # for the log
    headers = {"x-nanollm-seed": str(asked.seed)}
    call = service.admit(asked.requests)
    if not asked.requests:  # the prompts alone are wanted
        call.open = len(choices)
        for choice in choices:
            call.put(Piece(choice.index, "", [], [], [], "length", 0))
    if body.stream:
        return EventStream(
            chunks(call, body, head, choices, usage), headers, partial(service.release, call), service.options.silence
        )  # type: ignore[return-value]  # it is called as a response is
    try:
        found = await unless_gone(request, whole(call, choices, usage))
    finally:
        service.release(call)
    if found is None:
        return Response(status_code=GONE)
    return Json(head.body() | {"choices": found, "usage": usage.body()}, headers=headers)


async def whole(call: Call, choices: Sequence[Choice], usage: Usage) -> list[dict[str, Any]]:
    """All answers, in order."""
    found = await collected(call)
    for piece in found:
        usage.add(piece)
    return [choice.whole(piece) for choice, piece in zip(choices, found, strict=True)]


async def collected(call: Call) -> list[Piece]:
    """What a call was answered, a piece for each request."""
    parts: dict[int, list[Piece]] = {}
    while pieces := await call.take():
        for piece in pieces:
            parts.setdefault(piece.at, []).append(piece)
    return [joined(parts[at]) for at in sorted(parts)]


async def chunks(
    call: Call, body: Writing, head: Head, choices: Sequence[Choice], usage: Usage
) -> AsyncIterator[bytes]:
    """The events of a stream. What goes wrong in the middle is an event too."""
    options = body.stream_options
    always = options is not None and bool(options.continuous_usage_stats)
    at_end = options is not None and bool(options.include_usage)

    def chunk(choice: dict[str, Any]) -> bytes:
        cost = {"usage": usage.body() if always else None} if at_end or always else {}
        return event(head.body(chunk=True) | {"choices": [choice]} | cost)

    try:
        while pieces := await call.take():
            for piece in pieces:
                usage.add(piece)
                choice = choices[piece.at]
                for part in choice.said(piece):
                    yield chunk(part)
                if piece.finish_reason:
                    yield chunk(choice.done(piece.finish_reason))
    except Refusal as refusal:
        yield event(refusal.body())
    else:
        if at_end:
            yield event(head.body(chunk=True) | {"choices": [], "usage": usage.body()})
    yield DONE
