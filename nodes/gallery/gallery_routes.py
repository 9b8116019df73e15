"""The browser's way to the galleries of this process: by id, and nothing else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from functools import wraps
from urllib.parse import urlsplit

from aiohttp import web
from server import PromptServer

from ...training.errors import AtelierError
from ..graph.outputs import thumbnails_folder
from .gallery import GALLERIES, NotWaiting
from .thumbnails import MEDIA_TYPE, SIDES, thumbnail

LARGEST_BODY = 8 * 2**20
"""Bytes."""
AT_ONCE = asyncio.Semaphore(4)
"""Pictures that are decoded together, which bounds the memory."""
KEEP_IN_BROWSER = {"Cache-Control": "private, max-age=86400", "X-Content-Type-Options": "nosniff"}

Handler = Callable[[web.Request], Awaitable[web.Response]]


def own_pages_only(handler: Handler) -> Handler:
    """Refuse what a page of another site asks for in the person's browser."""

    @wraps(handler)
    async def guarded(request: web.Request) -> web.Response:
        if _is_foreign(request):
            return _error(403, "Only ComfyUI's own page may ask for this.")
        return await handler(request)

    return guarded


@own_pages_only
async def list_galleries(request: web.Request) -> web.Response:
    """GET /atelier/galleries: what each is called and where it stands, the newest first."""
    return web.json_response([gallery.summary() for gallery in GALLERIES.newest_first()])


@own_pages_only
async def show_gallery(request: web.Request) -> web.Response:
    """GET /atelier/galleries/{id}: all of it; changes nothing."""
    gallery = GALLERIES.get(request.match_info["id"])
    return _unknown() if gallery is None else web.json_response(gallery.report())


@own_pages_only
async def show_picture(request: web.Request) -> web.Response:
    """GET /atelier/galleries/{id}/thumbnails/{image} or /pictures/{image}: a WebP file."""
    gallery = GALLERIES.get(request.match_info["id"])
    side = SIDES.get(request.match_info["kind"])
    found = None if gallery is None else gallery.pictures.get(request.match_info["image"])
    if found is None or found.digest is None or side is None:
        return _unknown()
    try:
        async with AT_ONCE:
            content = await asyncio.to_thread(
                thumbnail, found.find(), found.digest, side, thumbnails_folder()
            )
    except AtelierError as error:
        return _error(404, str(error))
    return web.Response(body=content, content_type=MEDIA_TYPE, headers=KEEP_IN_BROWSER)


@own_pages_only
async def finish_gallery(request: web.Request) -> web.Response:
    """POST /atelier/galleries/{id}/finish with {"choice": "..."}: let the queue go on with it.

    409 when it does not wait (any more), 400 when the choice cannot be taken, with the reason.
    """
    if request.content_type != "application/json":  # no other site's form can send this
        return _error(415, "Send application/json.")
    gallery = GALLERIES.get(request.match_info["id"])
    if gallery is None:
        return _unknown()
    body = await _body(request)
    if body is None:
        return _error(413, f"The choice is larger than {LARGEST_BODY >> 20} MB.")
    try:
        await asyncio.to_thread(gallery.finish, _choice_in(body))
    except NotWaiting as error:
        return _error(409, str(error))
    except AtelierError as error:
        return _error(400, str(error))
    return web.json_response(gallery.summary())


def _is_foreign(request: web.Request) -> bool:
    """Told by the browser: of a script by Origin, of an <img> by Sec-Fetch-Site."""
    site = request.headers.get("Sec-Fetch-Site")
    if site in ("cross-site", "same-origin"):  # no script can write it
        return site == "cross-site"
    origin = request.headers.get("Origin")
    return origin is not None and urlsplit(origin).netloc.lower() != request.host.lower()


async def _body(request: web.Request) -> bytes | None:
    """None: it is too large."""
    content = bytearray()
    async for piece in request.content.iter_any():
        content += piece
        if len(content) > LARGEST_BODY:
            return None
    return bytes(content)


def _choice_in(body: bytes) -> str:
    try:
        choice = json.loads(body)["choice"]
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise AtelierError('The body must be {"choice": "…"}.') from error
    if not isinstance(choice, str):
        raise AtelierError("choice must be a text, as the widget choice holds it.")
    return choice


def _unknown() -> web.Response:
    return _error(404, "There is no such gallery or picture.")


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)


def register() -> None:
    """Add the routes to the server, where there is one. Must happen while packs are loaded."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        routes = server.routes
        routes.get("/atelier/galleries")(list_galleries)
        routes.get("/atelier/galleries/{id}")(show_gallery)
        routes.get("/atelier/galleries/{id}/{kind:thumbnails|pictures}/{image}")(show_picture)
        routes.post("/atelier/galleries/{id}/finish")(finish_gallery)
