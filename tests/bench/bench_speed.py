"""How fast a training step is beside what people use otherwise, and beside what the machine can do.

One SD1.5 UNet of 107 M parameters (two levels), latents of 16×16, fp32, rank 8, AdamW, in four
loops that take turns in one process, so that the ratios hold on a busy machine:

    ours       the engine's own loop, with its data, guard and history
    native     ComfyUI's TrainLoraNode, with its default ways and all the layers that it chooses
    peft       diffusers' UNet with peft's LoRA on the layers that ours trains
    hooks      the bare minimum: a side path added to the output of each of these layers

The share of the peak is 2 × the floating-point operations of a forward pass, which is what a step
cannot do without, over the time of a step and the rate of a large matrix product.

A second table sets what a node does (data, guard, files, live chart, Cancel) beside forward,
backward and AdamW of the same model with the same adapters, and a third the blocks compiled beside
the blocks as they are. bf16 is left out where the processor is slower with it. With CUDA all of it
runs on the GPU. Run it with `python dev/run.py bench tests/bench/bench_speed.py`, on a quiet
machine.
"""

from __future__ import annotations

import gc
import json
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from comfy_modules import make_importable

make_importable()

import comfy.model_base  # noqa: E402
import comfy.model_management as mm  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.utils  # noqa: E402
import folder_paths  # noqa: E402
from comfy.model_patcher import ModelPatcher  # noqa: E402
from comfy_extras.nodes_train import TrainLoraNode  # noqa: E402
from diffusers import DDPMScheduler, UNet2DConditionModel  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402

from in_memory import encoded_dataset  # noqa: E402
from lora_atelier.nodes.live.run_monitor import RunMonitor  # noqa: E402
from lora_atelier.training.base_model.precision import (  # noqa: E402
    MixedPrecision,
    bf16_is_faster_on_this_cpu,
)
from lora_atelier.training.host.diffusion_model import HostDiffusionModel  # noqa: E402
from lora_atelier.training.network.spec import NetworkSpec  # noqa: E402
from lora_atelier.training.objective.batch_losses import batch_losses  # noqa: E402
from lora_atelier.training.runs.listener import Listener  # noqa: E402
from lora_atelier.training.runs.loop import train  # noqa: E402
from lora_atelier.training.runs.run import TrainingRun, start  # noqa: E402
from tiny_training import (  # noqa: E402
    normal,
    predicting,
    quick_spec,
    train_as_node,
    worked_network,
)

STEPS, RANK, PICTURES = 4, 8, 4
DEVICE = mm.get_torch_device()
UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "num_heads": 8,
    "num_head_channels": -1,
    "use_spatial_transformer": True,
    "context_dim": 768,
    "legacy": False,
}


@torch.inference_mode()  # as a loader node makes it
def small_sd15() -> ModelPatcher:
    torch.manual_seed(0)
    config = comfy.supported_models.SD15({**UNET, "dtype": torch.float32})
    base = config.get_model({}, "")
    for parameter in base.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else parameter.numel()
        parameter.copy_(torch.randn_like(parameter) / fan_in**0.5)
    return ModelPatcher(base, load_device=DEVICE, offload_device=torch.device("cpu"))


class Peer:
    """A loop that takes some steps when asked to, and says how long each took."""

    def steps(self, count: int) -> list[float]:
        raise NotImplementedError


class _Stopwatch(Listener):
    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.last = 0.0

    def on_micro_step(self) -> None:
        self.last = self.last or time.perf_counter()  # the run begins: weights are there

    def on_step(self, record, last_step: int, freeze) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now


class Ours(Peer):
    def __init__(
        self,
        patcher: ModelPatcher,
        batch: int,
        precision: MixedPrecision,
        compile_blocks: bool = False,
    ) -> None:
        texts = {f"{i}": [normal(50 + i, 1, 77, 768), {}] for i in range(PICTURES)}
        data = encoded_dataset([normal(i, 4, 16, 16) for i in range(PICTURES)], texts)
        spec = quick_spec(
            network=NetworkSpec(RANK, 4.0),
            mixed_precision=precision,
            train_batch_size=batch,
            max_train_steps=10_000,
        )
        model = HostDiffusionModel(patcher, compile_blocks=compile_blocks)
        assert not model.not_compiled
        self.state = start(TrainingRun(spec, data, model))

    def steps(self, count: int) -> list[float]:
        watch = _Stopwatch()
        self.state = train(self.state, count, watch)
        return watch.seconds

    @property
    def layers(self) -> list[str]:
        """Paths inside the UNet of the layers that are trained."""
        run = self.state.run
        return [layer.path for layer in run.model.layers(run.spec.network).values()]


