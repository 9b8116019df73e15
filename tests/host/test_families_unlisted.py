"""Models of families that nobody compared: they are trained in the general way, and it is said;
what cannot be trained is refused in words."""

from __future__ import annotations

import comfy.model_management as mm
import comfy.supported_models
import pytest
import torch

from families import FAMILIES, Family
from host_configs import hunyuan_video_config
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.host.diffusion_model import HostDiffusionModel
from sampled_steps import CUT, Step
from tiny_training import normal, predicting, quick_spec, worked_network

HUNYUAN_VIDEO = hunyuan_video_config(
    in_channels=16,
    out_channels=16,
    patch_size=[1, 2, 2],
    vec_in_dim=32,
    context_in_dim=48,
    hidden_size=64,
    mlp_ratio=2.0,
    num_heads=2,
    depth=1,
    depth_single_blocks=1,
    axes_dim=[8, 12, 12],
    theta=256,
    qkv_bias=True,
    guidance_embed=True,
    byt5=False,
    meanflow=False,
    use_cond_type_embedding=False,
    vision_in_dim=None,
)
OMNIGEN2 = {
    "image_model": "omnigen2",
    "axes_dim_rope": [8, 12, 12],
    "axes_lens": [64, 64, 64],
    "ffn_dim_multiplier": None,
    "hidden_size": 64,
    "in_channels": 16,
    "multiple_of": 16,
    "norm_eps": 1e-5,
    "num_attention_heads": 2,
    "num_kv_heads": 2,
    "num_layers": 2,
    "num_refiner_layers": 1,
    "out_channels": None,
    "patch_size": 2,
    "text_feat_dim": 48,
    "timestep_scale": 1000.0,
}
COSMOS = {
    "image_model": "cosmos_predict2",
    "max_img_h": 16,
    "max_img_w": 16,
    "max_frames": 4,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 64,
    "concat_padding_mask": True,
    "crossattn_emb_channels": 48,
    "pos_emb_cls": "rope3d",
    "num_blocks": 1,
    "num_heads": 2,
    "use_adaln_lora": True,
    "adaln_lora_dim": 16,
}
ANIMA = {
    **COSMOS,
    "image_model": "anima",
    "crossattn_emb_channels": 1024,
    "num_blocks": 2,
    "rope_t_extrapolation_ratio": 1.0,
    "extra_per_block_abs_pos_emb": False,
    "rope_enable_fps_modulation": False,
}
ERNIE = {
    "image_model": "ernie",
    "hidden_size": 256,
    "num_attention_heads": 2,
    "num_layers": 2,
    "ffn_hidden_size": 256,
    "in_channels": 128,
    "out_channels": 128,
    "text_in_dim": 48,
}
NEWER = {
    "Anima": Family("Anima", ANIMA, (16, 1, 8, 8), words=1024),
    "ErnieImage": Family("ErnieImage", ERNIE, (128, 8, 8)),
}
"""Of ComfyUI 0.33. Their kernels without backward do not ask whether something is trained."""
UNLISTED = {
    **{name: f for name, f in NEWER.items() if hasattr(comfy.supported_models, f.classes)},
    "HunyuanVideo": Family("HunyuanVideo", HUNYUAN_VIDEO, (16, 1, 8, 8), 32, guidance=5.0),
    "Omnigen2": Family("Omnigen2", OMNIGEN2, (16, 8, 8), masked=True),
}


@pytest.mark.parametrize("name", UNLISTED)
def test_a_family_that_nobody_listed_is_trained_as_it_is_sampled(name: str) -> None:
    family = UNLISTED[name]
    step = Step(family, family.patcher(), count=1)  # of more, Omnigen2 adds up the words
    assert step.difference() < 1e-5
    assert step.difference_of_the_target() < 1e-5
    model = step.model()
    network = worked_network(model, quick_spec().network)
    with predicting(model, network) as predict:
        x, sigmas = normal(3, 2, *family.latent), torch.tensor([0.3, 0.8])
        predict(x, sigmas, family.conditioning(2), [CUT] * 2).square().mean().backward()
    trained = [p for name, p in network.named_parameters() if "llm_adapter" not in name]
    felt = [p.grad is not None and bool(p.grad.any()) for p in trained]  # Anima's needs T5's ids
    assert sum(felt) > len(felt) / 2
    (note,) = model.notes()
    assert f"{name} is trained in the general way" in note
    mm.unload_all_models()


def test_nothing_is_said_of_a_family_that_was_compared() -> None:
    assert HostDiffusionModel(FAMILIES["qwen"].patcher()).notes() == []


def test_a_family_of_another_objective_is_refused_in_words() -> None:
    patcher = Family("CosmosT2IPredict2", COSMOS, (16, 1, 8, 8)).patcher()
    with pytest.raises(AtelierError, match="its training objective .* is not supported yet"):
        HostDiffusionModel(patcher)
