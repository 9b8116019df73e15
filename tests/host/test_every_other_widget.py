"""No option is decoration: the widgets of the nodes before and after a training run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
import pytest
import torch

from in_memory import FIT
from lora_atelier.training.dataset.pictures import ImageFile, ImagePixels
from lora_atelier.training.dataset.samples import ImageDataset, Sample
from lora_atelier.training.errors import AtelierError
from widget_runs import CONFIG, NODE, PIECES, call, widgets_of

IMAGES = torch.rand(2, 64, 96, 3, generator=torch.Generator().manual_seed(1))
LORA = {"lora_unet_a.lora_down.weight": torch.full((2, 4), 1 / 3)}
LOSSES = {"loss": [1.0, 0.8, 0.9, 0.5]}


def pixels(number: int) -> ImagePixels:
    return ImagePixels(np.full((64, 64, 3), 40 * number, np.uint8))


DATASET = ImageDataset(
    tuple(Sample(pixels(i), f"{i}.png", (f"picture {i}",), fit=FIT) for i in range(3))
)


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """ComfyUI's folders, all new."""
    for name in ("input", "output", "loras"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    loras = ([str(tmp_path / "loras")], {".safetensors"})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", loras)
    yield tmp_path


def files(base: Path) -> dict[str, bytes]:
    return {str(p.relative_to(base)): p.read_bytes() for p in base.rglob("*") if p.is_file()}


def made_dataset(base: Path, widgets: dict[str, Any]) -> Any:
    """What Load Image Dataset gives too: name and samples, here without their pixels."""
    node = "AtelierDatasetFromImages"
    values = {name: [value] for name, value in (widgets_of(node) | widgets).items()}
    (dataset,) = call(node, values, images=[IMAGES])
    nothing = ImageFile("", (0, 0))
    return dataset.name, [replace(sample, image=nothing) for sample in dataset.samples]


def saved_twice(base: Path, widgets: dict[str, Any]) -> Any:
    """The second time over what is there already."""
    for _ in range(2):
        try:
            call("AtelierSaveDataset", widgets, dataset=DATASET)
        except AtelierError as error:
            return str(error)
    return files(base)


def report(base: Path, widgets: dict[str, Any]) -> Any:
    return call("AtelierDatasetReport", widgets, dataset=DATASET)[0]


def saved_lora(base: Path, widgets: dict[str, Any]) -> Any:
    call("AtelierSaveLoRA", widgets, lora=LORA)
    return files(base)


def chart(base: Path, widgets: dict[str, Any]) -> Any:
    return call("AtelierLossChart", widgets, loss_map=LOSSES)[0].tolist()


TABLE: dict[str, tuple[Callable[[Path, dict[str, Any]], Any], dict[str, Any]]] = {
    "AtelierDatasetFromImages": (
        made_dataset,
        {
            "captions": "a wall",
            "resolution": 64,
            "num_repeats": 2,
            "class_tokens": "sks",
            "source": "my garden",
            "license": "CC0",
            "name": "walls",
            "role": "validation",
            "loss_weight": 0.5,
        },
    ),
    "AtelierSaveDataset": (
        saved_twice,
        {"folder": "datasets/other", "save_into": "input", "if_exists": "replace"},
    ),
    "AtelierDatasetReport": (
        report,
        {"train_batch_size": 3, "gradient_accumulation_steps": 3},
    ),
    "AtelierSaveLoRA": (
        saved_lora,
        {"filename_prefix": "other", "save_precision": "float", "add_to_models_loras": True},
    ),
    "AtelierLossChart": (chart, {"title": "Foxes"}),
}
"""Node -> what comes out of it, and the other value of each of its widgets."""


def test_every_node_with_widgets_is_here_or_takes_part_in_a_run() -> None:
    assert TABLE.keys() | {*CONFIG, *PIECES} == {node_id for node_id in NODE if widgets_of(node_id)}


@pytest.mark.parametrize("node_id", TABLE)
def test_every_widget_of_the_node_is_in_the_table(node_id: str) -> None:
    assert TABLE[node_id][1].keys() == widgets_of(node_id).keys()


@pytest.mark.parametrize(
    ("node_id", "widget"), [(node, widget) for node, (_, rows) in TABLE.items() for widget in rows]
)
def test_a_widget_changes_what_comes_out(base: Path, node_id: str, widget: str) -> None:
    outcome, others = TABLE[node_id]
    before = outcome(base, {})
    for path in sorted(base.rglob("*"), reverse=True):
        if path.is_file():
            path.unlink()
        elif path.parent != base:
            path.rmdir()
    after = outcome(base, {widget: others[widget]})
    assert before and after and before != after