class OurNode(Ours):
    """As Train Steps does it; a step lasts from one forward pass to the next."""

    def steps(self, count: int) -> list[float]:
        times: list[float] = []

        class Monitor(RunMonitor):
            def micro_step(self, raise_if_cancelled) -> None:
                times.append(time.perf_counter())
                super().micro_step(raise_if_cancelled)

        monitor = Monitor(lambda event: json.dumps(event))
        self.state = train_as_node(self.state, count + 1, monitor)
        return [later - earlier for earlier, later in zip(times, times[1:], strict=False)]


class OurAdapters(Peer):
    """Forward, backward and AdamW of our adapters on the host's own module, and no more."""

    def __init__(self, patcher: ModelPatcher, batch: int) -> None:
        self.host = HostDiffusionModel(patcher)
        self.network = worked_network(self.host, NetworkSpec(RANK, 4.0))
        unet = patcher.model.diffusion_model
        with torch.inference_mode(False):
            self.network.to(DEVICE)
            self.loop = Loop(
                lambda x, t, text: unet(x, t, context=text),
                list(self.network.parameters()),
                batch,
                torch.float32,
            )

    def steps(self, count: int) -> list[float]:
        with predicting(self.host, self.network):
            return self.loop.steps(count)


class Native(Peer):
    """The host says so after every step, through the hook that moves its progress bar."""

    def __init__(self, patcher: ModelPatcher, batch: int, dtype: str) -> None:
        self.inputs = {
            "model": [patcher],
            # One batch of latents alone ends in an error there.
            "latents": [{"samples": normal(i, 1, 4, 16, 16)} for i in range(PICTURES)],
            "positive": [[[normal(50 + i, 1, 77, 768), {}]] for i in range(PICTURES)],
            "batch_size": [batch],
            "grad_accumulation_steps": [1],
            "learning_rate": [1e-4],
            "rank": [RANK],
            "optimizer": ["AdamW"],
            "loss_function": ["MSE"],
            "seed": [0],
            "training_dtype": [dtype],
            "lora_dtype": ["fp32"],
            "algorithm": ["LoRA"],
            "gradient_checkpointing": [False],
            "existing_lora": ["[None]"],
        }

    def steps(self, count: int) -> list[float]:
        times: list[float] = []

        def hook(value, total, preview, node_id=None) -> None:
            times.append(time.perf_counter())

        comfy.utils.set_progress_bar_global_hook(hook)
        try:
            with torch.inference_mode():
                TrainLoraNode.execute(steps=[count + 1], **self.inputs)
        finally:
            comfy.utils.set_progress_bar_global_hook(None)
        return [later - earlier for earlier, later in zip(times, times[1:], strict=False)]


