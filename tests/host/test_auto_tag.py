"""Auto-Tag Images as ComfyUI has it: its list of taggers, what it refuses, and what it fetches."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import numpy as np
import pytest
import torch

from hub import REVISION, hub
from lora_atelier.nodes.dataset import auto_tag as node
from lora_atelier.nodes.dataset.auto_tag import AutoTag
from lora_atelier.nodes.dataset.model_folders import TAGGERS, models_in, own_folder
from lora_atelier.training.dataset.pictures import ImagePixels
from lora_atelier.training.dataset.samples import ImageDataset, Sample
from lora_atelier.training.model_files import KnownFile, KnownModel
from taggers import colour_tagger

DATASET = ImageDataset(
    (Sample(ImagePixels(np.full((8, 8, 3), (255, 0, 128), np.uint8)), "a.png", ("a wall",)),)
)
WIDGETS: dict[str, Any] = {
    "tagger": "colours",
    "download_if_missing": False,
    "general_threshold": 0.35,
    "character_threshold": 0.85,
    "max_tags": 0,
    "exclude_tags": "",
    "always_include": "",
    "replace_underscores": True,
    "add_rating": False,
    "order": "score",
    "existing_captions": "append",
}


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Folders of models and an output folder of its own."""
    models = tmp_path / "models"
    (tmp_path / "output").mkdir()
    monkeypatch.setattr(folder_paths, "models_dir", str(models))
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    places = ([str(models / TAGGERS)], set())
    monkeypatch.setitem(folder_paths.folder_names_and_paths, TAGGERS, places)
    yield models / TAGGERS


def run(**widgets: Any) -> Any:
    with torch.inference_mode():
        return AutoTag.execute(dataset=DATASET, **(WIDGETS | widgets)).result


def choices() -> list[str]:
    schema = AutoTag.define_schema()
    return next(i.options for i in schema.inputs if i.id == "tagger")


def test_it_gives_dataset_table_and_picture(models: Path) -> None:
    colour_tagger(models / "colours")
    dataset, table, picture = run()
    assert dataset.samples[0].captions == ("a wall, very red, very blue",)
    assert list(csv.reader(io.StringIO(table)))[1:] == [["very blue", "1"], ["very red", "1"]]
    assert picture.shape[0] == 1 and picture.shape[3] == 3
    assert (Path(folder_paths.get_output_directory()) / "atelier" / "cache" / "tags").is_dir()


def test_its_list_has_what_lies_there_and_what_can_be_fetched(models: Path, tmp_path: Path) -> None:
    before = choices()
    assert before[0] == "wd-vit-tagger-v3" and len(before) == 5
    colour_tagger(models / "colours")
    colour_tagger(tmp_path / "elsewhere" / "mine")
    colour_tagger(tmp_path / "elsewhere" / "colours")
    (models / ".wd.partial").mkdir()
    folder_paths.add_model_folder_path(TAGGERS, str(tmp_path / "elsewhere"))
    assert choices() == ["colours", "mine", *before]
    assert models_in(TAGGERS)["colours"] == models / "colours"
    assert AutoTag.validate_inputs(**_judged(tagger="mine")) is True


def _judged(**widgets: Any) -> dict[str, Any]:
    names = ("tagger", "download_if_missing", "general_threshold", "character_threshold")
    return {name: (WIDGETS | widgets)[name] for name in (*names, "max_tags")}


@pytest.mark.parametrize(
    ("widgets", "match"),
    [
        (
            {"tagger": "wd-vit-tagger-v3"},
            "not in models/taggers. Switch download_if_missing on to fetch 379 MB",
        ),
        ({"tagger": "other"}, 'there is no tagger "other". Put model.onnx and selected_tags.csv'),
        ({"tagger": "other", "download_if_missing": True}, 'there is no tagger "other"'),
        ({"tagger": "../../secret"}, "there is no tagger"),
        ({"tagger": "half"}, 'half" lacks a .onnx or selected_tags.csv'),
        ({"tagger": "colours", "general_threshold": 0.0}, "general_threshold is 0.0"),
        ({"tagger": "colours", "max_tags": -3}, "max_tags is -3"),
    ],
)
def test_what_cannot_run_is_refused_before_the_queue_starts(
    models: Path, widgets: dict[str, Any], match: str
) -> None:
    colour_tagger(models / "colours")
    (models / "half").mkdir()
    (models.parent.parent / "secret").mkdir()
    verdict = AutoTag.validate_inputs(**_judged(**widgets))
    assert isinstance(verdict, str) and match in verdict


