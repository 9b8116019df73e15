"""The demo's LoRA changes the style, and only because it was trained on that style.

The demo's base model paints emoji in three styles and has never seen the fourth, glossy one. The
LoRA is trained on 32 subjects in it. Of the 20 subjects that it was not trained on, its pictures
must lie nearer to the true glossy picture of the same subject than the base's do; those of a LoRA
at strength 0, or of one trained on other styles under the same captions, must not.

Nearer is measured in colour after a blur of one pixel (RMS over the picture, 0..1). That is fair
here because the styles draw a subject in nearly the same outline: what is left is how its areas
are filled, coloured and lit, and what is black. The blur forgives an edge that is off by a pixel.
"""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.stats import wilcoxon

import demo
from host import HostServer
from workflow import to_prompt

pytestmark = pytest.mark.slow

IMAGES = demo.ROOT / "demo" / "images"
SUBJECTS = sorted(path.stem for path in (IMAGES / "glossy" / "heldout").glob("*.png"))
SEEDS = 4
OTHER_STYLES = ("flat", "ink", "noto")
SHUFFLED = "shuffled"
SIGNIFICANT = 0.01

Picture = NDArray[np.float64]
"""[64, 64, 3] RGB, 0..1, on white."""


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostServer]:
    """A server with the demo's base model and pictures, as the demo command prepares it."""
    with HostServer(tmp_path_factory.mktemp("studio")) as server:
        demo.prepare(server)
        yield server


@pytest.fixture(scope="module")
def workflow(studio: HostServer) -> dict[str, Any]:
    return to_prompt(json.loads(demo.WORKFLOW.read_text("utf-8")), studio.object_info())


@pytest.fixture(scope="module")
def glossy_lora(studio: HostServer, workflow: dict[str, Any]) -> str:
    """The LoRA that the shipped workflow trains, by its name in models/loras."""
    return _train(studio, workflow, folder="glossy", prefix="style/glossy")


@pytest.fixture(scope="module")
def shuffled_lora(studio: HostServer, workflow: dict[str, Any]) -> str:
    """The same training on the same subjects and captions, each in one of the known styles."""
    choice = random.Random(0)
    folder = studio.base / "input" / SHUFFLED
    folder.mkdir()
    for caption in sorted((IMAGES / "glossy" / "train").glob("*.txt")):
        picture = IMAGES / "other" / choice.choice(OTHER_STYLES) / f"{caption.stem}.png"
        shutil.copy(picture, folder)
        shutil.copy(caption, folder)
    return _train(studio, workflow, folder=SHUFFLED, prefix="style/shuffled")


@pytest.fixture(scope="module")
def true_pictures(studio: HostServer) -> list[Picture]:
    """The held-out subjects in the glossy style, as the VAE paints them.

    Through the VAE, since nothing the model samples can be sharper than its decoder.
    """
    return _through_vae(studio, [IMAGES / "glossy" / "heldout" / f"{s}.png" for s in SUBJECTS])


@pytest.fixture(scope="module")
def base_distances(studio: HostServer, true_pictures: list[Picture]) -> NDArray[np.float64]:
    return _distances(studio, true_pictures, None, 1.0)


def test_the_lora_brings_pictures_nearer_to_the_style(
    studio: HostServer,
    true_pictures: list[Picture],
    base_distances: NDArray[np.float64],
    glossy_lora: str,
) -> None:
    distances = _distances(studio, true_pictures, glossy_lora, 1.0)
    assert _p_value(base_distances, distances) < SIGNIFICANT


def test_at_strength_zero_it_does_not(
    studio: HostServer,
    true_pictures: list[Picture],
    base_distances: NDArray[np.float64],
    glossy_lora: str,
) -> None:
    distances = _distances(studio, true_pictures, glossy_lora, 0.0)
    assert _p_value(base_distances, distances) >= SIGNIFICANT


def test_a_lora_of_shuffled_styles_does_not(
    studio: HostServer,
    true_pictures: list[Picture],
    base_distances: NDArray[np.float64],
    shuffled_lora: str,
) -> None:
    distances = _distances(studio, true_pictures, shuffled_lora, 1.0)
    assert _p_value(base_distances, distances) >= SIGNIFICANT


def _p_value(far: NDArray[np.float64], near: NDArray[np.float64]) -> float:
    """Wilcoxon's signed-rank test over the subjects, one-sided: is ``near`` smaller?"""
    if np.array_equal(far, near):
        return 1.0
    return float(wilcoxon(far, near, alternative="greater").pvalue)


