"""Which layers get an adapter."""

from __future__ import annotations

import re

import pytest
from torch import nn

from lora_atelier.training.errors import AtelierError
from lora_atelier.training.network.targets import (
    TargetLayer,
    TargetModules,
    attention_and_mlp_layers,
    block_of,
    blocks_of,
    choose_layers,
    trainable_layers,
)


class SpatialTransformer(nn.Module):
    """Named as in ComfyUI's and the original U-Net: the name is what is looked for."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, 4)
        self.proj_in = nn.Conv2d(4, 4, 1)
        block = nn.ModuleDict(
            {
                "attn1": nn.ModuleDict({"to_q": nn.Linear(4, 4)}),
                "ff": nn.Sequential(nn.Linear(4, 4)),
            }
        )
        self.transformer_blocks = nn.ModuleList([block])
        self.depthwise = nn.Conv2d(4, 4, 1, groups=4)
        self.local = nn.Conv2d(4, 4, 3)


class Transformer2DModel(SpatialTransformer):
    """diffusers' name for the same."""


class ResBlock(nn.Module):
    """ComfyUI's name."""

    def __init__(self) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(1, 4), nn.SiLU(), nn.Conv2d(4, 4, 3))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4, 4))
        self.skip_connection = nn.Conv2d(4, 4, 1)


class Downsample(nn.Module):
    """ComfyUI's name."""

    def __init__(self) -> None:
        super().__init__()
        self.op = nn.Conv2d(4, 4, 3, stride=2)


class SingleStreamBlock(nn.Module):
    """Flux's block whose layers compute attention and MLP together."""

    def __init__(self) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(4, 4), nn.Linear(4, 4)
        self.modulation = nn.ModuleDict({"lin": nn.Linear(4, 4)})


def unet() -> nn.Module:
    model = nn.Module()
    model.time_embed = nn.Sequential(nn.Linear(4, 4))
    model.input_blocks = nn.ModuleList(
        [
            nn.Sequential(nn.Conv2d(4, 4, 3)),
            nn.Sequential(ResBlock(), SpatialTransformer()),
            nn.Sequential(Downsample()),
        ]
    )
    model.middle_block = nn.Sequential(ResBlock(), Transformer2DModel())
    model.out = nn.Sequential(nn.Conv2d(4, 4, 3))
    return model


def transformer() -> nn.Module:
    model = nn.Module()
    model.img_in = nn.Linear(4, 4)
    block = nn.ModuleDict(
        {
            "img_attn": nn.ModuleDict({"qkv": nn.Linear(4, 4)}),
            "img_mlp": nn.Linear(4, 4),
            "patch": nn.Conv2d(4, 4, 1),
        }
    )
    model.double_blocks = nn.ModuleList([block])
    model.single_blocks = nn.ModuleList([SingleStreamBlock()])
    model.final_layer = nn.Linear(4, 4)
    return model


def names(model: nn.Module) -> dict[str, str]:
    return {path: f"lora_unet_{path.replace('.', '_')}" for path in trainable_layers(model)}


def chosen(model: nn.Module, target: TargetModules, regex: str = "", conv: bool = False) -> list:
    return list(choose_layers(model, names(model), target, regex, conv))


ATTENTION_MLP_OF_UNET = [
    "input_blocks.1.1.proj_in",
    "input_blocks.1.1.transformer_blocks.0.attn1.to_q",
    "input_blocks.1.1.transformer_blocks.0.ff.0",
    "middle_block.1.proj_in",
    "middle_block.1.transformer_blocks.0.attn1.to_q",
    "middle_block.1.transformer_blocks.0.ff.0",
]
CONVOLUTIONS_OF_UNET = [
    "input_blocks.1.0.in_layers.2",
    "input_blocks.2.0.op",
    "middle_block.0.in_layers.2",
]


def test_in_a_unet_linear_and_1x1_layers_of_transformers_are_chosen_and_nothing_else() -> None:
    assert chosen(unet(), TargetModules.ATTENTION_MLP) == ATTENTION_MLP_OF_UNET


def test_attention_alone_leaves_mlp_and_projections_out() -> None:
    assert chosen(unet(), TargetModules.ATTENTION) == [
        path for path in ATTENTION_MLP_OF_UNET if path.endswith("to_q")
    ]


