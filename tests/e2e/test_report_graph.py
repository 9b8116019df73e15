"""The dataset report in a real server."""

from __future__ import annotations

import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from host import HostServer
from training_graph import PICTURES, Watched, node

pytestmark = pytest.mark.slow


def fill(folder: Path) -> Path:
    """Four pictures, of which one is there twice and one is broken, and one without caption."""
    folder.mkdir(parents=True)
    for name in ("bear", "fox"):
        for extension in (".png", ".txt"):
            shutil.copy(PICTURES / f"{name}{extension}", folder)
    shutil.copy(folder / "fox.png", folder / "again.png")
    (folder / "again.txt").write_text(", ".join(["fox"] * 60))
    (folder / "cut.png").write_bytes((PICTURES / "bee.png").read_bytes()[:1500])
    (folder / "cut.txt").write_text("bee")
    return folder


def graph(folder: str, **widgets: Any) -> dict[str, Any]:
    return {
        "loader": node("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors"),
        "dataset": node("AtelierLoadDataset", folder=folder, resolution=128),
        "report": node(
            "AtelierDatasetReport",
            dataset=["dataset", 0],
            clip=["loader", 1],
            train_batch_size=2,
            gradient_accumulation_steps=1,
            **widgets,
        ),
        "text": node("PreviewAny", source=["report", 0]),
    }


def test_the_report_runs_by_itself_and_shows_what_to_mend(server: HostServer) -> None:
    fill(server.base / "input" / "look_at_me")
    done = Watched(server, graph("look_at_me"))
    lines = done.text("report").splitlines()
    assert lines[0] == "look_at_me: 3 pictures"
    assert lines[1] == "3 an epoch · 1 bucket · 2 optimizer steps an epoch at batch 2"
    assert "1. 1 file is left out as broken" in lines
    assert any(line.endswith("1 picture is the same file as another") for line in lines)
    (text,) = done.result.outputs["text"]["text"]
    assert '"cut.png" is damaged or cut short' in text
    assert "again.png = fox.png" in text
    assert "1 caption has more than 75 tokens" in text
    assert str(server.base) not in text
    (picture,) = done.result.images("report")
    pixels = np.asarray(Image.open(BytesIO(server.image(picture))))
    assert pixels.shape == (1200, 1600, 3)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000
    assert not Watched(server, graph("look_at_me")).ran("report")


def test_batch_sizes_out_of_range_are_refused_before_the_queue(server: HostServer) -> None:
    prompt = graph("anywhere")
    prompt["report"]["inputs"]["train_batch_size"] = 0
    refused = Watched(server, prompt).result
    assert refused.status == "rejected"
    assert "train_batch_size" in refused.message
