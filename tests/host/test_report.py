"""The dataset report with the host's own tokenizers, image encoders and progress bar."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.text_encoders.flux
import comfy.text_encoders.z_image
import comfy.utils
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPTokenizer

from lora_atelier.nodes.dataset.report import DatasetReport
from lora_atelier.nodes.graph.outputs import cache_folder
from lora_atelier.training.dataset.pictures import ImageFile, ImagePixels
from lora_atelier.training.dataset.samples import ImageDataset, Role
from lora_atelier.training.dataset.token_counts import EncoderTokens
from lora_atelier.training.host.tokens import token_counts, tokenize
from lora_atelier.training.host.vision import BATCH, image_embeddings
from reported import sample, tiles
from tiny_training import load_parts
from tiny_vision import tiny_vision

CAPTIONS = ("", "a red fox", "saber (fate), 1girl, blue-eyed :)", "it's 3.5 fish, über naïve")
LONG = ", ".join(f"tag{i}" for i in range(60))


class Clip:
    """What a CLIP is to the report: a tokenizer of the host."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def tokenize(self, text: str, return_word_ids: bool = False, **options: Any) -> Any:
        return self.tokenizer.tokenize_with_weights(text, return_word_ids, **options)


@pytest.fixture(scope="module")
def clip(tiny_checkpoint: Path) -> Any:
    return load_parts(tiny_checkpoint).clip


