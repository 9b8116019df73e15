"""The demo's text encoder: CLIP-L's shape, numbers from a seed, the same on every machine.

A CLIP-L of random numbers mixes its tokens until the words are lost. This one is built so that
words survive: with tok and pos the embeddings of a token and its place, each of the 12 layers
adds to x = tok + pos two branches about 2 % as large as x, so that the output is

    LayerNorm(x) ~ normalised tok + 0.3 pos,   one vector of 768 numbers for each of 77 places.

A diffusion model trained with it learns what each token means; nothing else has to be known.

The numbers are 16-bit integers k cut from the raw 64-bit words of the Philox 4x64 generator
(key: seed in the low word, the tensor's index in the high word; counter 0), little end first,
turned into (k - 32767.5) * s in single precision with s = sqrt(3) * deviation / 32768, and
rounded to half precision. Every step is exact or an IEEE rounding, so no machine differs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

PREFIX = "cond_stage_model.transformer.text_model."
SEED = 20
VOCABULARY, PLACES, WIDTH, HIDDEN, LAYERS = 49408, 77, 768, 3072, 12
TOKEN_DEVIATION = 0.05
PLACE_DEVIATION = 0.3 * TOKEN_DEVIATION
#: Deviations of the weights within a layer. Queries and keys give attention scores of deviation
#: about 1; the others make each branch's output about 0.0008, against 0.05 for a token.
DEVIATIONS = {
    "self_attn.q_proj": 1 / math.sqrt(WIDTH),
    "self_attn.k_proj": 1 / math.sqrt(WIDTH),
    "self_attn.v_proj": 1e-3,
    "self_attn.out_proj": 1e-3,
    "mlp.fc1": 2e-3,
    "mlp.fc2": 5e-4,
}
#: SHA-256 over the tensors of `text_encoder_state_dict(SEED)`; `checksum` says over what bytes.
SHA256 = "824f1d4a46e1af9b2890a588a4dc4fb281d0c169a40d193355d0fcf88527cebb"


def _uniform(seed: int, index: int, shape: tuple[int, ...], deviation: float) -> Tensor:
    """The tensor number `index` of a seed: half-precision, uniform, of the given deviation."""
    count = math.prod(shape)
    words = np.random.Philox(key=seed + (index << 64), counter=0).random_raw((count + 3) // 4)
    integers = words.astype("<u8", copy=False).view("<u2")[:count]
    numbers = integers.astype(np.float32)
    numbers -= np.float32(32767.5)
    numbers *= np.float32(math.sqrt(3) * deviation / 32768)
    return torch.from_numpy(numbers.astype(np.float16).reshape(shape))


def _norm(name: str) -> Iterator[tuple[str, Tensor]]:
    """A layer normalisation that changes nothing: weight 1, bias 0."""
    yield f"{name}.weight", torch.ones(WIDTH, dtype=torch.float16)
    yield f"{name}.bias", torch.zeros(WIDTH, dtype=torch.float16)


def _shape(name: str) -> tuple[int, int]:
    """[outputs, inputs] of a layer's linear map."""
    return {"mlp.fc1": (HIDDEN, WIDTH), "mlp.fc2": (WIDTH, HIDDEN)}.get(name, (WIDTH, WIDTH))


def text_encoder_state_dict(seed: int = SEED) -> dict[str, Tensor]:
    """All 197 tensors under SD1.5's names: 123 million numbers, in half precision."""
    table, places = "embeddings.token_embedding.weight", "embeddings.position_embedding.weight"
    state = {
        PREFIX + "embeddings.position_ids": torch.arange(PLACES)[None],
        PREFIX + table: _uniform(seed, 0, (VOCABULARY, WIDTH), TOKEN_DEVIATION),
        PREFIX + places: _uniform(seed, 1, (PLACES, WIDTH), PLACE_DEVIATION),
    }
    index = 2
    for layer in range(LAYERS):
        stem = f"{PREFIX}encoder.layers.{layer}."
        for name, deviation in DEVIATIONS.items():
            shape = _shape(name)
            state[f"{stem}{name}.weight"] = _uniform(seed, index, shape, deviation)
            state[f"{stem}{name}.bias"] = torch.zeros(shape[0], dtype=torch.float16)
            index += 1
        state.update(_norm(f"{stem}layer_norm1"))
        state.update(_norm(f"{stem}layer_norm2"))
    state.update(_norm(f"{PREFIX}final_layer_norm"))
    return state


def checksum(state: dict[str, Tensor]) -> str:
    """SHA-256 over, in the order of names: name, a zero byte, shape as text, the raw bytes."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name}\0{tuple(state[name].shape)}".encode())
        digest.update(state[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
