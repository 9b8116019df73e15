"""Apply Trained LoRA and Merge and Resize LoRA against the host's own LoraLoader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.model_base
import comfy.model_management as mm
import comfy.supported_models
import comfy.utils
import folder_paths
import pytest
import torch
from nodes import LoraLoader
from torch import Tensor

from families import FAMILIES
from hidden_inputs import prepared
from lora_atelier.nodes.results.apply_lora import ApplyTrainedLoRA
from lora_atelier.nodes.results.merge_loras import MergeLoRAs
from lora_atelier.nodes.results.save_lora import SaveLoRA
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.host.diffusion_model import HostDiffusionModel
from lora_atelier.training.host.lora_formats import Models, rewritten
from lora_atelier.training.host.text_encoder import HostTextEncoder
from lora_atelier.training.host.weighted_lora import model_blocks
from lora_atelier.training.network.spec import Algorithm, NetworkSpec
from lora_atelier.training.network.targets import TextEncoders
from lora_atelier.training.results.lora_file import SavePrecision, TrainedLora, save_lora
from lora_atelier.training.results.lora_formats import KeyFormat
from lora_atelier.training.results.lora_layers import difference
from tiny_training import Parts, load_parts, normal, worked_network


@pytest.fixture(scope="module")
def parts(tiny_checkpoint: Path) -> Parts:
    return load_parts(tiny_checkpoint)


@pytest.fixture(scope="module")
def trained(parts: Parts) -> TrainedLora:
    """As Train LoRA gives it, with convolutions and the text encoder."""
    return network(parts, NetworkSpec(4, 7.0, conv_dim=2, text_encoders=TextEncoders.CLIP))


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    loras = ([str(tmp_path / "loras")], {".safetensors"})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", loras)
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    yield tmp_path


def network(parts: Parts, spec: NetworkSpec) -> TrainedLora:
    encoder = HostTextEncoder(parts.clip, torch.device("cpu"))
    model = HostDiffusionModel(parts.model, None, encoder)
    return TrainedLora(worked_network(model, spec).state_dict(), {"ss_v2": "False"}, parts)


def apply(parts: Parts, lora: Any, clip: Any = None, **widgets: Any) -> tuple[Any, Any, str]:
    values = {"strength_model": 1.0, "strength_clip": 1.0, "block_weights": "", **widgets}
    with torch.inference_mode():
        return ApplyTrainedLoRA.execute(parts.model, lora, clip=clip, **values).args


def merge(lora: Any, **widgets: Any) -> tuple[TrainedLora, str]:
    values = {"weight_1": 1.0, "network_dim": 0, "conv_dim": 0, "dynamic_param": 0.9}
    values |= {"dynamic_method": "none", **widgets}
    with torch.inference_mode():
        return MergeLoRAs.execute(lora_1=lora, **values).args


def load(folders: Path, parts: Parts, lora: Any, strengths: tuple[float, float]) -> Any:
    """MODEL and CLIP after LoraLoader for the saved file."""
    save_lora(folders / "loras" / "it.safetensors", lora, SavePrecision.FLOAT)
    with torch.inference_mode():
        return LoraLoader().load_lora(parts.model, parts.clip, "it.safetensors", *strengths)


def weights(patcher: Any) -> dict[str, Tensor]:
    """What the patched weights are."""
    patcher = getattr(patcher, "patcher", patcher)
    state = patcher.model_state_dict()
    with torch.inference_mode():
        return {
            key: comfy.lora.calculate_weight(found, state[key].float().clone(), key)
            for key, found in patcher.patches.items()
        }


def change(patcher: Any) -> dict[str, Tensor]:
    state = getattr(patcher, "patcher", patcher).model_state_dict()
    return {key: value - state[key].float() for key, value in weights(patcher).items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def off(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest relative distance of a layer's change."""
    assert one.keys() == other.keys()
    return max(float((one[k] - other[k]).norm() / other[k].norm()) for k in other)


@pytest.mark.parametrize("strengths", [(1.0, 1.0), (0.7, -0.4)])
def test_it_is_what_loraloader_makes_of_the_file(
    folders: Path, parts: Parts, trained: TrainedLora, strengths: tuple[float, float]
) -> None:
    model, clip, text = apply(
        parts, trained, parts.clip, strength_model=strengths[0], strength_clip=strengths[1]
    )
    expected = load(folders, parts, trained, strengths)
    assert len(model.patches) > 48
    assert len(clip.patcher.patches) == 72
    assert same(weights(model), weights(expected[0]))
    assert same(weights(clip), weights(expected[1]))
    assert text == f"{len(model.patches) + 72} weights are changed"
    assert parts.model.patches == parts.clip.patcher.patches == {}


