"""Which folders are let in, before anything of them is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_atelier.training.captioning.folder import captioner_folder, stamp
from lora_atelier.training.dataset.digests import content_digest
from lora_atelier.training.errors import AtelierError


def model(folder: Path, *files: str, **config: Any) -> Path:
    """A folder with a config.json, and these files in it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "blip", **config}))
    for name in files or ("model.safetensors",):
        (folder / name).write_bytes(name.encode())
    return folder


def test_a_folder_is_told_by_its_config(tmp_path: Path) -> None:
    found = captioner_folder(model(tmp_path / "mine", auto_map={"AutoModel": "own.Own"}))
    assert (found.name, found.model_type, found.trusted) == ("mine", "blip", False)
    assert found.own_code == {"AutoModel": "own.Own"}
    assert captioner_folder(model(tmp_path / "plain", auto_map=3)).own_code == {}


def test_only_a_file_beside_the_folder_lets_its_code_in(tmp_path: Path) -> None:
    told = model(tmp_path / "a.b", "model.safetensors", "own.py", trust_remote_code=True)
    for name in ("trust_remote_code", "a.b.trust_remote_code"):  # its author may have put it there
        (told / name).touch()
    assert not captioner_folder(told).trusted
    (tmp_path / "a.b.trust_remote_code").touch()
    assert captioner_folder(told).trusted


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("pytorch_model.bin",), r"are pickles \(pytorch_model.bin\), which can run any program"),
        (("a.pt", "b.ckpt", "notes.txt"), r"are pickles \(a.pt, b.ckpt\)"),
        (("notes.txt",), "there are no weights in"),
        (("adapter_config.json", "adapter_model.safetensors"), "holds a LoRA for a captioner"),
    ],
)
def test_folders_without_safe_weights_are_refused(
    tmp_path: Path, files: tuple[str, ...], message: str
) -> None:
    with pytest.raises(AtelierError, match=message):
        captioner_folder(model(tmp_path, *files))


def test_a_pickle_beside_safetensors_does_no_harm(tmp_path: Path) -> None:
    found = captioner_folder(model(tmp_path, "model.safetensors", "pytorch_model.bin"))
    before = found.digest(content_digest)
    (tmp_path / "pytorch_model.bin").write_bytes(b"other")
    assert found.digest(content_digest) == before  # it is never read


def test_missing_parts_of_the_weights_are_named(tmp_path: Path) -> None:
    index = "model.safetensors.index.json"
    folder = model(tmp_path, "model-1.safetensors", index)
    parts = {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-3.safetensors"}
    (folder / index).write_text(json.dumps({"weight_map": parts}))
    with pytest.raises(AtelierError, match="lacks model-2.safetensors, model-3.safetensors"):
        captioner_folder(folder)
    (folder / index).write_text("{}")
    with pytest.raises(AtelierError, match=r'index.json" cannot be read. Fetch it again'):
        captioner_folder(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no config.json in"),
        ("{", r'config.json" cannot be read \('),
        ("[]", "names no model_type"),
        ('{"model_type": 3}', "names no model_type"),
        ('{"model_type": "blip", "quantization_config": {}}', "are quantised"),
    ],
)
def test_a_config_that_is_none(tmp_path: Path, text: str | None, message: str) -> None:
    model(tmp_path)
    (tmp_path / "config.json").unlink()
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(AtelierError, match=f"^captioner: .*{message}"):
        captioner_folder(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "sub/own.py"])
def test_the_digest_is_that_of_all_that_is_read(tmp_path: Path, name: str) -> None:
    folder = model(tmp_path)
    (folder / "sub").mkdir()
    (folder / "sub" / "own.py").touch()
    found = captioner_folder(folder)
    before = found.digest(content_digest), stamp(folder)
    (folder / "README.md").write_text("nothing")
    assert (found.digest(content_digest), stamp(folder)) == before
    (folder / name).write_text('{"model_type": "blip", "other": 1}')
    after = found.digest(content_digest), stamp(folder)
    assert after[0] != before[0] and after[1] != before[1]


def test_trust_is_part_of_the_digest(tmp_path: Path) -> None:
    folder = model(tmp_path / "a")
    before = captioner_folder(folder).digest(content_digest), stamp(folder)
    (tmp_path / "a.trust_remote_code").touch()
    after = captioner_folder(folder).digest(content_digest), stamp(folder)
    assert after[0] != before[0] and after[1] != before[1]
