"""What a run is estimated to take, and what a person is told of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from lora_atelier.training.dataset.fit import FitOptions
from lora_atelier.training.dataset.pictures import ImageFile
from lora_atelier.training.memory.allocations import Allocations
from lora_atelier.training.memory.estimate import (
    MemoryEstimate,
    largest_batch,
    longest_conditioning,
)
from lora_atelier.training.memory.text import GB, Room, memory_advice, memory_line
from lora_atelier.training.network.build import NetworkSpec
from lora_atelier.training.optimizers.footprint import footprint
from lora_atelier.training.optimizers.kinds import OptimizerType
from lora_atelier.training.optimizers.optimizer import OptimizerSpec
from lora_atelier.training.runs.examples import EncodedImage
from lora_atelier.training.runs.loop import train
from lora_atelier.training.runs.run import TrainingRun, TrainingSpec, start

Make = Callable[..., Any]
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (OptimizerType.ADAMW, 8),
        (OptimizerType.ADAMW_8BIT, 2),
        (OptimizerType.LION, 4),
        (OptimizerType.ADAFACTOR, 0),
        (OptimizerType.SGD, 4),
    ],
)
def test_the_state_of_an_optimizer_is_measured(optimizer: OptimizerType, expected: float) -> None:
    """Bytes a number: two moments of Adam, one of Lion; rows and columns only of Adafactor."""
    assert footprint(OptimizerSpec(optimizer), CPU).state == pytest.approx(expected, abs=0.6)


def test_measuring_an_optimizer_does_not_draw_from_the_hosts_random_stream() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    footprint(OptimizerSpec(), CPU)
    assert torch.equal(torch.rand(1), expected)


def test_the_parts_of_a_small_run(make_run: Make) -> None:
    run = make_run(network=NetworkSpec(4, 4.0), train_batch_size=5)
    numbers = sum(p.numel() for p in run.new_network().parameters())
    assert run.memory.base == 4 * sum(p.numel() for p in run.model.net.parameters())
    assert run.memory.adapters == 16 * numbers  # the number, its gradient, two moments
    examples = [run.example(draw) for draw in run.plan.batch(0)]
    latents = torch.stack([example.image.latent for example in examples])
    conditioning = [example.conditioning for example in examples]
    with run.model.training(run.new_network(), torch.float32) as predict, Allocations() as memory:
        loss = predict(latents, torch.ones(5), conditioning, []).square().mean()
        assert loss.requires_grad
        assert run.memory.activations == pytest.approx(memory.live, rel=0.1)


def test_the_model_is_told_what_to_leave_free(make_run: Make, make_listener: Make) -> None:
    run = make_run()
    train(start(run), 1, make_listener())
    assert run.model.memory_required() == run.memory.beside_weights > run.memory.adapters


def sized_run(make_run: Make, sizes: list[tuple[int, int]], batch: int) -> TrainingRun:
    """A picture each of these sizes, in a bucket of its own size."""
    run = make_run(repeats=(1,) * len(sizes), train_batch_size=batch)
    samples = [
        replace(
            sample, image=ImageFile(sample.name, size), fit=FitOptions(resolutions=(max(size),))
        )
        for sample, size in zip(run.dataset.samples, sizes, strict=True)
    ]
    images = {
        view: EncodedImage(torch.zeros(4, height // 8, width // 8))
        for (view, _), (width, height) in zip(run.data.images.items(), sizes, strict=True)
    }
    data = replace(run.data, dataset=run.dataset.changed(samples), images=images)
    return replace(run, data=data)


@pytest.mark.parametrize(
    ("sizes", "batch", "largest", "count"),
    [
        ([(256, 256), (128, 128), (128, 128)], 1, (4, 32, 32), 1),
        ([(256, 256), (192, 192), (192, 192)], 2, (4, 24, 24), 2),  # two of these are more
        ([(256, 256), (192, 192), (192, 192)], 9, (4, 24, 24), 2),  # there are no more of them
        ([(256, 256), (128, 128), (128, 128)], 9, (4, 32, 32), 1),
    ],
)
def test_the_largest_batch_that_can_come_is_rehearsed(
    make_run: Make,
    sizes: list[tuple[int, int]],
    batch: int,
    largest: tuple[int, ...],
    count: int,
) -> None:
    found = largest_batch(sized_run(make_run, sizes, batch))
    assert (tuple(found.example.image.latent.shape), found.size) == (largest, count)


def test_it_is_rehearsed_under_the_longest_caption(make_run: Make) -> None:
    """Which has the most tokens, not the most letters."""
    run = make_run()
    texts = {"a" * 50: torch.ones(1, 4), "many short words": torch.ones(9, 4), "": torch.ones(1, 4)}
    run = replace(run, data=replace(run.data, conditioning={**run.data.conditioning, **texts}))
    assert longest_conditioning(run).shape == (9, 4)


SIZES = MemoryEstimate(int(4.8 * GB), 0, int(0.3 * GB), int(4.2 * GB), int(0.5 * GB))


@pytest.mark.parametrize(
    ("estimate", "expected"),
    [
        (
            SIZES,
            "memory: 9.8 GB = base 4.8 + adapters 0.3 + activations 4.2 + workspace 0.5 "
            "(free: 11.9 of 12.0 GB)",
        ),
        (
            replace(SIZES, text_encoder=int(0.2 * GB), workspace=0),
            "memory: 9.5 GB = base 4.8 + text encoder 0.2 + adapters 0.3 + activations 4.2 "
            "(free: 11.9 of 12.0 GB)",
        ),
        (
            replace(SIZES, activations=None),
            "memory: at least 5.6 GB = base 4.8 + adapters 0.3 + workspace 0.5 "
            "(free: 11.9 of 12.0 GB); activations: not estimated for this model",
        ),
        (
            MemoryEstimate(98 << 20, 0, 3 << 20, 52 << 20, 0),
            "memory: 153.0 MB = base 98.0 + adapters 3.0 + activations 52.0 "
            "(free: 11.9 of 12.0 GB)",
        ),
    ],
)
def test_one_line_says_what_it_is_made_of(estimate: MemoryEstimate, expected: str) -> None:
    assert memory_line(estimate, Room(int(11.9 * GB), 12 * GB, offloads=True)) == expected


def advice(free: float, offloads: bool = True, **choices: Any) -> str:
    room = Room(int(free * GB), 12 * GB, offloads)
    return " ".join(memory_advice(SIZES, room, TrainingSpec(**choices)))


def test_advice_is_given_only_where_it_will_not_fit() -> None:
    assert advice(9.9) == ""
    assert "will probably fail" in advice(9.7, offloads=False)


def test_a_base_that_does_not_fit_is_slower_but_no_failure() -> None:
    text = advice(8.0)
    assert "about 1.8 GB of it stays in RAM" in text and "fail" not in text
    assert "will probably fail" in advice(4.9)  # not even without the base


def test_the_advice_names_what_is_not_done_yet() -> None:
    text = advice(4.0, train_batch_size=4)
    assert "gradient_checkpointing, a train_batch_size of less than 4, a smaller resolution" in text
    text = advice(4.0, gradient_checkpointing=True)
    assert "gradient_checkpointing" not in text and "train_batch_size" not in text


def test_advice_begins_with_the_largest_part() -> None:
    room = Room(GB, 12 * GB, True)
    large = MemoryEstimate(GB, 0, 9 * GB, GB, 0)
    assert (
        "Try a lower network_dim or an 8-bit optimizer"
        in memory_advice(large, room, TrainingSpec())[0]
    )