def test_the_model_predicts_the_same_bit_for_bit(
    folders: Path, parts: Parts, trained: TrainedLora
) -> None:
    """Through the host's own way of loading and running."""
    ours, theirs = apply(parts, trained)[0], load(folders, parts, trained, (1.0, 1.0))[0]
    base, one, other = (predicted(model) for model in (parts.model, ours, theirs))
    assert torch.equal(one, other)
    assert float((one - base).norm() / base.norm()) > 0.05


@torch.inference_mode()
def predicted(model: Any) -> Tensor:
    mm.load_models_gpu([model])
    x, context = normal(1, 1, 4, 8, 8), normal(2, 1, 77, 768)
    return model.model.apply_model(x, torch.tensor([2.0]), c_crossattn=context).clone()


def test_blocks_have_factors_of_their_own(
    folders: Path, parts: Parts, trained: TrainedLora
) -> None:
    row = "0.5, 0, 1, 0.25, 2"  # the tiny model's: BASE, IN01, MID, OUT00, OUT01
    model, clip, text = apply(parts, trained, parts.clip, strength_model=0.8, block_weights=row)
    full = {f: change(load(folders, parts, trained, (0.8 * f, f))[0]) for f in (0.25, 1.0, 2.0)}
    found = change(model)
    wanted = {"input_blocks.1.": 0, "middle_": 1, "output_blocks.0.": 0.25, "output_blocks.1.": 2}
    for start, factor in wanted.items():
        keys = [key for key in found if key.startswith(f"diffusion_model.{start}")]
        assert len(keys) > 10
        for key in keys:
            assert torch.equal(found[key], full[factor][key]) if factor else not found[key].any()
    half = load(folders, parts, trained, (1.0, 0.5))[1]
    assert same(weights(clip), weights(half))
    assert "factors: clip_l 0.5, IN01 0, MID 1, OUT00 0.25, OUT01 2" in text
    named, _, _ = apply(
        parts,
        trained,
        strength_model=0.8,
        block_weights="in01=0\noutput_blocks.0=0.25, OUT01=2",
    )
    assert same(weights(named), weights(model))


def real_layout(kind: str) -> Any:
    """A U-Net of the real one's blocks with few channels."""
    config = {
        "sd15": {
            "channel_mult": [1, 2, 4, 4],
            "num_res_blocks": [2, 2, 2, 2],
            "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
            "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
            "transformer_depth_middle": 1,
        },
        "sdxl": {
            "channel_mult": [1, 2, 4],
            "num_res_blocks": [2, 2, 2],
            "transformer_depth": [0, 0, 2, 2, 10, 10],
            "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
            "transformer_depth_middle": 10,
        },
    }[kind]
    unet = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32}
    unet |= {"num_heads": 2, "context_dim": 16, "use_spatial_transformer": True, "legacy": False}
    supported = comfy.supported_models.SD15({**unet, **config, "dtype": torch.float32})
    with torch.device("meta"):
        return comfy.model_base.BaseModel(supported, device=torch.device("meta"))


@pytest.mark.parametrize(("kind", "short", "whole"), [("sd15", 17, 26), ("sdxl", 12, 20)])
def test_rows_are_as_long_as_people_know_them(kind: str, short: int, whole: int) -> None:
    class Patcher:
        model = real_layout(kind)

    blocks = model_blocks(Patcher, None)
    assert len(blocks.attending) + 1 == short
    assert len(blocks.names) + 1 == whole
    if kind == "sdxl":
        assert blocks.attending[:2] == ("input_blocks.4", "input_blocks.5")
        assert blocks.attending[-1] == "output_blocks.5"


def test_blocks_of_a_transformer_are_the_members_of_its_lists() -> None:
    flux = FAMILIES["flux"].patcher()
    blocks = model_blocks(flux, None)
    assert blocks.names == blocks.attending
    assert blocks.names == (
        *("double_blocks.0", "double_blocks.1"),
        *("single_blocks.0", "single_blocks.1"),
    )
    assert "final_layer" in blocks.others


def test_what_does_not_fit_is_told(parts: Parts, trained: TrainedLora) -> None:
    _, clip, text = apply(parts, trained)
    assert clip is None
    assert "72 layers of text encoders are left out: wire clip" in text
    strange = {f"lora_unet_other.{k}": v for k, v in {"diff": normal(1, 2, 2)}.items()}
    assert "1 layers are not in this model" in apply(parts, trained | strange)[2]
    up = next(key for key in trained if key.startswith("lora_unet") and key.endswith("up.weight"))
    wrong = trained | {up: trained[up][:-1]}
    assert "1 layers have another size in this model" in apply(parts, wrong)[2]
    with pytest.raises(AtelierError, match="lora: no layer of it is in this model"):
        apply(parts, strange)
    texts = {key: value for key, value in trained.items() if key.startswith("lora_te")}
    with pytest.raises(AtelierError, match="or for its text encoder: wire clip"):
        apply(parts, texts)
    with pytest.raises(AtelierError, match="strength_model is 20"):
        apply(parts, trained, strength_model=20)
    assert "IN99" in str(ApplyTrainedLoRA.validate_inputs("IN99=x"))


