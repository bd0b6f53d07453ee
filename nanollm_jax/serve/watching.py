"""The routes of the glass box: runs as streams, their numbers as raw bytes, tools, and what the serving engine did lately."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from nanollm_jax import glass
from nanollm_jax.engine.request import encode_prompts
from nanollm_jax.errors import NanoLLMError
from nanollm_jax.glass.changes import Edits, Patch, Steer
from nanollm_jax.glass.runs import Run
from nanollm_jax.glass.texts import with_adapter, word_of
from nanollm_jax.glass.tree import Branch
from nanollm_jax.loading import Model
from nanollm_jax.serve.bodies import Body, read_body
from nanollm_jax.serve.events import EventStream, unless_gone
from nanollm_jax.serve.guards import GONE, Json, read_json
from nanollm_jax.serve.refusals import Refusal, refusal_of
from nanollm_jax.serve.timeline import Timeline
from nanollm_jax.serve.watcher import Watcher
from nanollm_jax.settings import with_settings

SETTINGS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
WIDEST, DEEPEST = 8, 12  # of a tree
SILENCE = 10.0
Made = TypeVar("Made")


class Steered(msgspec.Struct, forbid_unknown_fields=True):
    """edits.Steer as it is sent."""

    toward: str
    away: str
    layer: int
    strength: float = 1.0
    since: str = "prompt"


class Patched(msgspec.Struct, forbid_unknown_fields=True):
    """edits.Patch as it is sent."""

    text: str
    layer: int
    position: int


class Changes(msgspec.Struct, forbid_unknown_fields=True):
    """edits.Edits as it is sent."""

    heads: list[tuple[int, int]] = ()  # type: ignore[assignment]  # msgspec makes no default of a list
    steer: Steered | None = None
    patch: Patched | None = None
    adapter: str | None = None

    def edits(self) -> Edits:
        """The same for the model."""
        steer = None if self.steer is None else Steer(**msgspec.structs.asdict(self.steer))
        patch = None if self.patch is None else Patch(**msgspec.structs.asdict(self.patch))
        return Edits(tuple(self.heads), steer, patch, self.adapter)


class Watch(Body, kw_only=True):
    """POST /glass/runs. keep: patterns of names besides what every run keeps; edits: of a second row, with the same seed."""

    prompt: str | list[int]
    max_tokens: int = 48
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    speculate: str | None = None
    keep: list[str] = ()  # type: ignore[assignment]
    edits: Changes | None = None


class Grow(Body, kw_only=True):
    """POST /glass/tree: what may follow a prompt.

    edits: of the model that says it; given: how many of the tokens it was given, all where it is left out.
    """

    prompt: str | list[int]
    width: int = 3
    depth: int = 4
    edits: Changes | None = None
    given: int | None = None


class Compare(Body, kw_only=True):
    """POST /glass/patch: where the difference between two texts is kept."""

    clean: str
    corrupted: str
    adapter: str | None = None


def watcher_of(request: Request) -> Watcher:
    """The thread that watches."""
    return request.app.state.watcher


async def about(request: Request) -> Response:
    """GET /glass/about: which model this is."""
    model, options = watcher_of(request).model, request.app.state.options
    config = model.unpadded or model.config
    return Json({
        "name": options.names[0], "layers": config.num_layers, "heads": config.num_heads, "width": config.hidden_size,
        "parameters": model.num_parameters, "context": min(options.context, config.max_positions),
        "adapters": model.adapters, "texts": model.tokenizer is not None, "engine": request.app.state.timeline is not None,
    })  # fmt: skip


async def runs(request: Request) -> Response:
    """POST /glass/runs: a run as it is written. It is there until this stream is closed."""
    body, watcher = read_body(await read_json(request), Watch), watcher_of(request)
    watcher.check_room()
    run = await checked(made, watcher, body, request.app.state.options.context)
    kept = watcher.open(run, request.scope["key"])
    return EventStream(kept.follow(hold=True), {}, partial(watcher.leave, kept), request.app.state.options.silence)  # type: ignore[return-value]


def made(watcher: Watcher, body: Watch, context: int) -> Run:
    """The run that a body asks for. Raises NanoLLMError for what cannot be honoured."""
    model = watcher.model
    settings = {name: value for name in SETTINGS if (value := getattr(body, name)) is not None}
    run = Run(
        model, body.prompt, max_new_tokens=body.max_tokens, sampling=with_settings(model.defaults.sampling, settings),
        seed=body.seed, keep=body.keep, edits=None if body.edits is None else body.edits.edits(), speculate=body.speculate,
        limit=watcher.limit,
    )  # fmt: skip
    check_context(len(run.ids) + body.max_tokens, context)
    return run


def check_context(tokens: int, context: int) -> None:
    """Raise Refusal for more tokens than this server takes."""
    if tokens > context:
        raise Refusal(
            400, f"prompt and answer may have {tokens} tokens, and this server takes {context}.", "max_tokens"
        )


async def example(request: Request) -> Response:
    """GET /glass/example: a run that is there for everybody, and stays."""
    kept = watcher_of(request).example()
    return EventStream(kept.follow(hold=False), {}, lambda: None, request.app.state.options.silence)  # type: ignore[return-value]


async def values(request: Request) -> Response:
    """GET /glass/runs/{id}/values?name=&row=&from=&to=: numbers as raw little-endian bytes, their shape in headers."""
    run = watcher_of(request).find(request.path_params["name"], request.scope["key"])
    asked = request.query_params
    row, first, last = (number(asked, name, usual) for name, usual in (("row", 0), ("from", 0), ("to", None)))
    found = await checked(run.values, row, asked.get("name", ""), first, last)
    headers = {
        "x-letters": found.letters, "x-shape": " ".join(map(str, found.shape)), "x-dtype": found.dtype,
        "x-story": str(found.story), "cache-control": "no-store",
    }  # fmt: skip
    return Response(found.data, media_type="application/octet-stream", headers=headers)


def number(asked: Any, name: str, usual: int | None) -> int | None:
    """A number of a query. Raises Refusal for what is none."""
    text = asked.get(name)
    if text is None:
        return usual
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise Refusal(400, f"{name} is {text[:40]!r}; expected a whole number.", name)
    return int(text)


async def tree(request: Request) -> Response:
    """POST /glass/tree"""
    body, watcher = read_body(await read_json(request), Grow), watcher_of(request)
    if body.width > WIDEST or body.depth > DEEPEST:
        raise Refusal(
            400, f"width is {body.width} and depth {body.depth}; expected {WIDEST} and {DEEPEST} at most.", "width"
        )
    (ids,), _ = await checked(encode_prompts, watcher.model, body.prompt)
    check_context(len(ids) + body.depth, request.app.state.options.context)
    if body.given is not None and body.given < 0:
        raise Refusal(400, f"given is {body.given}; expected a number of tokens.", "given")
    given = len(ids) if body.given is None else min(body.given, len(ids))
    model, edits = watcher.model, Edits() if body.edits is None else body.edits.edits()
    await checked(edits.check, model)

    def work() -> dict[str, Any]:
        change = edits.change(model, given)
        says = with_adapter(model, edits.adapter)
        return branch(model, glass.tree(says, ids, width=body.width, depth=body.depth, change=change))

    return await worked(request, work)


def branch(model: Model, found: Branch) -> dict[str, Any]:
    """A tree as plain data, with the text of each token."""
    return {
        "token": found.token, "text": word_of(model, found.token), "probability": found.probability, "total": found.total,
        "children": [branch(model, child) for child in found.children],
    }  # fmt: skip


async def patch(request: Request) -> Response:
    """POST /glass/patch"""
    body, watcher = read_body(await read_json(request), Compare), watcher_of(request)
    check_context(
        len((await checked(encode_prompts, watcher.model, body.clean))[0][0]), request.app.state.options.context
    )
    await checked(watcher.model.adapter, body.adapter)

    def work() -> dict[str, Any]:
        found = glass.patch(with_adapter(watcher.model, body.adapter), body.clean, body.corrupted)
        return {
            "recovered": found.recovered.tolist(), "places": found.places, "pieces": found.pieces, "said": found.said,
            "clean": found.clean, "corrupted": found.corrupted,
        }  # fmt: skip

    return await worked(request, work)


async def worked(request: Request, tool: Callable[[], dict[str, Any]]) -> Response:
    """What a tool gives, unless its reader has gone."""
    found = await unless_gone(request, watcher_of(request).do(tool))
    return Response(status_code=GONE) if found is None else Json(found)


async def checked(function: Callable[..., Made], *args: Any) -> Made:
    """function(*args) beside the loop. Raises Refusal for all that it refuses."""
    try:
        return await asyncio.to_thread(function, *args)
    except NanoLLMError as error:
        raise refusal_of(error) from None


async def engine(request: Request) -> Response:
    """GET /glass/engine?since=: what the engine that serves did, step by step."""
    timeline: Timeline | None = request.app.state.timeline
    if timeline is None:
        raise Refusal(404, "no engine serves here besides those of watched runs.", code="not_found")
    return Json(timeline.since(number(request.query_params, "since", 0) or 0))
