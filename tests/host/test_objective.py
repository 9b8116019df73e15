"""Loss and Noise, Prior Preservation: every widget does something, to the real model's losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.supported_models
import comfy_extras.nodes_model_advanced as host_sampling
import folder_paths
import numpy as np
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from host_configs import flux_config
from in_memory import FIT, PLACEMENT
from lora_atelier.nodes.config.objective import LossAndNoise
from lora_atelier.nodes.config.prior_preservation import PriorPreservation
from lora_atelier.nodes.train.train import TrainLoRA
from lora_atelier.training.dataset.fit import Variant
from lora_atelier.training.dataset.pictures import ImagePixels
from lora_atelier.training.dataset.samples import ImageDataset, Role, Sample
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.host.diffusion_model import HostDiffusionModel
from lora_atelier.training.host.session import start_run
from lora_atelier.training.objective.batch_losses import batch_losses, prior_losses
from lora_atelier.training.objective.objective import ObjectiveSpec, PriorTarget
from lora_atelier.training.runs.batches import Draw
from lora_atelier.training.runs.examples import View
from lora_atelier.training.runs.run import TrainingRun
from tiny_training import (
    CAPTIONS,
    LATENT,
    Parts,
    encode,
    load_parts,
    make_run,
    normal,
    predicting,
    quick_spec,
    worked_network,
)

WIDGETS = {i.id: i.default for i in LossAndNoise.define_schema().inputs}
BATCH = [Draw(item, epoch=0, position=item) for item in range(4)]


def objective(**widgets: Any) -> ObjectiveSpec:
    """What the node gives with these widgets and its defaults for the others."""
    assert widgets.keys() <= WIDGETS.keys()
    values = {k: getattr(v, "value", v) for k, v in (WIDGETS | widgets).items()}
    assert LossAndNoise.validate_inputs(
        **{k: v for k, v in values.items() if k not in ("masked_loss", "zero_terminal_snr")}
    )
    return LossAndNoise.execute(**values).args[0]


@pytest.fixture(scope="module")
def parts(tiny_checkpoint: Path) -> Parts:
    return load_parts(tiny_checkpoint)


@pytest.fixture(scope="module")
def encoded(parts: Parts) -> dict[str, Any]:
    return encode(parts.clip, CAPTIONS)


@torch.inference_mode()
def v_model(model: Any, zsnr: bool = False) -> Any:
    return host_sampling.ModelSamplingDiscrete().patch(model, "v_prediction", zsnr=zsnr)[0]


@torch.inference_mode()
def flow_model(model: Any) -> Any:
    return host_sampling.ModelSamplingSD3().patch(model, 3.0)[0]


SAMPLINGS: dict[str, Callable[[Any], Any]] = {
    "epsilon": lambda model: model,
    "v": v_model,
    "flow": flow_model,
}


def run_with(spec: ObjectiveSpec, model: Any, conditioning: dict[str, Any]) -> TrainingRun:
    """Four pictures: one masked, one for regularisation."""
    run = make_run(model, conditioning, quick_spec(objective=spec))
    images = dict(run.data.images)
    mask = torch.zeros(LATENT[1:])
    mask[:, :4] = 1
    images[View(1, Variant(0))] = replace(images[View(1, Variant(0))], mask=mask)
    samples = list(run.dataset.samples)
    samples[2] = replace(samples[2], role=Role.REGULARISATION)
    data = replace(run.data, dataset=run.dataset.changed(samples), images=images)
    return TrainingRun(run.spec, data, HostDiffusionModel(model, spec))


def losses(
    spec: ObjectiveSpec, model: Any, conditioning: dict[str, Any], batch: Sequence[Draw] = BATCH
) -> Tensor:
    run = run_with(spec, model, conditioning)
    with predicting(run.model, worked_network(run.model, run.spec.network)) as predict:
        return batch_losses(run, list(batch), predict).detach()


def test_the_defaults_of_the_node_are_those_without_it() -> None:
    assert objective() == ObjectiveSpec()


HUBER = {"loss_type": "huber"}
# widget: (kind of model, what it needs besides, the value that is tried)
TRIED: dict[str, tuple[str, dict[str, Any], Any]] = {
    "weighting": ("epsilon", {"max_timestep": 140}, "none"),  # where SNR is above gamma
    "min_snr_gamma": ("v", {"max_timestep": 300}, 1.0),
    "loss_type": ("epsilon", {}, "l1"),
    "huber_schedule": ("epsilon", HUBER, "constant"),
    "huber_c": ("epsilon", HUBER, 0.5),
    "noise_offset": ("epsilon", {}, 0.1),
    "adaptive_noise_scale": ("epsilon", {}, 0.5),
    "multires_noise_iterations": ("epsilon", {}, 6),
    "multires_noise_discount": ("epsilon", {"multires_noise_iterations": 6}, 0.8),
    "ip_noise_gamma": ("flow", {}, 0.1),
    "timestep_sampling": ("flow", {}, "logit_normal"),
    "logit_mean": ("flow", {"timestep_sampling": "logit_normal"}, 1.0),
    "logit_std": ("flow", {"timestep_sampling": "sigmoid"}, 2.0),
    "discrete_flow_shift": ("flow", {"timestep_sampling": "shift"}, 6.0),
    "min_timestep": ("epsilon", {}, 500),
    "max_timestep": ("epsilon", {}, 500),
    "prior_loss_weight": ("epsilon", {}, 0.5),
    "masked_loss": ("epsilon", {}, False),
    "zero_terminal_snr": ("v", {}, True),
}


def test_every_widget_is_tried_below() -> None:
    assert {*TRIED, "guidance"} == WIDGETS.keys()
    assert len(WIDGETS) <= 20


@pytest.mark.parametrize("widget", TRIED)
def test_changing_a_widget_changes_the_losses(
    parts: Parts, encoded: dict[str, Any], widget: str
) -> None:
    kind, needed, value = TRIED[widget]
    model = SAMPLINGS[kind](parts.model)
    before = losses(objective(**needed), model, encoded)
    after = losses(objective(**needed | {widget: value}), model, encoded)
    changed = (after - before).abs() > 1e-4 * before
    assert after.isfinite().all()
    expected = {"prior_loss_weight": [2], "masked_loss": [1]}.get(widget)
    if expected is None:
        assert changed.any()
    else:
        assert changed.nonzero().flatten().tolist() == expected


@pytest.mark.parametrize(
    ("widget", "values"),
    [
        ("weighting", ["none", "min_snr", "soft_min_snr", "debiased"]),
        ("loss_type", ["l2", "l1", "huber", "smooth_l1"]),
        ("huber_schedule", ["constant", "exponential", "snr"]),
        (
            "timestep_sampling",
            [
                "auto",
                "uniform",
                "sigmoid",
                "logit_normal",
                "mode",
                "cosmap",
                "shift",
                "flux_shift",
            ],
        ),
    ],
)
def test_every_choice_is_a_choice_of_its_own(
    parts: Parts, encoded: dict[str, Any], widget: str, values: list[str]
) -> None:
    flow = widget == "timestep_sampling"
    model = flow_model(parts.model) if flow else parts.model
    needed = {"logit_mean": 0.7, "max_timestep": 1000 if flow else 140}
    needed |= HUBER if widget == "huber_schedule" else {}
    found = [losses(objective(**needed | {widget: v}), model, encoded, BATCH[:2]) for v in values]
    for i, one in enumerate(found):
        for other in found[:i]:
            assert (one - other).abs().max() > 1e-5


def test_the_node_gives_its_picture_too() -> None:
    out = LossAndNoise.execute(**{k: getattr(v, "value", v) for k, v in WIDGETS.items()})
    picture = out.args[1]
    assert picture.shape == (1, 400, 960, 3) and 0 <= picture.min() < picture.max() <= 1
    assert out.ui is not None


@pytest.mark.parametrize(
    ("widgets", "message"),
    [
        ({"min_timestep": 600, "max_timestep": 600}, "min_timestep is 600 and max_timestep 600"),
        ({"huber_c": 0.0}, "huber_c is 0"),
        ({"guidance": -0.5}, "guidance is -0.5"),
        ({"weighting": "minsnr"}, "weighting is 'minsnr': it must be one of auto, none"),
    ],
)
def test_wrong_widgets_are_refused_before_the_queue_starts(widgets: dict, message: str) -> None:
    values = {k: getattr(v, "value", v) for k, v in (WIDGETS | widgets).items()}
    constants = {k: v for k, v in values.items() if k not in ("masked_loss", "zero_terminal_snr")}
    verdict = LossAndNoise.validate_inputs(**constants)
    assert isinstance(verdict, str) and verdict.startswith(message)
    assert LossAndNoise.validate_inputs(**constants | {"huber_c": None}) is True  # linked


class Untouched:
    """Stands where nothing may be used yet: a VAE or CLIP that may be looked at, not run."""

    first_stage_model = True

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was asked for before the settings were judged")


def one_picture() -> ImageDataset:
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return ImageDataset((Sample(ImagePixels(pixels), "a", (CAPTIONS[0],), fit=FIT),))


def starting(model: Any, spec: ObjectiveSpec, tmp_path: Path, clip: Any = None, vae: Any = None):
    clip, vae = clip or Untouched(), vae or Untouched()
    return start_run(model, clip, vae, one_picture(), quick_spec(objective=spec), tmp_path)


@pytest.mark.parametrize(
    ("kind", "widgets", "message"),
    [
        ("flow", {"weighting": "min_snr"}, "weighting is min_snr: .* flow model"),
        ("flow", {"min_snr_gamma": 3.0}, "min_snr_gamma is 3: .* flow model"),
        ("flow", {"zero_terminal_snr": True}, "zero_terminal_snr is on: .* flow model"),
        ("flow", {"max_timestep": 2}, "no noise level between them"),
        ("epsilon", {"guidance": 1.0}, "guidance is set: .* Set it to -1"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_before_anything_is_encoded(
    parts: Parts, tmp_path: Path, kind: str, widgets: dict, message: str
) -> None:
    with torch.inference_mode(), pytest.raises(AtelierError, match=message):
        starting(SAMPLINGS[kind](parts.model), objective(**widgets), tmp_path)


def test_train_lora_trains_by_the_objective_on_its_wire(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    settings = {
        "max_train_steps": 1,
        "train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "mixed_precision": "no",
        "seed": 0,
    }
    found = {}
    for spec in (None, objective(loss_type="l1")):
        with torch.inference_mode():
            out = TrainLoRA.execute(
                parts.model, one_picture(), parts.clip, parts.vae, **settings, objective=spec
            )
        state, _, _, lora, loss_map = out.args
        assert state.run.spec.objective == (spec or ObjectiveSpec())
        found[lora.metadata["ss_loss_type"]] = loss_map["loss"][0]
    assert found.keys() == {"l2", "l1"}
    assert found["l1"] != pytest.approx(found["l2"], rel=1e-3)


# Zero terminal SNR.


def test_zero_terminal_snr_trains_on_the_schedule_that_comfyui_samples_with(parts: Parts) -> None:
    ours = HostDiffusionModel(v_model(parts.model), objective(zero_terminal_snr=True)).schedule
    theirs = HostDiffusionModel(v_model(parts.model, zsnr=True)).schedule
    plain = HostDiffusionModel(v_model(parts.model)).schedule
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-3, atol=0)
    assert ours.sigmas[-1] > 4000 > 15 > plain.sigmas[-1]


def test_at_zero_terminal_snr_the_model_is_told_the_timesteps_of_its_new_levels(
    parts: Parts, encoded: dict[str, Any]
) -> None:
    """As it is by the host's own ModelSamplingDiscrete with zsnr on."""
    ours = HostDiffusionModel(v_model(parts.model), objective(zero_terminal_snr=True))
    theirs = HostDiffusionModel(v_model(parts.model, zsnr=True))
    places = torch.tensor([10, 500, 900, 999])
    x = normal(8, 4, *LATENT) * ours.schedule.sigmas[places].view(4, 1, 1, 1)
    texts, placements = list(encoded.values()), [PLACEMENT] * 4
    answers = []
    for model in (ours, theirs):
        with predicting(model) as predict:
            answers.append(predict(x, model.schedule.sigmas[places], texts, placements).detach())
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-2, atol=1e-2)
    plain = HostDiffusionModel(v_model(parts.model))
    with predicting(plain) as predict:  # takes the nearest level of its own table
        other = predict(x, ours.schedule.sigmas[places], texts, placements).detach()
    assert (other[1] - answers[0][1]).norm() > 0.02 * other[1].norm()


