"""The grid shows what LoraLoader, KSampler and VAEDecode draw, and leaves the models alone."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.model_management as mm
import folder_paths
import nodes as host_nodes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_atelier.nodes.results.compare_grid import CompareGrid
from lora_atelier.nodes.results.lora_files import named_files
from lora_atelier.nodes.train.run_in_graph import run_folder
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.host.grid import Grid, GridLora
from lora_atelier.training.results.grid_layout import sheet_layout
from lora_atelier.training.results.grid_spec import GridLayout, GridSpec, Variant
from lora_atelier.training.results.lora_file import SavePrecision, save_lora, trained_lora
from lora_atelier.training.results.preview_spec import PreviewSpec
from lora_atelier.training.runs.loop import train
from lora_atelier.training.runs.run import TrainingState, start
from tiny_training import CAPTIONS, Parts, Recorder, encode, load_parts, make_run, normal
from widget_runs import call

PREVIEW = PreviewSpec(
    ("a (red:1.4) fox", "two [grey] cats"),
    negative="blurred",
    seeds=(3, 4),
    width=64,
    height=96,
    steps=2,
    cfg=3.0,
    sampler_name="euler_ancestral",  # draws from the streams as it goes
    scheduler="karras",
)
ONE = replace(PREVIEW, prompts=("a fox",), seeds=(5,))
UNET = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k"
TEXT = "lora_te_text_model_encoder_layers_3_mlp_fc1"


@pytest.fixture(scope="module")
def parts(tiny_checkpoint: Path) -> Parts:
    return load_parts(tiny_checkpoint)


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """ComfyUI's folders, all new; and inference mode, as in a node."""
    for name in ("output", "temp", "loras"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    loras = ([str(tmp_path / "loras")], {".safetensors"})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", loras)
    folder_paths.filename_list_cache.pop("loras", None)
    with torch.inference_mode():
        yield tmp_path
    folder_paths.filename_list_cache.pop("loras", None)


def lora(parts: Parts, seed: int) -> dict[str, Tensor]:
    """Some layers of both models, changed so much that it is to be seen."""
    keys = comfy.lora.model_lora_keys_unet(parts.model.model, {})
    keys = comfy.lora.model_lora_keys_clip(parts.clip.cond_stage_model, keys)
    weights = {
        **parts.model.model.state_dict(),
        **parts.clip.cond_stage_model.state_dict(),
    }
    found = {}
    for name in (UNET, TEXT):
        rows, columns = weights[keys[name]].shape
        found[f"{name}.lora_down.weight"] = normal(seed, 2, columns)
        found[f"{name}.lora_up.weight"] = normal(seed + 1, rows, 2) * 0.2
        found[f"{name}.alpha"] = torch.tensor(2.0)
    return found


def put(folders: Path, name: str, tensors: Mapping[str, Tensor]) -> Path:
    path = folders / name
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), path)
    return path


def drawn_by_nodes(parts: Parts, preview: PreviewSpec, prompt: int, seed: int) -> np.ndarray:
    """As SaveImage writes it: CLIPTextEncode, EmptyLatentImage, KSampler, VAEDecode."""
    encode = host_nodes.CLIPTextEncode().encode
    positive, negative = (
        encode(parts.clip, text)[0] for text in (preview.prompts[prompt], preview.negative)
    )
    (latent,) = host_nodes.EmptyLatentImage().generate(preview.width, preview.height)
    (sampled,) = host_nodes.KSampler().sample(
        parts.model,
        preview.seeds[seed],
        *(preview.steps, preview.cfg, preview.sampler_name, preview.scheduler),
        *(positive, negative, latent),
    )
    return written(host_nodes.VAEDecode().decode(parts.vae, sampled)[0][0])


def written(image: Tensor) -> np.ndarray:
    return np.clip(255.0 * image.cpu().numpy(), 0, 255).astype(np.uint8)


