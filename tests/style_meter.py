"""How near a picture is to a style: a distance in colour and edge statistics.

Emoji styles differ in how they fill a shape (one colour or a gradient), how they bound it (black
line, soft shadow, nothing) and how strong their colours are. The features below measure that over
the painted part of a picture only, so that the subject's shape and size weigh little. The distance
is Mahalanobis' (with the covariance within styles), from a picture to the mean of the style's true
pictures: a feature counts in units of how much it varies among pictures of one style.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.float64]
"""[H, W, 3] RGB, 0..1, on white."""


def style_features(picture: Picture) -> NDArray[np.float64]:
    """Statistics of the painted part: tone, colour and the strengths of its gradients."""
    value = picture.max(-1)
    luminance = picture @ [0.299, 0.587, 0.114]
    saturation = value - picture.min(-1)
    dy, dx = np.gradient(luminance)
    gradient = np.hypot(dx, dy)
    painted = (1 - picture.min(-1)) > 0.06
    if painted.sum() < 20:  # an all but empty picture belongs to no style
        painted = np.ones_like(painted)
    inside = gradient[painted]
    tone, colour = luminance[painted], saturation[painted]
    return np.array(
        [
            tone.mean(),
            tone.std(),
            np.quantile(tone, 0.05),
            (tone < 0.2).mean(),
            colour.mean(),
            colour.std(),
            np.quantile(inside, 0.25),
            np.quantile(inside, 0.5),
            np.quantile(inside, 0.9),
            (inside < 0.01).mean(),
        ]
    )


@dataclass(frozen=True)
class StyleMeter:
    """Distance to one style, learned from true pictures of it and of others."""

    mean: NDArray[np.float64]
    precision: NDArray[np.float64]

    @classmethod
    def fit(cls, style: list[Picture], others: list[list[Picture]]) -> StyleMeter:
        """Args: pictures of the style, and of each of the other styles."""
        groups = [np.stack([style_features(p) for p in group]) for group in (style, *others)]
        centred = np.concatenate([group - group.mean(0) for group in groups])
        covariance = np.cov(centred.T) + 1e-6 * np.eye(centred.shape[1])
        return cls(groups[0].mean(0), np.linalg.inv(covariance))

    def distance(self, picture: Picture) -> float:
        """In standard deviations within a style."""
        off = style_features(picture) - self.mean
        return float(np.sqrt(off @ self.precision @ off))
