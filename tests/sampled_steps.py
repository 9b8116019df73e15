"""One step of a sampler, once by KSampler and once by what training sees and asks for.

The formula of the step is k-diffusion's (its sampler "euler"):

    epsilon, flow  x + (σ' − σ) · answer
    v_prediction   x + (σ' − σ) · (x − D) / σ,   D = x / (σ² + 1) − answer · σ / √(σ² + 1)

Import it after `comfy_modules.make_importable()`, as every test under tests/host is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import comfy.model_sampling
import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from families import Family
from lora_atelier.training.cache import MemoryCache
from lora_atelier.training.dataset.fit import Placement, Variant
from lora_atelier.training.host.diffusion_model import HostDiffusionModel
from lora_atelier.training.host.latents import CachedImages
from lora_atelier.training.objective.noise_schedule import NoiseSchedule, PredictionType
from lora_atelier.training.objective.objective import NoisedBatch, ObjectiveSpec, add_noise
from lora_atelier.training.runs.examples import View
from tiny_training import normal, predicting

STEPS, STEP = 5, 3
"""Which step of which schedule: its noise levels are neither the highest nor 0."""
CUT = Placement((640, 480), (96, 72), (16, 4), (64, 64))
SIZES = {"width": 640, "height": 480, "crop_w": 16, "crop_h": 4}
SIZES |= {"target_width": 64, "target_height": 64}
PLAIN = ObjectiveSpec(min_snr_gamma=0)


@dataclass(frozen=True)
class Step:
    """Pictures on their way from one noise level to the next."""

    family: Family
    patcher: ModelPatcher
    count: int = 2

    @property
    def latents(self) -> Tensor:
        """As the VAE would give them: their deviation is not one."""
        return 1.7 * normal(1, self.count, *self.family.latent) + 0.3

    @property
    def noise(self) -> Tensor:
        return normal(2, self.count, *self.family.latent)

    def model(self) -> HostDiffusionModel:
        return HostDiffusionModel(self.patcher, replace(PLAIN, guidance=self.family.guidance))

    def read_latents(self) -> Tensor:
        """As they come from the cache."""
        kept = MemoryCache()
        keys = {View(i, Variant(0)): f"{i:02x}" for i in range(self.count)}
        for latent, key in zip(self.latents, keys.values(), strict=True):
            kept.write(key, {"latent": latent})
        images = CachedImages(kept, keys, self.patcher.model)
        return torch.stack([images[view].latent for view in images])

    def noised(self, schedule: NoiseSchedule) -> NoisedBatch:
        sigmas = levels(schedule)[0].expand(self.count)
        return add_noise(self.read_latents(), self.noise, sigmas, schedule, PLAIN)

    def trained(self) -> Tensor:
        """The next latents, by what training sees and asks for."""
        model = self.model()
        sigma, after = levels(model.schedule)
        noised = self.noised(model.schedule)
        with predicting(model) as predict:
            texts = self.family.conditioning(self.count)
            x, cuts = noised.noisy_latents, [CUT] * self.count
            answer = predict(x, noised.sigmas, texts, cuts).detach()
        return x + (after - sigma) * slope(model.schedule.prediction_type, x, answer, sigma)

    @cached_property
    def sampled(self) -> Tensor:
        """The next latents by KSampler, before they are scaled for the VAE."""
        with torch.inference_mode():
            texts = self.family.conditioning(self.count)
            extras = {name: _together([e[name] for _, e in texts]) for name in texts[0][1]}
            if self.family.guidance is not None:
                extras["guidance"] = self.family.guidance
            positive = [[_together([text for text, _ in texts]), extras | SIZES]]
            ended = comfy.sample.sample(
                *(self.patcher, self.noise, STEPS, 1.0, "euler", "simple", positive, positive),
                latent_image=self.latents,
                start_step=STEP,
                last_step=STEP + 1,
                disable_pbar=True,
                seed=0,
            )
            ended = self.patcher.model.process_latent_in(ended)
            if not self.is_flow:
                return ended
            return ended * (1 - levels(self.model().schedule)[1])  # as it was inside the sampler

    @property
    def is_flow(self) -> bool:
        return isinstance(
            self.patcher.get_model_object("model_sampling"), comfy.model_sampling.CONST
        )

    def difference(self) -> float:
        return relative(self.trained(), self.sampled)

    def difference_of_the_target(self) -> float:
        """Between the clean latents and what the host makes of the training's target."""
        noised = self.noised(self.model().schedule)
        sampling = self.patcher.get_model_object("model_sampling")
        x, target = noised.noisy_latents, noised.target
        clean = sampling.calculate_denoised(noised.sigmas, target, x)
        return relative(clean, self.patcher.model.process_latent_in(self.latents))


def levels(schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
    """σ and σ', as the host's scheduler "simple" chooses them from the model's own."""
    apart = len(schedule.sigmas) / STEPS
    sigma, after = (schedule.sigmas[-1 - int(step * apart)] for step in (STEP, STEP + 1))
    return sigma, after


def slope(kind: PredictionType, x: Tensor, answer: Tensor, sigma: Tensor) -> Tensor:
    if kind is not PredictionType.V_PREDICTION:
        return answer
    denoised = x / (sigma**2 + 1) - answer * sigma / (sigma**2 + 1).sqrt()
    return (x - denoised) / sigma


def _together(values: list[Tensor | None]) -> Tensor | None:
    return None if values[0] is None else torch.cat(values)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())