class Loop(Peer):
    """Forward, backward and AdamW on a plain module: noise drawn, nothing else."""

    def __init__(
        self,
        model: Callable[[Tensor, Tensor, Tensor], Tensor],
        parameters: list[Tensor],
        batch: int,
        dtype: torch.dtype,
    ) -> None:
        self.model, self.dtype = model, dtype
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-4)
        self.parameters = parameters
        self.latents = normal(1, batch, 4, 16, 16).to(DEVICE)
        self.text = normal(2, batch, 77, 768).to(DEVICE, dtype)
        self.scheduler = DDPMScheduler(
            num_train_timesteps=1000,
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
        )

    def step(self) -> None:
        noise = torch.randn_like(self.latents)
        timesteps = torch.randint(0, 1000, (len(self.latents),), device=DEVICE)
        noisy = self.scheduler.add_noise(self.latents, noise, timesteps)
        answer = self.model(noisy.to(self.dtype), timesteps, self.text)
        loss = nn.functional.mse_loss(answer.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        loss.item()

    def steps(self, count: int) -> list[float]:
        seconds = []
        with torch.inference_mode(False), torch.enable_grad():
            for _ in range(count):
                started = time.perf_counter()
                self.step()
                seconds.append(time.perf_counter() - started)
        return seconds


def diffusers_unet(patcher: ModelPatcher, dtype: torch.dtype) -> UNet2DConditionModel:
    """The same weights in diffusers' model."""
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(320, 640),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=768,
        attention_head_dim=8,  # diffusers' old name for the number of heads
    )
    names = comfy.utils.unet_to_diffusers(UNET)
    weights = patcher.model.diffusion_model.state_dict()
    own = {name: weights[names[name]].clone() for name in unet.state_dict() if name in names}
    missing = unet.load_state_dict(own, strict=False).missing_keys
    assert not missing, missing
    return unet.requires_grad_(False).to(DEVICE, dtype)


def peft_loop(patcher: ModelPatcher, layers: list[str], batch: int, dtype: torch.dtype) -> Loop:
    unet = diffusers_unet(patcher, dtype)
    names = {
        ours.removesuffix(".weight"): theirs.removesuffix(".weight")
        for theirs, ours in comfy.utils.unet_to_diffusers(UNET).items()
    }
    targets = [names[path] for path in layers]
    with torch.inference_mode(False):
        model = get_peft_model(unet, LoraConfig(r=RANK, lora_alpha=4, target_modules=targets))
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    return Loop(lambda x, t, text: model(x, t, text).sample, trained, batch, dtype)


class _SidePath(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        out_width, *rest = layer.weight.shape
        ones = [1] * (len(rest) - 1)
        self.down = nn.Parameter(torch.randn(RANK, *rest, device=DEVICE) * 0.01)
        self.up = nn.Parameter(torch.zeros(out_width, RANK, *ones, device=DEVICE))
        self.convolves = layer.weight.ndim == 4

    def forward(self, module: nn.Module, args: tuple[Tensor], y: Tensor) -> Tensor:
        (x, *_) = args
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)
        if self.convolves:
            side = nn.functional.conv2d(nn.functional.conv2d(x, down), up)
        else:
            side = nn.functional.linear(nn.functional.linear(x, down), up)
        return y + side * 0.5


def hooks_loop(patcher: ModelPatcher, layers: list[str], batch: int, dtype: torch.dtype) -> Loop:
    """On diffusers' UNet, which is plain PyTorch."""
    unet = diffusers_unet(patcher, dtype)
    names = {
        ours.removesuffix(".weight"): theirs.removesuffix(".weight")
        for theirs, ours in comfy.utils.unet_to_diffusers(UNET).items()
    }
    paths = []
    with torch.inference_mode(False):
        for path in layers:
            layer = unet.get_submodule(names[path])
            paths.append(_SidePath(layer))
            layer.register_forward_hook(paths[-1].forward)
    trained = [p for path in paths for p in path.parameters()]
    return Loop(lambda x, t, text: unet(x, t, text).sample, trained, batch, dtype)


