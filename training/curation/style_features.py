"""What the style of one picture is like, in numbers that say little of its subject.

Colour: the commonest colour, which is mostly the ground, and quantiles of the others in CIELAB. The
distance of two vectors of quantiles is the 2-Wasserstein distance of the colours along each axis
(sliced: Bonneel et al. 2015, J. Math. Imaging Vis. 51), without the bins of a histogram. The ground
is taken out so that the size of the subject does not pass for its colour.

Palette: how few colours make up most of the picture, from a joint histogram of CIELAB, and its
entropy. Shading: how much the colour changes from one pixel to the next (ΔE of CIE 1976).

Edges: how strong the gradients of the grey picture are, at three scales, and whether dark lines or
bright ones run through it: the skewness of its Laplacian, as Portilla & Simoncelli 2000 (Int. J.
Comput. Vis. 40) take the marginal statistics of bands.

Texture: local binary patterns, uniform and rotation-invariant (Ojala et al. 2002, IEEE TPAMI 24),
at two scales.

Shares of pixels enter as square roots, so that their distance is that of Hellinger.
"""

from __future__ import annotations

from enum import Enum

import numpy as np

VERSION = 2
"""Part of the cache key: raise it when a number changes."""

SCALES = 3
QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)

CLASSES = 10
"""Of strength: each begins at twice the one before, and none takes what is weaker."""
FAINTEST_CHANGE = 0.125
"""ΔE a px."""
FAINTEST_GRADIENT = 0.5
"""Grey levels a px."""
PATTERN_THRESHOLD = 0.5
"""Grey levels; a neighbour that is less than this brighter counts as equal."""
PATTERNS = 10
"""Uniform patterns by their count of ones, 0 to 8, and all others."""

COLOUR_STEP = 5.0
"""Side of a bin of CIELAB."""
LIGHTNESSES, OPPONENTS = 21, 52
"""Bins: L from 0 to 100, a and b from -130 to 130."""
LARGEST_SHARES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)


class Aspect(str, Enum):
    """What the numbers are about."""

    COLOUR = "colour"
    PALETTE = "palette"
    SHADING = "shading"
    EDGES = "edges"
    TEXTURE = "texture"


def style_features(pixels: np.ndarray) -> dict[Aspect, np.ndarray]:
    """Measure one picture.

    Args:
        pixels: [H, W, 3] uint8, sRGB, at least 1 px a side.

    Returns:
        One float32 vector an aspect, as long for every picture.
    """
    colours = lab(pixels)  # [3, H, W]
    grey = pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    scales = [grey]
    while len(scales) < SCALES:
        scales.append(_halved(scales[-1]))
    bins = _bins(colours)
    found = {
        Aspect.COLOUR: _colours(colours[:, ::2, ::2], bins[::2, ::2]),
        Aspect.PALETTE: _palette(np.bincount(bins.reshape(-1))),
        Aspect.SHADING: _shading(colours),
        Aspect.EDGES: np.concatenate([_edges(scale) for scale in scales]),
        Aspect.TEXTURE: np.concatenate([_patterns(scale) for scale in scales[:2]]),
    }
    return {aspect: numbers.astype(np.float32) for aspect, numbers in found.items()}


def lab(pixels: np.ndarray) -> np.ndarray:
    """sRGB [H, W, 3] uint8 as CIELAB of white D65 [3, H, W] float32: L 0..100, a and b about
    -100..100 (IEC 61966-2-1, CIE 15)."""
    xyz = (_LINEAR[pixels].reshape(-1, 3) @ _TO_XYZ).T
    x, y, z = _ROOTS[(xyz * (len(_ROOTS) - 1) + 0.5).astype(np.int32)]
    planes = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])
    return planes.reshape(3, *pixels.shape[:2])


def _srgb_to_linear() -> np.ndarray:
    value = np.arange(256) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _lab_root() -> np.ndarray:
    """CIELAB's cube root, linear near 0, of 0..1 in 2¹⁶ steps: a table is five times as fast, and
    a and b are true to 0.1."""
    value = np.linspace(0, 1, 1 << 16)
    return np.where(value > (6 / 29) ** 3, np.cbrt(value), value * ((29 / 6) ** 2 / 3) + 4 / 29)


_LINEAR = _srgb_to_linear().astype(np.float32)
_ROOTS = _lab_root().astype(np.float32)
_RGB_TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
_TO_XYZ = ((_RGB_TO_XYZ / _RGB_TO_XYZ.sum(axis=1, keepdims=True)).T * (1 - 1e-6)).astype(np.float32)
"""Scaled so that white is (1, 1, 1), and rounding does not take it beyond the table."""