@pytest.fixture(scope="module")
def reference() -> CLIPTokenizer:
    """CLIP's vocabulary through transformers."""
    return CLIPTokenizer.from_pretrained(Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer")


def counted(clip: Any, *captions: str) -> dict[str, EncoderTokens]:
    return {tokens.encoder: tokens for tokens in token_counts(clip, captions, lambda: None)}


def test_tokens_are_those_of_transformers(clip: Any, reference: CLIPTokenizer) -> None:
    captions = (*CAPTIONS, LONG)
    found = counted(clip, *captions)["l"]
    by_hand = [len(reference(text, add_special_tokens=False)["input_ids"]) for text in captions]
    assert list(found.counts) == by_hand
    assert by_hand[0] == 0 < by_hand[1] == 3


def test_comfyui_splits_clip_at_75_and_cuts_nothing(clip: Any, reference: CLIPTokenizer) -> None:
    found = counted(clip, "a fox", LONG)["l"]
    assert (found.limit, found.cuts, found.over) == (75, False, [1])
    passes = clip.tokenize(LONG)["l"]
    assert found.passes(found.counts[1]) == len(passes) == -(-found.counts[1] // 75) > 2
    ((place, beyond),) = found.beyond
    before = LONG.removesuffix(beyond).strip()
    ids = [reference(text, add_special_tokens=False)["input_ids"] for text in (before, beyond)]
    assert place == 1
    assert len(ids[0]) <= 75 < len(ids[0]) + len(reference(beyond.split()[0])["input_ids"]) - 2
    assert sum(map(len, ids)) == found.counts[1]


def test_a_caption_of_exactly_75_tokens_fits_and_one_more_does_not(clip: Any) -> None:
    found = counted(clip, " ".join(["fox"] * 75), " ".join(["fox"] * 76))["l"]
    assert found.counts == (75, 76)
    assert found.beyond == ((1, "fox"),)


def test_every_encoder_of_a_model_is_asked() -> None:
    sdxl = counted(Clip(comfy.sdxl_clip.SDXLTokenizer()), "a red fox", LONG)
    assert set(sdxl) == {"g", "l"}
    assert sdxl["g"].counts == sdxl["l"].counts
    flux = counted(Clip(comfy.text_encoders.flux.FluxTokenizer()), "a red fox", LONG)
    assert (flux["l"].limit, flux["t5xxl"].limit) == (75, None)
    assert flux["t5xxl"].over == []
    assert flux["t5xxl"].counts[0] > 0


def test_the_template_of_a_language_model_is_no_part_of_the_caption() -> None:
    z_image = Clip(comfy.text_encoders.z_image.ZImageTokenizer())
    found = counted(z_image, "", "a red fox", "saber (fate)")["qwen3_4b"]
    bare = z_image.tokenizer.qwen3_4b.tokenizer
    by_hand = [len(bare(text)["input_ids"]) for text in ("", "a red fox", "saber (fate)")]
    assert list(found.counts) == by_hand
    assert by_hand[0] == 0 < by_hand[1] < 5


def test_an_encoder_that_cuts_is_found_out_and_what_it_cuts_is_shown() -> None:
    class Cutting(CLIPTokenizer):
        """As diffusers calls it."""

        def __call__(self, text: str, **options: Any) -> Any:
            return super().__call__(text, truncation=True, max_length=22, **options)

    class Tokenizer(comfy.sd1_clip.SDTokenizer):
        def __init__(self, **options: Any) -> None:
            super().__init__(tokenizer_class=Cutting, **options)

    tokenizer = comfy.sd1_clip.SD1Tokenizer(tokenizer=Tokenizer)
    found = counted(Clip(tokenizer), " ".join(["fox"] * 20), " ".join(["fox"] * 23) + " end")["l"]
    assert (found.limit, found.cuts) == (20, True)
    assert found.counts == (20, 24)
    assert found.beyond == ((1, "fox fox fox end"),)


@pytest.mark.parametrize(
    "text", [*CAPTIONS, r"saber \(fate\) (x:1.3)", "((a)) [b] \\ ()", "a " * 72 + "(b) c"]
)
def test_text_is_tokenized_as_without_weights(clip: Any, text: str) -> None:
    assert tokenize(clip, text) == clip.tokenize(text, disable_weights=True)
    assert {weight for passes in tokenize(clip, text)["l"] for _, weight in passes} == {1.0}


def test_counting_can_be_cancelled(clip: Any) -> None:
    def cancel() -> None:
        raise comfy.model_management.InterruptProcessingException

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        token_counts(clip, ["a fox"], cancel)


def as_image(picture: ImagePixels) -> Tensor:
    return torch.from_numpy(picture.pixels.astype(np.float32) / 255).unsqueeze(0)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["clip_vision_model", "siglip_vision_model"])
def test_embeddings_are_those_of_clip_vision_encode(tmp_path: Path, kind: str) -> None:
    vision = tiny_vision(tmp_path, kind)
    samples = [sample(i, size=(64, 64)) for i in range(BATCH + 3)]
    ticks: list[None] = []
    found = image_embeddings(vision, samples, lambda: ticks.append(None))
    assert found.shape == (len(samples), 24 if kind == "clip_vision_model" else 32)
    assert found.dtype == torch.float32
    assert len(ticks) == len(samples)
    for one, row in zip(samples, found, strict=True):
        alone = vision.encode_image(as_image(one.image))["image_embeds"]
        alone = alone.mean(dim=1) if alone.ndim == 3 else alone
        assert torch.allclose(row, alone[0], atol=1e-5)


@torch.inference_mode()
def test_of_a_long_picture_the_middle_is_seen_as_the_host_crops_it(tmp_path: Path) -> None:
    vision = tiny_vision(tmp_path)
    wide = replace(sample(0), image=tiles(0, 400, 160))
    (ours,) = image_embeddings(vision, [wide], lambda: None)
    theirs = vision.encode_image(as_image(wide.image))["image_embeds"][0]
    squeezed = vision.encode_image(as_image(wide.image), crop=False)["image_embeds"][0]
    assert torch.cosine_similarity(ours, theirs, dim=0) > 0.98
    assert torch.cosine_similarity(ours, squeezed, dim=0) < 0.95


@pytest.fixture
def progress_hook() -> Iterator[list[int]]:
    """The values that the node's bar was set to."""
    values: list[int] = []
    comfy.utils.set_progress_bar_global_hook(
        lambda value, total, preview, node_id=None: values.append((value, total))
    )
    yield values
    comfy.utils.set_progress_bar_global_hook(None)


@torch.inference_mode()
def run(dataset: ImageDataset, clip: Any = None, vision: Any = None) -> tuple[str, Tensor, Any]:
    output = DatasetReport.execute(dataset, 2, 1, clip=clip, clip_vision=vision)
    return (*output.args, output.ui)


def test_the_node_gives_text_and_picture_with_everything_wired(
    clip: Any, tmp_path: Path, progress_hook: list
) -> None:
    samples = [sample(i, f"sks, {LONG if i == 2 else f'thing {i}'}") for i in range(4)]
    samples.append(sample(9, "sks, held out", role=Role.VALIDATION))
    dataset = ImageDataset(tuple(samples), "little set")
    text, picture, preview = run(dataset, clip, tiny_vision(tmp_path))
    assert text.startswith("little set: 5 pictures, 4 to train on, 1 for validation\n")
    assert "1 caption has more than 75 tokens: ComfyUI reads them in several passes" in text
    assert "spread in the eyes of clip_vision: 0." in text
    assert "9.png" not in text.partition("spread in")[2]
    assert picture.shape == (1, 1200, 1600, 3)
    assert len(preview.as_dict()["images"]) == 1
    values, totals = zip(*progress_hook, strict=True)
    assert set(totals) == {5 + 5 + 5 + 4}
    assert values[-1] == totals[0]


def test_the_node_runs_with_the_dataset_alone_and_names_what_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    Image.fromarray(tiles(3).pixels).save(path)
    path.write_bytes(path.read_bytes()[:500])
    broken = replace(sample(1), image=ImageFile(str(path), (256, 256)), name="broken.png")
    text, picture, _ = run(ImageDataset((sample(0), broken)))
    assert "1 file is left out as broken" in text
    assert '"broken.png" is damaged or cut short' in text
    assert str(tmp_path) not in text
    assert "TOKENS\nnot counted" in text
    assert picture.isfinite().all()


def test_cancel_ends_the_report_and_keeps_the_measurements(progress_hook: list) -> None:
    def hook(value: int, total: int, preview: Any, node_id: Any = None) -> None:
        if value == 3:
            raise comfy.model_management.InterruptProcessingException

    comfy.utils.set_progress_bar_global_hook(hook)
    before = set(cache_folder().rglob("*.safetensors"))
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(ImageDataset(tuple(sample(100 + i) for i in range(6))))
    assert len(set(cache_folder().rglob("*.safetensors")) - before) == 3
