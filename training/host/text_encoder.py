"""A CLIP of the graph whose text encoders are trained: it reads each caption anew at every step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.model_management as mm
import torch
from torch import nn

from ..base_model.frozen import FrozenLayer, Weights
from ..base_model.training_context import training_context
from ..errors import require
from ..network.spec import NetworkSpec
from ..network.targets import TargetLayer, TextEncoders, attention_and_mlp_layers
from ..runs.examples import Conditioning
from .lent_weights import lend_weights
from .lora_keys import existing_text_layers, text_encoder_names
from .tokens import tokenize

CLIP_ENCODERS = ("clip_l.", "clip_g.", "clip_h.")
COMPUTE_DTYPE = torch.float32
"""In which ComfyUI's text encoders compute, whatever type their weights are stored in."""


class HostTextEncoder:
    """The text encoders of a ComfyUI CLIP, with whatever patches they already have.

    Args:
        clip: stays as it is; a clone of it is used.
        device: where the diffusion model is trained; text encoders are brought there too.

    Raises:
        AtelierError: hooks on the CLIP change it over the sampling steps.
    """

    def __init__(self, clip: Any, device: torch.device) -> None:
        require(
            clip.patcher.forced_hooks is None and not clip.apply_hooks_to_conds,
            "clip: other nodes hung hooks on it, which training it cannot follow. Wire the CLIP "
            "without the hooks, or set text_encoders on LoRA Network to none.",
        )
        self.clip = clip.clone()
        self.clip.patcher.load_device = device
        if hasattr(self.clip.patcher, "register_load_device"):  # newer hosts keep books by device
            self.clip.patcher.register_load_device(device)
        # Loaded for the whole run, not for each caption. Newer hosts hand over the tokens.
        self.clip.load_model = lambda *_, **__: self.clip.patcher
        self._was_moved = device != clip.patcher.load_device
        self.model: nn.Module = clip.cond_stage_model
        self._layers = attention_and_mlp_layers(self.model)
        self._names = text_encoder_names(self.model, self._layers)

    def layers(self, spec: NetworkSpec) -> dict[str, TargetLayer]:
        """Name in the LoRA file (``lora_te…``) -> layer that gets an adapter.

        Raises:
            AtelierError: there is none to train, or the LoRA to continue does not fit.
        """
        chosen = {path: name for path, name in self._names.items() if _is_chosen(path, spec)}
        require(
            bool(chosen),
            f"text_encoders is {spec.text_encoders.value}, but ComfyUI could not load a LoRA for "
            f"{'the' if spec.text_encoders is TextEncoders.ALL else 'a CLIP among the'} text "
            f"encoders of this model ({', '.join(self._kinds())}). Set it to none on LoRA Network"
            f"{', or to all' if spec.text_encoders is TextEncoders.CLIP and self._names else ''}.",
        )
        starts = {}
        if spec.existing is not None and spec.existing.text_encoder_keys:
            starts = existing_text_layers(self.model, spec.existing, self._layers)
            others = sorted(self._names[path] for path in starts if path not in chosen)
            require(
                not others,
                f'existing LoRA "{spec.existing.name}" also holds layers of other text encoders '
                f"({', '.join(others[:2])}). Set text_encoders to all to continue it whole.",
            )
            chosen = {path: name for path, name in chosen.items() if path in starts}
        return {
            name: TargetLayer(self._layers[path], path, start=starts.get(path))
            for path, name in chosen.items()
        }

    def frozen_layers(self) -> dict[str, FrozenLayer]:
        """The layers by their names in the file."""
        return {n: FrozenLayer(self._layers[p], lend_weights) for p, n in self._names.items()}

    def room_to_load(self) -> int:
        """Bytes to leave free for :meth:`load`."""
        return int(1.1 * self.clip.patcher.model_size()) + mm.minimum_inference_memory()

    def load(self) -> None:
        """Onto the device, whole: it looks for its tokens where its embedding lies."""
        mm.load_models_gpu([self.clip.patcher], force_full_load=True)

    def _unload(self) -> None:
        """From a device that is not its own in the graph, where the host would not look for it."""
        for loaded in list(mm.current_loaded_models):
            if loaded.model is self.clip.patcher:
                loaded.model_unload()
                mm.current_loaded_models.remove(loaded)

    @contextmanager
    def training(
        self,
        network: Mapping[str, nn.Module],
        device: torch.device,
        weights: Weights = lend_weights,
        gradient_checkpointing: bool = False,
    ) -> Iterator[None]:
        """Make the loaded text encoders differentiable, with those adapters of ``network`` that
        are theirs; undo all of it at the end."""
        adapters = {p: network[name] for p, name in self._names.items() if name in network}
        with ExitStack() as undo:
            if self._was_moved and device == self.clip.patcher.load_device:
                undo.callback(self._unload)
            undo.enter_context(
                training_context(
                    self.model,
                    adapters,
                    weights,
                    COMPUTE_DTYPE,
                    COMPUTE_DTYPE,
                    device,
                    gradient_checkpointing,
                )
            )
            yield

    def encode(self, caption: str) -> Conditioning:
        """As CLIPTextEncode would give it with its brackets escaped; differentiable."""
        (conditioning,) = self.clip.encode_from_tokens_scheduled(tokenize(self.clip, caption))
        return conditioning

    def _kinds(self) -> list[str]:
        return [name for name, _ in self.model.named_children()]


def _is_chosen(path: str, spec: NetworkSpec) -> bool:
    return spec.text_encoders is TextEncoders.ALL or path.startswith(CLIP_ENCODERS)