def _bins(colours: np.ndarray) -> np.ndarray:
    """The bin of each pixel [H, W] in the joint histogram."""
    # All are above 0 before the rounding, which goes towards 0.
    lightness = (colours[0] * (1 / COLOUR_STEP) + 0.5).astype(np.int32)
    a, b = (colours[1:] * (1 / COLOUR_STEP) + (OPPONENTS // 2 + 0.5)).astype(np.int32)
    return (lightness * OPPONENTS + a) * OPPONENTS + b


def _colours(colours: np.ndarray, bins: np.ndarray) -> np.ndarray:
    """[3 + 4 × 5]: the median of the commonest bin; quantiles of L, a, b and chroma of the rest, or
    of all when there is no rest."""
    common = bins == np.bincount(bins.reshape(-1)).argmax()
    ground = np.median(colours[:, common], axis=1)
    rest = colours.reshape(3, -1) if common.all() else colours[:, ~common]
    rest = np.concatenate([rest, np.hypot(rest[1], rest[2])[None]])
    rest.sort(axis=1)
    places = (np.array(QUANTILES) * (rest.shape[1] - 1) + 0.5).astype(int)
    return np.concatenate([ground, rest[:, places].reshape(-1)])


def _palette(counts: np.ndarray) -> np.ndarray:
    """[11 + 1]: what is left beyond the 1, 2, 3, … commonest bins, and the entropy in nats."""
    shares = np.sort(counts[counts > 0])[::-1] / counts.sum()
    most = np.array([shares[:count].sum() for count in LARGEST_SHARES])
    entropy = -(shares * np.log(shares)).sum()
    return np.append(np.sqrt(np.clip(1 - most, 0, 1)), entropy)


def _shading(colours: np.ndarray) -> np.ndarray:
    """[10]: shares of the steps to the right and down, by how much the colour changes."""
    steps = [np.square(np.diff(colours, axis=axis)).sum(axis=0).reshape(-1) for axis in (1, 2)]
    return _strengths(np.concatenate(steps), FAINTEST_CHANGE)


def _edges(grey: np.ndarray) -> np.ndarray:
    """[10 + 1]: strengths of the gradient, and the skewness of the Laplacian."""
    p = np.pad(grey, 1, mode="edge")
    left, right, above, below = p[1:-1, :-2], p[1:-1, 2:], p[:-2, 1:-1], p[2:, 1:-1]
    squared = np.square((right - left) / 2) + np.square((below - above) / 2)
    laplacian = left + right + above + below - 4 * grey
    strengths = _strengths(squared.reshape(-1), FAINTEST_GRADIENT)
    return np.append(strengths, _skewness(laplacian))


def _strengths(squared: np.ndarray, faintest: float) -> np.ndarray:
    """Square roots of the shares [10] in each class of strength."""
    # x = m·2^e with m in [½, 1) (e = 0 for x = 0): of a square, the class is half of e - 1,
    # rounded down.
    exponents = np.frexp(squared * (1 / faintest**2))[1]
    classes = np.clip((exponents - 1) >> 1, -1, CLASSES - 1) + 1
    counts = np.bincount(classes, minlength=CLASSES + 1)[1:]
    return np.sqrt(counts / max(1, squared.size))


def _skewness(values: np.ndarray) -> float:
    """Of the distribution, as its signed cube root; 0 when all are equal."""
    centred = values - values.mean()
    squared = centred * centred
    spread = float(np.sqrt(squared.mean()))
    return float(np.cbrt((squared * centred).mean()) / spread) if spread > 1e-3 else 0.0


def _patterns(grey: np.ndarray) -> np.ndarray:
    """[10]: square roots of the shares of the patterns; less than 3 px a side is flat."""
    height, width = grey.shape
    if min(height, width) < 3:
        return np.eye(PATTERNS)[0]
    centre = grey[1:-1, 1:-1] + np.float32(PATTERN_THRESHOLD)
    ring = [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0)]
    bits = [grey[y : y + height - 2, x : x + width - 2] > centre for y, x in ring]
    ones = np.zeros(centre.shape, np.uint8)
    changes = np.zeros(centre.shape, np.uint8)
    for bit, following in zip(bits, bits[1:] + bits[:1], strict=True):
        ones += bit
        changes += bit ^ following
    ones[changes > 2] = PATTERNS - 1
    return np.sqrt(np.bincount(ones.reshape(-1), minlength=PATTERNS) / ones.size)


def _halved(grey: np.ndarray) -> np.ndarray:
    """Means of 2×2 px; an odd last row or column is repeated."""
    height, width = grey.shape
    grey = np.pad(grey, ((0, height % 2), (0, width % 2)), mode="edge")
    return (grey[::2, ::2] + grey[1::2, ::2] + grey[::2, 1::2] + grey[1::2, 1::2]) / 4
