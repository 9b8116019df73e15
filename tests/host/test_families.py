"""Every family that people train, loaded by the host from weights it recognises by itself.

What is trained must be what is sampled: one Euler step made of the training's own parts (latents as
they are read from the cache, noise levels, noised latents, the model's raw answer) has to end where
KSampler's ends (`sampled_steps`). And a model that answers with the training's target has to be
denoised to the clean latents by the host's own formula. Then each family is trained wrong in every
way that comes to mind (`MISTAKES`), and each has to be noticed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache

import comfy.model_base
import comfy.model_detection
import comfy.model_management as mm
import comfy.sd
import pytest
import torch
from torch import nn

from families import FAMILIES, MORE_FAMILIES, Family
from in_memory import encoded_dataset
from loaded_families import LARGE, LOADED
from lora_atelier.training.base_model.blocks import repeated_blocks
from lora_atelier.training.host import diffusion_model as engine
from lora_atelier.training.host.diffusion_model import HostDiffusionModel
from lora_atelier.training.network.build import build_network
from lora_atelier.training.objective.batch_losses import batch_losses
from lora_atelier.training.objective.noise_schedule import NoiseSchedule, PredictionType
from lora_atelier.training.optimizers.optimizer import OptimizerSpec
from lora_atelier.training.results.lora_file import trained_lora
from lora_atelier.training.runs.loop import train
from lora_atelier.training.runs.run import TrainingRun, start
from mistakes import flipped, mistimed, shifted
from sampled_steps import CUT, Step, levels, relative
from tiny_training import Recorder, normal, predicting, quick_spec

TOLERANCE = 1e-5
"""Of the largest number."""
NOTICED = 30 * TOLERANCE

QUICK: dict[str, Family] = {
    **FAMILIES,
    **MORE_FAMILIES,
    "flux": replace(FAMILIES["flux"], guidance=1.0),
}


@cache
def quick(name: str) -> Step:
    return Step(QUICK[name], QUICK[name].patcher())


@pytest.fixture(autouse=True, scope="module")
def freed() -> Iterator[None]:
    """The host's models must not outlive its modules."""
    yield
    mm.unload_all_models()
    quick.cache_clear()


@pytest.mark.parametrize("name", LOADED)
def test_a_family_is_trained_as_it_is_sampled(name: str, caplog: pytest.LogCaptureFixture) -> None:
    family = LOADED[name]
    step = Step(family, family.load(), count=1 if name == "chroma" else 2)
    assert type(step.patcher.model.model_config).__name__ == family.classes
    assert step.patcher.model.get_dtype() is family.storage
    assert "unet missing" not in caplog.text and "unet unexpected" not in caplog.text
    assert step.difference() < TOLERANCE
    assert step.difference_of_the_target() < TOLERANCE
    mm.unload_all_models()


@pytest.mark.parametrize("name", QUICK)
def test_a_small_family_is_trained_as_it_is_sampled(name: str) -> None:
    assert quick(name).difference() < TOLERANCE
    assert quick(name).difference_of_the_target() < TOLERANCE


def test_the_host_recognises_the_weights_of_z_image() -> None:
    family = LARGE["z-image"]
    shapes = {name: torch.empty(s, device="meta") for name, s in family.shapes().items()}
    config = comfy.model_detection.model_config_from_unet(shapes, "")
    assert type(config).__name__ == family.classes
    assert {k: config.unet_config[k] for k in family.unet} == family.unet


