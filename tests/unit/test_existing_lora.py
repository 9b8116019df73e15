"""A LoRA to continue from, however its keys are spelled."""

from __future__ import annotations

import pytest
import torch

from lora_atelier.training.errors import AtelierError
from lora_atelier.training.network.existing_lora import ExistingLora, Size, joined, size_in_file

DOWN, UP = torch.ones(3, 8), torch.zeros(6, 3)
SPELLINGS = {
    "kohya": (".lora_down.weight", ".lora_up.weight"),
    "peft": (".lora_A.weight", ".lora_B.weight"),
    "peft with an adapter's name": (".lora_A.default.weight", ".lora_B.default.weight"),
    "diffusers, attention processor": ("_lora.down.weight", "_lora.up.weight"),
    "diffusers": (".lora.down.weight", ".lora.up.weight"),
    "diffusers, text encoder's": (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    "bare": (".lora_A", ".lora_B"),
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_gives_our_names(spelling: tuple[str, str]) -> None:
    down, up = spelling
    file = {f"unet.attn1.to_q{down}": DOWN.half(), f"unet.attn1.to_q{up}": UP}
    (layer,) = ExistingLora(file, "old").layers().items()
    assert layer[0] == "unet.attn1.to_q"
    assert torch.equal(layer[1]["lora_down.weight"], DOWN)
    assert torch.equal(layer[1]["lora_up.weight"], UP)
    assert layer[1]["alpha"].item() == 3  # none in the file: a scale of 1


def test_an_alpha_in_the_file_counts() -> None:
    file = {"a.lora_down.weight": DOWN, "a.lora_up.weight": UP, "a.alpha": torch.tensor(1.5)}
    assert size_in_file(ExistingLora(file, "old").layers()["a"]) == Size(3, 1.5)


def test_text_encoders_are_counted_and_left_out() -> None:
    te = {f"lora_te1_text_{part}": DOWN for part in ("x.lora_down.weight", "x.lora_mid.weight")}
    file = ExistingLora({**te, "a.lora_down.weight": DOWN, "a.lora_up.weight": UP}, "old")
    assert list(file.layers()) == ["a"]
    assert file.text_encoder_keys == 2


@pytest.mark.parametrize("key", ["a.lora_mid.weight", "a.hada_t1", "a.diff_b", "a.w_norm", "alpha"])
def test_a_key_that_nobody_would_use_is_refused_by_its_name(key: str) -> None:
    file = {"a.lora_down.weight": DOWN, "a.lora_up.weight": UP, key: DOWN}
    with pytest.raises(AtelierError, match=f'"old": 1 of its keys cannot be continued: {key}'):
        ExistingLora(file, "old").layers()


def test_the_files_tensors_are_copied_and_stay_as_they_are() -> None:
    file = {"a.lora_down.weight": DOWN.clone(), "a.lora_up.weight": UP.clone()}
    ExistingLora(file, "old").layers()["a"]["lora_down.weight"].zero_()
    assert torch.equal(file["a.lora_down.weight"], DOWN)


def test_rotations_with_a_constraint_are_refused() -> None:
    blocks = torch.zeros(2, 4, 4)
    unconstrained = ExistingLora({"a.oft_blocks": blocks, "a.alpha": torch.tensor(0.0)}, "old")
    assert list(unconstrained.layers()["a"]) == ["oft_blocks"]
    with pytest.raises(AtelierError, match="constraint"):
        ExistingLora({"a.oft_blocks": blocks, "a.alpha": torch.tensor(0.1)}, "old").layers()


def test_parts_of_a_layer_are_joined_without_changing_it() -> None:
    """diffusers cuts Flux's qkv into three; different scales must survive as well."""
    torch.manual_seed(0)
    parts = {
        (start, 4): {
            "lora_down.weight": torch.randn(rank, 8),
            "lora_up.weight": torch.randn(4, rank),
            "alpha": torch.tensor(alpha),
        }
        for start, rank, alpha in ((0, 2, 1.0), (8, 3, 6.0))
    }
    expected = torch.zeros(12, 8)
    for (start, count), part in parts.items():
        scale = part["alpha"] / len(part["lora_down.weight"])
        product = part["lora_up.weight"] @ part["lora_down.weight"]
        expected[start : start + count] = product * scale
    whole = joined(list(parts.items()), 12)
    assert size_in_file(whole) == Size(5, 2.5)
    update = whole["lora_up.weight"] @ whole["lora_down.weight"] * whole["alpha"] / 5
    torch.testing.assert_close(update, expected)
