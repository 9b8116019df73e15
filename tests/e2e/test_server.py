"""The server harness itself: a picture from the tiny model, and how failures are told."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from host import HostError, HostServer


def text_to_image(steps: int = 2, seed: int = 1, sampler: str = "euler") -> dict[str, Any]:
    model, clip, vae = (["1", index] for index in range(3))
    return {
        "1": _node("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors"),
        "2": _node("CLIPTextEncode", clip=clip, text="a red cat"),
        "3": _node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "4": _node(
            "KSampler",
            model=model,
            positive=["2", 0],
            negative=["2", 0],
            latent_image=["3", 0],
            seed=seed,
            steps=steps,
            cfg=2.0,
            sampler_name=sampler,
            scheduler="normal",
            denoise=1.0,
        ),
        "5": _node("VAEDecode", samples=["4", 0], vae=vae),
        "6": _node("SaveImage", images=["5", 0], filename_prefix="harness"),
    }


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def test_a_graph_gives_a_picture_and_tells_its_events(server: HostServer) -> None:
    events: list[str] = []
    result = server.queue(text_to_image(), on_event=lambda name, _: events.append(name)).check()
    picture = Image.open(io.BytesIO(server.image(result.images("6")[0])))
    assert picture.size == (64, 64)
    assert picture.convert("L").getextrema()[0] < picture.convert("L").getextrema()[1]
    assert {"execution_start", "progress", "executed", "execution_success"} <= set(events)
    assert server.queue(text_to_image()).cached == ["1", "2", "3", "4", "5", "6"]


def test_a_refused_prompt_names_the_node_and_the_value(server: HostServer) -> None:
    result = server.queue(text_to_image(sampler="bogus"))
    assert result.status == "rejected"
    assert "node 4 (KSampler)" in result.message and "bogus" in result.message
    with pytest.raises(HostError, match="bogus"):
        result.check()


def test_an_exception_in_a_node_is_a_result(server: HostServer) -> None:
    prompt = {
        "1": _node("LoadImage", image=server.put_input(b"not a picture", "broken.png")),
        "2": _node("PreviewImage", images=["1", 0]),
    }
    result = server.queue(prompt)
    assert result.status == "error"
    assert result.errors[0].node_id == "1"
    assert "cannot identify image file" in result.errors[0].exception_message


def test_interrupt_ends_a_long_prompt(server: HostServer) -> None:
    def cancel(name: str, data: Any) -> None:
        if name == "progress" and data["value"] >= 3:
            server.interrupt()

    result = server.queue(text_to_image(steps=5000, seed=2), on_event=cancel, timeout=60)
    assert result.status == "interrupted"


@pytest.mark.slow
def test_a_killed_server_is_noticed_and_can_start_again(own_server: HostServer) -> None:
    def crash(name: str, data: Any) -> None:
        if name == "progress" and data["value"] >= 3:
            own_server.kill()

    own_server.start()
    assert own_server.rss_bytes() > 100e6
    with pytest.raises(HostError, match="not running"):
        own_server.queue(text_to_image(steps=5000), on_event=crash)
    assert own_server.start().queue(text_to_image()).ok
