"""From prompts to pictures through the server: killed or not, the same set comes out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from host import HostError, HostServer
from training_graph import LOADER, Prompt, Watched, node

GENERATE = "generate"
SET = "output/sets/style"
SUBJECTS = ("a fox", "a cat", "an owl", "a boat", "a house", "a car")


def graph(batch: int = 1, **changes: Any) -> Prompt:
    """Six pictures of 64 px and the host's own painting of the first."""
    sampler = {
        "steps": 3,
        "cfg": 2.0,
        "sampler_name": "euler_ancestral",
        "scheduler": "normal",
        "seed": 11,
        **{k: changes.pop(k) for k in ("steps",) if k in changes},
    }
    return {
        LOADER: node("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors"),
        "matrix": node(
            "AtelierPromptMatrix",
            subjects="\n".join(SUBJECTS),
            styles="flat",
            templates="[subject], [style]",
            class_tokens="sks",
            caption_template="[trigger], [subject]",
            prompt_count=0,
            shuffle=False,
            seed=1,
        ),
        "latent": node("EmptyLatentImage", width=64, height=64, batch_size=batch),
        GENERATE: node(
            "AtelierGenerateDataset",
            model=[LOADER, 0],
            clip=[LOADER, 1],
            vae=[LOADER, 2],
            prompts=["matrix", 0],
            latent_image=["latent", 0],
            folder="sets/style",
            images_per_prompt=1,
            negative="blurred",
            license="MIT",
            **sampler,
            **changes,
        ),
    }


def stock(text: str) -> Prompt:
    """The first picture by ComfyUI's own nodes."""
    settings = graph()[GENERATE]["inputs"]
    names = ("seed", "steps", "cfg", "sampler_name", "scheduler")
    return {
        LOADER: graph()[LOADER],
        "latent": graph()["latent"],
        "text": node("CLIPTextEncode", clip=[LOADER, 1], text=text),
        "negative": node("CLIPTextEncode", clip=[LOADER, 1], text="blurred"),
        "sample": node(
            "KSampler",
            model=[LOADER, 0],
            positive=["text", 0],
            negative=["negative", 0],
            latent_image=["latent", 0],
            denoise=1.0,
            **{name: settings[name] for name in names},
        ),
        "decode": node("VAEDecode", samples=["sample", 0], vae=[LOADER, 2]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="stock"),
    }


def records(server: HostServer) -> list[dict[str, Any]]:
    """Of the folder; each belongs to one picture and the other way round."""
    folder = server.base / SET
    lines = (folder / "metadata.jsonl").read_text("utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    assert sorted(record["file_name"] for record in found) == sorted(
        path.name for path in folder.iterdir() if path.name != "metadata.jsonl"
    )
    return sorted(found, key=lambda record: record["seed"])


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def pictures(server: HostServer) -> dict[str, np.ndarray]:
    return {r["file_name"]: pixels(server.base / SET / r["file_name"]) for r in records(server)}


@pytest.mark.slow
def test_killed_at_any_time_the_same_queue_completes_the_same_set(
    own_server: HostServer, server: HostServer
) -> None:
    server.queue(graph()).check()
    straight = pictures(server)
    assert len(straight) == 6

    def kill_in_the_fourth(name: str, data: Any) -> None:
        if name == "progress" and data["node"] == GENERATE and data["value"] >= 10:
            own_server.kill()

    with own_server.start():
        with pytest.raises((HostError, OSError)):
            own_server.queue(graph(), on_event=kill_in_the_fourth)
    there = {p.name for p in (own_server.base / SET).glob("[!.]*.png")}
    assert 1 <= len(there) < 6
    times = {name: os.stat(own_server.base / SET / name).st_mtime_ns for name in there}
    with own_server.start():
        watched = Watched(own_server, graph())
        assert f"{6 - len(there)} painted now, {len(there)} were there" in watched.text(GENERATE)
    assert {n: os.stat(own_server.base / SET / n).st_mtime_ns for n in there} == times
    again = pictures(own_server)
    assert again.keys() == straight.keys()
    assert all(np.array_equal(again[name], straight[name]) for name in again)


def test_the_pictures_are_those_of_the_stock_nodes_and_say_so(server: HostServer) -> None:
    result = server.queue(graph()).check()
    first, *_, last = records(server)
    (saved,) = server.queue(stock(first["prompt"])).check().images("save")
    folder = server.base / SET
    assert np.array_equal(
        pixels(folder / first["file_name"]), pixels(server.base / "output" / saved["filename"])
    )
    assert (first["prompt"], first["text"]) == ("a fox, flat", "sks, a fox")
    assert last["text"] == "sks, a car"
    assert (first["seed"], last["seed"], first["license"]) == (11, 16, "MIT")
    assert first["source"] == "generated with tiny_sd15.safetensors"
    header = Image.open(folder / first["file_name"]).text
    written = json.loads(header["prompt"])
    assert {key: value["inputs"] for key, value in written.items()} == {
        key: value["inputs"] for key, value in graph().items()
    }
    assert header["parameters"].startswith("a fox, flat\nNegative prompt: blurred\nSteps: 3")
    shown = result.images(GENERATE)
    assert len(shown) == 6
    assert server.image(shown[0]) == (folder / shown[0]["filename"]).read_bytes()


def test_unchanged_it_is_served_from_the_cache_until_a_file_goes(server: HostServer) -> None:
    server.queue(graph()).check()
    server.queue(graph()).check()  # files of earlier tests were news to it, if they were there
    assert GENERATE in server.queue(graph()).check().cached
    record = records(server)[2]
    (server.base / SET / record["file_name"]).unlink()
    watched = Watched(server, graph())
    assert watched.ran(GENERATE)
    assert "1 painted now, 5 were there" in watched.text(GENERATE)
    assert record in records(server)


def test_cancel_keeps_what_is_done(server: HostServer) -> None:
    def cancel(name: str, data: Any) -> None:
        if name == "progress" and data["node"] == GENERATE and data["value"] >= 45:
            server.interrupt()

    prompt = graph(steps=20)
    prompt[GENERATE]["inputs"]["folder"] = "sets/cancelled"
    assert server.queue(prompt, on_event=cancel).status == "interrupted"
    done = len(list((server.base / "output/sets/cancelled").glob("[!.]*.png")))
    assert 2 <= done < 6
    watched = Watched(server, prompt)
    assert f"{6 - done} painted now, {done} were there" in watched.text(GENERATE)


def test_the_wire_feeds_the_nodes_that_take_datasets(server: HostServer) -> None:
    prompt = graph()
    prompt[GENERATE]["inputs"]["role"] = "regularisation"
    prompt["report"] = node(
        "AtelierDatasetReport",
        dataset=[GENERATE, 0],
        train_batch_size=1,
        gradient_accumulation_steps=1,
    )
    watched = Watched(server, prompt)
    assert "6 pictures → output/sets/style" in watched.text(GENERATE)
    assert "regularisation" in watched.text("report")
