"""A text encoder or VAE is told from any other, and from itself in no state it may be in."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.hooks
import comfy.model_management as mm
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.text_encoders.flux
import comfy.text_encoders.hidream
import comfy.text_encoders.sd3_clip
import comfy.weight_adapter
import pytest
import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor

import lora_atelier.training.host.digests as digests_module
from lora_atelier.training.host.digests import (
    _digest,
    _tensor,
    _without_effect,
    clip_digest,
    tokens_digest,
    vae_digest,
)
from tiny_training import Parts, encode, load_parts

TESTS = Path(__file__).resolve().parents[1]
LAYER = "clip_l.transformer.text_model.encoder.layers.3.mlp.fc1.weight"


@pytest.fixture(scope="module")
def parts(tiny_checkpoint: Path) -> Parts:
    return load_parts(tiny_checkpoint)


@contextmanager
def changed(tensor: Tensor, index: tuple[int, ...], value: float) -> Iterator[None]:
    """One number of a weight is another."""
    with torch.inference_mode():
        before = tensor[index].clone()
        tensor[index] = value
        yield
        tensor[index] = before


def lora_on(clip: Any, strength: float = 1.0, seed: int = 0) -> Any:
    """The CLIP as LoraLoader gives it, with a LoRA of rank 2 on one of its layers."""
    rng = torch.Generator().manual_seed(seed)
    up, down = torch.randn(3072, 2, generator=rng), torch.randn(2, 768, generator=rng)
    adapter = comfy.weight_adapter.LoRAAdapter(set(), (up, down, 2.0, None, None, None))
    patched = clip.clone()
    assert patched.add_patches({LAYER: adapter}, strength)
    return patched


def test_a_checkpoint_loaded_twice_is_the_same(parts: Parts, tiny_checkpoint: Path) -> None:
    """Also where the host leaves a weight as the memory was, as CLIP-L's projection."""
    other = load_parts(tiny_checkpoint)
    with torch.inference_mode():
        other.clip.cond_stage_model.clip_l.transformer.text_projection.weight.fill_(7.0)
    assert clip_digest(other.clip) == clip_digest(parts.clip)
    assert vae_digest(other.vae) == vae_digest(parts.vae)