def test_zero_terminal_snr_leaves_the_model_as_it_was(parts: Parts) -> None:
    model = v_model(parts.model)
    sampling = model.get_model_object("model_sampling")
    before = {name: buffer.clone() for name, buffer in sampling.named_buffers()}
    with predicting(HostDiffusionModel(model, objective(zero_terminal_snr=True))):
        pass
    assert model.get_model_object("model_sampling") is sampling
    for name, buffer in sampling.named_buffers():
        assert torch.equal(buffer, before[name])


# Guidance.

FLUX = flux_config(
    image_model="flux",
    in_channels=16,
    out_channels=16,
    vec_in_dim=32,
    context_in_dim=48,
    hidden_size=64,
    mlp_ratio=2.0,
    num_heads=2,
    depth=1,
    depth_single_blocks=1,
    axes_dim=[8, 12, 12],
    theta=10000,
    patch_size=2,
    qkv_bias=True,
    guidance_embed=True,
    dtype=torch.float32,
)


def small_flux(guidance_embed: bool = True) -> ModelPatcher:
    """The host's own Flux class with a few blocks of a few channels."""
    with torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(6)
        config = comfy.supported_models.Flux({**FLUX, "guidance_embed": guidance_embed})
        base = comfy.model_base.Flux(config)
        for parameter in base.parameters():  # the host leaves them as the memory was
            fan_in = parameter[0].numel() if parameter.ndim > 1 else parameter.numel()
            parameter.copy_(torch.randn_like(parameter) / fan_in**0.5)
    cpu = torch.device("cpu")
    return ModelPatcher(base, load_device=cpu, offload_device=cpu)


