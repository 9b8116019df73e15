"""What the file says of the objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lora_atelier.training.objective.loss_types import HuberSchedule, LossSpec, LossType
from lora_atelier.training.objective.metadata import objective_metadata
from lora_atelier.training.objective.noise import NoiseSpec
from lora_atelier.training.objective.noise_schedule import NoiseSchedule, PredictionType
from lora_atelier.training.objective.objective import ObjectiveSpec, PriorSpec, PriorTarget
from lora_atelier.training.objective.timesteps import TimestepSampling, TimestepSpec
from lora_atelier.training.objective.weighting import Weighting
from lora_atelier.training.results.lora_file import lora_metadata
from lora_atelier.training.runs.run import start

DEFAULTS = {
    "ss_loss_type": "l2",
    "ss_huber_schedule": "snr",
    "ss_huber_c": "0.1",
    "ss_min_snr_gamma": "5.0",
    "ss_debiased_estimation": "False",
    "ss_noise_offset": "None",
    "ss_adaptive_noise_scale": "None",
    "ss_multires_noise_iterations": "None",
    "ss_multires_noise_discount": "0.3",
    "ss_ip_noise_gamma": "None",
    "ss_timestep_sampling": "auto",
    "ss_prior_loss_weight": "1.0",
    "ss_zero_terminal_snr": "False",
    "ss_guidance_scale": "None",
    "atelier.weighting": "min_snr",
    "atelier.min_timestep": "0",
    "atelier.max_timestep": "1000",
    "atelier.masked_loss": "True",
    "atelier.prior_target": "pictures",
    "atelier.prior_preservation": "None",
}


def test_the_defaults_are_written_as_kohya_writes_them(make_run: Callable[..., Any]) -> None:
    facts = lora_metadata(start(make_run()))
    assert {key: facts.get(key) for key in DEFAULTS} == DEFAULTS
    assert "atelier.class_prompt" not in facts


def test_everything_that_was_chosen_is_written(make_run: Callable[..., Any]) -> None:
    objective = ObjectiveSpec(
        3.0,
        Weighting.SOFT_MIN_SNR,
        LossSpec(LossType.HUBER, 0.2, HuberSchedule.EXPONENTIAL),
        NoiseSpec(0.05, 0.01, 6, 0.2, 0.1),
        TimestepSpec(TimestepSampling.LOGIT_NORMAL, 0.5, 0.8, 2.5, 100, 900),
        PriorSpec(0.5, PriorTarget.BASE_MODEL, 0.7, "caption 0"),
        masked_loss=False,
        zero_terminal_snr=True,
        guidance=1.0,
    )
    facts = lora_metadata(start(make_run(objective=objective)))
    expected = {
        "ss_loss_type": "huber",
        "ss_huber_schedule": "exponential",
        "ss_huber_c": "0.2",
        "ss_min_snr_gamma": "None",
        "ss_debiased_estimation": "False",
        "ss_noise_offset": "0.05",
        "ss_adaptive_noise_scale": "0.01",
        "ss_multires_noise_iterations": "6",
        "ss_multires_noise_discount": "0.2",
        "ss_ip_noise_gamma": "0.1",
        "ss_timestep_sampling": "logit_normal",
        "ss_logit_mean": "0.5",
        "ss_logit_std": "0.8",
        "ss_discrete_flow_shift": "2.5",
        "ss_prior_loss_weight": "0.5",
        "ss_zero_terminal_snr": "True",
        "ss_guidance_scale": "1.0",
        "atelier.weighting": "soft_min_snr",
        "atelier.weighting_gamma": "3.0",
        "atelier.min_timestep": "100",
        "atelier.max_timestep": "900",
        "atelier.masked_loss": "False",
        "atelier.prior_target": "base_model",
        "atelier.prior_preservation": "0.7",
        "atelier.class_prompt": "caption 0",
    }
    assert {key: facts.get(key) for key in expected} == expected


@pytest.mark.parametrize(
    ("kind", "weighting", "gamma", "debiased", "name"),
    [
        ("epsilon", "auto", 5.0, False, "min_snr"),
        ("flow", "auto", None, False, "none"),
        ("epsilon", "none", None, False, "none"),
        ("v_prediction", "debiased", None, True, "debiased"),
    ],
)
def test_a_weighting_is_named_by_what_it_came_down_to(
    kind, weighting, gamma, debiased, name
) -> None:
    schedule = NoiseSchedule(PredictionType(kind), torch.tensor([0.1, 1.0]))
    facts = objective_metadata(ObjectiveSpec(weighting=Weighting(weighting)), schedule)
    assert facts["ss_min_snr_gamma"] == gamma
    assert facts["ss_debiased_estimation"] is debiased
    assert facts["atelier.weighting"] == name
