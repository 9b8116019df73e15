"""What a LoRA file says of its objective: kohya's keys, and ``atelier.*`` where kohya has none.

Source of the names: kohya-ss/sd-scripts, train_network.py and flux_train_network.py. None = off.
"""

from __future__ import annotations

from .noise_schedule import NoiseSchedule
from .objective import ObjectiveSpec
from .weighting import Weighting


def objective_metadata(spec: ObjectiveSpec, schedule: NoiseSchedule) -> dict[str, object]:
    """Key -> value of everything that decided the loss."""
    loss, noise, timesteps, prior = spec.loss, spec.noise, spec.timesteps, spec.prior
    weighting = spec.weighting.of(schedule)
    return {
        "ss_loss_type": loss.loss_type.value,
        "ss_huber_schedule": loss.huber_schedule.value,
        "ss_huber_c": loss.huber_c,
        "ss_min_snr_gamma": spec.min_snr_gamma if weighting is Weighting.MIN_SNR else None,
        "ss_debiased_estimation": weighting is Weighting.DEBIASED,
        "ss_noise_offset": noise.noise_offset or None,
        "ss_adaptive_noise_scale": noise.adaptive_noise_scale or None,
        "ss_multires_noise_iterations": noise.multires_noise_iterations or None,
        "ss_multires_noise_discount": noise.multires_noise_discount,
        "ss_ip_noise_gamma": noise.ip_noise_gamma or None,
        "ss_timestep_sampling": timesteps.timestep_sampling.value,
        "ss_logit_mean": timesteps.logit_mean,
        "ss_logit_std": timesteps.logit_std,
        "ss_discrete_flow_shift": timesteps.discrete_flow_shift,
        "ss_prior_loss_weight": prior.prior_loss_weight,
        "ss_zero_terminal_snr": spec.zero_terminal_snr,
        "ss_guidance_scale": spec.guidance,
        "atelier.weighting": weighting.value,
        "atelier.weighting_gamma": spec.min_snr_gamma if weighting.has_gamma else None,
        "atelier.min_timestep": timesteps.min_timestep,
        "atelier.max_timestep": timesteps.max_timestep,
        "atelier.masked_loss": spec.masked_loss,
        "atelier.prior_target": prior.prior_target.value,
        "atelier.prior_preservation": prior.prior_preservation or None,
        "atelier.class_prompt": prior.class_prompt,
    }