def matmul_rate(dtype: torch.dtype, size: int = 1024) -> float:
    """Floating-point operations a second in a large matrix product: the best of several."""
    size *= 1 if DEVICE.type == "cpu" else 8
    a, b = (torch.randn(size, size, device=DEVICE).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(10):
        started = time.perf_counter()
        for _ in range(4):
            product = a @ b
        product[0, 0].item()  # on a GPU: the answer is there
        best = max(best, 4 * 2 * size**3 / (time.perf_counter() - started))
    return best


def forward_flops(patcher: ModelPatcher, batch: int) -> int:
    unet = diffusers_unet(patcher, torch.float32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        inputs = normal(1, batch, 4, 16, 16), torch.zeros(batch), normal(2, batch, 77, 768)
        unet(*(tensor.to(DEVICE) for tensor in inputs))
    return counter.get_total_flops()


@pytest.fixture(autouse=True)
def memory_is_free() -> Iterator[None]:
    yield
    gc.collect()


@pytest.mark.parametrize("batch", (1, 4))
@pytest.mark.parametrize("precision", ("fp32", "bf16"))
def test_steps_against_other_trainers(batch: int, precision: str) -> None:
    if precision == "bf16" and DEVICE.type == "cpu" and not bf16_is_faster_on_this_cpu():
        pytest.skip("this processor is slower with bf16")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    ours_precision = {"fp32": MixedPrecision.NO, "bf16": MixedPrecision.BF16}[precision]
    patcher = small_sd15()
    ours = Ours(patcher, batch, ours_precision)
    peers: dict[str, Peer] = {
        "ours": ours,
        "hooks": hooks_loop(patcher, ours.layers, batch, dtype),
        "peft": peft_loop(patcher, ours.layers, batch, dtype),
        "native": Native(patcher, batch, precision),
    }
    quick = batch == 1
    seconds, rate = in_turn(peers, dtype, 15 if quick else 5, few=() if quick else ("native",))
    report(seconds, forward_flops(patcher, batch), rate, f"{precision}, batch {batch}")


@pytest.mark.parametrize("batch", (1, 4))
def test_what_a_node_adds_to_a_step(
    batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    patcher = small_sd15()
    peers = {
        "ours": OurNode(patcher, batch, MixedPrecision.NO),
        "bare": OurAdapters(patcher, batch),
    }
    seconds, rate = in_turn(peers, torch.float32, 5)
    report(seconds, forward_flops(patcher, batch), rate, f"the node, fp32, batch {batch}")
    share = seconds_of_data(peers["ours"].state.run) / median(seconds["ours"])
    sys.stdout.write(f"  the model waits {share:.2%} of a step for pictures, captions and noise\n")


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_blocks() -> None:
    patcher = small_sd15()
    peers = {
        "ours": Ours(patcher, 1, MixedPrecision.NO),
        "compiled": Ours(patcher, 1, MixedPrecision.NO, compile_blocks=True),
    }
    seconds, rate = in_turn(peers, torch.float32, 5)
    report(seconds, forward_flops(patcher, 1), rate, "compile_blocks, fp32, batch 1")


def seconds_of_data(run: TrainingRun, count: int = 100) -> float:
    """Of all that a step does before and after the model: reading latents and captions, drawing
    noise, stacking, comparing."""

    def predict(noisy: Tensor, *_: Any) -> Tensor:
        return torch.zeros_like(noisy)

    started = time.perf_counter()
    for micro_step in range(count):
        batch_losses(run, run.plan.batch(micro_step), predict)
    return (time.perf_counter() - started) / count


def in_turn(
    peers: Mapping[str, Peer], dtype: torch.dtype, rounds: int, few: Collection[str] = ()
) -> tuple[dict[str, list[float]], float]:
    """(seconds of a step in each round, the best rate of a matrix product).

    Args:
        few: those that take two steps a round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    rates = []
    for round_number in range(rounds + 1):
        for name, peer in peers.items():
            taken = peer.steps(2 if name in few else STEPS)
            if round_number > 0:  # the first warms up
                seconds[name].append(median(taken))
        rates.append(matmul_rate(dtype))
    return seconds, max(rates)


def report(seconds: dict[str, list[float]], flops: int, rate: float, title: str) -> None:
    parameters = f"{rate / 1e9:.0f} GFLOP/s in a matrix product"
    lines = [f"\n{title} ({parameters}, {flops / 1e9:.1f} GFLOP a forward pass)"]
    for name, taken in seconds.items():
        ratios = [other / own for other, own in zip(taken, seconds["ours"], strict=True)]
        share = 2 * flops / median(taken) / rate
        lines.append(
            f"  {name:7} {median(taken):6.3f} s a step, {median(ratios):5.2f} × ours "
            f"({min(ratios):.2f} to {max(ratios):.2f}), {share:4.0%} of the peak"
        )
    sys.stdout.write("\n".join(lines) + "\n")


def test_how_large_the_model_is() -> None:
    """Guards the comparison with figures that were published for this size."""
    count: Any = sum(p.numel() for p in small_sd15().model.diffusion_model.parameters())
    assert 95e6 < count < 120e6, count
