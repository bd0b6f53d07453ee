"""Which function answers which path. Every path is there with /v1 in front and without."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nanollm_jax.serve import watching
from nanollm_jax.serve.guards import Guards, Json, refused, service_of
from nanollm_jax.serve.looking import Looking
from nanollm_jax.serve.pages import CHAT, GLASS, page_of, with_link
from nanollm_jax.serve.ranking import rerank
from nanollm_jax.serve.refusals import Refusal
from nanollm_jax.serve.service import Service
from nanollm_jax.serve.tokens import detokenize, tokenize, tokenizer_info
from nanollm_jax.serve.vectors import embeddings
from nanollm_jax.serve.writing import chat_completions, completions


def make_app(service: Service | Looking, ended: Callable[[], None] = lambda: None) -> Starlette:
    """The app of a service; ended() is called when its engine has failed, after everybody was told."""

    @asynccontextmanager
    async def life(app: Starlette) -> AsyncIterator[None]:
        service.begin(asyncio.get_running_loop(), ended)
        yield

    options = service.options
    looks = service.watcher is not None
    routes = openai_routes(looks) if isinstance(service, Service) else [Route("/", page_of(GLASS))]
    routes += glass_routes() if looks else []
    cors = Middleware(
        CORSMiddleware, allow_origins=options.origins, allow_methods=["GET", "POST"], allow_headers=["*"],
        expose_headers=["x-nanollm-seed", "x-request-id", "retry-after"],
    )  # fmt: skip
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Guards, options), *([cors] if options.origins else [])],
        exception_handlers={HTTPException: no_route, Refusal: no},
        lifespan=life,
    )
    app.router.redirect_slashes = False  # what a client sends goes to one address, by one scheme, or is refused
    app.state.service, app.state.options, app.state.watcher = service, options, service.watcher
    app.state.timeline = service.thread.timeline if isinstance(service, Service) else None
    app.state.created = int(time.time())
    return app


def openai_routes(looks: bool) -> list[Route]:
    """Those of OpenAI's API and what goes with them, and the page that chats; looks: there is the glass box to link to."""
    get = {
        "/models": models, "/models/{name:path}": one_model, "/tokenizer_info": tokenizer_info, "/health": health,
        "/metrics": metrics, "/rows": rows, "/version": version,
    }  # fmt: skip
    post = {
        "/chat/completions": chat_completions, "/completions": completions, "/embeddings": embeddings, "/rerank": rerank,
        "/tokenize": tokenize, "/detokenize": detokenize,
    }  # fmt: skip
    routes = [
        Route(prefix + path, endpoint, methods=[method])
        for method, paths in (("GET", get), ("POST", post))
        for path, endpoint in paths.items()
        for prefix in ("/v1", "")
    ]
    chat = page_of(with_link(CHAT) if looks else CHAT)
    return [*routes, Route("/", chat), Route("/page/{name}", chat)]


def glass_routes() -> list[Route]:
    """Those of the glass box, and its page."""
    page = page_of(GLASS)
    get = {
        "": page, "/page/{name}": page, "/about": watching.about, "/example": watching.example,
        "/runs/{name}/values": watching.values, "/engine": watching.engine,
    }  # fmt: skip
    post = {"/runs": watching.runs, "/tree": watching.tree, "/patch": watching.patch}
    return [
        Route("/glass" + path, endpoint, methods=[method])
        for method, paths in (("GET", get), ("POST", post))
        for path, endpoint in paths.items()
    ]


async def no(request: Request, refusal: Exception) -> Response:
    """What an endpoint says no to."""
    assert isinstance(refusal, Refusal)
    return refused(refusal)


async def no_route(request: Request, error: Exception) -> Response:
    """A path that is not there, or not with this method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return refused(Refusal(404, f"there is nothing at {request.url.path[:200]}.", code="not_found"))
    if error.status_code == 405:
        message = f"{request.method} is not for {request.url.path[:200]}."
        return refused(Refusal(405, message, code="method_not_allowed", headers=error.headers))
    return refused(Refusal(error.status_code, str(error.detail)))


def described(request: Request, name: str) -> dict:
    """One model as clients read it."""
    service = service_of(request)
    first, adapter = service.options.names[0], name in service.model.adapters
    return {
        "id": name, "object": "model", "created": request.app.state.created, "owned_by": "nanollm",
        "root": name if adapter else first, "max_model_len": service.options.context,
    } | ({"parent": first} if adapter else {})  # fmt: skip


async def models(request: Request) -> Response:
    """GET /v1/models"""
    service = service_of(request)
    names = (*service.options.names, *service.model.adapters)
    return Json({"object": "list", "data": [described(request, name) for name in names]})


async def one_model(request: Request) -> Response:
    """GET /v1/models/{name}"""
    return Json(described(request, service_of(request).check_model(request.path_params["name"])))


async def health(request: Request) -> Response:
    """GET /health: 200 when requests are taken in, 503 while warming up, draining or broken."""
    service_of(request).check_ready()
    return Json({"status": "ok"})


async def metrics(request: Request) -> Response:
    """GET /metrics"""
    return Response(service_of(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def rows(request: Request) -> Response:
    """GET /rows: what each row is at, for nanollm top."""
    return Json({"rows": [lane._asdict() for lane in service_of(request).metrics.lanes]})


async def version(request: Request) -> Response:
    """GET /version"""
    return Json({"version": service_of(request).version})
