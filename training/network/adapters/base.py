"""What the algorithms share: a dense update beside the frozen layer, module dropout, max-norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...base_model.frozen import FrozenLayer, convolve, four_bit_state, is_linear


class Adapter(nn.Module):
    """An update ``ΔW`` beside a frozen layer: ``y = W x + b + ΔW x``."""

    module_dropout: float = 0.0
    """Probability with which a forward pass goes without the adapter."""

    stays_float32: frozenset[str] = frozenset()
    """Parameters that are not stored in a narrower format."""

    needs_weights: bool = False
    """True when :meth:`begin` has to be called before the first step."""

    def forward(self, frozen: FrozenLayer, x: Tensor) -> Tensor:
        if self.dropped_out():
            return self.idle(frozen(x))
        return frozen(x) + apply_weight(frozen.layer, x, self.delta_weight().to(x.dtype))

    def delta_weight(self) -> Tensor:
        """``ΔW`` in the shape of the layer's weight, float32."""
        raise NotImplementedError

    def begin(self, frozen: FrozenLayer) -> None:
        """Take over from the layer what the adapter starts with; most start from nothing."""

    def dropped_out(self) -> bool:
        """True when this pass goes without the adapter (drawn from torch's own stream)."""
        return (
            self.training
            and self.module_dropout > 0
            and float(torch.rand(())) < self.module_dropout
        )

    def idle(self, y: Tensor) -> Tensor:
        """The layer's own answer with a gradient of zero in the adapter, so that there is something
        to go back through even when every adapter drops out."""
        zero = sum(parameter.flatten()[0] * 0 for parameter in self.parameters())
        return y + zero.to(y.dtype)

    @torch.no_grad()
    def limit_norm(self, max_norm: float) -> bool:
        """Scale the update down to Frobenius norm ``max_norm`` where it is longer.

        Source: kohya-ss/sd-scripts, networks/lora.py ``apply_max_norm_regularization``.

        Returns:
            True when it was longer.
        """
        norm = float(self.delta_weight().norm())
        if norm <= max_norm:
            return False
        self.shrink(max_norm / norm)
        return True

    def shrink(self, factor: float) -> None:
        """Multiply ``ΔW`` by ``factor`` (0..1)."""
        raise NotImplementedError


def apply_weight(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """``weight`` in place of the layer's own, without bias."""
    if is_linear(layer):
        return nn.functional.linear(x, weight)
    return convolve(layer, x, weight, None)


def weight_shape(layer: nn.Module) -> tuple[int, ...]:
    """[out, in, *kernel] of a layer, read without touching its weight, which may be packed."""
    if is_linear(layer):
        if not hasattr(layer, "in_features"):
            return tuple(four_bit_state(layer).shape)
        return (layer.out_features, layer.in_features)
    return (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
