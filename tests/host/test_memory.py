"""What a run takes of memory is what was estimated, and no base is held a second time."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from families import FAMILIES
from four_bit import BareNF4, store_in_nf4
from in_memory import encoded_dataset
from lora_atelier.nodes.train.start_training import begin
from lora_atelier.training.dataset.fit import FitOptions
from lora_atelier.training.dataset.folder import FolderOptions, load_folder
from lora_atelier.training.host.diffusion_model import HostDiffusionModel
from lora_atelier.training.host.memory import describe_memory
from lora_atelier.training.host.text_encoder import HostTextEncoder
from lora_atelier.training.host.unloaded import as_shapes
from lora_atelier.training.memory.allocations import Allocations
from lora_atelier.training.memory.rehearsal import SHAPES
from lora_atelier.training.network.build import Algorithm, NetworkSpec
from lora_atelier.training.network.targets import TextEncoders
from lora_atelier.training.optimizers.kinds import OptimizerType
from lora_atelier.training.optimizers.optimizer import OptimizerSpec
from lora_atelier.training.runs.adapter_precision import AdapterPrecision
from lora_atelier.training.runs.loop import train
from lora_atelier.training.runs.run import TrainingRun, start
from tiny_training import (
    CAPTIONS,
    LATENT,
    Parts,
    Recorder,
    encode,
    first_losses,
    load_parts,
    make_run,
    normal,
    quick_spec,
)

PICTURES = Path(__file__).resolve().parents[2] / "demo" / "images" / "glossy" / "heldout"
MB = 1 << 20
STORAGE = {
    "fp32": None,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
    "nf4": None,
}


@pytest.fixture(scope="module")
def parts(tiny_checkpoint: Path) -> Parts:
    return load_parts(tiny_checkpoint)


@pytest.fixture(scope="module")
def encoded(parts: Parts) -> dict[str, Any]:
    return encode(parts.clip, CAPTIONS)


@pytest.fixture
def stored(tiny_checkpoint: Path) -> Callable[[str], Any]:
    """The tiny SD1.5 (26 M numbers), stored in a way of `STORAGE`."""

    def load(storage: str) -> Any:
        model = load_parts(tiny_checkpoint, STORAGE[storage]).model
        return store_in_nf4(model) if storage == "nf4" else model

    return load


@pytest.fixture(autouse=True)
def as_in_a_node() -> Iterator[None]:
    with torch.inference_mode():
        yield


def family_run(name: str, **choices: Any) -> TrainingRun:
    family = FAMILIES[name]
    conditioning = dict(zip(CAPTIONS, family.conditioning(len(CAPTIONS)), strict=True))
    latents = [normal(1000 + i, *family.latent) for i in range(len(conditioning))]
    spec = quick_spec(train_batch_size=4, **choices)
    model = HostDiffusionModel(
        family.patcher(), spec.objective, gradient_checkpointing=spec.gradient_checkpointing
    )
    return TrainingRun(spec, encoded_dataset(latents, conditioning), model)


@torch.inference_mode(False)
@torch.enable_grad()
def kept_for_backward(run: TrainingRun) -> int:
    """Bytes that are alive after a real forward pass and were not before it."""
    network = run.new_network()
    examples = [run.example(draw) for draw in run.plan.batch(0)]
    latents = torch.stack([example.image.latent for example in examples])
    with run.model.training(network, torch.float32) as predict, Allocations() as memory:
        prediction = predict(
            latents,
            torch.ones(len(examples)),
            [example.conditioning for example in examples],
            [example.placement for example in examples],
        )
        loss = prediction.float().square().mean()
        live = memory.live
        del prediction, loss
    return live


def peak_of_two_steps(run: TrainingRun) -> int:
    """The state that a run is frozen into at its end is not in it: it lies in RAM."""
    state = start(run)
    peaks: list[int] = []
    with Allocations() as memory:
        train(state, 3, Recorder(lambda: peaks.append(memory.peak)))
    return peaks[2 * run.spec.gradient_accumulation_steps]


@pytest.mark.parametrize("storage", STORAGE)
def test_a_run_takes_its_base_as_stored_adapters_activations_and_a_tenth(
    stored: Callable[[str], Any], parts: Parts, encoded: dict[str, Any], storage: str
) -> None:
    """What the base takes is there before; nothing of its size may come to it."""
    spec = quick_spec(train_batch_size=4)
    run = make_run(stored(storage), encoded, spec)
    numbers = sum(p.numel() for p in run.new_network().parameters())
    adapters = 16 * numbers  # the number, its gradient, two moments of AdamW, all float32
    # Those on the fp32 base, which is lent as it is: activations are the same on any.
    activations = kept_for_backward(make_run(parts.model, encoded, spec))
    base = run.model.stored_bytes()[0]
    assert base / MB == pytest.approx(
        {"fp32": 98.4, "fp8_e4m3": 24.6, "fp8_e5m2": 24.6, "nf4": 56.0}[storage], rel=0.05
    )
    peak = peak_of_two_steps(run)
    assert peak > activations
    assert base + peak <= 1.1 * (base + adapters + activations)
    # And so it was estimated.
    assert run.memory.base == base
    assert run.memory.activations == pytest.approx(activations, rel=0.01)
    assert run.memory.beside_weights == pytest.approx(peak, rel=0.05)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_rehearsed(family: str, checkpointing: bool) -> None:
    run = family_run(family, gradient_checkpointing=checkpointing)
    assert run.memory.activations == pytest.approx(kept_for_backward(run), rel=0.1)
    assert 0.9 < run.memory.beside_weights / peak_of_two_steps(run) < 1.2


CHOICES: dict[str, dict[str, Any]] = {
    "accumulation": {"gradient_accumulation_steps": 2},
    "bf16 adapters": {"adapter_precision": AdapterPrecision.BF16_STOCHASTIC},
    "lokr": {"network": NetworkSpec(4, 4.0, algorithm=Algorithm.LOKR)},
    "dora": {"network": NetworkSpec(4, 4.0, algorithm=Algorithm.DORA)},
    "full": {"network": NetworkSpec(algorithm=Algorithm.FULL)},
    "dropouts": {"network": NetworkSpec(4, 4.0, network_dropout=0.1, module_dropout=0.1)},
    "lion and an average": {
        "optimizer": OptimizerSpec(OptimizerType.LION, ema_decay=0.9),
    },
}


@pytest.mark.parametrize("choice", CHOICES)
def test_the_estimate_follows_the_choices(choice: str) -> None:
    run = family_run("sdxl", **CHOICES[choice])
    assert 0.9 < run.memory.beside_weights / peak_of_two_steps(run) < 1.2


def test_a_trained_text_encoder_is_part_of_it(parts: Parts) -> None:
    network = NetworkSpec(4, 2.0, text_encoders=TextEncoders.CLIP)
    spec = quick_spec(train_batch_size=2, network=network)
    text_encoder = HostTextEncoder(parts.clip, torch.device("cpu"))
    model = HostDiffusionModel(parts.model, spec.objective, text_encoder)
    captions = {caption: caption for caption in CAPTIONS}
    latents = [normal(1000 + i, *LATENT) for i in range(len(captions))]
    run = TrainingRun(spec, encoded_dataset(latents, captions), model)
    assert run.memory.text_encoder == parts.clip.patcher.model_size()
    assert 0.9 < run.memory.beside_weights / peak_of_two_steps(run) < 1.2
    line, _ = describe_memory(start(run))
    assert " + text encoder " in line


def test_the_node_says_it_before_the_first_step(parts: Parts, tmp_path: Path) -> None:
    for name in ("cat.png", "cat.txt"):
        shutil.copy(PICTURES / name, tmp_path)
    dataset = load_folder(tmp_path, FolderOptions(fit=FitOptions((64,))))
    state, lines = begin(parts.model, parts.clip, parts.vae, dataset, quick_spec())
    assert state.step == 0
    (line,) = (line for line in lines if line.startswith("memory: "))
    number = r"\d+\.\d"
    parts_of_it = " \\+ ".join(f"{name} {number}" for name in ("base", "adapters", "activations"))
    assert re.match(
        rf"memory: {number} MB = {parts_of_it}.* \(free: {number} of {number} GB\)", line
    )


def test_without_numbers_some_models_cannot_be_rehearsed_and_the_line_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = family_run("sd15")
    net = run.model.patcher.model.diffusion_model
    forward = net.forward

    def asks_for_a_number(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return forward(x, *args, **kwargs) * (1 if x.sum().item() else 0)

    net.forward = asks_for_a_number
    with caplog.at_level(logging.WARNING):
        line, _ = describe_memory(start(run))
    assert run.memory.activations is None
    assert "memory: at least" in line and "activations: not estimated for this model" in line
    assert "cannot be estimated" in caplog.text


def anatomy(model: nn.Module) -> dict[str, Any]:
    return {
        path: (dict(vars(m)), dict(m._parameters), dict(m._buffers), len(m._forward_pre_hooks))
        for path, m in model.named_modules()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rehearsal_leaves_nothing_behind(family: str) -> None:
    run = family_run(family)
    base = run.model.patcher.model
    before = {k: [[id(v) for v in d.values()] for d in a[:3]] for k, a in anatomy(base).items()}
    hooks = {k: a[3] for k, a in anatomy(base).items()}
    assert run.memory.activations is not None
    after = {k: [[id(v) for v in d.values()] for d in a[:3]] for k, a in anatomy(base).items()}
    assert after == before
    assert {k: a[3] for k, a in anatomy(base).items()} == hooks


def test_what_other_nodes_hung_around_the_calls_sees_no_rehearsal() -> None:
    """A wrapper may keep what it sees, for the next step."""
    run = family_run("sd15")
    seen: list[Tensor] = []

    def wrapper(apply_model: Any, call: dict[str, Any]) -> Tensor:
        seen.append(call["input"])
        return apply_model(call["input"], call["timestep"], **call["c"])

    run.model.patcher.set_model_unet_function_wrapper(wrapper)
    assert run.memory.activations is not None
    assert not seen
    train(start(run), 1, Recorder())
    assert len(seen) == 1


class Remembering(nn.Module):
    """Keeps what it computed, in both ways in which models do."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Tensor | None = None

    @lru_cache  # noqa: B019  as Chroma Radiance has it
    def places(self, device: torch.device) -> Tensor:
        return torch.arange(8.0, device=device)

    def forward(self, device: torch.device) -> Tensor:
        if self.table is None:
            self.table = self.places(device) * 2
        return self.table


