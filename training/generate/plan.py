"""Which pictures are to be generated: each has a seed, and a name that says what it is.

Round ``r`` of prompt ``p`` among ``n`` has the seed ``seed + r·n + p`` (mod 2⁶⁴): every prompt is
painted once before the first is painted again, and more images_per_prompt leave those that are
there as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import require, require_number
from .prompts import Prompt, PromptSet

SEEDS = 2**64
MOST_PER_PROMPT = 10_000
MOST_PICTURES = 200_000
LONGEST_NAME = 80
"""Bytes of the prompt's own name in the name of a file."""


@dataclass(frozen=True)
class GenerateSpec:
    """The widgets that decide what is to be seen."""

    images_per_prompt: int = 1
    seed: int = 0
    steps: int = 20
    """Of the sampler."""
    cfg: float = 7.0
    sampler_name: str = "euler"
    scheduler: str = "normal"
    negative: str = ""
    guidance: float = 0.0
    """An input of guidance-distilled models (Flux dev); 0 = the model's own."""

    def __post_init__(self) -> None:
        advice = "1 is usual; more give the same prompt other seeds."
        require_number("images_per_prompt", self.images_per_prompt, 1, MOST_PER_PROMPT, advice)
        require(
            0 <= self.seed < SEEDS, f"seed is {self.seed}: it must be a number from 0 to 2^64 - 1."
        )
        require_number("steps", self.steps, 1, 10_000, "20 is usual.")
        require_number("cfg", self.cfg, 0, 100, "7 is usual, 1 for Flux.")
        require_number("guidance", self.guidance, 0, 100, "3.5 for Flux dev, 0 = the model's own.")


@dataclass(frozen=True)
class Base:
    """What the pictures are painted with."""

    name: str
    """Of its file, or of its kind."""
    digest: str | None
    """Of model, text encoder and VAE; None when it cannot be told."""
    latent: tuple[int, ...]
    """Shape of one latent, without the batch."""


@dataclass(frozen=True)
class Planned:
    """A picture that is to be there in the end."""

    prompt: Prompt
    seed: int
    file_name: str


def plan(prompts: PromptSet, spec: GenerateSpec, base: Base) -> list[Planned]:
    """All pictures, in the order of their seeds.

    Raises:
        AtelierError: more than a folder can reasonably hold.
    """
    count = len(prompts.prompts) * spec.images_per_prompt
    require(
        count <= MOST_PICTURES,
        f"{len(prompts.prompts)} prompts with images_per_prompt {spec.images_per_prompt} make "
        f"{count} pictures: at most {MOST_PICTURES} are possible in one folder. Lower "
        "images_per_prompt, or prompt_count on Prompt Matrix.",
    )
    rounds = [prompt for _ in range(spec.images_per_prompt) for prompt in prompts.prompts]
    planned = []
    for index, prompt in enumerate(rounds):
        seed = (spec.seed + index) % SEEDS
        stem = prompt.name.encode()[:LONGEST_NAME].decode(errors="ignore")
        name = f"{stem}_{identity(prompt.text, seed, spec, base)}.png"
        planned.append(Planned(prompt, seed, name))
    return planned


def identity(text: str, seed: int, spec: GenerateSpec, base: Base) -> str:
    """16 hexadecimal digits that change with whatever changes the picture; how batches are cut and
    what it is called do not."""
    facts = {**settings(text, seed, spec), "base": base.digest, "latent": base.latent}
    content = json.dumps(facts, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def settings(text: str, seed: int, spec: GenerateSpec) -> dict[str, Any]:
    """What is asked of the host, by the names of its widgets."""
    return {
        "prompt": text,
        "negative": spec.negative,
        "seed": seed,
        "steps": spec.steps,
        "cfg": float(spec.cfg),
        "sampler_name": spec.sampler_name,
        "scheduler": spec.scheduler,
        "guidance": float(spec.guidance),
    }


def batches(pictures: Sequence[Planned], most: int) -> list[Sequence[Planned]]:
    """Cut into runs of at most ``most``, in their order."""
    return [pictures[start : start + most] for start in range(0, len(pictures), most)]