def flux_answer(flux: ModelPatcher, spec: ObjectiveSpec, **extras: Any) -> Tensor:
    text, pooled = normal(20, 1, 5, 48), normal(21, 1, 32)
    conditioning = [[text, {"pooled_output": pooled, **extras}]]
    with predicting(HostDiffusionModel(flux, spec)) as predict:
        x, sigma = normal(22, 1, 16, 8, 8), torch.tensor([0.6])
        return predict(x, sigma, conditioning, [PLACEMENT]).detach()


def test_guidance_is_told_to_a_distilled_model() -> None:
    flux = small_flux()
    plain, one = flux_answer(flux, objective()), flux_answer(flux, objective(guidance=1.0))
    assert torch.equal(one, flux_answer(flux, objective(), guidance=1.0))
    assert torch.equal(plain, flux_answer(flux, objective(), guidance=3.5))  # the host's own
    assert (one - plain).norm() > 1e-3 * plain.norm()


def test_guidance_is_refused_where_it_is_not_heard() -> None:
    with pytest.raises(AtelierError, match="guidance is set: .* this model has none"):
        HostDiffusionModel(small_flux(guidance_embed=False), objective(guidance=1.0))


def test_flux_is_not_weighted_and_draws_by_its_own_shift() -> None:
    schedule = HostDiffusionModel(small_flux(), objective()).schedule
    assert schedule.is_flow and len(schedule.sigmas) == 10_000
    middle = schedule.sigmas[4999].item()
    assert middle == pytest.approx(2.71828**1.15 / (2.71828**1.15 + 1), rel=1e-3)


