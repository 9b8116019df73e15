"""What kind of LoRA is trained: algorithm, size, layers, dropouts, and the rules between them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ..errors import AtelierError, require, require_number
from .existing_lora import ExistingLora, Size
from .targets import TargetModules, TextEncoders, compiled

MAX_NETWORK_DIM = 1024
DEFAULT_DIM = 16
DEFAULT_ALPHA = 16.0
MAX_DROPOUT = 0.99


class Algorithm(str, Enum):
    """How the change of a layer is written down; LoRA with ``conv_dim`` is LoCon."""

    LORA = "lora"
    DORA = "dora"
    LOHA = "loha"
    LOKR = "lokr"
    FULL = "full"
    OFT = "oft"
    BOFT = "boft"

    @property
    def has_rank(self) -> bool:
        """Has two thin factors, so that rank and alpha mean something."""
        return self in (Algorithm.LORA, Algorithm.DORA, Algorithm.LOHA, Algorithm.LOKR)

    @property
    def rotates(self) -> bool:
        """Turns the layer's outputs instead of adding to its weight."""
        return self in (Algorithm.OFT, Algorithm.BOFT)

    @property
    def has_side_path(self) -> bool:
        """Computes through the narrow middle while training, where units can drop out."""
        return self in (Algorithm.LORA, Algorithm.DORA)


LABELS = {
    Algorithm.LORA: "LoRA",
    Algorithm.DORA: "DoRA",
    Algorithm.LOHA: "LoHa",
    Algorithm.LOKR: "LoKr",
    Algorithm.FULL: "Full difference",
    Algorithm.OFT: "OFT",
    Algorithm.BOFT: "BOFT",
}