def compared(parts: Parts, preview: PreviewSpec = PREVIEW, **inputs: Any) -> tuple[np.ndarray, str]:
    """[prompts, H, W, 3] and the text."""
    links = {k: inputs.pop(k) for k in ("lora", "state") if k in inputs}
    widgets = {"picture_size": 0, **inputs}
    sheets, text = call("AtelierCompareGrid", widgets, **vars(parts), preview=preview, **links)
    return np.stack([written(sheet) for sheet in sheets]), text


def cells(sheet: np.ndarray, spec: GridSpec) -> dict[tuple[int, int], np.ndarray]:
    layout, (rows, columns) = sheet_layout(spec), spec.shape
    width, height = layout.cell
    found = {}
    for row in range(rows):
        for column in range(columns):
            left, top = layout.corner(row, column)
            found[row, column] = sheet[top : top + height, left : left + width]
    return found


def in_row(sheets: np.ndarray, labels: tuple[str, ...], preview: PreviewSpec) -> list[np.ndarray]:
    """The pictures of the first row of the first sheet."""
    found = cells(sheets[0], GridSpec(preview, labels, picture_size=0))
    return [picture for (row, _), picture in sorted(found.items(), key=lambda i: i[0]) if row == 0]


def everything(parts: Parts) -> dict[str, Tensor]:
    modules = (parts.model.model, parts.clip.cond_stage_model, parts.vae.first_stage_model)
    return {f"{i}.{k}": v.clone() for i, m in enumerate(modules) for k, v in m.state_dict().items()}


@pytest.mark.parametrize(
    ("layout", "names", "preview"),
    [
        (
            GridLayout.STRENGTHS_ACROSS,
            ("two", "one"),
            replace(PREVIEW, prompts=("a (red:1.4) fox",)),
        ),
        (GridLayout.STRENGTHS_DOWN, ("one",), replace(PREVIEW, seeds=(3,))),
    ],
)
def test_every_picture_is_what_lora_loader_and_ksampler_draw(
    parts: Parts, folders: Path, layout: GridLayout, names: tuple[str, ...], preview: PreviewSpec
) -> None:
    for i, name in enumerate(("one", "two")):
        put(folders / "loras", f"sub/{name}.safetensors", lora(parts, 10 * i))
    lines = "\n".join(f"sub/{name}" for name in names)
    sheets, _ = compared(parts, preview, lora_files=lines, strengths="0.5, 1", layout=layout.value)
    spec = GridSpec(preview, names, (0.5, 1.0), layout, picture_size=0)
    seen = set()
    for variant in spec.variants:
        models = with_lora_loader(parts, spec, variant)
        for prompt, sheet in enumerate(sheets):
            for seed in range(len(preview.seeds)):
                expected = drawn_by_nodes(models, preview, prompt, seed)
                for place in spec.places(variant, seed):
                    assert np.array_equal(cells(sheet, spec)[place], expected), (variant, seed)
                seen.add(expected.tobytes())
    assert len(seen) == spec.pictures  # LoRA and strength are to be seen


def with_lora_loader(parts: Parts, spec: GridSpec, variant: Variant | None) -> Parts:
    if variant is None:
        return parts
    name, strength = f"sub/{spec.loras[variant.lora]}.safetensors", spec.strengths[variant.strength]
    loaded = host_nodes.LoraLoader().load_lora(parts.model, parts.clip, name, strength, strength)
    return Parts(*loaded, parts.vae)


def test_the_models_of_the_graph_stay_as_they_are(parts: Parts, folders: Path) -> None:
    put(folders / "loras", "one.safetensors", lora(parts, 1))
    mm.unload_all_models()
    before = everything(parts)
    picture = drawn_by_nodes(parts, ONE, 0, 0)
    compared(parts, ONE, lora_files="one", strengths="1, 2")
    assert np.array_equal(drawn_by_nodes(parts, ONE, 0, 0), picture)
    assert not parts.model.patches and not parts.clip.patcher.patches
    mm.unload_all_models()
    # Some of CLIP's weights are in no SD1.5 file: the host leaves them as the memory was, NaN too.
    torch.testing.assert_close(everything(parts), before, rtol=0, atol=0, equal_nan=True)


