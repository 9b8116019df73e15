"""Gradient checkpointing changes what a step of a real model keeps, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from families import FAMILIES, Family
from in_memory import PLACEMENT
from lora_atelier.training.base_model.blocks import blocks_run, repeated_blocks
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.host.diffusion_model import HostDiffusionModel
from lora_atelier.training.host.session import trained_models
from lora_atelier.training.host.text_encoder import HostTextEncoder
from lora_atelier.training.memory.allocations import Allocations
from lora_atelier.training.network.spec import Algorithm, NetworkSpec
from lora_atelier.training.network.targets import TargetModules, TextEncoders
from lora_atelier.training.objective.batch_losses import loss_terms
from lora_atelier.training.objective.objective import ObjectiveSpec, PriorSpec
from lora_atelier.training.random_streams import global_stream
from lora_atelier.training.results.lora_file import lora_metadata
from lora_atelier.training.runs.loop import train
from lora_atelier.training.runs.run import TrainingRun, start
from tiny_training import (
    CAPTIONS,
    Parts,
    Recorder,
    encode,
    load_parts,
    make_run,
    normal,
    predicting,
    quick_spec,
    worked_network,
)

CPU = torch.device("cpu")
LORA = NetworkSpec(4, 4.0)
BLOCKS = {
    "sd15": 16,
    "sdxl": 16,
    "sd3": 2,
    "flux": 4,
    "chroma": 6,
    "qwen": 2,
    "lumina": 4,
    "wan": 2,
    "ltxv": 2,
}
UNETS = ("sd15", "sdxl")

Gradients = Mapping[str, Tensor | None]
Run = Callable[..., TrainingRun]


@pytest.fixture(scope="module")
def parts(tiny_checkpoint: Path) -> Parts:
    return load_parts(tiny_checkpoint)


@pytest.fixture(scope="module")
def encoded(parts: Parts) -> dict[str, Any]:
    return encode(parts.clip, [*CAPTIONS, "a picture"])


def copying(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A block on copies of its tensors. Where several blocks use the same tensor, the order in
    which its gradients are added up is that of checkpointing then, and so is their rounding."""
    copies = {k: v.clone() if isinstance(v, Tensor) else v for k, v in kwargs.items()}
    return forward(*[a.clone() if isinstance(a, Tensor) else a for a in args], **copies)


def assert_same_bits(found: Gradients, expected: Gradients) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] is None) == (gradient is None), name
        assert gradient is None or torch.equal(found[name], gradient), name
    assert sum(g is not None and bool(g.any()) for g in expected.values()) > len(expected) / 2


def loss_of(family: Family, model: HostDiffusionModel, network: nn.ModuleDict) -> Tensor:
    """Of one batch of two, under ``predicting``'s conditions."""
    with predicting(model, network) as predict:
        sigmas = torch.tensor([0.3, 0.8])
        x = normal(1, 2, *family.latent)
        loss = predict(x, sigmas, family.conditioning(2), [PLACEMENT] * 2).square().mean()
        if loss.requires_grad:
            loss.backward()
        return loss.detach()


def gradients_of(network: nn.Module) -> dict[str, Tensor | None]:
    return {name: p.grad for name, p in network.named_parameters()}


@pytest.mark.parametrize("name", BLOCKS)
def test_every_family_has_the_gradients_it_has_without(name: str) -> None:
    family = FAMILIES[name]
    patcher = family.patcher()
    found = []
    for on in (False, True):
        model = HostDiffusionModel(patcher, gradient_checkpointing=on)
        network = worked_network(model, LORA)
        blocks = patcher.model.diffusion_model
        with blocks_run(blocks, copying) if name in UNETS and not on else nullcontext():
            loss_of(family, model, network)
        found.append(gradients_of(network))
    assert len(repeated_blocks(patcher.model.diffusion_model)) == BLOCKS[name]
    assert_same_bits(*found)


@pytest.mark.parametrize("on", [False, True], ids=["off", "on"])
@pytest.mark.parametrize("name", ["sdxl", "flux", "chroma", "lumina", "ltxv"])
def test_gradients_are_the_slope_of_the_loss(name: str, on: bool) -> None:
    """Also where blocks write in place, as those of Flux and LTX-Video do."""
    family = FAMILIES[name]
    model = HostDiffusionModel(family.patcher(), gradient_checkpointing=on)
    network = worked_network(model, LORA)
    loss = loss_of(family, model, network)
    slope = {p: p.grad.clone() for p in network.parameters() if p.grad is not None}
    steepness = sum(float(g.square().sum()) for g in slope.values())
    step = 0.01 * float(loss) / steepness  # of which the loss changes by about 1 %

    def loss_at(distance: float) -> float:
        with torch.no_grad():
            for parameter, gradient in slope.items():
                parameter += distance * gradient
            return float(loss_of(family, model, network))

    change = loss_at(step) - loss_at(-2 * step)
    assert change == pytest.approx(2 * step * steepness, rel=0.02)


def step_gradients(run: TrainingRun, network: NetworkSpec) -> dict[str, Tensor | None]:
    """Of the first step of a run, under the run's own random numbers."""
    adapters = worked_network(run.model, network)
    with (
        predicting(run.model, adapters) as predict,
        global_stream(CPU, run.spec.seed, "dropout", 0),
    ):
        for term in loss_terms(run.spec.objective):
            term(run, run.plan.batch(0), predict).sum().backward()
    return gradients_of(adapters)


