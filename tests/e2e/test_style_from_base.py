"""The shipped workflows that begin with nothing but the base model and a list of subjects.

The base model paints 48 pictures in its flat style; a part of them is chosen, and a LoRA learns
them under a word that means nothing to the base. Asked with that word alone for subjects it was
never trained on, its pictures must lie nearer to the true flat ones than the base's do.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

import demo
from host import HostServer
from style_statistic import HELD_OUT, IMAGES, distances, p_value, true_pictures
from training_graph import Watched
from workflow import to_prompt

pytestmark = pytest.mark.slow

TRIGGER = "flatart"
SIGNIFICANT = 0.01
QUICKER = {"AtelierGenerateDataset": {"steps": 10}, "AtelierPreview": {"steps": 8}}
"""Fewer steps of the sampler; what the LoRA is trained with is as shipped."""


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostServer]:
    """A server with the demo's base model and no pictures."""
    with HostServer(tmp_path_factory.mktemp("studio")) as server:
        demo.prepare(server)
        yield server


def workflow(server: HostServer, name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The prompt, and node type -> id."""
    ui = json.loads((demo.ROOT / "workflows" / f"{name}.json").read_text("utf-8"))
    prompt = to_prompt(ui, server.object_info())
    for node in prompt.values():
        node["inputs"] |= QUICKER.get(node["class_type"], {})
    return prompt, {node["class_type"]: name for name, node in prompt.items()}


@pytest.fixture(scope="module")
def cycle(studio: HostServer) -> tuple[Watched, dict[str, str]]:
    """From the list of subjects to the comparison grid, in one queue."""
    prompt, by_type = workflow(studio, "style_from_base")
    return Watched(studio, prompt), by_type


def metadata_lines(server: HostServer) -> list[dict[str, Any]]:
    text = (server.base / "output/datasets/flatart/metadata.jsonl").read_text("utf-8")
    return list(map(json.loads, text.splitlines()))


def lora_file(server: HostServer) -> Path:
    (file,) = (server.base / "models/loras").glob("atelier/flatart*.safetensors")
    return file


def test_it_paints_48_pictures_with_captions_that_leave_the_style_out(
    studio: HostServer, cycle: tuple[Watched, dict[str, str]]
) -> None:
    lines = metadata_lines(studio)
    assert len(lines) == 48 == len({line["file_name"] for line in lines})
    for line in lines:
        assert line["prompt"] == f"flat style, {line['subject']}"
        assert line["text"] == f"{TRIGGER}, {line['subject']}"
        assert (studio.base / "output/datasets/flatart" / line["file_name"]).is_file()
    held_out = {caption.read_text("utf-8").strip() for caption in HELD_OUT}
    assert held_out.isdisjoint(line["subject"] for line in lines)


def test_the_lora_says_where_its_pictures_come_from(
    studio: HostServer, cycle: tuple[Watched, dict[str, str]]
) -> None:
    with safe_open(lora_file(studio), framework="numpy") as file:
        told = file.metadata()
    assert told["modelspec.trigger_phrase"] == TRIGGER
    assert "generated with atelier_demo_base.safetensors" in json.dumps(told)
    kept = int(cycle[0].texts[cycle[1]["AtelierCurateDataset"]].split("→")[1].split()[0])
    assert told["ss_num_train_images"] == str(kept)
    assert 16 <= kept <= 32


def test_subjects_it_never_saw_come_out_in_the_style_of_the_trigger_word(
    studio: HostServer, cycle: tuple[Watched, dict[str, str]]
) -> None:
    true = true_pictures(studio, IMAGES / "other" / "flat")
    name = lora_file(studio).relative_to(studio.base / "models/loras").as_posix()
    base = distances(studio, true, f"{TRIGGER}, ")
    near = distances(studio, true, f"{TRIGGER}, ", name)
    assert p_value(base, near) < SIGNIFICANT


def test_the_grid_has_a_sheet_for_every_prompt(
    studio: HostServer, cycle: tuple[Watched, dict[str, str]]
) -> None:
    watched, by_type = cycle
    assert len(watched.result.images(by_type["AtelierCompareGrid"])) == 4


def test_the_chosen_pictures_are_what_is_saved(studio: HostServer, cycle: object) -> None:
    """The other workflow, on what is painted already: it waits for the person's choice."""
    prompt, by_type = workflow(studio, "generate_style_dataset")
    answered: list[dict[str, Any]] = []

    def choose(event: str, data: Any) -> None:
        if event == "atelier.gallery" and data["status"] == "waiting":
            answered.append(finish(studio, data["id"]))

    result = studio.queue(prompt, on_event=choose).check()
    assert len(answered) == 1
    text = result.outputs[by_type["AtelierGenerateDataset"]]["text"][0]
    assert "0 painted now, 48 were there" in text
    saved = studio.base / "input/datasets/flatart"
    captions = {file.stem: file.read_text("utf-8").strip() for file in saved.glob("*.txt")}
    assert len(captions) == 3
    assert captions[answered[0]["edited"]] == f"{TRIGGER}, my caption"


def finish(server: HostServer, gallery: str) -> dict[str, Any]:
    """Keep the first three pictures, and give the first another caption."""
    images = server.json(f"/atelier/galleries/{gallery}")["images"]
    keep, drop = images[:3], images[3:]
    choice = {
        "version": 1,
        "keep": sorted(image["digest"][:16] for image in keep),
        "drop": sorted(image["digest"][:16] for image in drop),
        "captions": {keep[0]["digest"][:16]: [f"{TRIGGER}, my caption"]},
    }
    request = urllib.request.Request(
        f"{server.url}/atelier/galleries/{gallery}/finish",
        json.dumps({"choice": json.dumps(choice)}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
        assert answer.status == 200
    return {"edited": Path(keep[0]["name"]).stem}