def test_both_strengths_at_zero_are_the_models_themselves(
    parts: Parts, trained: TrainedLora
) -> None:
    model, clip, text = apply(parts, trained, parts.clip, strength_model=0, strength_clip=0)
    assert (model, clip) == (parts.model, parts.clip)
    assert text.startswith("off")


ALGORITHMS = [Algorithm.LORA, Algorithm.LOHA, Algorithm.LOKR, Algorithm.FULL]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_merged_lora_does_what_both_do_one_after_the_other(
    folders: Path, parts: Parts, trained: TrainedLora, algorithm: Algorithm
) -> None:
    dims = {} if algorithm is Algorithm.FULL else {"network_dim": 4, "network_alpha": 2.0}
    other = network(parts, NetworkSpec(algorithm=algorithm, **dims))
    result, text = merge(trained, weight_1=0.5, lora_2=other, weight_2=-1.5)
    assert "exact" in text
    both = apply(parts, trained, parts.clip, strength_model=0.5, strength_clip=0.5)
    with torch.inference_mode():
        model, clip, _ = ApplyTrainedLoRA.execute(both[0], other, -1.5, -1.5, "", both[1]).args
    found = apply(parts, result, parts.clip)
    assert off(change(found[0]), change(model)) < 1e-4  # of float32 weights
    assert off(change(found[1]), change(clip)) < 1e-4
    assert result.metadata["ss_v2"] == "False"
    assert Path(save(result)).is_file()


def save(lora: Any) -> str:
    node = prepared(SaveLoRA)
    with torch.inference_mode():
        return node.execute(
            lora=lora, filename_prefix="it", save_precision="float", add_to_models_loras=False
        ).args[0]


def test_a_resized_lora_is_smaller_and_does_nearly_the_same(
    parts: Parts, trained: TrainedLora
) -> None:
    result, text = merge(trained, network_dim=2, conv_dim=1)
    assert sum(v.numel() for v in result.values()) < 0.6 * sum(v.numel() for v in trained.values())
    found, wanted = (apply(parts, lora, parts.clip) for lora in (result, trained))
    assert 0.1 < off(change(found[0]), change(wanted[0])) < 0.95
    assert "rank 4 → 2" in text
    assert Path(save(result)).is_file()
    whole, _ = merge(trained, dynamic_method="sv_fro", dynamic_param=1.0)
    found = apply(parts, whole, parts.clip)
    assert off(change(found[0]), change(wanted[0])) < 1e-3


def test_other_spellings_are_the_same_layers(parts: Parts, trained: TrainedLora) -> None:
    models = Models(parts.model, parts.clip)
    plain = {k: v for k, v in trained.items() if k.startswith("lora_unet")}
    comfyui = dict(rewritten(plain, models, KeyFormat.COMFYUI))
    result, _ = merge(plain, lora_2=comfyui, model=parts.model)
    assert {key.rpartition(".lora_")[0] for key in result if "lora_up" in key} == {
        key.rpartition(".lora_")[0] for key in plain if "lora_up" in key
    }
    doubled = apply(parts, plain, strength_model=2.0)[0]
    assert off(change(apply(parts, result)[0]), change(doubled)) < 1e-4
    with pytest.raises(AtelierError, match=r"different ways \(comfyui and kohya\).* Wire model"):
        merge(plain, lora_2=comfyui)
    with pytest.raises(AtelierError, match="lora_2: 1 of its 1 layers are not in the model"):
        merge(trained, lora_2={"lora_unet_other.diff": normal(1, 2, 2)})


def test_layers_that_diffusers_cuts_up_belong_to_their_block() -> None:
    flux = FAMILIES["flux"].patcher()
    stem = "lora_unet_double_blocks_1_img_attn_qkv.lora_"
    whole = {f"{stem}down.weight": normal(1, 2, 64), f"{stem}up.weight": normal(2, 192, 2)}
    cut = dict(rewritten(whole, Models(flux), KeyFormat.DIFFUSERS))
    assert len(cut) == 6

    def applied(lora: Any, block_weights: str = "") -> dict[str, Tensor]:
        with torch.inference_mode():
            node = ApplyTrainedLoRA.execute(flux, lora, 1.0, 1.0, block_weights)
        return change(node.args[0])

    expected = applied(whole)
    assert list(expected) == ["diffusion_model.double_blocks.1.img_attn.qkv.weight"]
    assert off(applied(cut), expected) < 1e-5
    half = applied(cut, "double_blocks.1=0.5")
    assert off({key: 2 * value for key, value in half.items()}, expected) < 1e-5
    assert off(applied(cut, "single_blocks.*=0"), expected) < 1e-5
    summed, _ = merge(cut, lora_2=whole, model=flux)
    assert off({key: value / 2 for key, value in applied(summed).items()}, expected) < 1e-5