@pytest.mark.parametrize(
    "network",
    [
        replace(LORA, network_dropout=0.3, rank_dropout=0.2),
        replace(LORA, module_dropout=0.5),
        replace(LORA, algorithm=Algorithm.DORA, conv_dim=4),
    ],
    ids=["dropout", "module dropout", "DoRA"],
)
@pytest.mark.parametrize("preserving", [False, True], ids=["plain", "prior preservation"])
def test_every_kind_of_step_has_the_gradients_it_has_without(
    parts: Parts, encoded: dict[str, Any], network: NetworkSpec, preserving: bool
) -> None:
    prior = PriorSpec(prior_preservation=1.0, class_prompt="a picture") if preserving else None
    spec = quick_spec(
        network=network, train_batch_size=2, objective=ObjectiveSpec(prior=prior or PriorSpec())
    )
    run = make_run(parts.model, encoded, spec)
    with blocks_run(parts.model.model.diffusion_model, copying):
        expected = step_gradients(run, network)
    usual = step_gradients(run, network)
    model = HostDiffusionModel(parts.model, gradient_checkpointing=True)
    found = step_gradients(replace(run, model=model), network)
    assert_same_bits(found, expected)
    for name, gradient in usual.items():
        if gradient is not None:  # here only the order of additions differs
            assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


def test_a_base_stored_in_fp8_has_the_gradients_it_has_without(
    tiny_checkpoint: Path, encoded: dict[str, Any]
) -> None:
    stored = load_parts(tiny_checkpoint, torch.float8_e4m3fn).model
    run = make_run(stored, encoded, quick_spec(network=LORA))
    with blocks_run(stored.model.diffusion_model, copying):
        expected = step_gradients(run, LORA)
    model = HostDiffusionModel(stored, gradient_checkpointing=True)
    assert_same_bits(step_gradients(replace(run, model=model), LORA), expected)


def test_text_encoders_have_the_gradients_they_have_without(parts: Parts) -> None:
    network = NetworkSpec(
        4, 4.0, text_encoders=TextEncoders.CLIP, target_modules=TargetModules.NONE
    )
    found, kept = [], []
    for on in (False, True):
        text_encoder = HostTextEncoder(parts.clip, CPU)
        model = HostDiffusionModel(parts.model, None, text_encoder, on)
        adapters = worked_network(model, network)
        with torch.inference_mode(False), torch.enable_grad():
            with model.training(adapters, torch.float32), Allocations() as memory:
                embedding, extras = text_encoder.encode("a red fox")
                kept.append(memory.live)
                (embedding.square().mean() + extras["pooled_output"].square().mean()).backward()
        found.append(gradients_of(adapters))
    assert len(repeated_blocks(text_encoder.model)) == 12 and kept[1] < 0.25 * kept[0]
    assert_same_bits(*found)


def test_a_step_keeps_much_less(parts: Parts, encoded: dict[str, Any]) -> None:
    """Bytes between forward and backward, and at the busiest moment of a step."""
    kept, peak = {}, {}
    for on in (False, True):
        model = HostDiffusionModel(parts.model, gradient_checkpointing=on)
        network = worked_network(model, LORA)
        conditioning = [encoded[CAPTIONS[0]]] * 2
        with predicting(model, network) as predict, Allocations() as memory:
            x, sigmas = normal(3, 2, 4, 16, 16), torch.ones(2)
            loss = predict(x, sigmas, conditioning, [PLACEMENT] * 2).square().mean()
            kept[on] = memory.live
            loss.backward()
            peak[on] = memory.peak
    assert kept[True] < 0.25 * kept[False]
    assert peak[True] < 0.6 * peak[False]


def test_the_memory_estimate_knows_of_it(parts: Parts, encoded: dict[str, Any]) -> None:
    spec = quick_spec(network=LORA, train_batch_size=4)
    off, on = (
        replace(
            make_run(parts.model, encoded, spec),
            model=HostDiffusionModel(parts.model, gradient_checkpointing=on),
        ).memory
        for on in (False, True)
    )
    assert on.activations < 0.25 * off.activations
    assert on.total < off.total


def test_a_run_gives_the_same_lora_and_leaves_the_model_as_it_was(
    parts: Parts, encoded: dict[str, Any]
) -> None:
    base = parts.model.model.diffusion_model
    before = {path: dict(module.__dict__) for path, module in base.named_modules()}
    spec = quick_spec(network=LORA, gradient_checkpointing=True)
    run = make_run(parts.model, encoded, spec)
    model = trained_models(parts.model, parts.clip, spec)
    assert model.gradient_checkpointing
    with torch.inference_mode():  # as nodes run
        state = train(start(replace(run, model=model)), 4, Recorder())
        usual = train(start(run), 4, Recorder())
    for name, weight in usual.network.items():
        torch.testing.assert_close(state.network[name], weight, rtol=1e-3, atol=1e-5)
    assert {path: dict(module.__dict__) for path, module in base.named_modules()} == before
    assert lora_metadata(state)["ss_gradient_checkpointing"] == "True"


def doubles_its_input(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
    """As a careless patch does, after the layer's adapter has kept it for backward."""
    args[0].mul_(2)


@pytest.mark.parametrize("on", [False, True], ids=["off", "on"])
def test_a_model_that_overwrites_what_it_needs_is_refused_rather_than_trained_wrong(
    on: bool, parts: Parts, encoded: dict[str, Any]
) -> None:
    run = make_run(parts.model, encoded, quick_spec(network=LORA, gradient_checkpointing=on))
    run = replace(run, model=trained_models(parts.model, parts.clip, run.spec))
    block = parts.model.model.diffusion_model.middle_block[1].transformer_blocks[0]
    hook = block.attn1.to_q.register_forward_hook(doubles_its_input)
    try:
        with pytest.raises(AtelierError, match="model: it, or a patch on it, overwrites in place"):
            train(start(run), 1, Recorder())
    finally:
        hook.remove()
