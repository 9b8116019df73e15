"""A node that showed live previews shows its pictures when it has finished."""

from __future__ import annotations

import pytest

from frontend import SECONDS, Frontend
from training_graph import LOADER, Prompt, node

pytestmark = [pytest.mark.browser, pytest.mark.slow]
GENERATE = "5"

LIVE = """id => {
    window.livePreviews = 0;
    app.api.addEventListener('b_preview_with_metadata', () => { window.livePreviews += 1 });
}"""
SHOWN = """id => (app.graph.getNodeById(id).imgs ?? []).map(image => image.src)"""


def graph() -> Prompt:
    return {
        LOADER: node("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors"),
        "2": node(
            "AtelierPromptMatrix",
            subjects="a fox\na cat\na bear",
            styles="",
            templates="[subject]",
            class_tokens="",
            caption_template="[subject]",
            prompt_count=0,
            shuffle=False,
            seed=0,
        ),
        "3": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        GENERATE: node(
            "AtelierGenerateDataset",
            model=[LOADER, 0],
            clip=[LOADER, 1],
            vae=[LOADER, 2],
            prompts=["2", 0],
            latent_image=["3", 0],
            folder="sets/shown",
            images_per_prompt=1,
            seed=1,
            steps=2,
            cfg=1.0,
            sampler_name="euler",
            scheduler="normal",
        ),
    }


def test_the_last_preview_makes_room_for_the_pictures(english: Frontend) -> None:
    english.run("prompt => app.loadApiJson(prompt, 'shown')", graph())
    english.page.wait_for_timeout(SECONDS)
    english.run(LIVE, GENERATE)
    english.run("() => app.queuePrompt(0)")
    english.page.wait_for_function(
        f"id => ({SHOWN})(id).length === 3", arg=GENERATE, timeout=240 * SECONDS
    )
    sources = english.run(SHOWN, GENERATE)
    assert all("/view?" in source and "sets%2Fshown" in source for source in sources), sources
    assert english.run("() => window.livePreviews") > 0
    assert english.own_errors() == []
