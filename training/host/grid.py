"""The pictures of a grid, each as LoraLoader, KSampler and VAEDecode give it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any, NamedTuple

import comfy.utils
from safetensors import SafetensorError
from torch import Tensor

from ..errors import AtelierError
from ..results.grid_spec import GridSpec, Variant
from .complaints import host_complaints
from .result import apply_lora
from .sampling import Tick, sample_previews

UNREADABLE = (OSError, ValueError, RuntimeError, EOFError, SafetensorError, UnpicklingError)
LEFT_OUT = ("lora key not loaded", "NOT LOADED")
"""How the host's words begin for keys that mean nothing to it."""
REFUSED = ("ERROR ", "WARNING SHAPE MISMATCH", "Calculate Weight Failed", "patch type not")
"""How they begin for what does not fit the weight."""


@dataclass(frozen=True, eq=False)
class GridLora:
    """One LoRA of a grid."""

    name: str
    """For messages."""
    read: Callable[[], Mapping[str, Tensor]]
    """Key -> tensor; called when its turn comes."""


class Drawn(NamedTuple):
    """One picture."""

    variant: Variant | None
    """None: the base."""
    prompt: int
    seed: int
    """Both by their index."""
    image: Tensor
    """[1, H, W, 3] float32, 0..1."""


class Grid:
    """Draws all pictures of a grid; the models of the graph stay as they are.

    Args:
        model, clip, vae: of the graph.
        loras: as many as ``spec.loras``.
        tick: called after every step of the sampler; raises to end the work.
    """

    def __init__(
        self, model: Any, clip: Any, vae: Any, loras: Sequence[GridLora], spec: GridSpec, tick: Tick
    ) -> None:
        self.model, self.clip, self.vae = model, clip, vae
        self.loras, self.spec, self.tick = loras, spec, tick
        self.notes: list[str] = []
        """What did not fit the model, a sentence for each LoRA."""

    def draw(self) -> Iterator[Drawn]:
        """Picture by picture: first the base, then every LoRA in its strengths.

        Raises:
            AtelierError: there is no text encoder or no VAE; a LoRA cannot be read any more.
        """
        yield from self._sample(None, self.model, self.clip)
        for index, lora in enumerate(self.loras):
            with host_complaints() as words:
                yield from self._strengths(index, lora)
            self.notes += misfits(lora.name, words)

    def _strengths(self, index: int, lora: GridLora) -> Iterator[Drawn]:
        tensors = lora.read()
        for place, strength in enumerate(self.spec.strengths):
            model, clip = apply_lora(self.model, self.clip, tensors, strength)
            yield from self._sample(Variant(index, place), model, clip)

    def _sample(self, variant: Variant | None, model: Any, clip: Any) -> Iterator[Drawn]:
        preview = self.spec.preview
        for prompt, seed, image in sample_previews(model, clip, self.vae, preview, self.tick):
            yield Drawn(variant, prompt, preview.seeds.index(seed), image)


def misfits(name: str, words: Sequence[str]) -> list[str]:
    """What of a LoRA does not fit the model, a sentence for each kind.

    Args:
        words: the host's, as :func:`host_complaints` lends them.
    """
    lost = sorted({word for word in words if word.startswith(LEFT_OUT)})
    refused = sorted({word for word in words if word.startswith(REFUSED)})
    notes = []
    if lost:
        first = lost[0].rpartition(" ")[2]
        notes.append(
            f"{name}: {_keys(len(lost))} mean nothing for this model and have no part in "
            f"the pictures, e.g. {first}. Is it for another base model?"
        )
    if refused:
        notes.append(
            f"{name}: {_keys(len(refused))} do not fit the size of their layers and have "
            "no part in the pictures. It is for another base model."
        )
    return notes


def read_lora_file(path: str, name: str) -> dict[str, Tensor]:
    """As LoraLoader reads it.

    Raises:
        AtelierError: it is damaged or gone.
    """
    try:
        return comfy.utils.load_torch_file(path, safe_load=True)
    except UNREADABLE as error:
        raise AtelierError(f'lora_files: "{name}" cannot be read: {error}.') from error


def _keys(count: int) -> str:
    return "1 of its keys" if count == 1 else f"{count} of its keys"
