"""Caption Images as ComfyUI runs it: with real, tiny models, and with the host's memory manager."""

from __future__ import annotations

import gc
import inspect
import json
import shutil
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import folder_paths
import numpy as np
import pytest
import torch
from torch import nn

import tiny_captioners as tiny
from hub import REVISION, hub
from lora_atelier.nodes.dataset import caption_images as node
from lora_atelier.nodes.dataset.caption_images import CaptionImages
from lora_atelier.nodes.dataset.model_folders import CAPTIONERS, own_folder
from lora_atelier.training.captioning import captioner as engine
from lora_atelier.training.captioning.captioner import Writing, load_captioner
from lora_atelier.training.captioning.folder import captioner_folder
from lora_atelier.training.captioning.known import KNOWN_CAPTIONERS
from lora_atelier.training.dataset.pictures import ImagePixels
from lora_atelier.training.dataset.samples import ImageDataset, Role, Sample
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.host import captioner as host
from lora_atelier.training.model_files import KnownFile, KnownModel, fetch

PICTURES = tiny.pictures(5)
DATASET = ImageDataset(
    tuple(
        Sample(
            ImagePixels(np.asarray(picture)),
            f"{i}.png",
            ("sks, red" if i % 2 else "",),
            role=Role.VALIDATION if i == 4 else Role.TRAIN,
        )
        for i, picture in enumerate(PICTURES)
    )
)
BRIEF = {"max_new_tokens": 5, "num_beams": 1, "precision": "fp32", "captioner": "tiny"}


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.blip(tmp_path_factory.mktemp("models") / "blip")


@pytest.fixture(autouse=True)
def captioners(blip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """models/captioners with one model in it; ComfyUI's other folders are new too."""
    root = tmp_path / "models" / CAPTIONERS
    shutil.copytree(blip, root / "tiny")
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, CAPTIONERS, ([str(root)], set()))
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    yield root


def defaults() -> dict[str, Any]:
    widgets = CaptionImages.define_schema().inputs[1:]
    return {w.id: getattr(w.default, "value", w.default) for w in widgets}


@torch.inference_mode()  # as ComfyUI runs nodes
def run(dataset: ImageDataset = DATASET, **widgets: Any) -> tuple[ImageDataset, str]:
    return CaptionImages.execute(dataset, **defaults() | BRIEF | widgets).result


def captions(dataset: ImageDataset) -> list[str]:
    return [sample.caption for sample in dataset.samples]


def said(folder: Path, writing: Writing) -> list[str]:
    captioner = load_captioner(captioner_folder(folder), torch.float32)
    return captioner.captions(PICTURES, writing, lambda: None)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[nn.Module]]:
    """Every network that is loaded while the test runs."""
    found: list[weakref.ref[nn.Module]] = []

    def watched(*args: Any) -> engine.Captioner:
        captioner = load_captioner(*args)
        found.append(weakref.ref(captioner.network))
        return captioner

    monkeypatch.setattr(host, "load_captioner", watched)
    return found


def test_the_node_captions_every_picture_whatever_its_role(captioners: Path) -> None:
    dataset, text = run(remove_phrases="")
    answers = said(captioners / "tiny", Writing("", 5, 1))
    assert captions(dataset) == answers and len(set(answers)) > 1
    assert text.splitlines() == [f"{i}.png: {answer}" for i, answer in enumerate(answers)]
    assert [s.role for s in dataset.samples] == [s.role for s in DATASET.samples]
    assert captions(DATASET)[:2] == ["", "sks, red"]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_batches_and_beams(captioners: Path, batch_size: int) -> None:
    widgets = {"prompt": "a red", "num_beams": 2, "batch_size": batch_size, "remove_phrases": ""}
    assert captions(run(**widgets)[0]) == said(captioners / "tiny", Writing("a red", 5, 2))


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1] * 5), (2, [2, 2, 1]), (9, [5])])
def test_so_many_pictures_at_a_time(
    monkeypatch: pytest.MonkeyPatch, batch_size: int, sizes: list[int]
) -> None:
    found = []

    def watched(self: engine.Captioner, images: list, *args: Any) -> list[str]:
        found.append(len(images))
        return said_by(self, images, *args)

    said_by = engine.Captioner.captions
    monkeypatch.setattr(engine.Captioner, "captions", watched)
    run(batch_size=batch_size, max_new_tokens=1)
    assert found == sizes


