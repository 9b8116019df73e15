"""Text encoders train beside the diffusion model, or alone, and give what the file says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.hooks
import comfy.model_management as mm
import comfy.sd
import comfy.sdxl_clip
import comfy.text_encoders.flux
import pytest
import torch
from comfy_extras.nodes_hooks import SetClipHooks
from torch import Tensor, nn

from in_memory import encoded_dataset
from lora_atelier.training.base_model.training_context import adapters_off
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.host.diffusion_model import HostDiffusionModel
from lora_atelier.training.host.lora_keys import text_encoder_names
from lora_atelier.training.host.result import apply_lora
from lora_atelier.training.host.text_encoder import HostTextEncoder
from lora_atelier.training.network.build import describe_network
from lora_atelier.training.network.existing_lora import ExistingLora
from lora_atelier.training.network.spec import Algorithm, NetworkSpec
from lora_atelier.training.network.targets import (
    TargetModules,
    TextEncoders,
    attention_and_mlp_layers,
)
from lora_atelier.training.optimizers.optimizer import OptimizerSpec
from lora_atelier.training.results.lora_file import lora_metadata, trained_lora
from lora_atelier.training.runs.loop import train
from lora_atelier.training.runs.run import TrainingRun, TrainingState, start
from tiny_training import (
    CAPTIONS,
    LATENT,
    Parts,
    Recorder,
    encode,
    load_parts,
    normal,
    quick_spec,
    worked_network,
)

CPU = torch.device("cpu")
BOTH = NetworkSpec(4, 2.0, text_encoders=TextEncoders.CLIP, text_encoder_dim=2)
ALONE = replace(BOTH, target_modules=TargetModules.NONE)


@pytest.fixture(scope="module")
def parts(tiny_checkpoint: Path) -> Parts:
    return load_parts(tiny_checkpoint)


def models(parts: Parts) -> HostDiffusionModel:
    return HostDiffusionModel(parts.model, text_encoder=HostTextEncoder(parts.clip, CPU))


def run_of(parts: Parts, network: NetworkSpec, **changes: Any) -> TrainingRun:
    latents = [normal(1000 + i, *LATENT) for i in range(len(CAPTIONS))]
    data = encoded_dataset(latents, {caption: caption for caption in CAPTIONS})
    return TrainingRun(quick_spec(network=network, **changes), data, models(parts))


def plain(parts: Parts) -> HostDiffusionModel:
    return HostDiffusionModel(parts.model)


def plain_data(parts: Parts) -> Any:
    latents = [normal(1000 + i, *LATENT) for i in range(len(CAPTIONS))]
    return encoded_dataset(latents, encode(parts.clip, CAPTIONS))


def trained(run: TrainingRun, steps: int = 3) -> TrainingState:
    with torch.inference_mode():  # as nodes run
        return train(start(run), steps, Recorder())


def live(model: HostDiffusionModel, network: nn.ModuleDict, caption: str) -> tuple[Tensor, Tensor]:
    """Embedding and pooled output as the diffusion model gets them while training."""
    with torch.inference_mode(False), model.training(network, torch.float32):
        embedding, extras = model.text_encoder.encode(caption)
        return embedding, extras["pooled_output"]


@pytest.mark.parametrize("caption", ["", "a red fox", "saber (fate:1.5)", "a fox, " * 60])
def test_before_the_first_step_a_caption_reads_as_from_the_cache(
    parts: Parts, caption: str
) -> None:
    network = start(run_of(parts, BOTH)).run.new_network()
    embedding, pooled = live(models(parts), network, caption)
    expected, extras = encode(parts.clip, [caption])[caption]
    assert torch.equal(embedding, expected)
    assert torch.equal(pooled, extras["pooled_output"])


@pytest.mark.parametrize("algorithm", [Algorithm.LORA, Algorithm.DORA, Algorithm.LOKR])
def test_comfyui_reads_captions_with_the_file_as_training_did(
    parts: Parts, algorithm: Algorithm
) -> None:
    model, spec = models(parts), replace(ALONE, algorithm=algorithm)
    network = worked_network(model, spec)
    embedding, pooled = live(model, network, "a red fox")
    with torch.inference_mode():
        clip = apply_lora(parts.model, parts.clip, network.state_dict())[1]
    loaded, extras = encode(clip, ["a red fox"])["a red fox"]
    plain, _ = encode(parts.clip, ["a red fox"])["a red fox"]
    assert (loaded - plain).norm() > 0.01 * plain.norm()
    # The tiny encoder is stored in float16, to which the host rounds patched weights.
    assert (embedding - loaded).norm() < 2e-3 * loaded.norm()
    assert (pooled - extras["pooled_output"]).norm() < 2e-3 * pooled.norm()


def test_gradients_equal_those_of_transformers_and_peft(parts: Parts) -> None:
    import peft
    import transformers

    model = models(parts)
    network = worked_network(model, ALONE)
    towards = normal(5, 1, 77, 768)
    with torch.inference_mode(False), torch.enable_grad():
        with model.training(network, torch.float32):
            embedding, _ = model.text_encoder.encode("a red fox")
            (embedding * towards).sum().backward()

        encoder = transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
                eos_token_id=49407,
            )
        )
        weights = parts.clip.cond_stage_model.clip_l.transformer.state_dict()
        weights.pop("text_projection.weight")
        own = {k.removeprefix("text_model."): v.float().clone() for k, v in weights.items()}
        getattr(encoder, "text_model", encoder).load_state_dict(own)
        targets = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
        config = peft.LoraConfig(r=2, lora_alpha=1.0, target_modules=targets)
        reference = peft.get_peft_model(encoder, config).base_model.model
        layers = {p.removeprefix("text_model."): m for p, m in reference.named_modules()}
        theirs = {}
        for name, adapter in network.items():
            path = model.layers(ALONE)[name].path.removeprefix("clip_l.transformer.text_model.")
            layer = layers[path]
            down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            with torch.no_grad():
                down.copy_(adapter.lora_down.weight)
                up.copy_(adapter.lora_up.weight)
            theirs[name] = (down, up)
        tokens = [t for t, *_ in parts.clip.tokenize("a red fox")["l"][0]]
        hidden = reference(torch.tensor([tokens])).last_hidden_state
        (hidden * towards).sum().backward()
    assert (embedding - hidden).norm() < 1e-5 * hidden.norm()
    assert len(theirs) == 12 * 6
    for name, adapter in network.items():
        ours = (adapter.lora_down.weight.grad, adapter.lora_up.weight.grad)
        for mine, other in zip(ours, theirs[name], strict=True):
            assert (mine - other.grad).norm() <= 1e-4 * other.grad.norm()


def test_both_learn_and_the_file_loads_into_both(
    parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_of(parts, BOTH)
    state = trained(run)
    begun = start(run).network
    for prefix in ("lora_unet_", "lora_te_text_model_encoder_layers_"):
        ups = [k for k in state.network if k.startswith(prefix) and k.endswith("lora_up.weight")]
        assert ups
        assert all(not torch.equal(state.network[key], begun[key]) for key in ups), prefix
    with torch.inference_mode():
        model, clip = apply_lora(parts.model, parts.clip, trained_lora(state))
    assert "not loaded" not in caplog.text
    assert len(clip.patcher.patches) == 12 * 6
    assert len(model.patches) + len(clip.patcher.patches) == len(run.new_network())


def test_the_text_encoder_alone_leaves_the_diffusion_model_alone(parts: Parts) -> None:
    state = trained(run_of(parts, ALONE))
    assert all(key.startswith("lora_te_") for key in state.network)
    assert state.history[-1].learning_rate == 5e-5


def test_its_rate_is_its_own(parts: Parts) -> None:
    """At a rate of 0 it stays as it begins, while the diffusion model learns."""
    run = run_of(parts, BOTH, optimizer=OptimizerSpec(unet_lr=1e-3, text_encoder_lr=0))
    begun, state = start(run).network, trained(run)
    changed = {k for k, v in state.network.items() if not torch.equal(v, begun[k])}
    assert changed
    assert not any(key.startswith("lora_te_") for key in changed)


def test_afterwards_the_clip_is_as_it_was(parts: Parts) -> None:
    before = encode(parts.clip, CAPTIONS)
    weights = {k: v.clone() for k, v in parts.clip.cond_stage_model.state_dict().items()}
    forwards = [m.forward for m in parts.clip.cond_stage_model.modules()]
    flags = [p.requires_grad for p in parts.clip.cond_stage_model.parameters()]

    class Cancel(Exception):
        pass

    run = run_of(parts, BOTH)
    trained(run)

    def cancel() -> None:
        raise Cancel

    with torch.inference_mode(), pytest.raises(Cancel):
        train(start(run), 2, Recorder(cancel))
    after = encode(parts.clip, CAPTIONS)
    assert all(torch.equal(before[c][0], after[c][0]) for c in CAPTIONS)
    now = parts.clip.cond_stage_model.state_dict()
    assert all(torch.equal(w.nan_to_num(), now[k].nan_to_num()) for k, w in weights.items())
    assert [m.forward for m in parts.clip.cond_stage_model.modules()] == forwards
    assert [p.requires_grad for p in parts.clip.cond_stage_model.parameters()] == flags


def test_without_adapters_it_reads_as_the_base_does(parts: Parts) -> None:
    """What prior preservation compares with."""
    model = models(parts)
    network = worked_network(model, ALONE)
    with torch.inference_mode(False), model.training(network, torch.float32), adapters_off():
        embedding, _ = model.text_encoder.encode("a red fox")
    assert torch.equal(embedding, encode(parts.clip, ["a red fox"])["a red fox"][0])


def test_a_lora_is_continued_in_the_text_encoder_too(parts: Parts) -> None:
    first = trained(run_of(parts, BOTH))
    existing = ExistingLora(first.network, "first")
    spec = NetworkSpec(4, 2.0, existing=existing, text_encoders=TextEncoders.CLIP)
    begun = start(run_of(parts, spec)).network
    assert begun.keys() == first.network.keys()
    assert all(torch.equal(begun[k], v) for k, v in first.network.items())
    text = describe_network(models(parts).layers(spec), spec)
    assert "72 in text encoders, rank 2" in text and "not continued" not in text


def test_a_continued_dora_begins_its_new_text_layers_as_the_base_is(parts: Parts) -> None:
    """The file knows the diffusion model alone; lengths of 1 would make another text encoder."""
    unet_only = NetworkSpec(2, 2.0, Algorithm.DORA)
    first = trained(TrainingRun(quick_spec(network=unet_only), plain_data(parts), plain(parts)))
    spec = NetworkSpec(
        2,
        2.0,
        Algorithm.DORA,
        existing=ExistingLora(first.network, "first"),
        text_encoders=TextEncoders.CLIP,
    )
    with torch.inference_mode():
        state = start(run_of(parts, spec))
    network = state.run.new_network()
    network.load_state_dict(state.network)
    embedding, _ = live(models(parts), network, "a red fox")
    expected = encode(parts.clip, ["a red fox"])["a red fox"][0]
    assert (embedding - expected).norm() < 1e-5 * expected.norm()


def test_both_models_are_loaded_and_patched_while_they_train(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where memory is short, it is the diffusion model that gives way."""
    with torch.inference_mode():
        lora = worked_network(models(parts), ALONE).state_dict()
        clip = apply_lora(parts.model, parts.clip, lora)[1]
    model = HostDiffusionModel(parts.model, text_encoder=HostTextEncoder(clip, CPU))
    monkeypatch.setattr(mm, "get_free_memory", lambda *_, **__: 0.3 * 2**30)
    with torch.inference_mode(False), model.training({}, torch.float32):
        loaded = [type(entry.model.model).__name__ for entry in mm.current_loaded_models]
        assert "SD1ClipModel" in loaded
        assert model.text_encoder.clip.patcher.backup, "the LoRA on the CLIP is in its weights"


