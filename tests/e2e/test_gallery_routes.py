"""Curate Dataset in a real server: the queue waits for a choice that comes over HTTP."""

from __future__ import annotations

import io
import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import websocket
from PIL import Image

from host import HostServer, Result
from training_graph import PICTURES, PROGRESS_TEXT, Prompt, node

pytestmark = pytest.mark.slow

NAMES = ("bear", "bee", "fox", "lemon", "pizza")
DOUBLE = "again.png"
"""A copy of fox.png."""
ROUTE = "/atelier/galleries"
Answer = tuple[int, bytes, Any]
"""Status, body, headers."""


@pytest.fixture(scope="module")
def folder(server: HostServer) -> Path:
    """Six pictures, of which one is there twice."""
    folder = server.base / "input" / "curate me"
    folder.mkdir()
    for name in NAMES:
        for extension in (".png", ".txt"):
            shutil.copy(PICTURES / f"{name}{extension}", folder)
    shutil.copy(folder / "fox.png", folder / DOUBLE)
    (folder / "again.txt").write_text("a fox again")
    return folder


def graph(into: str, mode: str, **widgets: Any) -> Prompt:
    inputs = {
        "mode": mode,
        "score": "none",
        "keep_best": 0,
        "drop_duplicates": False,
        "drop_outliers": False,
        "timeout_minutes": 5,
        "choice": "",
        **widgets,
    }
    return {
        "load": node("AtelierLoadDataset", folder="curate me"),
        "curate": node("AtelierCurateDataset", dataset=["load", 0], **inputs),
        "save": node("AtelierSaveDataset", dataset=["curate", 0], folder=into),
    }


class Queued:
    """A graph that was queued; what its galleries said, and what was done once one waited."""

    def __init__(
        self, server: HostServer, prompt: Prompt, act: Callable[[str], None] = lambda _: None
    ) -> None:
        self.events: list[dict[str, Any]] = []
        self.texts: list[str] = []
        self.act = act
        self.result: Result = server.queue(prompt, on_event=self._listen, timeout=60)

    def _listen(self, name: str, data: Any) -> None:
        if name == "binary" and int.from_bytes(data[:4], "big") == PROGRESS_TEXT:
            end = 8 + int.from_bytes(data[4:8], "big")
            if data[8:end] == b"curate":
                self.texts.append(data[end:].decode())
        if name == "atelier.gallery":
            self.events.append(data)
            if data["status"] == "waiting":
                self.act(data["id"])

    @property
    def statuses(self) -> list[str]:
        return [event["status"] for event in self.events]

    @property
    def text(self) -> str:
        (text,) = self.result.check().outputs["curate"]["text"]
        return text


