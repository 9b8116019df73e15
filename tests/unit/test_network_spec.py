"""The rules of LoRA Network: what its numbers mean, and what is refused in words."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch

from lora_atelier.training.errors import AtelierError
from lora_atelier.training.network.existing_lora import ExistingLora
from lora_atelier.training.network.presets import SIZES, Preset
from lora_atelier.training.network.spec import Algorithm, NetworkSpec, parse_block_dims
from lora_atelier.training.network.targets import TargetModules

EXISTING = ExistingLora({"lora_unet_a.lora_down.weight": torch.zeros(2, 4)}, "old.safetensors")


def refused(**choices: Any) -> str:
    with pytest.raises(AtelierError) as error:
        NetworkSpec(**choices)
    return str(error.value)


@pytest.mark.parametrize("dim", [0, -4, 1025, 8.0, math.nan])
def test_a_rank_that_is_no_whole_number_in_range_is_refused(dim: float) -> None:
    with pytest.raises(AtelierError, match=f"network_dim is {dim}: .* from 1 to 1024"):
        NetworkSpec(network_dim=dim)


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("algorithm", [Algorithm.LORA, Algorithm.LOKR])
def test_an_alpha_that_is_no_positive_number_is_refused(alpha: float, algorithm: Algorithm) -> None:
    with pytest.raises(AtelierError, match=f"network_alpha is {alpha}"):
        NetworkSpec(network_alpha=alpha, algorithm=algorithm)


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"algorithm": Algorithm.FULL, "network_dim": 8}, "network_dim is 8, which means nothing"),
        ({"algorithm": Algorithm.FULL, "network_alpha": 8.0}, "network_alpha is 8, which"),
        ({"algorithm": Algorithm.OFT, "network_alpha": 8.0}, "network_alpha is 8, which"),
        ({"algorithm": Algorithm.BOFT, "rs_lora": True}, "rs_lora is True, which means nothing"),
        ({"algorithm": Algorithm.OFT, "scale_weight_norms": 1.0}, "scale_weight_norms is 1, which"),
        ({"algorithm": Algorithm.OFT, "conv_dim": 4}, "conv_dim is 4, which means nothing"),
        ({"algorithm": Algorithm.FULL, "conv_dim": 4}, "set it to 0, and target_modules to all"),
        ({"algorithm": Algorithm.LOHA, "network_dropout": 0.1}, "network_dropout is 0.1, which"),
        ({"algorithm": Algorithm.LOKR, "rank_dropout": 0.1}, "or choose lora or dora"),
        ({"lokr_factor": 8}, "lokr_factor is 8, which means nothing with algorithm lora"),
        ({"conv_alpha": 4.0}, "conv_alpha is 4, which means nothing with conv_dim 0"),
        ({"target_regex": "attn"}, "target_regex is attn, which means nothing with target_modules"),
        ({"target_modules": TargetModules.REGEX}, "target_regex is empty"),
        ({"target_modules": TargetModules.REGEX, "target_regex": "("}, "no regular expression"),
        ({"conv_dim": -1}, "conv_dim is -1"),
        ({"conv_dim": 4, "conv_alpha": -1.0}, "conv_alpha is -1"),
        ({"network_dropout": 1.0}, "network_dropout is 1.0: it must be a number from 0 to 0.99"),
        ({"rank_dropout": -0.1}, "rank_dropout is -0.1"),
        ({"module_dropout": math.nan}, "module_dropout is nan"),
        ({"scale_weight_norms": -1.0}, "scale_weight_norms is -1"),
        ({"algorithm": Algorithm.LOKR, "lokr_factor": 0}, "lokr_factor is 0"),
        ({"block_dims": (4, -1)}, "block_dims holds -1"),
        ({"block_dims": (4, 1025)}, "block_dims holds 1025"),
        (
            {"algorithm": Algorithm.FULL, "block_dims": (1, 2)},
            "from 0 (the block is not trained) to",
        ),
        ({"block_dims": (0, 0)}, "block_dims switches every block off"),
        (
            {"existing": EXISTING, "block_dims": (4,)},
            "block_dims is 4, which means nothing with the",
        ),
        ({"existing": EXISTING, "rs_lora": True}, "rs_lora is True"),
        ({"existing": EXISTING, "conv_dim": 4}, "conv_dim is 4"),
        (
            {"existing": EXISTING, "target_modules": TargetModules.ATTENTION},
            "target_modules is att",
        ),
    ],
)
def test_what_cannot_be_or_would_be_ignored_is_refused(choices: dict, words: str) -> None:
    assert words in refused(**choices)


@pytest.mark.parametrize("algorithm", Algorithm)
def test_every_algorithm_takes_the_widgets_as_they_stand(algorithm: Algorithm) -> None:
    assert NetworkSpec(algorithm=algorithm).size(spatial=False).dim == 16


def test_alpha_is_divided_by_the_rank_or_its_root() -> None:
    assert NetworkSpec(16, 4.0).size(False).alpha / 16 == 4 / 16
    rank_stabilised = NetworkSpec(16, 4.0, rs_lora=True).size(False)
    assert rank_stabilised.alpha / rank_stabilised.dim == pytest.approx(4 / math.sqrt(16))


def test_convolutions_have_their_own_size_when_it_is_given() -> None:
    assert NetworkSpec(16, 4.0).size(spatial=True).dim == 16
    own = NetworkSpec(16, 4.0, conv_dim=8, conv_alpha=3.0)
    assert (own.size(True).dim, own.size(True).alpha) == (8, 3.0)
    assert (own.size(False).dim, own.size(False).alpha) == (16, 4.0)
    assert NetworkSpec(16, 4.0, conv_dim=8).size(True).alpha == 2.0  # the same share


def test_a_blocks_own_rank_keeps_the_share_of_alpha() -> None:
    spec = NetworkSpec(16, 4.0)
    assert (spec.size(False, 32).dim, spec.size(False, 32).alpha) == (32, 8.0)
    assert spec.size(False, 0).dim == 0
    assert NetworkSpec(16, 4.0, conv_dim=8).size(True, 0).dim == 0
    assert NetworkSpec(16, 4.0, conv_dim=8).size(True, 32).dim == 8


@pytest.mark.parametrize("text", ["1, 0,16", "1 0 16", " 1\n0\n16\n", "1;0;16"])
def test_block_dims_are_numbers_with_anything_usual_between_them(text: str) -> None:
    assert parse_block_dims(text) == (1, 0, 16)
    assert parse_block_dims("  ") == ()


@pytest.mark.parametrize("text", ["1, two", "1.5", "4-8"])
def test_block_dims_that_are_no_whole_numbers_are_refused(text: str) -> None:
    with pytest.raises(AtelierError, match=re.escape(f'block_dims is "{text}"')):
        parse_block_dims(text)


def test_presets_are_those_that_people_use() -> None:
    assert SIZES == {
        Preset.ANIME_STYLE: (32, 16.0),
        Preset.COMPLEX_STYLE: (128, 64.0),
        Preset.LIGHT: (16, 8.0),
    }
    assert set(SIZES) == set(Preset) - {Preset.CUSTOM}


def test_lora_with_convolutions_is_called_locon() -> None:
    assert NetworkSpec().label == "LoRA"
    assert NetworkSpec(conv_dim=4).label == "LoCon"