@pytest.mark.slow
def test_another_process_says_the_same(parts: Parts, tiny_checkpoint: Path) -> None:
    code = (
        "import sys; sys.path[:0] = [sys.argv[1], sys.argv[1] + '/../dev']\n"
        "import conftest\n"
        "from comfy_modules import make_importable; make_importable()\n"
        "from pathlib import Path\n"
        "from tiny_training import load_parts\n"
        "from lora_atelier.training.host.digests import clip_digest, vae_digest\n"
        "parts = load_parts(Path(sys.argv[2]))\n"
        "print(clip_digest(parts.clip), vae_digest(parts.vae))\n"
    )
    command = [sys.executable, "-c", code, str(TESTS), str(tiny_checkpoint)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert told == [clip_digest(parts.clip), vae_digest(parts.vae)]


def test_neither_use_nor_moving_changes_it(parts: Parts) -> None:
    before = clip_digest(parts.clip), vae_digest(parts.vae)
    encode(parts.clip, ["a fox"])
    with torch.inference_mode():
        parts.vae.encode(torch.zeros(1, 64, 64, 3))
    assert (clip_digest(parts.clip), vae_digest(parts.vae)) == before
    mm.unload_all_models()
    assert (clip_digest(parts.clip), vae_digest(parts.vae)) == before
    assert clip_digest(parts.clip.clone()) == before[0]


@torch.inference_mode()
def test_a_lora_in_the_weights_of_the_shared_model_does_not_show(parts: Parts) -> None:
    """Clones share their model: while the patched one is loaded, its LoRA is in the weights."""
    plain, patched = clip_digest(parts.clip), lora_on(parts.clip)
    with_lora = clip_digest(patched)
    before = parts.clip.patcher.model_state_dict()[LAYER].clone()
    encode(patched, ["a fox"])
    assert not torch.equal(parts.clip.patcher.model_state_dict()[LAYER], before)
    assert (clip_digest(parts.clip), clip_digest(patched)) == (plain, with_lora)
    encode(parts.clip, ["a fox"])
    assert torch.equal(parts.clip.patcher.model_state_dict()[LAYER], before)
    assert (clip_digest(parts.clip), clip_digest(patched)) == (plain, with_lora)


def test_patches_are_told_apart(parts: Parts) -> None:
    clip = parts.clip
    twice = lora_on(lora_on(clip))
    other = clip.clone()
    other.add_patches({LAYER: ("diff", (torch.ones(3072, 768),))})
    found = [clip, lora_on(clip), lora_on(clip, 0.5), lora_on(clip, 1.0, seed=1), twice, other]
    assert len({clip_digest(c) for c in found}) == len(found)
    assert clip_digest(lora_on(clip)) == clip_digest(lora_on(clip))


def test_a_number_of_a_weight_is_told(parts: Parts) -> None:
    """A row of the vocabulary, as an embedding baked in; a norm; a place of a convolution."""
    plain = clip_digest(parts.clip), vae_digest(parts.vae)
    text = parts.clip.cond_stage_model.clip_l.transformer.text_model
    for tensor, index in (
        (text.embeddings.token_embedding.weight, (40_001, 5)),
        (text.final_layer_norm.bias, (3,)),
    ):
        with changed(tensor, index, 0.123):
            assert clip_digest(parts.clip) != plain[0]
    convolution = next(p for p in parts.vae.first_stage_model.parameters() if p.ndim == 4)
    with changed(convolution, (1, 2, 0, 1), 0.123):
        assert vae_digest(parts.vae) != plain[1]
    assert (clip_digest(parts.clip), vae_digest(parts.vae)) == plain


def test_settings_that_change_what_comes_out_are_told(parts: Parts) -> None:
    def with_setting(change: Callable[[Any], None]) -> str:
        clip = parts.clip.clone()
        change(clip)
        return clip_digest(clip)

    found = [
        clip_digest(parts.clip),
        with_setting(lambda clip: clip.clip_layer(-2)),
        with_setting(lambda clip: clip.clip_layer(-3)),
        with_setting(lambda clip: clip.set_tokenizer_option("clip_l_min_padding", 2)),
        # Newer hosts set it on every CLIP, 0.3.75 knows it of MODELs alone.
        with_setting(lambda clip: clip.patcher.set_model_compute_dtype(torch.bfloat16)),
    ]
    assert len(set(found)) == 5 and None not in found


def test_the_precision_of_the_vae_is_told(parts: Parts, tiny_checkpoint: Path) -> None:
    before = vae_digest(parts.vae)
    parts.vae.vae_dtype, kept = torch.bfloat16, parts.vae.vae_dtype
    try:
        assert vae_digest(parts.vae) != before
    finally:
        parts.vae.vae_dtype = kept


def test_what_other_nodes_hung_on_it_cannot_be_told(parts: Parts) -> None:
    hooked = parts.clip.clone()
    hooked.patcher.forced_hooks = comfy.hooks.HookGroup()
    conditioned = parts.clip.clone()
    conditioned.apply_hooks_to_conds = comfy.hooks.HookGroup()
    replaced = parts.clip.clone()
    replaced.patcher.add_object_patch("clip_l.logit_scale", torch.ones(()))
    wrapped = parts.clip.clone()
    wrapped.patcher.add_weight_wrapper(LAYER, lambda weight: weight * 2)
    for clip in (hooked, conditioned, replaced, wrapped):
        assert clip_digest(clip) is None
    vae = parts.vae
    vae.patcher.object_patches["x"] = 1
    try:
        assert vae_digest(vae) is None
    finally:
        del vae.patcher.object_patches["x"]
    assert vae_digest(vae) == vae_digest(vae) is not None


def test_weights_that_cannot_be_read_cannot_be_told(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layers of the GGUF pack give stand-ins without numbers for their packed weights."""
    layer = parts.clip.cond_stage_model.clip_l.transformer.text_model.encoder.layers[0].mlp.fc1

    def stand_in(destination: dict, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = torch.empty(8, 8, device="meta")

    monkeypatch.setattr(layer, "_save_to_state_dict", stand_in)
    assert clip_digest(parts.clip) is None


def test_of_a_large_model_samples_of_each_weight_are_read(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = clip_digest(parts.clip)
    monkeypatch.setattr(digests_module, "READ_WHOLE", 1000)
    sampled = clip_digest(parts.clip)
    assert sampled != whole and sampled == clip_digest(parts.clip)
    weight = parts.clip.cond_stage_model.clip_l.transformer.text_model.encoder.layers[3].mlp.fc1
    with torch.inference_mode():
        before = weight.weight.clone()
        weight.weight.mul_(1.01)
        assert clip_digest(parts.clip) != sampled
        weight.weight.copy_(before)
    assert clip_digest(parts.clip) == sampled
    patched = lora_on(parts.clip)
    assert clip_digest(patched) not in (sampled, clip_digest(lora_on(parts.clip, 0.5)))


SDXL, SD15 = comfy.sdxl_clip.SDXLClipModel, comfy.sd1_clip.SD1ClipModel


@pytest.mark.parametrize(
    ("make", "unused"),
    [
        (lambda: SD15(clip_model=comfy.sd1_clip.SD1CheckpointClipModel, device="meta"), "l"),
        (lambda: SDXL(device="meta"), "l"),
        (lambda: comfy.sdxl_clip.SDXLRefinerClipModel(device="meta"), ""),
        (lambda: comfy.text_encoders.sd3_clip.SD3ClipModel(t5=False, device="meta"), "l"),
        (lambda: comfy.text_encoders.flux.FluxClipModel(device="meta"), "l"),
        (
            lambda: comfy.text_encoders.hidream.HiDreamTEModel(
                t5=False, llama=False, device="meta"
            ),
            "",
        ),
    ],
    ids=["SD1.5", "SDXL", "SDXL refiner", "SD3", "Flux", "HiDream"],
)
def test_projections_whose_output_nothing_reads_are_left_out(make: Callable, unused: str) -> None:
    model = make()
    names = {f"clip_{name}.transformer.text_projection.weight" for name in unused}
    assert _without_effect(model) & set(model.state_dict()) == names


def of_tensor(tensor: Tensor, whole: bool = True) -> str:
    return _digest(_tensor(tensor, whole))


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int8]
)
def test_every_storage_is_read(dtype: torch.dtype, whole: bool) -> None:
    one = torch.arange(6000).remainder(7).float().reshape(3, 2000).to(dtype)
    assert of_tensor(one, whole) == of_tensor(one.clone(), whole)
    turned = one.t().contiguous().t()  # the same numbers in another order of memory
    assert of_tensor(one, whole) == of_tensor(turned, whole)
    assert of_tensor(one.reshape(2000, 3), whole) != of_tensor(one, whole)
    assert of_tensor((one.float() * 2).to(dtype), whole) != of_tensor(one, whole)
    assert of_tensor(torch.zeros(0, dtype=dtype), whole) != of_tensor(
        torch.zeros((), dtype=dtype), whole
    )


@pytest.mark.parametrize("whole", [True, False])
def test_the_host_s_quantised_tensors_are_read_with_their_scale(whole: bool) -> None:
    weight = torch.linspace(-1, 1, 512).reshape(16, 32)
    scale = 2 * weight.abs().max() / 448  # 0.3.75 finds it by itself, newer hosts take 1
    one, same = (
        QuantizedTensor.from_float(weight, "TensorCoreFP8Layout", scale=scale / 2) for _ in range(2)
    )
    louder = QuantizedTensor.from_float(weight * 2, "TensorCoreFP8Layout", scale=scale)
    assert torch.equal(one._qdata.float(), louder._qdata.float())  # the scale alone differs
    assert of_tensor(one, whole) == of_tensor(same, whole) != of_tensor(louder, whole)


def test_tokens_are_told_apart_with_the_vectors_among_them() -> None:
    vector = torch.arange(4.0)
    tokens = [
        {"l": [[(320, 1.0), (5, 1.0)]]},
        {"l": [[(320, 1.0), (6, 1.0)]]},
        {"l": [[(320, 1.0)], [(5, 1.0)]]},
        {"g": [[(320, 1.0), (5, 1.0)]]},
        {"l": [[(320, 1.0), (vector, 1.0)]]},
        {"l": [[(320, 1.0), (vector + 1, 1.0)]]},
    ]
    assert len({tokens_digest(t) for t in tokens}) == len(tokens)
    assert tokens_digest(tokens[4]) == tokens_digest({"l": [[(320, 1.0), (vector.clone(), 1.0)]]})