def ask(
    server: HostServer, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> Answer:
    """GET, or POST where there is a body; refusals are answers."""
    request = urllib.request.Request(server.url + path, body, headers or {})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


def finish(server: HostServer, gallery: str, choice: Any, **headers: str) -> Answer:
    body = json.dumps({"choice": choice}).encode()
    headers = {"Content-Type": "application/json", **headers}
    return ask(server, f"{ROUTE}/{gallery}/finish", body, headers)


def images(server: HostServer, gallery: str) -> dict[str, dict[str, Any]]:
    return {image["name"]: image for image in server.json(f"{ROUTE}/{gallery}")["images"]}


def choice(pictures: dict[str, dict[str, Any]], drop: list[str], **captions: list[str]) -> str:
    """All others are kept; captions by the name without extension."""
    keys = {name: image["digest"][:16] for name, image in pictures.items()}
    return json.dumps(
        {
            "version": 1,
            "keep": sorted({keys[name] for name in keys if name not in drop}),
            "drop": sorted(keys[name] for name in drop),
            "captions": {keys[f"{name}.png"]: lines for name, lines in captions.items()},
        }
    )


def saved(server: HostServer, folder: str) -> dict[str, str]:
    """Captions by picture."""
    target = server.base / "output" / folder
    return {path.name: path.with_suffix(".txt").read_text() for path in target.glob("*.png")}


def test_the_queue_waits_for_the_choice_and_the_saved_one_repeats_it(
    server: HostServer, folder: Path
) -> None:
    sent: list[str] = []

    def act(gallery: str) -> None:
        time.sleep(1.2)
        assert server.json(f"{ROUTE}/{gallery}")["status"] == "waiting"
        found = images(server, gallery)
        assert found["fox.png"]["digest"] == found[DOUBLE]["digest"]
        sent.append(choice(found, ["bear.png", "lemon.png"], fox=["sly fox", "red fox"]))
        status, body, _ = finish(server, gallery, sent[0])
        assert status == 200 and json.loads(body)["status"] == "done"
        status, body, _ = finish(server, gallery, sent[0])
        assert status == 409 and "closed" in json.loads(body)["error"]

    by_hand = Queued(server, graph("chosen/by hand", "wait_for_me"), act)
    assert by_hand.statuses == ["waiting", "done"]
    assert 290 < by_hand.events[0]["seconds_left"] <= 300
    assert by_hand.events[1]["seconds_left"] is None
    waiting = [text for text in by_hand.texts if text.startswith("WAITING FOR YOU")]
    assert 2 <= len(waiting) <= 5 and "left" in waiting[0]
    assert by_hand.text.startswith("6 pictures → 4 kept, 2 dropped\n2 dropped in the gallery")
    chosen = saved(server, "chosen/by hand")
    assert chosen.keys() == {"bee.png", "fox.png", "again.png", "pizza.png"}
    assert chosen["fox.png"] == chosen["again.png"] == "sly fox\nred fox\n"

    again = Queued(server, graph("chosen/again", "use_saved_choice", choice=sent[0]))
    assert again.statuses == ["done"] and again.text == by_hand.text
    assert saved(server, "chosen/again") == chosen
    same = Queued(server, graph("chosen/again", "use_saved_choice", choice=sent[0]))
    assert "curate" in same.result.check().cached and same.events == []


def test_who_asked_to_be_waited_for_is_waited_for_again_with_the_saved_choice_laid_out(
    server: HostServer, folder: Path
) -> None:
    seen: list[dict[str, Any]] = []

    def act(gallery: str) -> None:
        seen.append(images(server, gallery))
        assert finish(server, gallery, "")[0] == 200

    first = Queued(server, graph("chosen/first", "wait_for_me", drop_duplicates=True), act)
    kept = {name for name, image in seen[0].items() if image["keep"]}
    assert len(kept) == 5 and first.text.startswith("6 pictures → 5 kept, 1 dropped\n1 near dup")
    prompt = graph(
        "chosen/second",
        "wait_for_me",
        drop_duplicates=True,
        choice=choice(seen[0], ["bee.png"], bear=["a bear"]),
    )
    second = Queued(server, prompt, act)
    third = Queued(server, prompt, act)
    assert second.statuses == third.statuses == ["waiting", "done"]
    assert seen[1] == seen[2]
    bee, bear = seen[1]["bee.png"], seen[1]["bear.png"]
    assert (bee["keep"], bee["reason"]["cause"]) == (False, "dropped_by_hand")
    assert bear["captions"] == ["a bear"] and seen[0]["bear.png"]["captions"] != ["a bear"]
    listed = [gallery["id"] for gallery in server.json(ROUTE)]
    assert listed[:2] == [third.events[0]["id"], second.events[0]["id"]]


def test_small_pictures_are_served_while_it_waits_and_afterwards(
    server: HostServer, folder: Path
) -> None:
    Image.new("RGB", (1500, 300), "teal").save(folder / "wide.png")
    queued = Queued(server, graph("chosen/thumbs", "automatic"))
    (event,) = queued.events
    assert event["status"] == "done" and event["name"] == "curate me"
    wide = images(server, event["id"])["wide.png"]
    assert (wide["width"], wide["height"]) == (1500, 300)
    for kind, size in (("thumbnails", (256, 51)), ("pictures", (1024, 205))):
        status, body, headers = ask(server, f"{ROUTE}/{event['id']}/{kind}/{wide['id']}")
        assert status == 200 and headers["Content-Type"] == "image/webp"
        assert "max-age" in headers["Cache-Control"]
        assert Image.open(io.BytesIO(body)).size == size
    kept = list((server.base / "output/atelier/cache/thumbnails").rglob(f"{wide['digest']}_*"))
    assert len(kept) == 2
    (folder / "wide.png").unlink()  # what was made is still there
    assert ask(server, f"{ROUTE}/{event['id']}/thumbnails/{wide['id']}")[0] == 200


SECRET = "..%2f..%2f..%2finput%2fcurate me%2ffox.png".replace(" ", "%20")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("{id}/thumbnails/99", 404),
        ("{id}/thumbnails/-1", 404),
        ("{id}/thumbnails/00", 404),
        ("{id}/thumbnails/fox.png", 404),
        (f"{{id}}/thumbnails/{SECRET}", 404),
        (f"{{id}}/pictures/{SECRET}", 404),
        ("{id}/thumbnails/%2e%2e", 404),
        ("{id}/originals/0", 404),
        ("{id}/..%2f{id}/thumbnails/0", 404),
        ("0123456789abcdef0123456789abcdef", 404),
        ("0123456789abcdef0123456789abcdef/thumbnails/0", 404),
        ("..%2f{id}", 404),
        ("{id}%00", 404),
    ],
)
def test_nothing_but_the_pictures_of_a_gallery_is_served(
    server: HostServer, folder: Path, path: str, status: int
) -> None:
    gallery = server.json(ROUTE)[0]["id"]
    assert ask(server, f"{ROUTE}/{gallery}/thumbnails/0")[0] == 200
    got, body, headers = ask(server, f"{ROUTE}/{path.replace('{id}', gallery)}")
    assert got == status and not headers["Content-Type"].startswith("image/")
    assert str(server.base).encode() not in body


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Host": "my.gpu.box", "Origin": "https://evil.example"},
        {"Host": "my.gpu.box:8188", "Origin": "http://my.gpu.box"},
    ],
)
def test_pages_of_other_sites_see_and_change_nothing(
    server: HostServer, folder: Path, headers: dict[str, str]
) -> None:
    tried: list[int] = []

    def act(gallery: str) -> None:
        for path in ("", f"/{gallery}", f"/{gallery}/thumbnails/0", f"/{gallery}/pictures/0"):
            tried.append(ask(server, f"{ROUTE}{path}", headers=headers)[0])
        tried.append(finish(server, gallery, "", **headers)[0])
        assert server.json(f"{ROUTE}/{gallery}")["status"] == "waiting"
        own = {"Origin": "https://my.gpu.box", "Sec-Fetch-Site": "same-origin"}
        own["Host"] = "comfy.internal:8188"  # as behind a proxy that tells its own name
        assert finish(server, gallery, "", **own)[0] == 200

    queued = Queued(server, graph("chosen/origins", "wait_for_me"), act)
    assert queued.statuses == ["waiting", "done"] and tried == [403] * 5