def test_phrases_go_and_what_is_there_stays_where_it_may(captioners: Path) -> None:
    widgets = {"prompt": "a picture of", "existing_captions": "append"}
    rest = [t.removeprefix("a picture of").strip() for t in said(
        captioners / "tiny", Writing("a picture of", 5, 1)
    )]  # fmt: skip
    old = captions(DATASET)
    assert captions(run(**widgets)[0]) == [
        f"{a}, {b}" if a else b for a, b in zip(old, rest, strict=True)
    ]
    filled = captions(run(**widgets | {"existing_captions": "only_empty"})[0])
    assert filled == [a or b for a, b in zip(old, rest, strict=True)]


def test_nothing_of_the_model_stays(loads: list[weakref.ref[nn.Module]]) -> None:
    other = comfy.model_patcher.ModelPatcher(
        nn.Linear(2, 2), mm.get_torch_device(), torch.device("cpu")
    )
    mm.load_models_gpu([other])
    gc.disable()  # it goes by what the node does itself
    try:
        run()
    finally:
        gc.enable()
    assert len(loads) == 1 and loads[0]() is None
    assert [loaded.model for loaded in mm.current_loaded_models] == [other]


def test_the_host_is_told_of_the_model_while_it_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def watched(self: engine.Captioner, *args: Any) -> list[str]:
        parameters = list(self.network.parameters())
        bytes_of_all = sum(p.nbytes for p in parameters)
        entry = mm.current_loaded_models[0]
        seen.append((entry.model_memory() >= bytes_of_all, entry.currently_used))
        assert {p.device.type for p in parameters} == {mm.get_torch_device().type}
        return said_by(self, *args)

    said_by = engine.Captioner.captions
    monkeypatch.setattr(engine.Captioner, "captions", watched)
    run(batch_size=4)
    assert seen == [(True, True), (True, True)]


def test_known_answers_need_no_model(captioners: Path, loads: list[weakref.ref[nn.Module]]) -> None:
    first = run()
    assert run() == first
    tidied, _ = run(remove_phrases="", existing_captions="prepend", batch_size=2)
    assert captions(tidied) != captions(first[0]) and len(loads) == 1
    one = ImageDataset(DATASET.samples[:1])
    for other in ({"prompt": "a"}, {"max_new_tokens": 6}, {"num_beams": 2}, {"precision": "bf16"}):
        run(one, **other)
    assert len(loads) == 5
    (captioners / "tiny" / "generation_config.json").write_text("{}")
    for _ in range(2):
        run(one)
        assert len(loads) == 6


def test_cancel_between_two_words_leaves_nothing_loaded(
    monkeypatch: pytest.MonkeyPatch, loads: list[weakref.ref[nn.Module]]
) -> None:
    calls, files = iter(range(100)), len(DATASET.samples)  # looked for in the cache first

    def press() -> None:
        if next(calls) == files + 7:  # in the second batch
            mm.interrupt_current_processing()
        mm.throw_exception_if_processing_interrupted()

    monkeypatch.setattr(host, "raise_if_cancelled", press)
    with pytest.raises(mm.InterruptProcessingException):
        run(batch_size=1)
    gc.collect()
    assert next(calls) == files + 8 and loads[0]() is None
    run(batch_size=1)
    assert next(calls) < 2 * files + 8 + 4 * 5 + 2  # the first picture was known


def test_cancel_is_looked_at_before_the_model_is_loaded(
    captioners: Path, loads: list[weakref.ref[nn.Module]]
) -> None:
    mm.interrupt_current_processing()
    with pytest.raises(mm.InterruptProcessingException):
        run()
    assert loads == []


def test_a_family_without_prompt_says_so(captioners: Path) -> None:
    tiny.vision_encoder_decoder(captioners / "vit")
    with pytest.raises(AtelierError, match='prompt is "a fox", but this captioner takes none'):
        run(captioner="vit", prompt="a fox")
    assert len(set(captions(run(captioner="vit")[0]))) > 1


# Which captioner