def test_it_says_where_to_put_the_files(models: Path) -> None:
    verdict = AutoTag.validate_inputs(**_judged(tagger="wd-vit-tagger-v3"))
    assert str(models / "wd-vit-tagger-v3") in verdict
    assert "https://huggingface.co/SmilingWolf/wd-vit-tagger-v3" in verdict


def test_linked_values_are_judged_when_it_runs(models: Path) -> None:
    colour_tagger(models / "colours")
    assert AutoTag.validate_inputs(**_judged(general_threshold=None)) is True
    assert AutoTag.validate_inputs(**_judged(tagger=None)) is True


def test_a_model_that_was_exchanged_makes_it_run_again(models: Path) -> None:
    prints = {AutoTag.fingerprint_inputs(**WIDGETS)}
    colour_tagger(models / "colours")
    prints.add(AutoTag.fingerprint_inputs(**WIDGETS))
    assert AutoTag.fingerprint_inputs(**WIDGETS) in prints
    colour_tagger(models / "colours", size=16, rows=(("a", 0), ("longer", 0), ("name", 0)))
    prints.add(AutoTag.fingerprint_inputs(**WIDGETS))
    assert len(prints) == 3


def test_cancel_stops_it(models: Path) -> None:
    colour_tagger(models / "colours")
    comfy.model_management.interrupt_current_processing(True)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            _in_a_prompt(run)
    finally:
        comfy.model_management.interrupt_current_processing(False)
    cache = Path(folder_paths.get_output_directory()) / "atelier" / "cache"
    assert not (cache / "tags").exists()  # it stopped before the first picture


def _in_a_prompt(call: Any) -> Any:
    """With the host's own hook for progress bars, which looks at Cancel."""
    import comfy.utils

    def hook(value: int, total: int, preview: Any, **others: Any) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()

    comfy.utils.set_progress_bar_global_hook(hook)
    try:
        return call()
    finally:
        comfy.utils.set_progress_bar_global_hook(None)


def test_a_missing_tagger_is_fetched_when_asked_for(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = colour_tagger(tmp_path / "source")
    files = {p.name: p.read_bytes() for p in source.iterdir()}
    known = KnownModel(
        "tiny",
        "somebody/tiny",
        REVISION,
        tuple(
            KnownFile(name, len(content), hashlib.sha256(content).hexdigest())
            for name, content in files.items()
        ),
        "CC0-1.0",
    )
    monkeypatch.setitem(node.KNOWN_TAGGERS, "tiny", known)
    widgets = {"tagger": "tiny", "download_if_missing": True}
    assert AutoTag.validate_inputs(**_judged(**widgets)) is True
    with hub("somebody/tiny", files, ("model.onnx",)) as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.endpoint)

        def asked() -> int:  # once a day the hub's package asks for something of its own
            return sum("somebody/tiny" in path for path, _ in server.asked)

        dataset, *_ = run(**widgets)
        run(**widgets)  # it is there now
        assert asked() == 3
        elsewhere = tmp_path / "elsewhere"
        (models / "tiny").rename(models / "another")
        (elsewhere / "tiny").mkdir(parents=True)  # it lacks everything
        folder_paths.add_model_folder_path(TAGGERS, str(elsewhere))
        assert str(elsewhere / "tiny") in AutoTag.validate_inputs(**_judged(tagger="tiny"))
        run(**widgets)
        run(**widgets)
        assert asked() == 6
        (models / "another").rename(models / "tiny")
    assert dataset.samples[0].captions == ("a wall, very red, very blue",)
    assert own_folder(TAGGERS, "tiny") == models / "tiny"
    assert sorted(p.name for p in (models / "tiny").iterdir()) == [
        "model.onnx",
        "revision.json",
        "selected_tags.csv",
    ]


def test_it_is_among_the_nodes_of_the_pack() -> None:
    from lora_atelier.nodes import AtelierExtension

    nodes = asyncio.run(AtelierExtension().get_node_list())
    assert AutoTag in nodes
    assert len(AutoTag.define_schema().inputs) == 12