def test_what_a_model_remembers_of_a_rehearsal_is_forgotten() -> None:
    model = Remembering()
    with as_shapes(model):
        assert model(SHAPES).device == SHAPES
    assert model.table is None
    assert model.places.cache_info().currsize == 0


class Partly(HostDiffusionModel):
    """Loaded as the host loads what does not fit: most layers stay where they were, and are cast
    and patched at every use."""

    def _load(self, memory_required: Any = None) -> None:
        with torch.inference_mode():
            self.patcher.patch_model(self.device, lowvram_model_memory=1 * MB)
        assert self.patcher.model.model_lowvram


@pytest.mark.parametrize("storage", [None, torch.float8_e4m3fn], ids=["fp32", "fp8"])
def test_a_partly_loaded_patched_model_trains_as_a_whole_one(
    tiny_checkpoint: Path, encoded: dict[str, Any], storage: torch.dtype | None
) -> None:
    whole, partly = (load_parts(tiny_checkpoint, storage).model for _ in range(2))
    key = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    for model in (whole, partly):
        model.add_patches({key: ("diff", (normal(70, 320, 768) * 0.05,))})
    spec = quick_spec(train_batch_size=2)
    expected = train(start(make_run(whole, encoded, spec)), 3, Recorder())
    data = make_run(partly, encoded, spec).data
    run = TrainingRun(spec, data, Partly(partly))
    state = train(start(run), 3, Recorder())
    assert partly.model.lowvram_patch_counter > 0  # the patch was applied at every use
    # A patched weight that stays in fp8 is rounded to fp8 again when it is loaded whole.
    tolerance = 1e-5 if storage is None else 2e-2
    losses, others = ([r.loss for r in s.history] for s in (state, expected))
    assert losses == pytest.approx(others, rel=tolerance)
    if storage is None:
        for name, value in expected.network.items():
            torch.testing.assert_close(state.network[name], value, rtol=1e-3, atol=1e-5)