def test_bodies_that_are_no_choice_are_refused_and_it_waits_on(
    server: HostServer, folder: Path
) -> None:
    as_json = {"Content-Type": "application/json"}
    refused: list[tuple[int, str]] = []

    def act(gallery: str) -> None:
        path = f"{ROUTE}/{gallery}/finish"
        good = json.dumps({"choice": ""}).encode()
        everything = choice(images(server, gallery), list(images(server, gallery)))
        for body, headers in (
            (good, {"Content-Type": "text/plain"}),
            (good, {"Content-Type": "application/x-www-form-urlencoded"}),
            (b"{", as_json),
            (b"\xff", as_json),
            (b"[]", as_json),
            (b"[" * 100_000, as_json),
            (b'{"choice": 5}', as_json),
            (json.dumps({"choice": "{"}).encode(), as_json),
            (json.dumps({"choice": everything}).encode(), as_json),
            (json.dumps({"choice": " " * 9_000_000}).encode(), as_json),
        ):
            status, answer, _ = ask(server, path, body, headers)
            refused.append((status, json.loads(answer)["error"]))
        foreign = ask(server, f"{ROUTE}/{'0' * 32}/finish", good, as_json)
        refused.append((foreign[0], json.loads(foreign[1])["error"]))
        assert finish(server, gallery, "")[0] == 200

    queued = Queued(server, graph("chosen/bodies", "wait_for_me"), act)
    assert queued.statuses == ["waiting", "done"]
    assert [status for status, _ in refused] == [415] * 2 + [400] * 7 + [413, 404]
    assert "choice cannot be read as JSON" in refused[7][1]
    assert "pictures are dropped" in refused[8][1]


