"""GET /atelier/docs/<name>.md: a page of `docs/`, drawn. Its pictures lie beside it, so that links
between the pages are those of the files."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

from aiohttp import web
from server import PromptServer

DOCS = Path(__file__).resolve().parents[2] / "docs"
LOOK = """
body { max-width: 46em; margin: 2em auto; padding: 0 1em; line-height: 1.6;
       font-family: system-ui, sans-serif; color-scheme: light dark;
       background: light-dark(#fff, #1e2127); color: light-dark(#222, #ddd) }
img { max-width: 100%; background: #fff }
table { border-collapse: collapse } th, td { border: 1px solid #8886; padding: .3em .6em;
       vertical-align: top; text-align: left }
pre { overflow: auto; padding: .8em; background: #8882 } code { background: #8882 }
a { color: light-dark(#1b7f5c, #4fb3a5) } h1, h2 { line-height: 1.25 } h2 { margin-top: 2em }
"""


async def show_page(request: web.Request) -> web.Response:
    """404 for everything but the pages that are there."""
    wanted = request.match_info["name"]
    page = next((path for path in DOCS.glob("*.md") if path.name == wanted), None)
    if page is None:
        raise web.HTTPNotFound(text="There is no such page.")
    return web.Response(text=drawn(page.read_text("utf-8")), content_type="text/html")


def drawn(text: str) -> str:
    """Markdown as HTML, with headings that links can lead to; HTML inside it stays text."""
    from markdown_it import MarkdownIt  # not at start-up

    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = reader.parse(text)
    titles = []
    for token, inside in zip(tokens, tokens[1:], strict=False):
        if token.type == "heading_open":
            token.attrSet("id", anchor(inside.content))
            titles.append(inside.content)
    title = escape(titles[0] if titles else "LoRA Atelier")
    body = reader.renderer.render(tokens, reader.options, {})
    head = f'<meta charset="utf-8"><title>{title}</title><style>{LOOK}</style>'
    return f"<!doctype html><html><head>{head}</head><body>{body}</body></html>"


def anchor(heading: str) -> str:
    """As GitHub makes it, so that a page's own contents work in both places."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def register() -> None:
    """Add the routes to the server, where there is one. Must happen while packs are loaded."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.routes.get("/atelier/docs/{name}")(show_page)
        if (DOCS / "images").is_dir():
            server.routes.static("/atelier/docs/images", DOCS / "images")