def test_bare_nf4_layers_train_as_those_of_bitsandbytes(
    tiny_checkpoint: Path, stored: Callable[[str], Any], encoded: dict[str, Any]
) -> None:
    """The same numbers in layers that are no `nn.Linear`: those of the loader in use."""
    bare = store_in_nf4(load_parts(tiny_checkpoint).model, BareNF4)
    states = [
        train(start(make_run(model, encoded)), 2, Recorder()) for model in (stored("nf4"), bare)
    ]
    assert states[0].network.keys() == states[1].network.keys()
    for name, value in states[0].network.items():
        torch.testing.assert_close(states[1].network[name], value)


# Relative error of a stored weight: at most 2^-4 with 3 bits of mantissa, 2^-3 with 2; NF4 has 16
# levels in a block of 64, an error of about 0.1 standard deviations. A loss averages over all of
# them, of every layer. Measured: 0.012, 0.044 and 0.043.
TOLERANCE = {"fp8_e4m3": 0.03, "fp8_e5m2": 0.08, "nf4": 0.08}


@pytest.mark.parametrize("storage", TOLERANCE)
def test_the_loss_on_a_narrow_base_is_near_that_on_fp32(
    stored: Callable[[str], Any], parts: Parts, encoded: dict[str, Any], storage: str
) -> None:
    spec = quick_spec(train_batch_size=4)
    exact = first_losses(make_run(parts.model, encoded, spec)).detach()
    near = first_losses(make_run(stored(storage), encoded, spec)).detach()
    torch.testing.assert_close(near, exact, rtol=TOLERANCE[storage], atol=0)
    assert not torch.equal(near, exact)  # the narrow weights were really used
