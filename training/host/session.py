"""From the wires of the graph to a run that is ready to train."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..cache import TensorCache
from ..dataset.digests import ContentDigests
from ..dataset.samples import ImageDataset, Role, shorten
from ..errors import require
from ..network.build import describe_network
from ..runs.examples import Conditioning, EncodedDataset, captions, items
from ..runs.identity import dataset_digest, run_identity
from ..runs.run import Ingredients, TrainingRun, TrainingSpec, TrainingState, start
from .diffusion_model import HostDiffusionModel
from .digests import clip_digest, model_digest, vae_digest
from .encoders import cached_captions
from .latents import cached_images
from .progress import HostProgress
from .text_encoder import HostTextEncoder


class GraphModels(NamedTuple):
    """What the graph gave."""

    model: Any
    clip: Any
    vae: Any


def describe(model: Any, clip: Any, spec: TrainingSpec) -> str:
    """Layers, parameters and rank of the network on these models, before anything is encoded.

    Raises:
        AtelierError: the network, or the objective, does not fit the model.
    """
    layers = trained_models(model, clip, spec).layers(spec.network)
    return describe_network(layers, spec.network)


def start_run(
    model: Any, clip: Any, vae: Any, dataset: ImageDataset, spec: TrainingSpec, cache: Path
) -> TrainingState:
    """Encode what the cache does not hold, and build the network: the state at step 0.

    Args:
        cache: folder for latents and encoded captions; may be shared and may be deleted.
    """
    from_graph = GraphModels(model, clip, vae)
    has_vae = getattr(vae, "first_stage_model", vae) is not None  # the host may give an empty one
    require(has_vae, "vae: this checkpoint holds no VAE. Load one and wire it.")
    diffusion_model = trained_models(model, clip, spec)
    diffusion_model.compute_dtype(spec.mixed_precision)  # refuses before the long work
    items(dataset)  # likewise: there must be something to train on
    require_captions(dataset)
    progress = HostProgress(2 * len(dataset.samples) + len(_texts(dataset, spec)))
    # Pictures first: a damaged one is more likely than a bad caption.
    dataset, images = cached_images(vae, model.model, dataset, cache, progress.tick)
    texts = _texts(dataset, spec)  # of what is left of it
    if spec.network.trains_text_encoders:  # which read each anew at every step
        conditioning: Mapping[str, Conditioning] = {text: text for text in texts}
    else:
        conditioning = cached_captions(clip, texts, TensorCache(cache / "text"), progress.tick)
    ingredients = _ingredients(from_graph, dataset, cache)
    return start(
        TrainingRun(
            spec,
            EncodedDataset(dataset, images, conditioning),
            diffusion_model,
            ingredients,
            run_identity(ingredients, spec),
            from_graph,
        )
    )


def _ingredients(models: GraphModels, dataset: ImageDataset, cache: Path) -> Ingredients:
    digests = ContentDigests(cache)
    content = dataset_digest(dataset, digests.of)
    digests.save()
    return Ingredients(
        model=model_digest(models.model) or "",
        clip=clip_digest(models.clip) or "",
        vae=vae_digest(models.vae) or "",
        dataset=content,
    )


def trained_models(model: Any, clip: Any, spec: TrainingSpec) -> HostDiffusionModel:
    """The diffusion model, with the text encoder beside it if that is trained too.

    Raises:
        AtelierError: they cannot be trained so, or there is no text encoder.
    """
    require(clip is not None, "clip: this checkpoint holds no text encoder. Load one and wire it.")
    text_encoder = None
    if spec.network.trains_text_encoders:
        text_encoder = HostTextEncoder(clip, model.load_device)
    return HostDiffusionModel(model, spec.objective, text_encoder, spec.gradient_checkpointing)


def _texts(dataset: ImageDataset, spec: TrainingSpec) -> list[str]:
    return list(dict.fromkeys([*captions(dataset), *spec.objective.prior.prompts]))


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