def test_one_lora_as_it_is_goes_through(trained: TrainedLora) -> None:
    assert merge(trained)[0] is trained
    assert merge(trained, lora_2=trained, weight_2=0)[0] is trained
    with pytest.raises(AtelierError, match="All weights are 0"):
        merge(trained, weight_1=0)


def test_dora_is_refused_in_words(parts: Parts, trained: TrainedLora) -> None:
    dora = network(parts, NetworkSpec(4, 4.0, algorithm=Algorithm.DORA))
    assert merge(dora)[0] is dora
    with pytest.raises(AtelierError, match="lora_2: .* is DoRA. What that does depends on"):
        merge(trained, lora_2=dora)


TUCKER = {
    "locon": {
        "lora_up.weight": (16, 3, 1, 1),
        "lora_down.weight": (3, 12, 1, 1),
        "lora_mid.weight": (3, 3, 3, 3),
    },
    "loha": {
        "hada_w1_a": (3, 16),
        "hada_w1_b": (3, 12),
        "hada_t1": (3, 3, 3, 3),
        "hada_w2_a": (3, 16),
        "hada_w2_b": (3, 12),
        "hada_t2": (3, 3, 3, 3),
    },
    "lokr of four": {
        "lokr_w1_a": (4, 2),
        "lokr_w1_b": (2, 3),
        "lokr_w2_a": (4, 3),
        "lokr_w2_b": (3, 4 * 9),
    },
    "lokr without a rank": {"lokr_w1": (4, 3), "lokr_w2": (4, 4, 3, 3)},
}


@pytest.mark.parametrize("form", TUCKER)
def test_factors_of_lycoris_are_read_as_the_host_reads_them(form: str) -> None:
    parts = {name: normal(i, *shape) for i, (name, shape) in enumerate(TUCKER[form].items())}
    parts["alpha"] = torch.tensor(2.0)
    named = {f"lora_unet_x.{name}": value for name, value in parts.items()}
    loaded = comfy.lora.load_lora(named, {"lora_unet_x": "x.weight"})
    patches = [(1.0, loaded["x.weight"], 1.0, None, None)]
    expected = comfy.lora.calculate_weight(patches, torch.zeros(16, 12, 3, 3), "x.weight")
    found = difference(parts, torch.device("cpu"))
    assert torch.allclose(found.dense().view(16, 12, 3, 3), expected, rtol=1e-4, atol=1e-5)


def test_lokr_with_a_tucker_factor_is_read_too() -> None:
    """The host fails at it (``view`` in ``torch.kron``): so the formula is written out."""
    shapes = {"lokr_w1": (4, 3), "lokr_w2_a": (2, 4), "lokr_w2_b": (2, 4), "lokr_t2": (2, 2, 3, 3)}
    parts = {name: normal(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    inner = torch.stack(
        [
            torch.stack([parts["lokr_w2_a"].T @ t @ parts["lokr_w2_b"] for t in row])
            for row in parts["lokr_t2"].permute(2, 3, 0, 1)
        ]
    )  # [3, 3, 4, 4]
    expected = torch.stack(
        [torch.stack([torch.kron(parts["lokr_w1"], w) for w in row]) for row in inner]
    ).permute(2, 3, 0, 1)
    found = difference(parts | {"alpha": torch.tensor(1.0)}, torch.device("cpu"))
    assert found.shape == (12, 3, 3)
    assert torch.allclose(found.dense().view(16, 12, 3, 3), expected / 2, rtol=1e-4, atol=1e-5)


def test_cancel_stops_a_merge_between_layers(trained: TrainedLora) -> None:
    ticks: list[int] = []

    def hook(value: int, total: int, preview: Any, **_: Any) -> None:
        """Presses Cancel at the first news; newer hosts hold back those that follow at once."""
        ticks.append(total)
        mm.interrupt_current_processing(True)

    comfy.utils.set_progress_bar_global_hook(hook)
    try:
        with pytest.raises(mm.InterruptProcessingException):
            merge(trained, network_dim=2)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
        mm.interrupt_current_processing(False)
    layers = sum(key.endswith(".alpha") for key in trained)
    assert ticks == [layers]