@pytest.mark.parametrize(
    "spelling",
    [
        "text_encoder.text_model.encoder.layers.3.mlp.fc1",
        "text_encoder.base_model.model.text_model.encoder.layers.3.mlp.fc1",
        "base_model.model.text_encoder.text_model.encoder.layers.3.mlp.fc1",
    ],
)
def test_diffusers_and_peft_names_of_text_encoders_are_read(parts: Parts, spelling: str) -> None:
    down, up = normal(1, 3, 768), normal(2, 3072, 3)
    file = {f"{spelling}.lora_A.weight": down, f"{spelling}.lora_B.weight": up}
    spec = replace(ALONE, target_modules=TargetModules.ATTENTION_MLP, text_encoder_dim=0)
    spec = replace(spec, existing=ExistingLora(file, "theirs"))
    layers = HostTextEncoder(parts.clip, CPU).layers(spec)
    (name,) = layers
    assert name == "lora_te_text_model_encoder_layers_3_mlp_fc1"
    assert torch.equal(layers[name].start["lora_up.weight"], up)


def test_the_file_says_what_was_trained(parts: Parts) -> None:
    metadata = lora_metadata(trained(run_of(parts, BOTH)))
    assert metadata["ss_text_encoder_lr"] == "5e-05"
    assert metadata["atelier.text_encoders"] == "clip"
    assert '"text_encoder_dim": "2"' in metadata["ss_network_args"]
    assert "ss_unet_lr" not in lora_metadata(trained(run_of(parts, ALONE), 1))
    plain = start(
        TrainingRun(quick_spec(), run_of(parts, BOTH).data, HostDiffusionModel(parts.model))
    )
    assert "ss_text_encoder_lr" not in lora_metadata(plain)


