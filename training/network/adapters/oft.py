"""OFT and BOFT: the layer's outputs are rotated, block by block.

``y = Rᵀ (W x) + b`` with ``R = (I + Q)(I − Q)⁻¹`` block-diagonal and ``Q`` skew-symmetric (Cayley),
so neurons keep their angles to each other (Qiu et al. 2023, arXiv:2306.07280). BOFT multiplies
several such rotations between which the outputs are dealt out like the stages of a fast Fourier
transform (Liu et al. 2023, arXiv:2311.06243). Layout of the blocks: LyCORIS, as ComfyUI reads it
(comfy/weight_adapter/oft.py, boft.py).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...base_model.frozen import FrozenLayer, is_linear
from ...errors import require
from .base import Adapter, weight_shape


class _Rotation(Adapter):
    """Acts on what the frozen layer gives, without its bias."""

    oft_blocks: nn.Parameter

    def forward(self, frozen: FrozenLayer, x: Tensor) -> Tensor:
        y = frozen(x)
        if self.dropped_out():
            return self.idle(y)
        axis = -1 if is_linear(frozen.layer) else 1
        with frozen.lend(y) as (_, bias):
            bias = None if bias is None else bias.detach().clone()
        if bias is None:
            return self.rotate(y.movedim(axis, -1)).movedim(-1, axis)
        plain = y.movedim(axis, -1) - bias
        return (self.rotate(plain) + bias).movedim(-1, axis)

    def rotate(self, y: Tensor) -> Tensor:
        """[..., out] -> [..., out]."""
        raise NotImplementedError

    def rotations(self) -> Tensor:
        """[..., size, size] orthogonal matrices, float32: the inverse needs it."""
        blocks = self.oft_blocks.float()
        skew = blocks - blocks.transpose(-1, -2)
        identity = torch.eye(skew.shape[-1], device=skew.device)
        return torch.linalg.solve(identity - skew, identity + skew, left=False)

    def shrink(self, factor: float) -> None:
        self.oft_blocks *= factor


class OFT(_Rotation):
    """One block-diagonal rotation.

    Args:
        block_size: side of a block at most; the largest divisor of the width up to it is taken.
    """

    def __init__(self, layer: nn.Module, block_size: int) -> None:
        super().__init__()
        width = weight_shape(layer)[0]
        size = max(n for n in range(1, min(block_size, width) + 1) if width % n == 0)
        self.oft_blocks = nn.Parameter(torch.zeros(width // size, size, size))

    def rotate(self, y: Tensor) -> Tensor:
        count, size, _ = self.oft_blocks.shape
        blocks = y.unflatten(-1, (count, size))
        rotation = self.rotations().to(y.dtype)
        return torch.einsum("k n m, ... k n -> ... k m", rotation, blocks).flatten(-2)


class BOFT(_Rotation):
    """Several rotations, each of which mixes blocks twice as far apart as the one before.

    Args:
        block_size: side of a block at most. It must be even and fit the layer's width a power of
            two times; the nearest size that does is taken.
    """

    def __init__(self, layer: nn.Module, block_size: int) -> None:
        super().__init__()
        width = weight_shape(layer)[0]
        sizes = [width >> n for n in range(width.bit_length()) if width % (2 << n) == 0]
        require(len(sizes) > 0, f"BOFT needs layers of even width; one has {width} outputs.")
        size = max((s for s in sizes if s <= block_size), default=min(sizes))
        stages = (width // size).bit_length()
        self.oft_blocks = nn.Parameter(torch.zeros(stages, width // size, size, size))
        # ComfyUI reads it as a limit on the rotation, 0 = none, and fails when there is none.
        self.register_buffer("alpha", torch.tensor(0.0))

    def rotate(self, y: Tensor) -> Tensor:
        rotations = self.rotations().to(y.dtype)
        size = rotations.shape[-1]
        for stage, rotation in enumerate(rotations):
            distance = 2**stage * size // 2
            dealt = y.unflatten(-1, (-1, 2, distance)).transpose(-1, -2).flatten(-3)
            blocks = dealt.unflatten(-1, (-1, size))
            turned = torch.einsum("k i j, ... k j -> ... k i", rotation, blocks).flatten(-2)
            y = turned.unflatten(-1, (-1, distance, 2)).transpose(-1, -2).flatten(-3)
        return y
