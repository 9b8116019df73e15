"""The guide opens in the browser, from the help of every node, at the chapter that is meant."""

from __future__ import annotations

import re
import urllib.error
import urllib.parse
from pathlib import Path

import pytest

from host import HostServer

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ("en", "zh")


def page(server: HostServer, name: str) -> str:
    return server.get(f"/atelier/docs/{name}").decode()


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_links_of_all_help_pages_lead_to_a_chapter(server: HostServer, language: str) -> None:
    drawn = page(server, f"guide.{language}.md")
    places = re.findall(r'<h2 id="([^"]+)">', drawn)
    assert len(places) == 21
    for folder in sorted((ROOT / "web" / "docs").iterdir()):
        help_page = (folder / f"{language}.md").read_text("utf-8")
        links = re.findall(r"\(/atelier/docs/(\S+)#(\S+)\)", help_page)
        assert len(links) == 1, folder.name
        assert links[0][0] == f"guide.{language}.md" and links[0][1] in places, folder.name


@pytest.mark.parametrize("language", LANGUAGES)
def test_its_own_links_and_pictures_are_there(server: HostServer, language: str) -> None:
    drawn = page(server, f"guide.{language}.md")
    assert "<table>" in drawn and "&lt;" not in re.sub(r"<code>.*?</code>", "", drawn)
    for place in re.findall(r'href="#([^"]+)"', drawn):
        assert f'id="{urllib.parse.unquote(place)}"' in drawn
    pictures = re.findall(r'<img src="([^"]+)"', drawn)
    assert len(pictures) > 8
    for name in [*pictures, *re.findall(r'href="([\w.]+\.md)"', drawn)]:
        assert len(server.get(f"/atelier/docs/{name}")) > 500


@pytest.mark.parametrize("name", ["..%2FREADME.md", "README.md", "images/..%2F..%2Flaunch.py", "x"])
def test_nothing_else_is_served(server: HostServer, name: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.get(f"/atelier/docs/{name}")
    assert refused.value.code == 404
