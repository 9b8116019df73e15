"""From the wires of the graph to a run that is ready to train."""

from __future__ import annotations

from typing import Any

from ..dataset import ImageDataset
from ..errors import require
from ..run import TrainingRun, TrainingSpec, TrainingState, start
from .diffusion_model import HostDiffusionModel
from .encoders import encode_captions, encode_images
from .progress import HostProgress


def start_run(
    model: Any, clip: Any, vae: Any, dataset: ImageDataset, spec: TrainingSpec
) -> TrainingState:
    """Encode pictures and captions once, and build the network: the state at step 0."""
    require(clip is not None, "clip: this checkpoint holds no text encoder. Load one and wire it.")
    require(vae is not None, "vae: this checkpoint holds no VAE. Load one and wire it.")
    diffusion_model = HostDiffusionModel(model)
    diffusion_model.compute_dtype(spec.mixed_precision)  # refuses before the long work
    captions = [sample.caption for sample in dataset.samples]
    paths = [sample.path for sample in dataset.samples]
    progress = HostProgress(len(set(captions)) + len(paths))
    # Pictures first: a damaged one is more likely than a bad caption.
    latents = encode_images(vae, model.model, paths, dataset.resolution, progress.tick)
    conditioning = encode_captions(clip, captions, progress.tick)
    return start(TrainingRun(spec, dataset, diffusion_model, latents, conditioning))
