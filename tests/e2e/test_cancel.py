"""Cancel at any moment keeps the work and leaves the base alone; runs leave no memory behind."""

from __future__ import annotations

import random
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest

from host import HostServer
from training_graph import (
    DATASET,
    LOADER,
    SAVE,
    TRAIN,
    Prompt,
    Watched,
    few_pictures,
    latent,
    node,
    picture,
    training,
)

pytestmark = pytest.mark.slow


def busy(seed: int, steps: int = 4000) -> Prompt:
    """A run in which encoding, steps, validation, previews and saving follow each other closely."""
    prompt = training("few", steps, "atelier/cancel")
    prompt[DATASET]["inputs"]["validation_fraction"] = 0.3
    prompt["6"] = node("AtelierCheckpoints", save_every_n_steps=2)
    prompt["7"] = node(
        "AtelierPreview",
        prompts="a red fox",
        negative="",
        seeds="1",
        width=64,
        height=64,
        steps=2,
        cfg=2.0,
        sampler_name="euler",
        scheduler="normal",
        every_n_steps=3,
        every_n_epochs=0,
        base_row=True,
        guidance=0.0,
    )
    prompt[TRAIN]["inputs"] |= {
        "seed": seed,
        "resume": "resume",
        "checkpoints": ["6", 0],
        "preview": ["7", 0],
        "validate_every_n_steps": 2,
    }
    del prompt[SAVE]
    # Without an output node below it, it would not run.
    prompt["chart"] = node("AtelierLossChart", loss_map=[TRAIN, 4], title="")
    return prompt


def base_latent(server: HostServer, end: int) -> np.ndarray:
    loader = node("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors")
    prompt = {LOADER: loader, **picture("untouched", LOADER, end=end)}
    return latent(server, server.queue(prompt).check(), "untouched")


def newest_state(server: HostServer) -> int:
    files = (server.base / "output/atelier/runs").glob("few-*/state/*.safetensors")
    return max((int(path.stem.removeprefix("step")) for path in files), default=0)


def test_cancelled_at_ten_moments_nothing_is_lost_and_the_base_is_untouched(
    own_server: HostServer,
) -> None:
    rng = random.Random(4)
    few_pictures(own_server)
    seen: set[str] = set()
    with own_server.start():
        before = base_latent(own_server, 9_000)
        reached = 0
        for i in range(10):
            # The first while it encodes, the others some time after they have gone further.
            past, wait = (-1, 0.05) if i == 0 else (reached, rng.uniform(0.0, 1.5))
            begun = threading.Event()

            def on_event(
                name: str,
                data: Any,
                past: int = past,
                wait: float = wait,
                begun: threading.Event = begun,
            ) -> None:
                if name != "atelier.run":
                    return
                seen.update(key for key in ("validation", "previews") if data[key])
                if data["step"] > past and not begun.is_set():
                    begun.set()
                    threading.Timer(wait, own_server.interrupt).start()

            started = time.monotonic()
            result = own_server.queue(busy(seed=1), on_event=on_event)
            assert result.status == "interrupted", result.message
            assert time.monotonic() - started < 120
            after = base_latent(own_server, 9_001 + i)
            assert np.array_equal(before, after), f"after cancel number {i}"
            assert newest_state(own_server) >= reached
            reached = newest_state(own_server)
        assert reached >= 3
        assert seen == {"validation", "previews"}
        short = busy(seed=1, steps=reached + 2)
        short["6"]["inputs"]["save_every_n_steps"] = 0
        watched = Watched(own_server, short)
        watched.result.check()


@pytest.mark.skipif(sys.platform != "linux", reason="asks glibc to give memory back")
def test_ten_runs_take_no_more_memory_than_three(own_server: HostServer) -> None:
    """Every run is another one (its seed), so nothing comes from ComfyUI's cache."""
    few_pictures(own_server)
    sizes = []
    with own_server.start():
        for run in range(10):
            own_server.queue(busy(seed=100 + run, steps=3)).check()
            own_server.free()
            time.sleep(1.5)  # the server does it when it is idle
            result = own_server.queue({"m": node("TestMemory", number=run)}).check()
            sizes.append(result.outputs["m"]["bytes"][0])
    megabytes = [round(size / 2**20) for size in sizes]
    assert sizes[9] <= 1.03 * sizes[2], megabytes
