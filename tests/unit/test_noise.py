"""The noise of a picture, against formulas written out here and against its own statistics."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lora_atelier.training.errors import AtelierError
from lora_atelier.training.objective.noise import NoiseSpec, draw_noise

SHAPE = (4, 12, 20)


@pytest.fixture
def latent() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)) + torch.tensor(
        [1.0, -2.0, 0.0, 0.5]
    ).view(4, 1, 1)


def stream(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_by_default_the_noise_is_the_next_of_the_stream(latent: Tensor) -> None:
    noise = draw_noise(latent, NoiseSpec(), stream())
    assert torch.equal(noise.target, torch.randn(SHAPE, generator=stream()))
    assert noise.input is noise.target


@pytest.mark.parametrize("scale", [0.0, 0.03, -0.03])
def test_noise_offset_shifts_each_channel_by_one_number(latent: Tensor, scale: float) -> None:
    """noise + max(offset + s · |mean of the channel|, 0) · normal, as in kohya-ss/sd-scripts."""
    noise = draw_noise(latent, NoiseSpec(noise_offset=0.05, adaptive_noise_scale=scale), stream())
    rng = stream()
    plain = torch.randn(SHAPE, generator=rng)
    for channel, normal in enumerate(torch.randn(4, generator=rng).tolist()):
        strength = max(0.05 + scale * abs(latent[channel].mean().item()), 0)
        expected = plain[channel] + strength * normal
        torch.testing.assert_close(noise.target[channel], expected, rtol=1e-5, atol=1e-6)
    assert noise.input is noise.target


def test_an_adaptive_scale_works_without_an_offset(latent: Tensor) -> None:
    noise = draw_noise(latent, NoiseSpec(adaptive_noise_scale=0.1), stream()).target
    moved = (noise - torch.randn(SHAPE, generator=stream())).abs().amax(dim=(1, 2))
    assert moved[1] > 1e-3  # the channel whose mean is -2


def test_the_offset_has_the_deviation_that_was_asked_for() -> None:
    """Channel means have variance 1/pixels from the noise itself, and offset² from the offset."""
    latent = torch.zeros(64, 16, 16)
    means = torch.cat(
        [draw_noise(latent, NoiseSpec(0.3), stream(i)).target.mean((1, 2)) for i in range(60)]
    )
    assert means.std().item() == pytest.approx(math.sqrt(0.3**2 + 1 / 256), rel=0.04)


@pytest.mark.parametrize("shape", [SHAPE, (2, 3, 12, 20)], ids=["picture", "frames"])
@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_multires_noise_adds_ever_smaller_layers(shape: tuple, iterations: int) -> None:
    """Σ discount^i · enlarged(normal of the size / r^i), r in [2, 4), back to deviation 1."""
    spec = NoiseSpec(multires_noise_iterations=iterations, multires_noise_discount=0.4)
    noise = draw_noise(torch.zeros(shape), spec, stream()).target
    rng, frames = stream(), math.prod(shape[:-2])
    enlarge = torch.nn.Upsample(size=shape[-2:], mode="bilinear")
    expected = torch.randn(shape, generator=rng)
    for i in range(iterations):
        r = 2 + 2 * torch.rand((), generator=rng).item()
        height, width = max(1, int(12 / r**i)), max(1, int(20 / r**i))
        layer = torch.randn(*shape[:-2], height, width, generator=rng)
        layer = enlarge(layer.view(1, frames, height, width)).view(shape)
        expected = expected + 0.4**i * layer
        if 1 in (height, width):
            break
    torch.testing.assert_close(noise, expected / expected.std(), rtol=1e-5, atol=1e-6)
    assert noise.std().item() == pytest.approx(1, rel=1e-4)


def test_multires_noise_joins_neighbours() -> None:
    def neighbours(spec: NoiseSpec) -> float:
        noise = draw_noise(torch.zeros(16, 32, 32), spec, stream()).target
        return float((noise[..., 1:] * noise[..., :-1]).mean())

    plain = neighbours(NoiseSpec())
    gentle, strong = (
        neighbours(NoiseSpec(multires_noise_iterations=6, multires_noise_discount=d))
        for d in (0.5, 0.8)
    )
    assert abs(plain) < 0.03 < gentle < strong


def test_input_perturbation_is_in_the_input_alone(latent: Tensor) -> None:
    noise = draw_noise(latent, NoiseSpec(ip_noise_gamma=0.1), stream())
    rng = stream()
    assert torch.equal(noise.target, torch.randn(SHAPE, generator=rng))
    more = torch.randn(SHAPE, generator=rng)
    torch.testing.assert_close(noise.input, noise.target + 0.1 * more)
    assert (noise.input - noise.target).std().item() == pytest.approx(0.1, rel=0.1)


def test_all_kinds_of_noise_go_together(latent: Tensor) -> None:
    """The offset comes before the coarse layers, which scale it down with the rest."""
    everything = NoiseSpec(0.5, 0.1, 4, 0.5, 0.1)
    noise = draw_noise(latent, everything, stream())
    assert noise.target.std().item() == pytest.approx(1, rel=1e-4)
    assert noise.target.mean((1, 2)).abs().max() > 0.1
    assert not torch.equal(noise.input, noise.target)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"noise_offset": -0.1}, "noise_offset is -0.1"),
        ({"noise_offset": math.nan}, "noise_offset is nan"),
        ({"adaptive_noise_scale": 11}, "adaptive_noise_scale is 11"),
        ({"multires_noise_iterations": 17}, "multires_noise_iterations is 17"),
        ({"multires_noise_discount": 1.5}, "multires_noise_discount is 1.5"),
        ({"ip_noise_gamma": 2}, "ip_noise_gamma is 2"),
    ],
)
def test_settings_out_of_range_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(AtelierError, match=message):
        NoiseSpec(**fields)