SMALL = {"num_hidden_layers": 3}


def sdxl() -> nn.Module:
    options = {"clip_l_model_config": SMALL, "clip_g_model_config": SMALL}
    return comfy.sdxl_clip.SDXLClipModel(device="meta", model_options=options)


def flux() -> nn.Module:
    options = {"clip_l_model_config": SMALL, "t5xxl_model_config": {"num_layers": 1}}
    return comfy.text_encoders.flux.FluxClipModel(device="meta", model_options=options)


@pytest.mark.parametrize(
    ("build", "prefixes"),
    [(sdxl, {"lora_te1_", "lora_te2_"}), (flux, {"lora_te1_", "lora_te3_"})],
)
def test_several_encoders_are_numbered_as_kohya_does(build: Any, prefixes: set[str]) -> None:
    encoders = build()
    layers = attention_and_mlp_layers(encoders)
    names = text_encoder_names(encoders, layers)
    assert names.keys() == layers.keys()
    assert {name[:9] for name in names.values()} == prefixes
    assert len(set(names.values())) == len(names)


def test_hooks_on_the_clip_are_refused(parts: Parts) -> None:
    hooks = comfy.hooks.HookGroup()
    hooks.add(comfy.hooks.TransformerOptionsHook())
    clip = SetClipHooks().apply_hooks(parts.clip, True, False, hooks)[0]
    with pytest.raises(AtelierError, match="clip: other nodes hung hooks"):
        HostTextEncoder(clip, CPU)
