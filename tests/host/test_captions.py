"""A caption is plain text: what a prompt would read as weights and brackets stays as written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

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
