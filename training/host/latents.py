"""Pictures through the VAE of the graph, each view once, kept on disk."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..ahead import made_ahead
from ..cache import MemoryCache, TensorCache, digest_of
from ..dataset.digests import ContentDigests, content_digest
from ..dataset.fit import LatentKind
from ..dataset.pictures import Picture, fitted_mask, fitted_pixels, open_picture
from ..dataset.samples import ImageDataset, Mask, Problem, Role, Sample
from ..errors import AtelierError, FileChanged, require
from ..random_streams import global_stream
from ..runs.examples import HELD_OUT, EncodedImage, View, items, placement_of, views
from .digests import vae_digest
from .encoders import gone

Tick = Callable[[], None]

VERSION = 1
"""Part of every key: raise it when the same picture would give other numbers."""

THREADS = min(4, os.cpu_count() or 1)
"""Pictures that are decoded at a time, while the VAE works."""

AHEAD = 2 * THREADS
"""Views that are decoded before the VAE gets to them, which bounds the memory."""

log = logging.getLogger("lora_atelier")


class CachedImages(Mapping[View, EncodedImage]):
    """Pictures as the VAE gave them, read from disk when they are asked for."""

    def __init__(
        self, cache: TensorCache | MemoryCache, keys: Mapping[View, str], base: Any
    ) -> None:
        self._cache, self._base = cache, base
        self._keys = {view: bytes.fromhex(key) for view, key in keys.items()}

    @torch.inference_mode(False)
    @torch.no_grad()
    def __getitem__(self, view: View) -> EncodedImage:
        entry = self._cache.read(self._keys[view].hex())
        if entry is None:
            raise gone(self._cache)
        latent = self._base.process_latent_in(entry[0]["latent"].unsqueeze(0))[0]
        return EncodedImage(latent, entry[0].get("mask"))

    def __iter__(self) -> Iterator[View]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def cached_images(
    vae: Any, base: Any, dataset: ImageDataset, folder: Path, tick: Tick
) -> tuple[ImageDataset, CachedImages]:
    """Encode what the cache does not hold; the VAE is not loaded when it holds all.

    Args:
        base: the host's model (``patcher.model``), which knows its latent format.
        folder: of the whole cache.
        tick: called twice a sample: when it was looked for, and when it is there.

    Returns:
        The dataset without the pictures that turned out to be broken and may be skipped, and the
        views of what is left.

    Raises:
        AtelierError: a picture that may not be skipped is broken, or none is left to train on.
    """
    _require_whole_steps(vae, dataset)
    encoder = vae_digest(vae)
    if encoder is None:
        log.warning(
            "vae: what it makes cannot be told, so latents are held in memory, for one run."
        )
    cache = MemoryCache() if encoder is None else TensorCache(folder / "latents")
    while True:
        filling = _Filling(vae, base, dataset, cache, ContentDigests(folder))
        try:
            filling.look_up(encoder or "", tick)
            filling.encode(tick)
        finally:
            filling.digests.save()
        if not filling.broken:
            return dataset, CachedImages(cache, filling.keys, base)
        # Other regularisation pictures may take the place of those that are left out: once more.
        dataset = filling.sound()


def _require_whole_steps(vae: Any, dataset: ImageDataset) -> None:
    """The VAE would cut the rest of a side away, and the mask with it, but for another part.

    Raises:
        AtelierError: a picture trains at a size that is no multiple of the VAE's steps.
    """
    steps = getattr(vae, "spacial_compression_encode", lambda: 8)()
    held_out = {placement_of(s, HELD_OUT).size for s in dataset.with_role(Role.VALIDATION)}
    for width, height in sorted(held_out.union(items(dataset).buckets)):
        require(
            width % steps == 0 and height % steps == 0,
            f"vae: it works in steps of {steps} px, but pictures are to train at {width}×{height} "
            f"px. On Fit Images, choose bucket_reso_steps of {steps} or more and a resolution that "
            f"is a multiple of {steps}.",
        )


class _Job(NamedTuple):
    """What is still to be encoded of one sample."""

    index: int
    sample: Sample
    content: list[str]
    missing: dict[str, View]
    """Key -> view; views that look the same have one key."""


class _Pixels(NamedTuple):
    """One view, ready for the VAE."""

    key: str
    pixels: Tensor
    """[H, W, 3] float32, 0..1."""
    mask: Tensor | None
    """[H, W] float32, 0..1."""


class _Filling:
    """One dataset on its way into the cache."""

    def __init__(
        self,
        vae: Any,
        base: Any,
        dataset: ImageDataset,
        cache: TensorCache | MemoryCache,
        digests: ContentDigests,
    ) -> None:
        self.vae, self.base, self.dataset = vae, base, dataset
        self.cache, self.digests = cache, digests
        self.keys: dict[View, str] = {}
        self.jobs: list[_Job] = []
        self.broken: dict[int, Problem] = {}

    def look_up(self, encoder: str, tick: Tick) -> None:
        """Find the entries that are there, and list those that are to be made."""
        waiting: set[str] = set()
        for index, found in _by_sample(views(self.dataset)).items():
            sample = self.dataset.samples[index]
            try:
                content = _content(sample, self.digests.of)
            except AtelierError as error:
                self._leave_out(index, error)
                tick()
                tick()
                continue
            keys = {view: _key(encoder, sample, content, view) for view in found}
            self.keys |= keys
            missing = {
                key: view
                for view, key in keys.items()
                if key not in waiting and not self._is_there(key)
            }
            waiting |= missing.keys()  # another picture may have the same content
            if missing:
                self.jobs.append(_Job(index, sample, content, missing))
            else:
                tick()
            tick()

    def _is_there(self, key: str) -> bool:
        entry = self.cache.read(key)
        if entry is not None:
            self._require_channels(entry[0]["latent"])
        return entry is not None

    def encode(self, tick: Tick) -> None:
        """Make what is missing, decoding the next pictures while the VAE works."""
        left = {job.index: len(job.missing) for job in self.jobs}
        with closing(made_ahead(self.jobs, _decoded, THREADS, AHEAD)) as ready:
            for job, made in ready:
                if isinstance(made, AtelierError):
                    self._leave_out(job.index, made)
                    tick()
                    continue
                self.cache.write(made.key, self._encoded(job.sample, made))
                left[job.index] -= 1
                if left[job.index] == 0:
                    tick()

    def _encoded(self, sample: Sample, view: _Pixels) -> dict[str, Tensor]:
        """What is kept of a view: the latent as the VAE gives it, and the mask at its size."""
        device = getattr(self.vae, "device", torch.device("cpu"))
        # The same picture must give the same latent, in whatever order pictures come.
        with _drawing(self.vae, sample.fit.latents), global_stream(device, 0, "latent", view.key):
            latent = self.vae.encode(view.pixels.unsqueeze(0))[0].float().cpu()
        require(
            bool(latent.isfinite().all()),
            f'vae: it gives numbers that are not finite for "{sample.name}". Its precision is too '
            "low: start ComfyUI with --fp32-vae or --bf16-vae, or use a fixed VAE.",
        )
        self._require_channels(latent)
        if view.mask is None:
            return {"latent": latent}
        return {"latent": latent, "mask": mask_of_latent(view.mask, latent)}

    def _require_channels(self, latent: Tensor) -> None:
        wanted = self.base.latent_format.latent_channels
        require(
            len(latent) == wanted,
            f"vae: its latents have {len(latent)} channels, but this model works with {wanted}. "
            "Wire the VAE that belongs to the model.",
        )

    def _leave_out(self, index: int, error: AtelierError) -> None:
        sample = self.dataset.samples[index]
        for picture in _files(sample):
            self.digests.forget(picture)
        if not sample.may_be_skipped or isinstance(error, FileChanged):
            raise error
        log.warning("Left out: %s", error)
        self.broken[index] = Problem(sample.name, _shown(error, sample))

    def sound(self) -> ImageDataset:
        """The dataset without the broken pictures, which its problems name instead."""
        problems = tuple(self.broken[index] for index in sorted(self.broken))
        samples = self.dataset.samples
        kept = tuple(s for i, s in enumerate(samples) if i not in self.broken)
        require(
            any(sample.role is Role.TRAIN for sample in kept),
            f"dataset: none of its pictures can be used. {problems[0].reason}",
        )
        return replace(self.dataset, samples=kept, problems=(*self.dataset.problems, *problems))


def _by_sample(all_views: Iterable[View]) -> dict[int, list[View]]:
    grouped: dict[int, list[View]] = {}
    for view in all_views:
        grouped.setdefault(view.sample, []).append(view)
    return grouped


def _files(sample: Sample) -> list[Picture]:
    """What the views of a sample are made of: the picture, and its mask if that lies apart."""
    apart = [] if sample.mask is None or sample.mask is Mask.ALPHA else [sample.mask]
    return [sample.image, *apart]


def _shown(error: AtelierError, sample: Sample) -> str:
    """The message without the folder: what a node shows is saved with the graph."""
    names = {getattr(p, "path", ""): Path(getattr(p, "path", "")).name for p in _files(sample)}
    names[getattr(sample.image, "path", "")] = sample.name
    text = str(error)
    for path in filter(None, names):
        text = text.replace(path, names[path])
    return text


def _content(sample: Sample, digest: Callable[[Picture], str]) -> list[str]:
    """Digests of everything that a view of the sample is made of."""
    kind = "none" if sample.mask is None else "alpha" if sample.mask is Mask.ALPHA else "file"
    return [kind, *(digest(picture) for picture in _files(sample))]


def _key(encoder: str, sample: Sample, content: list[str], view: View) -> str:
    # The geometry itself, not the options it came from: other options may give the same pixels.
    placement = astuple(placement_of(sample, view.variant))
    fit = sample.fit
    return digest_of(VERSION, "image", encoder, content, placement, fit.background, fit.latents)


def _decoded(job: _Job) -> Iterator[tuple[_Job, _Pixels | AtelierError]]:
    """The missing views of a picture, which is decoded once; of a broken one, its error."""
    try:
        image = open_picture(job.sample.image)
        mask = opened_mask(job.sample, image)
        require_some(mask, job.sample)
        _require_unchanged(job, image.size)
    except AtelierError as error:
        yield job, error
        return
    for key, view in job.missing.items():
        placement = placement_of(job.sample, view.variant)
        pixels = fitted_pixels(image, placement, job.sample.fit.background)
        yield job, _Pixels(key, pixels, None if mask is None else fitted_mask(mask, placement))


def mask_of_latent(mask: Tensor, latent: Tensor) -> Tensor:
    """A mask [H, W] of the pixels at the size of their latent [C, …, h, w]: means of areas."""
    size = latent.shape[-2:]
    return torch.nn.functional.interpolate(mask[None, None], size, mode="area")[0, 0]


def opened_mask(sample: Sample, image: Any) -> Any:
    """A picture of the size of ``image``; None where there is no mask."""
    if sample.mask is None:
        return None
    if sample.mask is Mask.ALPHA:
        return image if image.mode == "RGBA" else None
    mask = open_picture(sample.mask)
    return (mask if mask.size == image.size else mask.resize(image.size)).convert("L")


def require_some(mask: Any, sample: Sample) -> None:
    """A mask that hides everything would make every look at its picture a wasted step."""
    if mask is not None:
        grey = mask.getchannel("A") if mask.mode == "RGBA" else mask
        require(
            grey.getextrema()[1] > 0,
            f'"{sample.name}" has a mask that is black all over (or it is all transparent), so '
            "nothing of it would count. White counts: mend the mask or take the picture out.",
        )


def _require_unchanged(job: _Job, size: tuple[int, int]) -> None:
    """What was decoded must be what the keys say, or an entry would lie under a wrong key."""
    sample = job.sample
    same = size == sample.image.size and _content(sample, content_digest) == job.content
    if not same:
        raise FileChanged(
            f'"{getattr(sample.image, "path", sample.name)}" or its mask was changed while the run '
            "was being prepared. Queue again."
        )


@contextmanager
def _drawing(vae: Any, kind: LatentKind) -> Iterator[None]:
    """Let the VAE draw from its distribution, or take the middle of it; many VAEs have none."""
    model = getattr(vae, "first_stage_model", None)
    found = [
        (module, module.sample)
        for module in (model.modules() if isinstance(model, nn.Module) else ())
        if isinstance(getattr(module, "sample", None), bool)
    ]
    for module, _ in found:
        module.sample = kind is LatentKind.SAMPLE
    try:
        yield
    finally:
        for module, before in found:
            module.sample = before