def test_conv_dim_adds_the_convolutions_of_residual_and_resampling_blocks() -> None:
    """And neither the first and last convolution nor the time embedding."""
    found = chosen(unet(), TargetModules.ATTENTION_MLP, conv=True)
    assert sorted(found) == sorted(ATTENTION_MLP_OF_UNET + CONVOLUTIONS_OF_UNET)
    assert found == [path for path in trainable_layers(unet()) if path in found]


def test_all_linear_takes_every_linear_layer() -> None:
    assert chosen(unet(), TargetModules.ALL_LINEAR) == [
        "time_embed.0",
        "input_blocks.1.0.emb_layers.1",
        *ATTENTION_MLP_OF_UNET[1:3],
        "middle_block.0.emb_layers.1",
        *ATTENTION_MLP_OF_UNET[4:6],
    ]


def test_all_linear_conv_takes_everything_but_convolutions_in_groups() -> None:
    found = chosen(unet(), TargetModules.ALL_LINEAR_CONV)
    every = [p for p, m in unet().named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert found == [path for path in every if "depthwise" not in path]


@pytest.mark.parametrize(
    "regex", [r"to_q$", r"attn1\.to", r"attn1_to_q"], ids=["end", "path", "name in the file"]
)
def test_a_regular_expression_finds_paths_and_names_in_the_file(regex: str) -> None:
    found = chosen(unet(), TargetModules.REGEX, regex)
    assert found == [path for path in ATTENTION_MLP_OF_UNET if path.endswith("to_q")]


def test_a_regular_expression_that_matches_nothing_is_refused_with_paths_that_exist() -> None:
    with pytest.raises(AtelierError, match='"attn3", which matches no layer.*input_blocks'):
        chosen(unet(), TargetModules.REGEX, "attn3")


def test_in_a_diffusion_transformer_every_linear_of_its_blocks_is_chosen() -> None:
    assert chosen(transformer(), TargetModules.ATTENTION_MLP) == [
        "double_blocks.0.img_attn.qkv",
        "double_blocks.0.img_mlp",
        "single_blocks.0.linear1",
        "single_blocks.0.linear2",
        "single_blocks.0.modulation.lin",
    ]


def test_layers_that_hold_attention_and_mlp_at_once_count_as_attention() -> None:
    assert chosen(transformer(), TargetModules.ATTENTION) == [
        "double_blocks.0.img_attn.qkv",
        "single_blocks.0.linear1",
        "single_blocks.0.linear2",
    ]


def test_conv_dim_is_refused_where_there_are_no_such_convolutions() -> None:
    with pytest.raises(AtelierError, match="conv_dim is set, but .* Set conv_dim to 0"):
        chosen(transformer(), TargetModules.ATTENTION_MLP, conv=True)


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(AtelierError, match="none of its layers can be trained"):
        chosen(nn.Sequential(nn.Linear(4, 4)), TargetModules.ATTENTION_MLP)


def test_a_choice_that_the_model_has_not_is_refused() -> None:
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.Linear(4, 4)])
    with pytest.raises(AtelierError, match="target_modules is attention: .* no such layers"):
        chosen(model, TargetModules.ATTENTION)


def test_a_transformer_numbered_1_does_not_stand_for_block_10() -> None:
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.Linear(4, 4) for _ in range(11)])
    model.blocks[1] = SpatialTransformer()
    assert all(path.startswith("blocks.1.") for path in attention_and_mlp_layers(model))


def test_the_layers_are_the_models_own_objects() -> None:
    model = transformer()
    found = choose_layers(model, names(model), TargetModules.ATTENTION_MLP)
    assert found["double_blocks.0.img_mlp"] is model.double_blocks[0]["img_mlp"]


def test_blocks_are_the_members_of_lists_and_the_models_own_parts() -> None:
    model = unet()
    layers = {
        path: TargetLayer(layer, path, block_of(model, path))
        for path, layer in choose_layers(
            model, names(model), TargetModules.ATTENTION_MLP, convolutions=True
        ).items()
    }
    assert blocks_of(layers) == ("input_blocks.1", "input_blocks.2", "middle_block")
    assert block_of(model, "time_embed.0") == "time_embed"
    assert block_of(transformer(), "single_blocks.0.modulation.lin") == "single_blocks.0"


@pytest.mark.parametrize(
    ("regex", "words"),
    [("", "target_regex is empty"), ("attn(", 'target_regex is "attn(", which is no regular')],
)
def test_what_is_no_regular_expression_is_refused(regex: str, words: str) -> None:
    with pytest.raises(AtelierError, match=re.escape(words)):
        chosen(unet(), TargetModules.REGEX, regex)
