"""A dataset of pictures that the graph made. They stay in memory, 8 bits a channel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import AtelierError, require
from .buckets import Size
from .fit import FitOptions
from .pictures import ImagePixels, same_shape
from .samples import ImageDataset, Role, Sample, require_sample_numbers
from .tags import join_caption

Tick = Callable[[], None]


def dataset_from_images(
    images: Sequence[Tensor],
    captions: Sequence[str],
    masks: Sequence[Tensor] = (),
    *,
    name: str = "images",
    resolution: int = 512,
    num_repeats: int = 1,
    class_tokens: str = "",
    source: str = "",
    license: str = "",
    role: Role = Role.TRAIN,
    loss_weight: float = 1.0,
    tick: Tick = lambda: None,
) -> ImageDataset:
    """One sample a picture, named ``<name>_0001.png`` and so on.

    Args:
        images: batches [B, H, W, 3 or 4] 0..1, ComfyUI's IMAGE; sizes may differ between batches.
        captions: one for all pictures, one a picture, or one text with a line a picture.
        masks: none, one for all pictures or one a picture: batches [B, H, W] 0..1, 1 = counts in
            the loss. A mask of another size is scaled to its picture.
        tick: called after each picture; may raise to cancel.

    Raises:
        AtelierError: the counts differ, a picture holds NaN, a mask has another shape than its
            picture or leaves nothing to learn from.
    """
    require_sample_numbers(num_repeats, loss_weight)
    fit = FitOptions(resolutions=(resolution,))
    pictures = [_picture(pixels, place, tick) for place, pixels in _numbered(images)]
    require(len(pictures) > 0, "images: the batch is empty. Wire at least one picture.")
    texts = [join_caption(class_tokens, text) for text in captions_for(len(pictures), captions)]
    fitted = _masks_for(pictures, [mask for _, mask in _numbered(masks)])
    name = name.strip() or "images"
    return ImageDataset(
        tuple(
            Sample(
                picture,
                f"{name}_{place:04}.png",
                (text,),
                num_repeats,
                role,
                loss_weight,
                mask,
                source,
                license,
                fit,
                class_tokens=class_tokens.strip(),
            )
            for place, (picture, text, mask) in enumerate(
                zip(pictures, texts, fitted, strict=True), start=1
            )
        ),
        name,
    )


def captions_for(pictures: int, texts: Sequence[str]) -> list[str]:
    """One caption a picture, each on one line.

    Several texts are taken as they come. Of a single text, each line is a caption if there are as
    many lines as pictures; a single line, and the text of a single picture, are for all.

    Raises:
        AtelierError: neither one nor as many as pictures; gives both numbers.
    """
    if len(texts) == 1 and pictures > 1:
        lines = next(
            (lines for lines in _ways_to_split(texts[0]) if len(lines) == pictures),
            texts[0].strip().splitlines() or [""],
        )
    else:
        lines = list(texts)
    if len(lines) == 1:
        lines = lines * pictures
    require(
        len(lines) == pictures,
        f"captions: there are {len(lines)} for {pictures} pictures. Give one for all of them, or "
        "one for each: a line each, or a list of texts.",
    )
    return [" ".join(line.split()) for line in lines]


def _ways_to_split(text: str) -> tuple[list[str], list[str]]:
    return text.splitlines(), text.strip().splitlines()


def _numbered(batches: Sequence[Tensor]) -> list[tuple[int, Tensor]]:
    """The members of all batches in order, counted from 1."""
    return list(enumerate((member for batch in batches for member in batch), start=1))


def _picture(pixels: Tensor, place: int, tick: Tick) -> ImagePixels:
    require(
        pixels.ndim == 3 and pixels.shape[-1] in (3, 4) and pixels.numel() > 0,
        f"images: picture {place} has the shape {tuple(pixels.shape)}. An IMAGE of height, width "
        "and 3 or 4 channels (RGB, or RGB and alpha) is needed.",
    )
    if not bool(pixels.isfinite().all()):
        raise AtelierError(
            f"images: picture {place} holds values that are no numbers (NaN). A VAE in fp16 is the "
            "usual cause: start ComfyUI with --fp32-vae, or use a VAE made for fp16."
        )
    picture = ImagePixels(_eight_bits(pixels))
    tick()
    return picture


def _eight_bits(values: Tensor) -> np.ndarray:
    """0..1 -> 0..255 as ComfyUI's own Save Image, but rounded to the nearest."""
    scaled = values.detach().to("cpu", torch.float32).clamp(0, 1).mul(255).round()
    return np.ascontiguousarray(scaled.to(torch.uint8).numpy())


def _masks_for(
    pictures: Sequence[ImagePixels], masks: Sequence[Tensor]
) -> list[ImagePixels | None]:
    if not masks:
        return [None] * len(pictures)
    require(
        len(masks) in (1, len(pictures)),
        f"masks: there are {len(masks)} for {len(pictures)} pictures. Give one for all of them, or "
        "one for each.",
    )
    each = list(masks) * len(pictures) if len(masks) == 1 else masks
    return [
        _mask(mask, picture.size, place)
        for place, (mask, picture) in enumerate(zip(each, pictures, strict=True), start=1)
    ]


def _mask(mask: Tensor, size: Size, place: int) -> ImagePixels:
    require(
        mask.ndim == 2 and bool(mask.isfinite().all()),
        f"masks: mask {place} has the shape {tuple(mask.shape)} or holds values that are no "
        "numbers. A MASK of height and width is needed.",
    )
    values = _eight_bits(mask)
    # Load Image gives a black mask of 64×64 px for every picture without transparency.
    require(
        bool(values.any()),
        f"masks: mask {place} is black all over, so nothing of its picture would count in the "
        "loss. White counts: put Invert Mask before it, or leave masks unconnected.",
    )
    height, width = values.shape
    require(
        same_shape((width, height), size),
        f"masks: mask {place} is {width}×{height} px, its picture {size[0]}×{size[1]} px. A mask "
        "must have the shape of its picture.",
    )
    if (width, height) != size:
        scaled = Image.fromarray(values).resize(size, Image.Resampling.BILINEAR)
        values = np.asarray(scaled)
    return ImagePixels(values)
