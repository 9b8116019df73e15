"""Whatever way a run ends, the base model in the graph is exactly what it was.

As nodes do, everything here happens in inference mode, with a model that was loaded in it.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import nodes as host_nodes
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lora_atelier.nodes.graph.outputs import output_folder
from lora_atelier.training.dataset.fit import FitOptions
from lora_atelier.training.dataset.folder import FolderOptions, load_folder
from lora_atelier.training.host.session import start_run
from lora_atelier.training.runs.run import TrainingState, start
from tiny_training import (
    CAPTIONS,
    Parts,
    encode,
    load_parts,
    make_run,
    normal,
    quick_spec,
    train_as_node,
    worked_network,
)

PICTURES = Path(__file__).resolve().parents[2] / "demo" / "images" / "glossy" / "heldout"
HOOKS = [name for name in vars(nn.Module()) if name.endswith(("_hooks", "_pre_hooks"))]


@pytest.fixture(scope="module")
def parts(tiny_checkpoint: Path) -> Parts:
    return load_parts(tiny_checkpoint)


@pytest.fixture(scope="module")
def encoded(parts: Parts) -> dict[str, Any]:
    return encode(parts.clip, CAPTIONS)


@pytest.fixture(scope="module", autouse=True)
def libraries_are_loaded(parts: Parts, encoded: dict[str, Any]) -> None:
    """Their first import logs an exception; pytest keeps that record, and the frames in it."""
    with torch.inference_mode():
        train_as_node(start(make_run(parts.model, encoded)), 1)


@pytest.fixture(autouse=True)
def as_in_a_node() -> Iterator[None]:
    with torch.inference_mode():
        yield


def sample(model: Any, conditioning: Any) -> Tensor:
    """KSampler's latent."""
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    positive = [conditioning]
    (result,) = host_nodes.common_ksampler(
        model, 1, 2, 2.0, "euler", "normal", positive, positive, latent
    )
    return result["samples"]


def anatomy(model: Any) -> dict[str, Any]:
    """All that training could leave behind, as identities and plain values."""
    base: nn.Module = model.model
    facts: dict[str, Any] = {
        "sampling object": id(base.model_sampling),
        "manual_cast_dtype": base.manual_cast_dtype,
        "current_patcher": base.current_patcher,
        "base attributes": sorted(vars(base)),
        "patches": sorted(model.patches),
        "object patches": sorted(model.object_patches),
        "wrappers": dict(model.weight_wrapper_patches),
        "backups": (sorted(model.backup), sorted(model.object_patches_backup)),
        "options": repr(model.model_options),
    }
    for path, module in base.named_modules():
        tensors = [*module._parameters.items(), *module._buffers.items()]
        facts[path] = {
            "attributes": sorted(vars(module)),  # `forward` would be among them
            "tensors": [
                (name, id(t), t.dtype, t.requires_grad, t.grad)
                for name, t in tensors
                if t is not None
            ],
            "hooks": [len(getattr(module, name)) for name in HOOKS],
            "training": module.training,
            "weight functions": len(getattr(module, "weight_function", ())),
        }
    return facts


