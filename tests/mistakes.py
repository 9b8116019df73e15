"""Mistakes that somebody could make in the part that knows the host's objectives, for tests that
must notice them. Import it after `comfy_modules.make_importable()`."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import nn

import lora_atelier.training.host.diffusion_model as engine
from lora_atelier.training.objective.noise_schedule import NoiseSchedule


def flipped(patch: pytest.MonkeyPatch) -> None:
    """Its answer has the other sign."""
    patch.setattr(engine, "_model_output", lambda self, sigma, answer, x: -answer)


def shifted(patch: pytest.MonkeyPatch) -> None:
    """Noise levels are those of another shift."""

    def wrong(sampling: nn.Module) -> NoiseSchedule:
        schedule = usual(sampling)
        return replace(schedule, sigmas=1.1 * schedule.sigmas / (1 + 0.1 * schedule.sigmas))

    usual = engine.noise_schedule
    patch.setattr(engine, "noise_schedule", wrong)


def mistimed(patch: pytest.MonkeyPatch) -> None:
    """The model is told another time."""

    def wrong(sampling: nn.Module) -> nn.Module:
        raw = usual(sampling)
        raw.timestep = lambda sigma: 0.8 * sampling.timestep(sigma)
        return raw

    usual = engine._raw_prediction
    patch.setattr(engine, "_raw_prediction", wrong)