def test_a_captioner_is_fetched_only_when_the_person_says_so(
    blip: Path, captioners: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(captioners / "tiny")
    files = {path.name: path.read_bytes() for path in blip.iterdir()}
    known = KnownModel(
        "tiny",
        "somebody/tiny",
        REVISION,
        tuple(KnownFile(name, len(content)) for name, content in files.items()),
        "MIT",
    )
    monkeypatch.setitem(KNOWN_CAPTIONERS, "tiny", known)
    with hub("somebody/tiny", files, ("model.safetensors",)) as server:
        monkeypatch.setattr(node, "fetch", partial(fetch, endpoint=server.endpoint))
        with pytest.raises(AtelierError, match='"tiny" is not on this machine'):
            run()
        assert server.asked == [] and list(captioners.iterdir()) == []
        answers = run(download_if_missing=True)[0]
        asked = len(server.asked)
        assert asked >= len(files) and captions(answers) == captions(run()[0])
        (captioners / "tiny" / "model.safetensors").unlink()  # it is made whole again
        with pytest.raises(AtelierError, match="there are no weights in"):
            run()
        assert captions(run(download_if_missing=True)[0]) == captions(answers)
        found = len(server.asked)
        run(download_if_missing=True)
        assert found > asked and len(server.asked) == found
    note = json.loads((captioners / "tiny" / "revision.json").read_text())
    assert (note["revision"], note["licence"]) == (REVISION, "MIT")


def test_the_list_holds_what_is_there_and_what_can_be_fetched(captioners: Path) -> None:
    combo = next(i for i in CaptionImages.define_schema().inputs if i.id == "captioner")
    assert combo.options == ["tiny", *KNOWN_CAPTIONERS]
    assert combo.default in KNOWN_CAPTIONERS


@pytest.mark.parametrize(
    ("widgets", "message"),
    [
        ({"captioner": "other"}, 'captioner: there is no folder "other" in .* There are: tiny.'),
        ({"captioner": "../tiny"}, 'there is no folder "../tiny"'),
        (
            {"captioner": "Florence-2-base-ft"},
            r'"Florence-2-base-ft" is not on this machine. Turn download_if_missing on to fetch it '
            r"\(\d+ MB, licence MIT\)",
        ),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"num_beams": 17}, "num_beams is 17"),
        ({"batch_size": 65}, "batch_size is 65"),
    ],
)
def test_values_are_judged_before_the_queue_starts(widgets: dict[str, Any], message: str) -> None:
    names = inspect.signature(CaptionImages.validate_inputs).parameters
    values = {k: v for k, v in (defaults() | BRIEF).items() if k in names}
    assert CaptionImages.validate_inputs(**values) is True
    verdict = CaptionImages.validate_inputs(**values | widgets)
    with pytest.raises(AtelierError, match=message):
        raise AtelierError(verdict)
    with pytest.raises(AtelierError, match=message):
        run(**widgets)


def test_pickles_and_code_are_refused_before_anything_is_loaded(captioners: Path) -> None:
    folder = captioners / "tiny"
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "are pickles" in str(CaptionImages.validate_inputs("tiny", False))
    with pytest.raises(AtelierError, match=r"pickles \(pytorch_model.bin\)"):
        run()


def test_choices_over_a_link() -> None:
    for widget in ("precision", "existing_captions"):
        with pytest.raises(AtelierError, match=f"^{widget} is 'none': it must be one of"):
            run(**{widget: "none"})


def test_a_model_that_was_exchanged_is_another_one(captioners: Path) -> None:
    before = CaptionImages.fingerprint_inputs("tiny")
    assert CaptionImages.fingerprint_inputs("tiny") == before
    (captioners / "tiny" / "config.json").write_text("{}")
    assert CaptionImages.fingerprint_inputs("tiny") != before
    assert CaptionImages.fingerprint_inputs(None) != before


def test_fetched_models_lie_below_the_models_folder(captioners: Path) -> None:
    for name, model in KNOWN_CAPTIONERS.items():
        assert own_folder(CAPTIONERS, name) == captioners / name
        paths = {file.path for file in model.files}
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= paths
        assert all(Path(p).suffix in (".json", ".txt", ".safetensors") for p in paths)
        assert len(model.revision) == 40 and model.licence in ("MIT", "BSD-3-Clause")
