"""The demo's LoRA changes the style, and only because it was trained on that style.

The demo's base model paints emoji in three styles and has never seen the fourth, glossy one. The
LoRA is trained on 32 subjects in it. Of the 20 subjects that it was not trained on, its pictures
must lie nearer to the true glossy picture of the same subject than the base's do; those of a LoRA
at strength 0, or of one trained on other styles under the same captions, must not.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import demo
from host import HostServer
from style_statistic import IMAGES, Picture, distances, needed_for, p_value, true_pictures
from workflow import to_prompt

pytestmark = pytest.mark.slow

PREFIX = "glossy style, "
OTHER_STYLES = ("flat", "ink", "noto")
SHUFFLED = "shuffled"
SIGNIFICANT = 0.01


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostServer]:
    """A server with the demo's base model and pictures, as the demo command prepares it."""
    with HostServer(tmp_path_factory.mktemp("studio")) as server:
        demo.prepare(server)
        yield server


@pytest.fixture(scope="module")
def workflow(studio: HostServer) -> dict[str, Any]:
    return to_prompt(json.loads(demo.WORKFLOW.read_text("utf-8")), studio.object_info())


@pytest.fixture(scope="module")
def glossy_lora(studio: HostServer, workflow: dict[str, Any]) -> str:
    """The LoRA that the shipped workflow trains, by its name in models/loras."""
    return _train(studio, workflow, folder="glossy", prefix="style/glossy")


@pytest.fixture(scope="module")
def shuffled_lora(studio: HostServer, workflow: dict[str, Any]) -> str:
    """The same training on the same subjects and captions, each in one of the known styles."""
    choice = random.Random(0)
    folder = studio.base / "input" / SHUFFLED
    folder.mkdir()
    for caption in sorted((IMAGES / "glossy" / "train").glob("*.txt")):
        picture = IMAGES / "other" / choice.choice(OTHER_STYLES) / f"{caption.stem}.png"
        shutil.copy(picture, folder)
        shutil.copy(caption, folder)
    return _train(studio, workflow, folder=SHUFFLED, prefix="style/shuffled")


@pytest.fixture(scope="module")
def glossy_pictures(studio: HostServer) -> list[Picture]:
    """The held-out subjects in the glossy style."""
    return true_pictures(studio, IMAGES / "glossy" / "heldout")


@pytest.fixture(scope="module")
def base_distances(studio: HostServer, glossy_pictures: list[Picture]) -> NDArray[np.float64]:
    return distances(studio, glossy_pictures, PREFIX)


def test_the_lora_brings_pictures_nearer_to_the_style(
    studio: HostServer,
    glossy_pictures: list[Picture],
    base_distances: NDArray[np.float64],
    glossy_lora: str,
) -> None:
    near = distances(studio, glossy_pictures, PREFIX, glossy_lora)
    assert p_value(base_distances, near) < SIGNIFICANT


def test_at_strength_zero_it_does_not(
    studio: HostServer,
    glossy_pictures: list[Picture],
    base_distances: NDArray[np.float64],
    glossy_lora: str,
) -> None:
    few = 4
    near = distances(studio, glossy_pictures[:few], PREFIX, glossy_lora, strength=0.0)
    assert np.array_equal(near, base_distances[:few])


@pytest.mark.soak  # shows that the statistic can fail; nothing but the pictures differs
def test_a_lora_of_shuffled_styles_does_not(
    studio: HostServer,
    glossy_pictures: list[Picture],
    base_distances: NDArray[np.float64],
    shuffled_lora: str,
) -> None:
    near = distances(studio, glossy_pictures, PREFIX, shuffled_lora)
    assert p_value(base_distances, near) >= SIGNIFICANT


def _train(server: HostServer, workflow: dict[str, Any], folder: str, prefix: str) -> str:
    """Run the workflow up to Save LoRA on another folder; the name is LoraLoader's."""
    graph = json.loads(json.dumps(workflow))
    by_type = {node["class_type"]: name for name, node in graph.items()}
    graph[by_type["AtelierLoadDataset"]]["inputs"]["folder"] = folder
    save = by_type["AtelierSaveLoRA"]
    graph[save]["inputs"] |= {"filename_prefix": prefix, "add_to_models_loras": True}
    server.queue(needed_for(graph, save), timeout=1200).check()
    loras = server.base / "models" / "loras"
    (file,) = loras.glob(f"{prefix}*.safetensors")
    return file.relative_to(loras).as_posix()