def unscaled(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(comfy.model_base.BaseModel, "process_latent_in", lambda self, latent: latent)


def badly_scaled(patch: pytest.MonkeyPatch) -> None:
    usual = comfy.model_base.BaseModel.process_latent_in
    patch.setattr(
        comfy.model_base.BaseModel, "process_latent_in", lambda self, x: 0.9 * usual(self, x)
    )


def misread(patch: pytest.MonkeyPatch) -> None:
    def wrong(sampling: nn.Module) -> NoiseSchedule:
        schedule = usual(sampling)
        is_epsilon = schedule.prediction_type is PredictionType.EPSILON
        kind = PredictionType.V_PREDICTION if is_epsilon else PredictionType.EPSILON
        return replace(schedule, prediction_type=kind)

    usual = engine.noise_schedule
    patch.setattr(engine, "noise_schedule", wrong)


def unguided(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(engine.HostDiffusionModel, "_told", lambda self, c, placement: c)


def unsized(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(engine, "with_sizes", lambda conditioning, placement: conditioning)


MISTAKES = (unscaled, badly_scaled, flipped, shifted, mistimed, misread)
CASES = [(name, mistake) for name in QUICK for mistake in MISTAKES]
CASES.remove(("ltxv", unscaled))  # its VAE gives latents as they are used
CASES += [("flux", unguided), ("sdxl", unsized)]


@pytest.mark.parametrize(
    ("name", "mistake"), CASES, ids=[f"{name}-{mistake.__name__}" for name, mistake in CASES]
)
def test_a_mistake_is_noticed(
    name: str, mistake: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = quick(name)
    expected = step.sampled
    mistake(monkeypatch)
    assert relative(step.trained(), expected) > NOTICED


# What stands around the blocks of a model: embedders, and layers at the end.
OUTSIDE = {
    "sd15": "time_embed",
    "sd2-v": "time_embed",
    "sdxl": "label_emb",
    "sd3": "context_embedder",
    "flux": "txt_in",
    "chroma": "distilled_guidance_layer",
    "qwen": "img_in",
    "lumina": "x_embedder",
    "zimage": "t_embedder",
    "auraflow": "cond_seq_linear",
    "pixart": "y_embedder",
    "wan": "text_embedding",
    "ltxv": "caption_projection",
}


@pytest.mark.parametrize("name", QUICK)
def test_adapters_sit_on_the_attention_and_the_mlp_of_every_block(name: str) -> None:
    model = quick(name).model()
    paths = [target.path for target in model.layers(quick_spec().network).values()]
    diffusion_model = quick(name).patcher.model.diffusion_model
    assert any(path.startswith(OUTSIDE[name]) for path, _ in diffusion_model.named_modules())
    assert not any(path.startswith(OUTSIDE[name]) for path in paths)
    blocks = repeated_blocks(diffusion_model)
    inside = [p for p in paths if any(p.startswith(f"{block}.") for block in blocks)]
    outside = set(paths) - set(inside)
    # A U-Net's transformers have a layer before and one behind their blocks.
    assert all(path.endswith(("proj_in", "proj_out")) for path in outside)
    for block, module in blocks.items():
        if type(module).__name__ == "ResBlock" or block.startswith(OUTSIDE[name]):
            continue
        found = [p.removeprefix(f"{block}.") for p in inside if p.startswith(f"{block}.")]
        assert any(MLP.search(path) for path in found), (block, found)
        assert any(ATTENTION.search(path) for path in found), (block, found)


MLP = re.compile(r"mlp|ff|feed_forward|linear2")
ATTENTION = re.compile(r"attn|attention|linear1")


def run_on(step: Step) -> TrainingRun:
    """Two pictures, both in every step; a rate at which a few steps show."""
    texts = {f"caption {i}": c for i, c in enumerate(step.family.conditioning(2))}
    spec = quick_spec(train_batch_size=2, optimizer=OptimizerSpec(unet_lr=1e-2))
    data = encoded_dataset(list(step.read_latents()), texts)
    return TrainingRun(spec, data, HostDiffusionModel(step.patcher))


@pytest.mark.parametrize("name", QUICK)
def test_a_lora_learns_and_is_loaded_as_it_was_trained(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    step = quick(name)
    run = run_on(step)
    with torch.inference_mode():
        state = train(start(run), 12, Recorder())
    network = build_network(run.model.layers(run.spec.network), run.spec.network, seed=0)
    network.load_state_dict(state.network)
    x, sigmas = normal(3, 2, *step.family.latent), levels(run.model.schedule)[0].expand(2)
    texts, cuts = step.family.conditioning(2), [CUT] * 2
    with predicting(run.model) as predict, torch.no_grad():
        before = float(batch_losses(run, run.plan.batch(0), predict).mean())
        untrained = predict(x, sigmas, texts, cuts).detach()
    with predicting(run.model, network) as predict, torch.no_grad():
        after = float(batch_losses(run, run.plan.batch(0), predict).mean())
        live = predict(x, sigmas, texts, cuts).detach()
    assert after < 0.99 * before
    assert relative(live, untrained) > 1e-3

    caplog.clear()
    with torch.inference_mode():
        fresh = step.family.patcher()
        loaded = comfy.sd.load_lora_for_models(fresh, None, trained_lora(state), 1.0, 0)[0]
    assert not [r.message for r in caplog.records if r.levelno >= logging.WARNING]
    with predicting(HostDiffusionModel(loaded)) as predict:
        assert relative(predict(x, sigmas, texts, cuts).detach(), live) < 1e-4
    mm.unload_all_models()