def _distance(picture: Picture, true: Picture) -> float:
    """Of the picture or its mirror image: the base was trained on both and paints either."""
    blurred, mirrored, goal = (
        gaussian_filter(p, (1, 1, 0)) for p in (picture, picture[:, ::-1], true)
    )
    return min(float(np.sqrt(np.square(p - goal).mean())) for p in (blurred, mirrored))


def _train(server: HostServer, workflow: dict[str, Any], folder: str, prefix: str) -> str:
    """Run the workflow up to Save LoRA on another folder; the name is LoraLoader's."""
    graph = json.loads(json.dumps(workflow))
    by_type = {node["class_type"]: name for name, node in graph.items()}
    graph[by_type["AtelierLoadDataset"]]["inputs"]["folder"] = folder
    save = by_type["AtelierSaveLoRA"]
    graph[save]["inputs"] |= {"filename_prefix": prefix, "add_to_models_loras": True}
    server.queue(_needed_for(graph, save), timeout=1200).check()
    loras = server.base / "models" / "loras"
    (file,) = loras.glob(f"{prefix}*.safetensors")
    return file.relative_to(loras).as_posix()


def _needed_for(graph: dict[str, Any], node: str) -> dict[str, Any]:
    links = [value[0] for value in graph[node]["inputs"].values() if isinstance(value, list)]
    needed = {node: graph[node]}
    for link in links:
        needed |= _needed_for(graph, link)
    return needed


def _distances(
    server: HostServer, true_pictures: list[Picture], lora: str | None, strength: float
) -> NDArray[np.float64]:
    """One a held-out subject: the mean over its seeds, which are not independent of each other."""
    graph: dict[str, Any] = {
        "base": _node("CheckpointLoaderSimple", ckpt_name=demo.BASE_MODEL),
        "negative": _node("CLIPTextEncode", clip=["base", 1], text=""),
        "latent": _node("EmptyLatentImage", width=64, height=64, batch_size=SEEDS),
    }
    model, clip = ["base", 0], ["base", 1]
    if lora is not None:
        graph["lora"] = _node(
            "LoraLoader",
            model=model,
            clip=clip,
            lora_name=lora,
            strength_model=strength,
            strength_clip=strength,
        )
        model, clip = ["lora", 0], ["lora", 1]
    for i, subject in enumerate(SUBJECTS):
        caption = (IMAGES / "glossy" / "heldout" / f"{subject}.txt").read_text("utf-8").strip()
        text = f"glossy style, {caption}"
        graph[f"text{i}"] = _node("CLIPTextEncode", clip=clip, text=text)
        graph[f"sample{i}"] = _node(
            "KSampler",
            model=model,
            positive=[f"text{i}", 0],
            negative=["negative", 0],
            latent_image=["latent", 0],
            seed=i,
            steps=16,
            cfg=3.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        )
        graph[f"image{i}"] = _node("VAEDecode", samples=[f"sample{i}", 0], vae=["base", 2])
        graph[f"save{i}"] = _node("PreviewImage", images=[f"image{i}", 0])
    result = server.queue(graph, timeout=1200).check()
    return np.array(
        [
            np.mean([_distance(p, true) for p in _pictures(server, result.images(f"save{i}"))])
            for i, true in enumerate(true_pictures)
        ]
    )


def _through_vae(server: HostServer, files: list[Path]) -> list[Picture]:
    """True pictures, scaled to 64 px, encoded and decoded by the demo's VAE."""
    graph: dict[str, Any] = {"base": _node("CheckpointLoaderSimple", ckpt_name=demo.BASE_MODEL)}
    for i, file in enumerate(files):
        name = server.put_input(_at_64_px(file), f"true-{file.parent.name}-{file.stem}.png")
        graph[f"load{i}"] = _node("LoadImage", image=name)
        graph[f"latent{i}"] = _node("VAEEncode", pixels=[f"load{i}", 0], vae=["base", 2])
        graph[f"image{i}"] = _node("VAEDecode", samples=[f"latent{i}", 0], vae=["base", 2])
        graph[f"save{i}"] = _node("PreviewImage", images=[f"image{i}", 0])
    result = server.queue(graph, timeout=600).check()
    return [_pictures(server, result.images(f"save{i}"))[0] for i in range(len(files))]


def _at_64_px(file: Path) -> bytes:
    buffer = io.BytesIO()
    picture = Image.open(file).convert("RGB").resize((64, 64), Image.Resampling.LANCZOS)
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _pictures(server: HostServer, references: list[dict[str, str]]) -> list[Picture]:
    files = [Image.open(io.BytesIO(server.image(reference))) for reference in references]
    return [np.asarray(file.convert("RGB"), dtype=np.float64) / 255 for file in files]


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}