def test_pictures_come_one_by_one_and_a_lora_is_read_when_its_turn_comes(parts: Parts) -> None:
    spec = GridSpec(ONE, ("a", "b"), (1.0, 0.5))
    events: list[Any] = []

    def made(name: str) -> GridLora:
        return GridLora(name, lambda: (events.append(name), lora(parts, ord(name)))[1])

    older: weakref.ref[Tensor] | None = None
    for drawn in Grid(*vars(parts).values(), [made("a"), made("b")], spec, lambda: None).draw():
        assert older is None or older() is None  # nobody keeps the picture before
        events.append(drawn.variant)
        older = weakref.ref(drawn.image)
        del drawn
    assert events == [None, "a", (0, 0), (0, 1), "b", (1, 0), (1, 1)]


def test_a_lora_of_the_graph_needs_no_file(parts: Parts, folders: Path) -> None:
    tensors = lora(parts, 3)
    put(folders / "loras", "same.safetensors", tensors)
    sheets, text = compared(parts, ONE, lora_files="same", lora=tensors)
    base, file, wired = in_row(sheets, ("same", "trained LoRA"), ONE)
    assert np.array_equal(file, wired) and not np.array_equal(base, file)
    assert text.startswith("3 pictures in 0:0")


def state_of(parts: Parts, steps: int) -> TrainingState:
    with torch.inference_mode(False):
        begun = start(make_run(parts.model, encode(parts.clip, CAPTIONS)))
        run = replace(begun.run, identity="0123456789abcdef")
        return train(replace(begun, run=run), steps, Recorder())


def test_a_state_brings_the_checkpoints_of_its_run_and_itself(parts: Parts) -> None:
    state = state_of(parts, 2)
    folder = run_folder(state.run)
    mine = trained_lora(state)
    for step, factor in ((1, 30.0), (2, 60.0), (3, 90.0)):  # the last two are not taken
        path = folder / "lora" / f"{folder.name}-step{step:08d}.safetensors"
        save_lora(path, {k: v * factor for k, v in mine.items()}, SavePrecision.FLOAT)
    sheets, text = compared(parts, ONE, state=state, lora=mine)  # which is the state's own
    assert text.startswith("3 pictures")
    base, first, second = in_row(sheets, ("step 1", "step 2"), ONE)
    file = load_file(folder / "lora" / f"{folder.name}-step00000001.safetensors")
    alone = in_row(compared(parts, ONE, lora=file)[0], ("trained LoRA",), ONE)
    assert np.array_equal(alone[1], first) and not np.array_equal(base, first)
    alone = in_row(compared(parts, ONE, lora=mine)[0], ("trained LoRA",), ONE)
    assert np.array_equal(alone[1], second)


def test_what_does_not_fit_the_model_is_told(parts: Parts, folders: Path) -> None:
    fits = lora(parts, 3)
    strange = {key.replace(UNET, "lora_unet_double_blocks_0"): v for key, v in fits.items()}
    narrow = {k: v[:, :-8].contiguous() if "down" in k else v for k, v in fits.items()}
    for name, tensors in (("fits", fits), ("strange", strange), ("narrow", narrow)):
        put(folders / "loras", f"{name}.safetensors", tensors)
    _, text = compared(parts, ONE, lora_files="fits\nstrange\nnarrow", strengths="1,0.5")
    lines = text.splitlines()[1:]
    assert len(lines) == 2
    assert lines[0].startswith("strange.safetensors: 3 of its keys mean nothing for this model")
    assert "e.g. lora_unet_double_blocks_0." in lines[0]
    assert lines[1].startswith("narrow.safetensors: 2 of its keys do not fit the size")


