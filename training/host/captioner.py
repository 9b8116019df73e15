"""A captioner under the eyes of the host's memory manager: others make room, then it goes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from importlib import metadata
from pathlib import Path

import comfy.model_management as mm
import comfy.model_patcher
import torch
from torch import nn

from ..cache import TensorCache, digest_of
from ..captioning.captioner import Writing, load_captioner
from ..captioning.describe import Captioned, Describe, ask, captioned, wanted
from ..captioning.folder import CaptionerFolder, captioner_folder
from ..captioning.wording import ExistingCaptions, phrases
from ..dataset.digests import ContentDigests
from ..dataset.samples import ImageDataset, Sample
from .progress import raise_if_cancelled

PICTURE_BYTES = 192 << 20
BEAM_BYTES = 96 << 20
"""What a picture, and each wording that is followed of it, takes beside the weights: estimates for
Florence-2 and BLIP in their large sizes. The host keeps 0.8 GB free at least."""


class Precision(str, Enum):
    """Numbers in which a captioner calculates."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


DTYPES = {
    Precision.FP32: torch.float32,
    Precision.BF16: torch.bfloat16,
    Precision.FP16: torch.float16,
}


def captioner_dtype(precision: Precision) -> torch.dtype:
    """With ``auto``, the smallest that the device is quick with."""
    if precision in DTYPES:
        return DTYPES[precision]
    device = mm.get_torch_device()
    if mm.is_device_cpu(device):
        return torch.float32
    if mm.should_use_bf16(device):
        return torch.bfloat16
    return torch.float16 if mm.should_use_fp16(device) else torch.float32


class _Held(nn.Module):
    """Models of transformers tell their device, and refuse to be told; the host tells."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.device = torch.device("cpu")


@contextmanager
def on_device(
    folder: CaptionerFolder, dtype: torch.dtype, writing: Writing, batch_size: int
) -> Iterator[Describe]:
    """A captioner on the host's device; afterwards none of it is there.

    Raises:
        AtelierError: see :func:`load_captioner`.
    """
    captioner = load_captioner(folder, dtype)
    patcher = comfy.model_patcher.ModelPatcher(
        _Held(captioner.network),
        load_device=mm.get_torch_device(),
        offload_device=torch.device("cpu"),
    )
    needed = batch_size * (PICTURE_BYTES + writing.num_beams * BEAM_BYTES)
    try:
        # Its layers are not the host's own, which may lie in part in RAM: whole or not at all.
        mm.load_models_gpu([patcher], memory_required=needed, force_full_load=True)
        yield lambda images: captioner.captions(images, writing, raise_if_cancelled)
    finally:
        patcher.detach()  # also where the traceback of an error holds on to the model


def caption_dataset(
    path: Path,
    dataset: ImageDataset,
    writing: Writing,
    precision: Precision,
    batch_size: int,
    remove_phrases: str,
    existing: ExistingCaptions,
    cache: Path,
    told: Callable[[int, int, Sample, str], None],
) -> Captioned:
    """Caption a dataset; what was ever said of a picture in the same way is not asked again.

    Args:
        path: of the captioner.
        remove_phrases: a phrase a line, taken off the beginnings of captions.
        cache: folder for answers; may be shared and may be deleted.
        told: called with (pictures done, in all, the picture, what was said of it).
    """
    folder = captioner_folder(path)
    dtype = captioner_dtype(precision)
    samples = wanted(dataset, existing)
    digests = ContentDigests(cache)
    identity = digest_of(
        folder.digest(digests.of), *writing, str(dtype), metadata.version("transformers")
    )
    done = itertools.count(1)
    try:
        answers = ask(
            samples,
            identity,
            TensorCache(cache / "captions"),
            digests,
            lambda: on_device(folder, dtype, writing, batch_size),
            batch_size,
            lambda sample, text: told(next(done), len(samples), sample, text),
            raise_if_cancelled,
        )
    finally:
        mm.soft_empty_cache()
    return captioned(dataset, answers, phrases(remove_phrases), existing)
