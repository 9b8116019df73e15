"""A caption is plain text, whose brackets stay as written, and is encoded once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import comfy.hooks
import pytest
import torch
from comfy_extras.nodes_hooks import SetClipHooks
from safetensors.torch import save_file

from lora_atelier.training.cache import TensorCache
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.host.encoders import CachedText, cached_captions
from tiny_training import encode, load_parts


@pytest.fixture(scope="module")
def clip(tiny_checkpoint: Path) -> Any:
    return load_parts(tiny_checkpoint).clip


@torch.inference_mode()
def as_prompt(clip: Any, text: str) -> torch.Tensor:
    """What CLIPTextEncode gives."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))[0][0]


@pytest.mark.parametrize(
    ("caption", "prompt"),
    [("saber (fate), girl", r"saber \(fate\), girl"), ("fox (tail:1.5)", r"fox \(tail:1.5\)")],
)
def test_brackets_are_encoded_as_a_prompt_that_escapes_them(
    clip: Any, caption: str, prompt: str
) -> None:
    ours = encode(clip, [caption])[caption][0]
    assert torch.equal(ours, as_prompt(clip, prompt))
    assert not torch.allclose(ours, as_prompt(clip, caption))  # unescaped they are weights


def test_a_plain_caption_is_encoded_as_the_same_prompt(clip: Any) -> None:
    assert torch.equal(encode(clip, ["a red fox"])["a red fox"][0], as_prompt(clip, "a red fox"))


class Cancelled(Exception):
    pass


@pytest.fixture
def calls(clip: Any, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for each time the real text encoder did its work."""
    counted: list[None] = []
    real = clip.cond_stage_model.encode_token_weights

    def call(tokens: Any) -> Any:
        counted.append(None)
        return real(tokens)

    monkeypatch.setattr(clip.cond_stage_model, "encode_token_weights", call)
    return counted


@torch.inference_mode()  # as nodes run
def from_cache(clip: Any, captions: list[str], folder: Path) -> CachedText:
    return cached_captions(clip, captions, TensorCache(folder), lambda: None)


def test_texts_come_from_disk_as_the_encoder_gave_them(clip, tmp_path: Path, calls) -> None:
    captions = ["a red fox", "", "two (grey) cats", "a red fox"]
    expected = encode(clip, captions)
    calls.clear()
    for count in (3, 3):
        text = from_cache(clip, captions, tmp_path)
        assert len(calls) == count
        assert list(text) == ["a red fox", "", "two (grey) cats"] and len(text) == 3
        for caption, (embedding, extras) in expected.items():
            found, found_extras = text[caption]
            assert torch.equal(found, embedding) and not found.is_inference()
            assert found_extras.keys() == extras.keys()
            assert torch.equal(found_extras["pooled_output"], extras["pooled_output"])


def test_only_what_is_not_there_is_encoded(clip: Any, tmp_path: Path, calls) -> None:
    from_cache(clip, ["a", "b"], tmp_path)
    from_cache(clip, ["b", "c", "a"], tmp_path)
    assert len(calls) == 3


def test_each_caption_ticks_once_and_a_cancel_loses_nothing(clip, tmp_path: Path, calls) -> None:
    cache = TensorCache(tmp_path)

    def cancel_after_two() -> None:
        if len(calls) == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        cached_captions(clip, ["a", "b", "c"], cache, cancel_after_two)
    ticks: list[None] = []
    cached_captions(clip, ["a", "b", "c"], cache, lambda: ticks.append(None))
    assert len(ticks) == 3 and len(calls) == 3


def test_an_edited_embedding_file_is_noticed(
    clip: Any, tmp_path: Path, calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "embeddings" / "fox.safetensors"
    file.parent.mkdir()
    monkeypatch.setattr(clip.tokenizer.clip_l, "embedding_directory", [str(file.parent)])
    caption = "a embedding:fox in the snow"

    def text(scale: float, count: int) -> torch.Tensor:
        save_file({"emb_params": torch.full((2, 768), scale)}, file)
        found = from_cache(clip, [caption, "a fox"], tmp_path / "cache")[caption][0]
        assert len(calls) == count
        return found

    first = text(0.5, 2)
    assert torch.equal(text(0.5, 2), first)
    assert not torch.equal(text(0.7, 3), first)
    assert torch.equal(text(0.5, 3), first)


@torch.inference_mode()
def test_a_clip_with_hooks_is_encoded_in_every_run(
    clip: Any, tmp_path: Path, calls, caplog: pytest.LogCaptureFixture
) -> None:
    """A LoRA that "Set CLIP Hooks" hung on the encoder, and that its conditioning carries on."""
    plain = from_cache(clip, ["a fox"], tmp_path)["a fox"][0]
    name = "lora_te_text_model_encoder_layers_3_mlp_fc1"
    lora = {f"{name}.lora_up.weight": torch.ones(3072, 1)}
    lora |= {f"{name}.lora_down.weight": torch.ones(1, 768)}
    hooks = comfy.hooks.create_hook_lora(lora, 1.0, 1.0)
    (hooked,) = SetClipHooks().apply_hooks(clip, False, True, hooks)
    for count in (3, 5):
        text = from_cache(hooked, ["a fox", "a cat"], tmp_path)
        assert len(calls) == count
        assert set(text) == {"a fox", "a cat"} and len(text) == 2
        embedding, extras = text["a fox"]
        assert not torch.allclose(embedding, plain) and not embedding.is_inference()
        assert len(extras["hooks"]) == 1
    assert caplog.text.count("2 texts are held in memory") == 2
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    assert torch.equal(from_cache(clip, ["a fox"], tmp_path)["a fox"][0], plain)


def test_what_no_file_can_hold_stays_in_memory(
    clip: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An encoder of another pack that says more than numbers."""
    real, thing = clip.cond_stage_model.encode_token_weights, object()
    monkeypatch.setattr(
        clip.cond_stage_model, "encode_token_weights", lambda t: (*real(t), {"thing": thing})
    )
    text = from_cache(clip, ["a fox"], tmp_path)
    assert text["a fox"][1]["thing"] is thing
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_text_that_is_gone_is_told_in_words(clip: Any, tmp_path: Path) -> None:
    text = from_cache(clip, ["a fox"], tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(AtelierError, match="is gone or broken.*queue again"):
        text["a fox"]
    with pytest.raises(KeyError):
        text["a cat"]