def test_names_are_those_of_lora_loader_or_below_output_atelier(folders: Path) -> None:
    one = {"x": torch.zeros(1)}
    for name in ("my_style-step9", "my_style-step10", "sub/my_style-a", "other[1]"):
        put(folders / "loras", f"{name}.safetensors", one)
    run = folders / "output/atelier/runs/foxes-1a2b"
    for name in ("lora/foxes-step00000001", "state/step00000001"):
        put(run, f"{name}.safetensors", one)
    put(folders / "output", "elsewhere.safetensors", one)
    put(folders / "output/atelier", "cache/latents.safetensors", one)
    (folders / "output/atelier/link.safetensors").symlink_to(
        folders / "output/elsewhere.safetensors"
    )

    def names(text: str) -> list[str]:
        return [file.name.removesuffix(".safetensors") for file in named_files(text)]

    assert names("") == names(" \n ") == []
    assert names("my_style-*") == ["my_style-step9", "my_style-step10"]
    assert names("*/my_style-?.safetensors\nmy_style-step10\n*") == [
        *("sub/my_style-a", "my_style-step10", "my_style-step9", "other[1]")
    ]
    assert names("models/loras/other[1]") == ["other[1]"]
    ours = "output/atelier/runs/foxes-1a2b/lora/foxes-step00000001"
    assert names("output/atelier/runs/*/lora/*") == names("output/atelier/runs/*/*/*") == [ours]
    assert names(f'"{folders}/{ours}.safetensors"') == [ours]
    assert names(str(folders / "loras/sub/my_style-a")) == ["sub/my_style-a"]
    for wrong in (
        *("output/elsewhere", "output/atelier/link", "output/atelier/cache/*", "my_style"),
        *("../output/elsewhere", "output/atelier/../elsewhere", f"{folders}/output/elsewhere"),
    ):
        with pytest.raises(AtelierError, match="lora_files: there is no file") as told:
            named_files(f"my_style-*\n{wrong}")
        assert f'"{wrong}"' in str(told.value) and "for example: " in str(told.value)


def test_what_cannot_be_drawn_is_said_before_anything_is(parts: Parts, folders: Path) -> None:
    (folders / "loras/broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    put(folders / "loras", "fits.safetensors", lora(parts, 3))
    for widgets, told in (
        ({"lora_files": "fits\nbroken"}, '"broken.safetensors" cannot be read'),
        ({"lora_files": "nowhere"}, 'there is no file "nowhere"'),
        ({"lora_files": ""}, "There is no LoRA to compare"),
        ({"lora_files": "fits", "strengths": "a lot"}, '"a" is no number'),
        ({"lora_files": "fits", "picture_size": 32}, "picture_size is 32"),
        ({"lora_files": "fits", "layout": "round"}, "layout is 'round'"),
        ({"lora_files": "fits", "strengths": ",".join(map(str, range(1, 101)))}, "400 are"),
    ):
        preview = replace(PREVIEW, sampler_name="euler")
        with pytest.raises(AtelierError, match=told):
            compared(Parts(None, None, None), preview, **widgets)
    with pytest.raises(AtelierError, match="sampler_name is 'none'"):
        compared(Parts(None, None, None), replace(PREVIEW, sampler_name="none"), lora_files="fits")


def test_it_runs_again_when_a_file_is_new(folders: Path) -> None:
    one = {"x": torch.zeros(1)}
    path = put(folders / "loras", "a-1.safetensors", one)
    prints = [CompareGrid.fingerprint_inputs(lora_files="a-*")]
    assert prints == [CompareGrid.fingerprint_inputs(lora_files="a-*", strengths="2")]
    path.write_bytes(path.read_bytes() + b" ")
    prints.append(CompareGrid.fingerprint_inputs(lora_files="a-*"))
    put(folders / "loras", "a-2.safetensors", one)
    folder_paths.filename_list_cache.pop("loras", None)
    prints.append(CompareGrid.fingerprint_inputs(lora_files="a-*"))
    prints.append(CompareGrid.fingerprint_inputs(lora_files="b-*"))
    assert len(set(prints)) == 4