@dataclass(frozen=True)
class NetworkSpec:
    """What to train, as the widgets of LoRA Network say it."""

    network_dim: int = DEFAULT_DIM
    """Rank; for OFT and BOFT the side of a block."""
    network_alpha: float = DEFAULT_ALPHA
    """Adapter strength; the update is scaled by ``network_alpha / network_dim``."""
    algorithm: Algorithm = Algorithm.LORA
    target_modules: TargetModules = TargetModules.ATTENTION_MLP
    target_regex: str = ""
    """What a layer's path in the model, or its name in the file, has to contain."""
    conv_dim: int = 0
    """Rank at convolutions wider than 1×1, which 0 leaves out."""
    conv_alpha: float = 0.0
    """Their alpha; 0 = the share that ``network_alpha`` is of ``network_dim``."""
    rs_lora: bool = False
    """Scale by ``alpha / √dim`` (Kalajdzievski 2023, arXiv:2312.03732)."""
    network_dropout: float = 0.0
    rank_dropout: float = 0.0
    module_dropout: float = 0.0
    """Probabilities with which a unit of the narrow middle, a rank, a whole adapter drops out."""
    scale_weight_norms: float = 0.0
    """Frobenius norm up to which each ``ΔW`` may grow; 0 = no limit."""
    lokr_factor: int = -1
    """Size of LoKr's first matrix at most; -1 = as square as the layer allows."""
    block_dims: tuple[int, ...] = ()
    """One rank for each block that has layers to train, 0 = off; () = the same for all."""
    existing: ExistingLora | None = None
    """A LoRA to continue from; it decides the layers and their ranks."""
    text_encoders: TextEncoders = TextEncoders.NONE
    text_encoder_dim: int = 0
    """Rank at the text encoders' layers; 0 = ``network_dim``."""
    text_encoder_alpha: float = 0.0
    """Their alpha; 0 = the share that ``network_alpha`` is of ``network_dim``."""

    def __post_init__(self) -> None:
        require(
            isinstance(self.network_dim, int) and 1 <= self.network_dim <= MAX_NETWORK_DIM,
            f"network_dim is {self.network_dim}: the rank must be a whole number from 1 to "
            f"{MAX_NETWORK_DIM}. 16 suits most styles, 32 an anime style, 128 a character.",
        )
        require_number(
            "network_alpha", self.network_alpha, 1e-3, 1e4, "Half the rank or the rank is usual."
        )
        self._check_numbers()
        self._check_targets()
        self._check_algorithm()
        self._check_text_encoders()
        self._check_existing()

    def _check_numbers(self) -> None:
        require(
            isinstance(self.conv_dim, int) and 0 <= self.conv_dim <= MAX_NETWORK_DIM,
            f"conv_dim is {self.conv_dim}: it must be a whole number from 0 (off) to "
            f"{MAX_NETWORK_DIM}. Half of network_dim or less is usual.",
        )
        require_number("conv_alpha", self.conv_alpha, 0, 1e4, "0 = as network_alpha does it.")
        require(
            isinstance(self.text_encoder_dim, int)
            and 0 <= self.text_encoder_dim <= MAX_NETWORK_DIM,
            f"text_encoder_dim is {self.text_encoder_dim}: it must be a whole number from 0 (as "
            f"network_dim) to {MAX_NETWORK_DIM}. Half of network_dim or less is usual.",
        )
        require_number(
            "text_encoder_alpha", self.text_encoder_alpha, 0, 1e4, "0 = as network_alpha does it."
        )
        for widget in ("network_dropout", "rank_dropout", "module_dropout"):
            value = getattr(self, widget)
            require_number(widget, value, 0, MAX_DROPOUT, "0 = off, 0.1 to 0.3 is usual.")
        require_number(
            "scale_weight_norms", self.scale_weight_norms, 0, 1e4, "0 = off, 1 is usual."
        )
        require(
            isinstance(self.lokr_factor, int)
            and (self.lokr_factor == -1 or 1 <= self.lokr_factor <= MAX_NETWORK_DIM),
            f"lokr_factor is {self.lokr_factor}: it must be -1 (automatic) or a whole number from "
            f"1 to {MAX_NETWORK_DIM}; 4 to 16 is usual.",
        )
        most = 1 if self.algorithm is Algorithm.FULL else MAX_NETWORK_DIM
        for number in self.block_dims:
            require(
                isinstance(number, int) and 0 <= number <= most,
                f"block_dims holds {number}: with algorithm {self.algorithm.value} its numbers go "
                f"from 0 (the block is not trained) to {most}.",
            )
        require(
            not self.block_dims or any(self.block_dims),
            "block_dims switches every block off. Give at least one block a rank.",
        )

    def _check_targets(self) -> None:
        if self.target_modules is TargetModules.REGEX:
            compiled(self.target_regex)
        else:
            self._require_default(
                "target_regex", f"target_modules {self.target_modules.value}", "regex"
            )
        if self.conv_dim == 0:
            self._require_default("conv_alpha", "conv_dim 0")

    def _check_algorithm(self) -> None:
        algorithm = self.algorithm
        chosen = f"algorithm {algorithm.value}"
        if algorithm is Algorithm.FULL:
            self._require_default("network_dim", chosen)
        if not algorithm.has_rank:
            for widget in ("network_alpha", "rs_lora"):
                self._require_default(widget, chosen, "lora")
            require(
                self.conv_dim == 0,
                f"conv_dim is {self.conv_dim}, which means nothing with {chosen}: set it to 0, and "
                "target_modules to all_linear_conv to train convolutions too.",
            )
        if not algorithm.has_side_path:
            for widget in ("network_dropout", "rank_dropout"):
                self._require_default(widget, chosen, "lora or dora")
        if algorithm.rotates:
            self._require_default("scale_weight_norms", chosen)
        if algorithm is not Algorithm.LOKR:
            self._require_default("lokr_factor", chosen, "lokr")

    def _check_text_encoders(self) -> None:
        if self.text_encoders is TextEncoders.NONE:
            require(
                self.target_modules is not TargetModules.NONE,
                "target_modules is none and text_encoders is none: nothing is left to train. "
                "Choose attention_mlp, or text_encoders clip.",
            )
            for widget in ("text_encoder_dim", "text_encoder_alpha"):
                self._require_default(widget, "text_encoders none", "clip there")
        if self.target_modules is TargetModules.NONE:
            for widget in ("conv_dim", "block_dims"):
                self._require_default(widget, "target_modules none")
        if self.algorithm is Algorithm.FULL:
            self._require_default("text_encoder_dim", "algorithm full")
        if not self.algorithm.has_rank:
            self._require_default("text_encoder_alpha", f"algorithm {self.algorithm.value}", "lora")

    def _check_existing(self) -> None:
        if self.existing is None:
            return
        other = f'the existing LoRA "{self.existing.name}"'
        for widget in ("target_modules", "target_regex", "block_dims", "conv_dim", "rs_lora"):
            self._require_default(widget, other)
        if self.existing.text_encoder_keys and self.trains_text_encoders:
            for widget in ("text_encoder_dim", "text_encoder_alpha"):
                self._require_default(widget, f"the text encoders' part of {other}")

    def _require_default(self, widget: str, other: str, meant_for: str = "") -> None:
        """Refuse a value that would be silently ignored."""
        value, default = getattr(self, widget), _default(widget)
        way_out = f", or choose {meant_for}" if meant_for else ""
        require(
            value == default,
            f"{widget} is {_shown(value)}, which means nothing with {other}. Set it back to "
            f"{_shown(default)}{way_out}.",
        )

    @property
    def label(self) -> str:
        """What people call it."""
        locon = self.algorithm is Algorithm.LORA and self.conv_dim > 0
        return "LoCon" if locon else LABELS[self.algorithm]

    @property
    def trains_diffusion_model(self) -> bool:
        return self.target_modules is not TargetModules.NONE

    @property
    def trains_text_encoders(self) -> bool:
        return self.text_encoders is not TextEncoders.NONE

    @property
    def drops_out(self) -> bool:
        """True when a forward pass draws random numbers."""
        return max(self.network_dropout, self.rank_dropout, self.module_dropout) > 0

    def size(self, spatial: bool, block_dim: int | None = None) -> Size:
        """Of the adapter of one layer.

        Args:
            spatial: the layer is a convolution wider than 1×1.
            block_dim: what ``block_dims`` says of its block.
        """
        share = self.network_alpha / self.network_dim
        if block_dim == 0:
            return Size(0, 0.0)
        if spatial and self.conv_dim > 0:
            dim, alpha = self.conv_dim, self.conv_alpha or share * self.conv_dim
        elif block_dim is not None:
            dim, alpha = block_dim, share * block_dim
        else:
            dim, alpha = self.network_dim, self.network_alpha
        return self._scaled(dim, alpha)

    @property
    def text_encoder_size(self) -> Size:
        """Of the adapter of one layer of a text encoder."""
        dim = self.text_encoder_dim or self.network_dim
        share = self.network_alpha / self.network_dim
        return self._scaled(dim, self.text_encoder_alpha or share * dim)

    def _scaled(self, dim: int, alpha: float) -> Size:
        return Size(dim, alpha * math.sqrt(dim) if self.rs_lora else alpha)


def parse_block_dims(text: str) -> tuple[int, ...]:
    """The widget's numbers, with commas, spaces or new lines between them.

    Raises:
        AtelierError: one is no whole number.
    """
    words = [word for word in re.split(r"[\s,;]+", text) if word]
    try:
        return tuple(int(word) for word in words)
    except ValueError as error:
        raise AtelierError(
            f'block_dims is "{text.strip()}": write one whole number for each block, such as '
            "16, 16, 0, 8 (0 = the block is not trained), or leave it empty."
        ) from error


def _default(widget: str) -> Any:
    return NetworkSpec.__dataclass_fields__[widget].default


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        value = ", ".join(map(str, value))
    if isinstance(value, Enum):
        value = value.value
    return f"{value:g}" if isinstance(value, float) else f"{value}" if value != "" else "nothing"
