"""Which layers get an adapter."""

from __future__ import annotations

from torch import nn

from lora_atelier.training.targets import attention_and_mlp_layers


class SpatialTransformer(nn.Module):
    """Named as in ComfyUI's and the original U-Net: the name is what is looked for."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, 4)
        self.proj_in = nn.Conv2d(4, 4, 1)
        self.transformer_blocks = nn.ModuleList([nn.ModuleDict({"to_q": nn.Linear(4, 4)})])
        self.depthwise = nn.Conv2d(4, 4, 1, groups=4)
        self.local = nn.Conv2d(4, 4, 3)


class Transformer2DModel(SpatialTransformer):
    """diffusers' name for the same."""


def test_in_a_unet_linear_and_1x1_layers_of_transformers_are_chosen_and_nothing_else() -> None:
    unet = nn.Module()
    unet.time_embed = nn.Linear(4, 4)
    unet.input_blocks = nn.ModuleList([nn.Conv2d(4, 4, 1), SpatialTransformer()])
    unet.middle_block = nn.Sequential(nn.Linear(4, 4), Transformer2DModel())
    assert list(attention_and_mlp_layers(unet)) == [
        "input_blocks.1.proj_in",
        "input_blocks.1.transformer_blocks.0.to_q",
        "middle_block.1.proj_in",
        "middle_block.1.transformer_blocks.0.to_q",
    ]


def test_a_transformer_numbered_1_does_not_stand_for_block_10() -> None:
    unet = nn.Module()
    unet.blocks = nn.ModuleList([nn.Linear(4, 4) for _ in range(11)])
    unet.blocks[1] = SpatialTransformer()
    assert all(path.startswith("blocks.1.") for path in attention_and_mlp_layers(unet))


def test_in_a_diffusion_transformer_every_linear_of_its_blocks_is_chosen() -> None:
    transformer = nn.Module()
    transformer.img_in = nn.Linear(4, 4)
    block = nn.ModuleDict({"qkv": nn.Linear(4, 4), "patch": nn.Conv2d(4, 4, 1)})
    transformer.double_blocks = nn.ModuleList([block])
    transformer.final_layer = nn.Linear(4, 4)
    assert list(attention_and_mlp_layers(transformer)) == ["double_blocks.0.qkv"]


def test_the_layers_are_the_models_own_objects() -> None:
    transformer = nn.Module()
    transformer.blocks = nn.ModuleList([nn.Linear(4, 4)])
    assert attention_and_mlp_layers(transformer)["blocks.0"] is transformer.blocks[0]


def test_a_model_without_blocks_has_none() -> None:
    assert attention_and_mlp_layers(nn.Sequential(nn.Linear(4, 4))) == {}
