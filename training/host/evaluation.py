"""Losses and pictures of LoRAs in several strengths, as ComfyUI uses them: the MODEL and CLIP of
the run with the LoRA as ordinary patches, one after the other through the host's memory manager.

The loss is the one that the run validates with (:mod:`training.runs.validation`): the same
pictures under the same noise for every LoRA, in four bands from least noise to most. Measured on
the patched model, it holds for any strength and for LoRAs of other programs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..dataset.samples import Role
from ..evaluation.spec import MOST_LOOKED_AT, EvaluationSpec, evenly
from ..generate.plan import GenerateSpec, Planned
from ..generate.prompts import Prompt
from ..results.grid_spec import Variant
from ..runs.examples import HELD_OUT, View, held_out_caption
from ..runs.run import TrainingRun
from ..runs.validation import BANDS, HeldOut, look_losses
from .complaints import host_complaints
from .encoders import encode_captions
from .generating import Models, paint
from .grid import GridLora, misfits
from .result import apply_lora
from .sampling import decode_latents, empty_latent, require_encoders
from .session import trained_models

PIXELS_TOGETHER = 512 * 512
"""Of the pictures that are sampled as a batch: no more memory than one picture of SD1.5 takes."""
MOST_TOGETHER = 16

Tick = Callable[[int], None]
"""Called with the amount of work that was done: a forward pass of the loss, or the steps of the
sampler that were taken, a picture each; raises to end the work."""


class Measured(NamedTuple):
    """One LoRA in one strength."""

    variant: Variant | None
    """None: the base."""
    losses: np.ndarray
    """[pictures, bands]; the same pictures each time."""
    pictures: list[np.ndarray]
    """[H, W, 3] uint8, one for each that was asked for."""


class Evaluator:
    """Measures all LoRAs of an evaluation on the models of a run, which stay as they are.

    Args:
        run: with its models and its dataset.
        loras: as many as ``spec.loras``.
    """

    def __init__(
        self, run: TrainingRun, loras: Sequence[GridLora], spec: EvaluationSpec, tick: Tick
    ) -> None:
        self.models = Models(*run.models)
        require_encoders(self.models.clip, self.models.vae)
        self.loras, self.spec, self.tick = loras, spec, tick
        self.notes: list[str] = []
        """What did not fit the model, a sentence for each LoRA."""
        self.run, self.are_held_out = _looked_at(run)
        self.memory_required = run.memory_required
        self.looks = HeldOut(self.run.dataset, run.spec.train_batch_size)

    @property
    def work(self) -> int:
        """What all ticks add up to, but for samplers that take another number of steps."""
        steps = self.spec.images_per_checkpoint * self.spec.preview.steps
        return len(self.spec.variants) * (len(self.looks.batches) + steps)

    def measure(self) -> Iterator[Measured]:
        """The base first, then every LoRA in its strengths.

        Raises:
            AtelierError: a LoRA cannot be read any more; the models cannot be trained on any more.
        """
        yield self._one(None, self.models.model, self.models.clip)
        for index, lora in enumerate(self.loras):
            tensors = lora.read()
            with host_complaints() as words:
                for place, strength in enumerate(self.spec.strengths):
                    model, clip = apply_lora(self.models.model, self.models.clip, tensors, strength)
                    yield self._one(Variant(index, place), model, clip)
            self.notes += misfits(lora.name, words)

    def repainted(self, places: Sequence[int]) -> Iterator[np.ndarray]:
        """Pictures of the dataset as they train, through the VAE and back, [H, W, 3] uint8.

        Args:
            places: indices of samples that are trained on or held out.
        """
        base = self.models.model
        for place in places:
            latent = self.run.data.images[View(place, HELD_OUT)].latent.unsqueeze(0)
            painted = base.model.process_latent_out(latent)
            yield _bytes(decode_latents(base.load_device, self.models.vae, painted, seed=0)[0])

    def _one(self, variant: Variant | None, model: Any, clip: Any) -> Measured:
        return Measured(variant, self._losses(model, clip), self._pictures(model, clip))

    def _losses(self, model: Any, clip: Any) -> np.ndarray:
        run = replace(self.run, model=trained_models(model, clip, self.run.spec))
        dtype = run.compute_dtype
        places = {
            sample: row
            for row, sample in enumerate(
                i for i, s in enumerate(run.dataset.samples) if s.role is Role.VALIDATION
            )
        }
        losses = np.zeros((len(places), BANDS))
        with torch.inference_mode(False), torch.no_grad():
            with run.model.training({}, dtype, self.memory_required) as predict:
                for batch in self.looks.batches:
                    self.tick(1)
                    for look, loss in zip(batch, look_losses(run, batch, predict), strict=True):
                        losses[places[look.sample], look.band] = loss
        return losses

    def _pictures(self, model: Any, clip: Any) -> list[np.ndarray]:
        preview, texts = self.spec.preview, self.spec.prompts.texts
        asked = [
            Planned(Prompt(texts[prompt], "", ""), seed, str(place))
            for place, (prompt, seed) in enumerate(self.spec.asked)
        ]
        settings = GenerateSpec(
            steps=preview.steps,
            cfg=preview.cfg,
            sampler_name=preview.sampler_name,
            scheduler=preview.scheduler,
            negative=preview.negative,
            guidance=preview.guidance,
        )
        together = PIXELS_TOGETHER // (preview.width * preview.height)
        models = Models(model, clip, self.models.vae)
        painted = paint(
            models,
            empty_latent(models.vae, preview),
            settings,
            asked,
            min(max(1, together), MOST_TOGETHER),
            self.tick,
        )
        return [_bytes(image) for batch in painted for _, image in batch]


def _looked_at(run: TrainingRun) -> tuple[TrainingRun, bool]:
    """The run with those pictures as validation pictures on which the loss is measured: its own
    validation pictures, or where there are none, those it trains on; not more than enough."""
    held_out = _evenly(run, Role.VALIDATION)
    chosen = held_out or _evenly(run, Role.TRAIN)
    samples = run.dataset.samples
    roles = {i: Role.VALIDATION if i in chosen else Role.TRAIN for i in range(len(samples))}
    # The order stays: latents are found by the place of their picture.
    changed = [replace(sample, role=roles[i]) for i, sample in enumerate(samples)]
    captions = [run.data.key(samples[i], held_out_caption(samples[i])) for i in chosen]
    data = replace(
        run.data,
        dataset=run.dataset.changed(changed),
        conditioning=_read(run, captions),
    )
    return replace(run, data=data), bool(held_out)


def _evenly(run: TrainingRun, role: Role) -> list[int]:
    places = [i for i, sample in enumerate(run.dataset.samples) if sample.role is role]
    return evenly(places, MOST_LOOKED_AT)


def _read(run: TrainingRun, captions: Sequence[str]) -> dict[str, Any]:
    """Each caption as training sees it; training may have seen it only with its tags shuffled."""
    if run.spec.network.trains_text_encoders:
        return {caption: caption for caption in captions}
    known = run.data.conditioning
    missing = [caption for caption in captions if caption not in known]
    found = {caption: known[caption] for caption in captions if caption in known}
    return found | encode_captions(run.models.clip, missing, lambda: None)


def _bytes(image: Tensor) -> np.ndarray:
    """As SaveImage writes it."""
    return np.clip(255.0 * image.float().cpu().numpy(), 0, 255).astype(np.uint8)
