"""The LoRA network: one small trainable adapter beside each chosen frozen layer.

The state dict of a network *is* the LoRA file: keys ``<layer>.<what the algorithm calls it>``, for
LoRA ``….lora_down.weight``, ``….lora_up.weight`` and ``….alpha``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..errors import require
from ..random_streams import generator
from .adapters.base import Adapter
from .adapters.dora import DoRA
from .adapters.full import FullDiff
from .adapters.loha import LoHa
from .adapters.lokr import LoKr
from .adapters.lora import LoRA
from .adapters.oft import BOFT, OFT
from .existing_lora import Size, of_text_encoder, size_in_file
from .spec import MAX_NETWORK_DIM, Algorithm, NetworkSpec
from .targets import TargetLayer, blocks_of, is_spatial

__all__ = ["MAX_NETWORK_DIM", "Algorithm", "NetworkSpec", "build_network", "describe_network"]

Make = Callable[[nn.Module, Size, torch.Generator, NetworkSpec], Adapter]

ADAPTERS: dict[Algorithm, Make] = {
    Algorithm.LORA: lambda layer, size, rng, spec: LoRA(layer, size.dim, size.alpha, rng),
    Algorithm.DORA: lambda layer, size, rng, spec: DoRA(layer, size.dim, size.alpha, rng),
    Algorithm.LOHA: lambda layer, size, rng, spec: LoHa(layer, size.dim, size.alpha, rng),
    Algorithm.LOKR: lambda layer, size, rng, spec: LoKr(
        layer, size.dim, size.alpha, rng, spec.lokr_factor
    ),
    Algorithm.FULL: lambda layer, size, rng, spec: FullDiff(layer),
    Algorithm.OFT: lambda layer, size, rng, spec: OFT(layer, size.dim),
    Algorithm.BOFT: lambda layer, size, rng, spec: BOFT(layer, size.dim),
}


CPU = torch.device("cpu")


def build_network(
    layers: Mapping[str, TargetLayer],
    spec: NetworkSpec,
    seed: int,
    device: torch.device = CPU,
) -> nn.ModuleDict:
    """Make one adapter a layer, in float32.

    Args:
        layers: file name of the adapter (``lora_unet_…``, no dots) -> the frozen layer.
        seed: each adapter's start depends on it and on its own name alone, so choosing other
            layers does not change how these begin.
        device: the CPU, or ``meta`` for the shapes alone.

    Raises:
        AtelierError: nothing is left to train, ``block_dims`` does not fit the model, or the LoRA
            to continue from is of another kind.
    """
    # Constructors may draw from the global stream, which is the host's: give it back.
    with device, torch.random.fork_rng(devices=[]):
        network = nn.ModuleDict(_adapters(layers, spec, seed))
    for name, adapter in network.items():
        if (start := layers[name].start) is not None and device == CPU:
            shapes = adapter.state_dict()
            adapter.load_state_dict({k: v.reshape(shapes[k].shape) for k, v in start.items()})
    return network


def limit_norms(network: Mapping[str, Adapter], spec: NetworkSpec) -> None:
    """After a step: no ``ΔW`` is longer than ``scale_weight_norms``, where that is on."""
    if spec.scale_weight_norms > 0:
        for adapter in network.values():
            adapter.limit_norm(spec.scale_weight_norms)


def describe_network(layers: Mapping[str, TargetLayer], spec: NetworkSpec) -> str:
    """What is going to be trained: ``LoRA: 192 layers, 3.2 M parameters, rank 16``.

    Raises:
        AtelierError: as :func:`build_network`, but without taking any of the memory.
    """
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        adapters = _adapters(layers, spec, seed=0)
        numbers = sum(p.numel() for adapter in adapters.values() for p in adapter.parameters())
    text = f"{spec.label}: {len(adapters)} layers, {short_number(numbers)} parameters"
    sizes = _sizes(layers, spec)
    in_text_encoders = [name for name in adapters if of_text_encoder(name)]
    text += _ranks(spec, {sizes[n].dim for n in adapters.keys() - set(in_text_encoders)})
    if in_text_encoders:
        ranks = _ranks(spec, {sizes[name].dim for name in in_text_encoders})
        text += f"; of them {len(in_text_encoders)} in text encoders{ranks}"
    if spec.existing is None:
        return text
    text += f', continued from "{spec.existing.name}"'
    if (ignored := spec.existing.text_encoder_keys) and not in_text_encoders:
        text += f" ({ignored} keys of text encoders are not continued)"
    return text


def short_number(number: int) -> str:
    """ "950", "3.2 k", "12.8 M", "1.1 G"."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)


def _ranks(spec: NetworkSpec, dims: set[int]) -> str:
    if not dims or spec.algorithm is Algorithm.FULL:
        return ""
    return f", {'rank' if spec.algorithm.has_rank else 'block size'} {_range(dims)}"


def _range(dims: set[int]) -> str:
    return str(*dims) if len(dims) == 1 else f"{min(dims)} to {max(dims)}"


def _adapters(
    layers: Mapping[str, TargetLayer], spec: NetworkSpec, seed: int
) -> dict[str, Adapter]:
    require(len(layers) > 0, "No layer of this model can be trained with the chosen network.")
    adapters = {}
    for name, size in _sizes(layers, spec).items():
        if size.dim == 0:
            continue
        target, rng = layers[name], generator(seed, "network", name)
        adapter = ADAPTERS[spec.algorithm](target.layer, size, rng, spec)
        adapter.module_dropout = spec.module_dropout
        if isinstance(adapter, LoRA):
            adapter.network_dropout = spec.network_dropout
            adapter.rank_dropout = spec.rank_dropout
        if target.start is not None:
            _require_same_kind(name, adapter, target.start, spec)
        adapters[name] = adapter
    return adapters


def _sizes(layers: Mapping[str, TargetLayer], spec: NetworkSpec) -> dict[str, Size]:
    """How large the adapter of each layer is."""
    blocks = blocks_of({n: target for n, target in layers.items() if not of_text_encoder(n)})
    require(
        not spec.block_dims or len(spec.block_dims) == len(blocks),
        f"block_dims holds {len(spec.block_dims)} numbers, but the chosen layers lie in "
        f"{len(blocks)} blocks: {', '.join(blocks)}. Write one number for each, in this order.",
    )
    dims = dict(zip(blocks, spec.block_dims, strict=False))

    def size(name: str, target: TargetLayer) -> Size:
        if target.start is not None:
            return size_in_file(target.start)
        if of_text_encoder(name):
            return spec.text_encoder_size
        return spec.size(is_spatial(target.layer), dims.get(target.block))

    return {name: size(name, target) for name, target in layers.items()}


def _require_same_kind(
    name: str, adapter: Adapter, start: Mapping[str, Tensor], spec: NetworkSpec
) -> None:
    """Refuse what a file holds for a layer unless it is exactly what the algorithm has there."""
    # A 1×1 convolution may have been written as the matrix it is, so that shapes differ in ones.
    own = {key: (v.shape[:1], v.numel()) for key, v in adapter.state_dict().items()}
    wanted = {key: (v.shape[:1], v.numel()) for key, v in start.items()}
    require(
        own == wanted,
        f'existing LoRA "{spec.existing.name if spec.existing else ""}": for layer {name} it holds '
        f"{', '.join(sorted(start))}, which is not what algorithm {spec.algorithm.value} trains "
        "there. Choose the algorithm and the lokr_factor it was trained with; LoRAs made with "
        "Tucker factors, with DoRA lengths on outputs or for another model cannot be continued.",
    )