def test_cancel_ends_the_wait(server: HostServer, folder: Path) -> None:
    pressed: list[float] = []

    def act(gallery: str) -> None:
        server.interrupt()
        pressed.append(time.monotonic())

    queued = Queued(server, graph("chosen/cancelled", "wait_for_me"), act)
    assert queued.result.status == "interrupted"
    assert time.monotonic() - pressed[0] < 5
    assert queued.statuses == ["waiting", "cancelled"]
    assert not (server.base / "output/chosen/cancelled").exists()
    assert finish(server, queued.events[0]["id"], "")[0] == 409


def unwatched(server: HostServer, prompt: Prompt, client: str | None, seconds: float) -> list[str]:
    """Queue without listening; the text on the node."""
    body = {"prompt": prompt} | ({"client_id": client} if client else {})
    status, answer, _ = ask(
        server, "/prompt", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    assert status == 200
    prompt_id = json.loads(answer)["prompt_id"]
    until = time.monotonic() + seconds
    while not (history := server.json(f"/history/{prompt_id}")):
        assert time.monotonic() < until, "it waits though nobody is there"
        time.sleep(0.1)
    return history[prompt_id]["outputs"]["curate"]["text"]


def test_a_program_is_not_waited_for(server: HostServer, folder: Path) -> None:
    (text,) = unwatched(server, graph("chosen/program", "wait_for_me"), None, 10)
    assert text.splitlines()[:2] == [
        "NOBODY WAS ASKED: the graph was queued without a browser.",
        "6 pictures → 6 kept, 0 dropped",
    ]
    assert len(saved(server, "chosen/program")) == 6


def test_it_goes_on_some_time_after_the_last_browser_is_gone(
    server: HostServer, folder: Path
) -> None:
    address = f"{server.url.replace('http', 'ws')}/ws?clientId=leaves"
    browser = websocket.create_connection(address, timeout=30, http_no_proxy=["127.0.0.1"])
    browser.close()
    began = time.monotonic()
    (text,) = unwatched(server, graph("chosen/gone", "wait_for_me"), "leaves", 40)
    assert 15 < time.monotonic() - began < 35
    assert text.startswith("NOBODY CHOSE: no browser was open any more.\n6 pictures → 6 kept")
    assert server.json(ROUTE)[0]["status"] == "timed_out"


@pytest.mark.parametrize(
    ("widgets", "told"),
    [
        ({"choice": "{"}, "choice cannot be read as JSON"),
        ({"timeout_minutes": -1}, "timeout_minutes"),
        ({"keep_best": -1}, "keep_best"),
    ],
)
def test_wrong_widgets_are_refused_before_the_queue(
    server: HostServer, widgets: dict[str, Any], told: str
) -> None:
    refused = server.queue(graph("chosen/refused", "use_saved_choice", **widgets))
    assert refused.status == "rejected" and told in refused.message
