"""What `test_second_device.py` asks, in a process of its own:

    python on_second_device.py LIBRARY CHECKPOINT

trains, resumes and draws on the second device, and prints what came of it as a line of JSON.
"""

from __future__ import annotations

import gc
import json
import sys
import types
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != TESTS.parent]
sys.path[:0] = [str(TESTS), str(TESTS.parent / "dev"), str(TESTS / "device")]
pack = sys.modules["lora_atelier"] = types.ModuleType("lora_atelier")
pack.__path__ = [str(TESTS.parent)]

import second_device  # noqa: E402
import torch  # noqa: E402

LIBRARY = second_device.register(Path(sys.argv[1]))
DEVICE = torch.device(second_device.NAME, 0)

from comfy_modules import make_importable  # noqa: E402

make_importable()
second_device.let_comfyui_use(LIBRARY, DEVICE)

import comfy.model_management as mm  # noqa: E402
from comfy.model_patcher import ModelPatcher  # noqa: E402

from lora_atelier.training.host.result import apply_lora  # noqa: E402
from lora_atelier.training.host.sampling import sample_previews  # noqa: E402
from lora_atelier.training.network.build import NetworkSpec  # noqa: E402
from lora_atelier.training.optimizers.optimizer import OptimizerSpec  # noqa: E402
from lora_atelier.training.results.lora_file import trained_lora  # noqa: E402
from lora_atelier.training.results.preview_spec import PreviewSpec  # noqa: E402
from lora_atelier.training.runs.adapter_precision import AdapterPrecision  # noqa: E402
from lora_atelier.training.runs.loop import train  # noqa: E402
from lora_atelier.training.runs.run import TrainingState, start  # noqa: E402
from tiny_training import (  # noqa: E402
    CAPTIONS,
    Recorder,
    encode,
    load_parts,
    make_run,
    quick_spec,
)

CPU = torch.device("cpu")
PARTS = load_parts(Path(sys.argv[2]), torch.float32)
TEXTS = encode(PARTS.clip, CAPTIONS[:2])
NETWORK = NetworkSpec(4, 2.0)


def losses(state: TrainingState) -> list[float]:
    return [record.loss for record in state.history]


def trained(model: Any, steps: int = 2, **choices: Any) -> TrainingState:
    run = make_run(model, TEXTS, quick_spec(network=NETWORK, **choices))
    return train(start(run), steps, Recorder())


def refuses_to_mix() -> bool:
    """That the device is as strict as it should be."""
    here, there = torch.ones(3, device=DEVICE), torch.ones(3)
    attempts = (
        lambda: here + there,
        lambda: torch.cat([here, there]),
        lambda: torch.nn.functional.layer_norm(here, (3,), there),
        lambda: here.numpy(),
        lambda: torch.rand(3, device=DEVICE, generator=torch.Generator()),
    )
    for attempt in attempts:
        try:
            attempt()
        except (RuntimeError, TypeError):
            continue
        return False
    return True


def the_numbers_of_the_cpu() -> dict[str, list[float]]:
    there = trained(PARTS.model, gradient_checkpointing=True)
    mm.unload_all_models()
    with torch.inference_mode():
        on_cpu = ModelPatcher(PARTS.model.model, load_device=CPU, offload_device=CPU)
    here = trained(on_cpu, gradient_checkpointing=True)
    return {"second": losses(there), "cpu": losses(here)}


def a_resumed_run() -> list[str]:
    """Names of the weights that differ from those of a run that was never stopped."""
    choices = {
        "network": NetworkSpec(4, 2.0, rank_dropout=0.3),
        "optimizer": OptimizerSpec(unet_lr=1e-3, ema_decay=0.5),
        "adapter_precision": AdapterPrecision.BF16_STOCHASTIC,
    }
    begun = start(make_run(PARTS.model, TEXTS, quick_spec(**choices)))
    whole, half = train(begun, 2, Recorder()), train(begun, 1, Recorder())
    torch.rand(5, device=DEVICE)  # another node draws
    resumed = train(half, 1, Recorder())
    return [n for n, w in whole.network.items() if not torch.equal(w, resumed.network[n])]


def half_of_the_weights_elsewhere() -> dict[str, Any]:
    """Where memory is scarce, ComfyUI keeps weights in its own and brings them layer by layer."""
    mm.unload_all_models()
    size = PARTS.model.model_size()
    before = second_device.ROOM, mm.minimum_inference_memory, mm.EXTRA_RESERVED_VRAM
    mm.minimum_inference_memory, mm.EXTRA_RESERVED_VRAM = lambda: 0, 0
    run = make_run(PARTS.model, TEXTS, quick_spec(network=NETWORK))
    state = start(run)
    mm.unload_all_models()
    second_device.ROOM = LIBRARY.bytes_in_use() + run.memory_required() + size // 2
    loaded: list[int] = []
    try:
        recorder = Recorder(lambda: loaded.append(PARTS.model.loaded_size()))
        after = train(state, 2, recorder)
    finally:
        second_device.ROOM, mm.minimum_inference_memory, mm.EXTRA_RESERVED_VRAM = before
    return {"share": loaded[0] / size, "losses": losses(after)}


def a_picture() -> dict[str, Any]:
    """Through text encoder, sampler and VAE, with the LoRA on the model."""
    lora = trained_lora(trained(PARTS.model))
    with torch.inference_mode():
        model, clip = apply_lora(PARTS.model, PARTS.clip, lora, 1.0)
    spec = PreviewSpec(prompts=("a fox",), width=64, height=64, steps=2)
    (preview,) = sample_previews(model, clip, PARTS.vae, spec, lambda: None)
    image = preview.image
    return {"shape": list(image.shape), "finite": bool(image.isfinite().all())}


def left_behind() -> int:
    """Bytes on the device once ComfyUI has taken its models away."""
    mm.unload_all_models()
    gc.collect()
    return LIBRARY.bytes_in_use()


CASES = (
    refuses_to_mix,
    the_numbers_of_the_cpu,
    a_resumed_run,
    half_of_the_weights_elsewhere,
    a_picture,
    left_behind,
)
sys.stdout.write(json.dumps({case.__name__: case() for case in CASES}) + "\n")
