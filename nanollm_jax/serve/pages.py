"""GET /: a page for who has no client. Its files stand in page/, as they are sent: no build, and nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from nanollm_jax.serve.refusals import Refusal

FOLDER = Path(__file__).with_name("page")
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
FILES = {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.suffix in KINDS}
# a page that loads nothing from elsewhere, sends nothing elsewhere, and stands in no other page
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cache-control": "no-cache",
}  # fmt: skip


async def page(request: Request) -> Response:
    """GET / and GET /page/{name}"""
    name = request.path_params.get("name", "index.html")
    if name not in FILES:
        raise Refusal(404, f"there is nothing at {request.url.path[:200]}.", code="not_found")
    return Response(FILES[name], media_type=KINDS[Path(name).suffix], headers=HEADERS)