# Prior preservation.


def preserving(**widgets: Any) -> ObjectiveSpec:
    values = {"prior_preservation": 1.0, "class_prompt": CAPTIONS[3], "prior_target": "pictures"}
    return PriorPreservation.execute(**values | widgets).args[0]


def test_untouched_adapters_have_nothing_to_give_back(
    parts: Parts, encoded: dict[str, Any]
) -> None:
    run = run_with(preserving(), parts.model, encoded)
    network = worked_network(run.model, run.spec.network)
    with predicting(run.model, network) as predict:
        assert prior_losses(run, BATCH, predict)[[0, 1, 3]].min() > 0
        for adapter in network.values():
            adapter.lora_up.weight.data.zero_()
        assert prior_losses(run, BATCH, predict).tolist() == [0.0] * 4


def test_the_prior_term_has_the_gradient_of_its_own_loss(
    parts: Parts, encoded: dict[str, Any]
) -> None:
    """A small step against it lessens it by its squared length times the rate."""
    run = run_with(preserving(), parts.model, encoded)
    network = worked_network(run.model, run.spec.network)
    with predicting(run.model, network) as predict:
        before = prior_losses(run, BATCH, predict).sum()
        before.backward()
        square = sum(p.grad.square().sum() for p in network.parameters())
        rate = 0.02 * before.item() / square.item()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter -= rate * parameter.grad
            after = prior_losses(run, BATCH, predict).sum()
    assert (before - after).item() == pytest.approx(rate * square.item(), rel=0.1)


