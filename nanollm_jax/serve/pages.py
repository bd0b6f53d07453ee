"""Pages for who has no client: the chat at /, the glass box at /glass. Their files are sent as they stand: no build, nothing
from elsewhere.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from nanollm_jax import glass
from nanollm_jax.serve.refusals import Refusal

KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
# a page that loads nothing from elsewhere, sends nothing elsewhere, and stands in no other page
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cache-control": "no-cache",
}  # fmt: skip


def files(folder: Path) -> dict[str, bytes]:
    """What stands in a folder of a page, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in KINDS}


CHAT = files(Path(__file__).with_name("page"))
GLASS = files(Path(str(glass.__file__)).with_name("page"))


def with_link(chat: dict[str, bytes]) -> dict[str, bytes]:
    """The page that chats, with its link to the glass box shown."""
    return chat | {"index.html": chat["index.html"].replace(b'href="glass" hidden', b'href="glass"')}


def page_of(files: dict[str, bytes]) -> Callable[[Request], Awaitable[Response]]:
    """What answers for a page: its index.html, and the files that this asks for, {name}."""

    async def page(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in files:
            raise Refusal(404, f"there is nothing at {request.url.path[:200]}.", code="not_found")
        return Response(files[name], media_type=KINDS[Path(name).suffix], headers=HEADERS)

    return page