def contents(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def tensors_with_gradients() -> list[Tensor]:
    gc.collect()
    alive = [o for o in gc.get_objects() if issubclass(type(o), Tensor)]
    return [t for t in alive if t.requires_grad or (t.is_leaf and t.grad is not None)]


class Calls:
    """The host's wrapper around the UNet, which does `deed(output)` at forward number `at`."""

    def __init__(self, at: int, deed: Callable[[Tensor], None]) -> None:
        self.at, self.deed, self.count = at, deed, 0

    def __call__(self, apply_model: Any, call: dict[str, Any]) -> Tensor:
        output = apply_model(call["input"], call["timestep"], **call["c"])
        self.count += 1
        if self.count == self.at:
            self.deed(output)
        return output


def press_cancel(_: Tensor) -> None:
    mm.interrupt_current_processing()


def fail(_: Tensor) -> None:
    raise RuntimeError("a failure of the test's own")


def fail_in_backward(output: Tensor) -> None:
    output.register_hook(fail)


def finish(_: Tensor) -> None:
    pass


# Two forwards make a step: 3 is the first of step 2, 6 the last of step 3.
ENDS = {
    "finished": (1, finish, None),
    "cancelled in step 2": (3, press_cancel, mm.InterruptProcessingException),
    "failed in step 3": (6, fail, RuntimeError),
    "failed in the backward of step 3": (5, fail_in_backward, RuntimeError),
}


def run_to_its_end(parts: Parts, encoded: dict[str, Any], end: str) -> None:
    at, deed, exception = ENDS[end]
    model = parts.model.clone()
    model.set_model_unet_function_wrapper(Calls(at, deed))
    state = start(make_run(model, encoded, quick_spec(gradient_accumulation_steps=2)))
    if exception is None:
        assert train_as_node(state, 4).step == 4
    else:
        with pytest.raises(exception):
            train_as_node(state, 4)


@pytest.mark.parametrize("end", ENDS)
def test_the_base_model_is_untouched_after_a_run_that(
    parts: Parts, encoded: dict[str, Any], end: str
) -> None:
    conditioning = encoded[CAPTIONS[0]]
    picture = sample(parts.model, conditioning)
    facts, weights = anatomy(parts.model), contents(parts.model.model)
    gradients = tensors_with_gradients()
    run_to_its_end(parts, encoded, end)
    assert anatomy(parts.model) == facts
    after = parts.model.model.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[key], value) for key, value in weights.items())
    known = {id(tensor) for tensor in gradients}
    assert [t.shape for t in tensors_with_gradients() if id(t) not in known] == []
    assert not mm.processing_interrupted()  # else the next prompt would end at once
    assert torch.equal(sample(parts.model, conditioning), picture)


def test_the_anatomy_tells_the_inside_of_a_run_from_the_outside(
    parts: Parts, encoded: dict[str, Any]
) -> None:
    """The test above would be blind if it did not see what training does to the model."""
    run = make_run(parts.model, encoded)
    outside, network = anatomy(parts.model), worked_network(run.model, run.spec.network)
    with torch.inference_mode(False), run.model.training(network, torch.bfloat16):
        inside = anatomy(parts.model)
    changed = {key for key in outside if inside[key] != outside[key]}
    assert {"sampling object", "manual_cast_dtype", "current_patcher"} <= changed
    assert "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k" in changed  # forward
    assert "diffusion_model.input_blocks.1.1.norm" in changed  # parameters


def test_cancel_keeps_the_lora_of_the_last_whole_step(
    parts: Parts, encoded: dict[str, Any]
) -> None:
    run_to_its_end(parts, encoded, "cancelled in step 2")
    # Other tests of this file are stopped at that step too; the newest is this one's.
    files = (output_folder() / "atelier" / "runs").glob("shapes-*/lora/*-step00000001.safetensors")
    file = max(files, key=lambda path: path.stat().st_mtime)
    whole = start(make_run(parts.model, encoded, quick_spec(gradient_accumulation_steps=2)))
    expected: TrainingState = train_as_node(whole, 1)
    saved = load_file(file)
    assert saved.keys() == expected.network.keys()
    assert all(torch.equal(saved[key], value) for key, value in expected.network.items())


def test_encoding_and_training_leave_the_text_encoder_and_the_vae_alone(
    parts: Parts, tmp_path: Path
) -> None:
    pixels = normal(8, 1, 64, 64, 3).sigmoid()

    def answers() -> tuple[Tensor, Tensor]:
        ((embedding, _),) = parts.clip.encode_from_tokens_scheduled(parts.clip.tokenize("a cat"))
        return embedding, parts.vae.encode(pixels)

    modules = (parts.clip.cond_stage_model, parts.vae.first_stage_model)
    before, weights = answers(), [contents(module) for module in modules]
    for name in ("cat.png", "cat.txt", "rose.png", "rose.txt"):
        shutil.copy(PICTURES / name, tmp_path)
    dataset = load_folder(tmp_path, FolderOptions(fit=FitOptions((64,))))
    cache = tmp_path / "cache"
    train_as_node(start_run(parts.model, parts.clip, parts.vae, dataset, quick_spec(), cache), 2)
    for module, old in zip(modules, weights, strict=True):
        # CLIP's text_projection is in no SD1.5 file: the host leaves it as the memory was, NaN too.
        exact = {"rtol": 0, "atol": 0, "equal_nan": True}
        torch.testing.assert_close(dict(module.state_dict()), old, **exact)
        assert not any(p.grad is not None for p in module.parameters())
    assert all(torch.equal(a, b) for a, b in zip(answers(), before, strict=True))
