"""From the wires of the graph to a run that is ready to train."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..cache import TensorCache
from ..dataset.digests import ContentDigests
from ..dataset.samples import ImageDataset, Role, shorten
from ..errors import require
from ..network.build import describe_network
from ..runs.examples import (
    HELD_OUT,
    Conditioning,
    EncodedDataset,
    EncodedImage,
    View,
    captions,
    items,
    placement_of,
)
from ..runs.identity import dataset_digest, run_identity
from ..runs.run import Ingredients, TrainingRun, TrainingSpec, TrainingState, start
from .base_facts import base_facts
from .diffusion_model import HostDiffusionModel
from .digests import clip_digest, model_digest, vae_digest
from .encoders import cached_captions
from .latents import cached_images
from .progress import HostProgress
from .ready_conditioning import (
    conditioning_notes,
    conditioning_of_pictures,
    kept_conditioning,
    require_understood,
)
from .ready_latents import has_vae, kept_latents, latents_note, latents_of_pictures
from .text_encoder import HostTextEncoder

NO_CLIP = (
    "clip: this checkpoint holds no text encoder, or none is wired. Load one and wire it, or wire "
    "conditioning that is ready."
)
NO_VAE = (
    "vae: this checkpoint holds no VAE, or none is wired. Load one and wire it, or wire latents "
    "that are ready."
)


class GraphModels(NamedTuple):
    """What the graph gave."""

    model: Any
    clip: Any
    vae: Any


class Ready(NamedTuple):
    """What the graph gave of what CLIP and VAE would make of the dataset; None = nothing."""

    conditioning: Any = None
    """CONDITIONING: see :mod:`training.host.ready_conditioning`."""
    latents: Any = None
    """LATENT: see :mod:`training.host.ready_latents`."""

    def notes(self, models: GraphModels, dataset: ImageDataset) -> list[str]:
        """What a person should know of it, a sentence each."""
        notes = []
        if self.conditioning is not None:
            notes += conditioning_notes(self.conditioning, dataset)
        if self.latents is not None:
            notes.append(latents_note(self.latents, dataset, models.model.model, models.vae))
        return notes


NOTHING = Ready()


def describe(model: Any, clip: Any, spec: TrainingSpec) -> str:
    """Layers, parameters and rank of the network on these models, before anything is encoded.

    Raises:
        AtelierError: the network, or the objective, does not fit the model.
    """
    layers = trained_models(model, clip, spec).layers(spec.network)
    return describe_network(layers, spec.network)


def start_run(
    model: Any,
    clip: Any,
    vae: Any,
    dataset: ImageDataset,
    spec: TrainingSpec,
    cache: Path,
    ready: Ready = NOTHING,
) -> TrainingState:
    """Encode what the cache does not hold, and build the network: the state at step 0.

    Args:
        clip, vae: may be None where ``ready`` has what they would make.
        cache: folder for latents and encoded captions; may be shared and may be deleted.

    Raises:
        AtelierError: something is missing, does not fit together, or cannot be trained.
    """
    from_graph = GraphModels(model, clip, vae)
    if ready.latents is None:
        require(has_vae(vae), NO_VAE)
    if ready.conditioning is None:
        require(clip is not None, NO_CLIP)
    require(
        clip is not None or not spec.objective.prior.prompts,
        f'class_prompt "{spec.objective.prior.class_prompt}" (Prior Preservation) must be read by '
        "a text encoder, though conditioning is ready. Wire clip.",
    )
    diffusion_model = trained_models(model, clip, spec)
    diffusion_model.compute_dtype(spec.mixed_precision)  # refuses before the long work
    diffusion_model.log_notes()
    items(dataset)  # likewise: there must be something to train on
    own, own_digest = _own_conditioning(diffusion_model, dataset, spec, ready, cache)
    progress = HostProgress(2 * len(dataset.samples) + len(_texts(dataset, spec, ready)))
    # Pictures first: a damaged one is more likely than a bad caption.
    dataset, images, latents_digest = _images(from_graph, dataset, ready, cache, progress)
    texts = _texts(dataset, spec, ready)  # of what is left of it
    if spec.network.trains_text_encoders:  # which read each anew at every step
        conditioning: Mapping[str, Conditioning] = {text: text for text in texts}
    elif texts:
        conditioning = cached_captions(clip, texts, TensorCache(cache / "text"), progress.tick)
    else:
        conditioning = {}
    ready_digests = Ingredients(conditioning=own_digest, latents=latents_digest)
    ingredients = _ingredients(from_graph, dataset, ready_digests, bool(texts), cache)
    return start(
        TrainingRun(
            spec,
            EncodedDataset(dataset, images, ChainMap(own, conditioning) if own else conditioning),
            diffusion_model,
            ingredients,
            run_identity(ingredients, spec),
            from_graph,
            base_facts(model),
        )
    )


def _own_conditioning(
    model: HostDiffusionModel,
    dataset: ImageDataset,
    spec: TrainingSpec,
    ready: Ready,
    cache: Path,
) -> tuple[Mapping[str, Conditioning], str]:
    """(what is ready for each picture, a digest of it); nothing where captions are to be read."""
    if ready.conditioning is None:
        require_captions(dataset)
        return {}, ""
    own = conditioning_of_pictures(ready.conditioning, dataset, spec.network)
    placement = placement_of(dataset.samples[0], HELD_OUT)
    require_understood(model, spec.mixed_precision, own.values(), placement)
    return kept_conditioning(own, TensorCache(cache / "text"))


def _images(
    models: GraphModels, dataset: ImageDataset, ready: Ready, cache: Path, progress: HostProgress
) -> tuple[ImageDataset, Mapping[View, EncodedImage], str]:
    """(the dataset without broken pictures, its views, a digest of what was ready of them)."""
    base = models.model.model
    if ready.latents is None:
        return *cached_images(models.vae, base, dataset, cache, progress.tick), ""
    latents = latents_of_pictures(ready.latents, dataset, base, models.vae)
    images, digest = kept_latents(latents, dataset, base, TensorCache(cache / "latents"))
    return dataset, images, digest


def _ingredients(
    models: GraphModels, dataset: ImageDataset, ready: Ingredients, reads: bool, cache: Path
) -> Ingredients:
    """Digests of what the run is made from; of CLIP and VAE only if they had a part in it.

    Args:
        ready: those of what was ready.
        reads: the text encoder encoded something.
    """
    digests = ContentDigests(cache)
    content = dataset_digest(dataset, digests.of)
    digests.save()
    clip = (clip_digest(models.clip) or "") if reads else ""
    return Ingredients(
        model=model_digest(models.model) or "",
        clip=clip,
        vae="" if ready.latents else vae_digest(models.vae) or "",
        dataset=content,
        # Where a part of the texts is of a source unknown, all of them are.
        conditioning=ready.conditioning if clip or not reads else "",
        latents=ready.latents,
    )


def trained_models(model: Any, clip: Any, spec: TrainingSpec) -> HostDiffusionModel:
    """The diffusion model, with the text encoder beside it if that is trained too.

    Raises:
        AtelierError: they cannot be trained so, or there is no text encoder to train.
    """
    text_encoder = None
    if spec.network.trains_text_encoders:
        require(clip is not None, NO_CLIP)
        text_encoder = HostTextEncoder(clip, model.load_device)
    return HostDiffusionModel(
        model, spec.objective, text_encoder, spec.gradient_checkpointing, spec.compile_blocks
    )


def _texts(dataset: ImageDataset, spec: TrainingSpec, ready: Ready) -> list[str]:
    """What the text encoder reads."""
    own = [] if ready.conditioning is not None else captions(dataset)
    return list(dict.fromkeys([*own, *spec.objective.prior.prompts]))


def require_captions(dataset: ImageDataset) -> None:
    """Refuse training pictures of which nothing is said: they would teach that nothing means them.

    Raises:
        AtelierError: names some of them, and the ways to caption them.
    """
    silent = [s.name for s in dataset.with_role(Role.TRAIN) if not all(s.captions)]
    require(
        not silent,
        f"dataset: {len(silent)} of {len(dataset.samples)} pictures have no caption: "
        f"{shorten(silent)}. Put a .txt file with the same name beside each, or fill in "
        "class_tokens (the trigger word) on Load Image Dataset or Edit Captions.",
    )