@pytest.mark.parametrize(
    "changed", [{"prior_preservation": 2.0}, {"class_prompt": CAPTIONS[0]}], ids=str
)
def test_the_widgets_of_prior_preservation_change_its_term(
    parts: Parts, encoded: dict[str, Any], changed: dict[str, Any]
) -> None:
    terms = []
    for spec in (preserving(), preserving(**changed)):
        run = run_with(spec, parts.model, encoded)
        with predicting(run.model, worked_network(run.model, run.spec.network)) as predict:
            terms.append(prior_losses(run, BATCH, predict).detach())
    assert (terms[0] - terms[1])[[0, 1, 3]].abs().min() > 1e-6


def test_regularisation_pictures_can_be_aimed_at_the_base_model(
    parts: Parts, encoded: dict[str, Any]
) -> None:
    before, after = (
        losses(preserving(prior_target=target), parts.model, encoded)
        for target in ("pictures", "base_model")
    )
    assert (before != after).tolist() == [False, False, True, False]


def test_prior_preservation_keeps_what_loss_and_noise_chose() -> None:
    spec = preserving(objective=objective(loss_type="l1", prior_loss_weight=0.5))
    assert spec.loss == objective(loss_type="l1").loss
    assert spec.prior.prior_loss_weight == 0.5 and spec.prior.class_prompt == CAPTIONS[3]
    assert preserving(prior_target="base_model").prior.prior_target is PriorTarget.BASE_MODEL
    assert PriorPreservation.validate_inputs(-1.0).startswith("prior_preservation is -1")


@pytest.mark.parametrize(("weight", "there"), [(1.0, True), (0.0, False)])
def test_the_class_prompt_is_encoded_with_the_captions(
    parts: Parts, tmp_path: Path, weight: float, there: bool
) -> None:
    spec = preserving(prior_preservation=weight, class_prompt=" a house ")
    with torch.inference_mode():
        state = starting(parts.model, spec, tmp_path, parts.clip, parts.vae)
    assert ("a house" in state.run.data.conditioning) is there
