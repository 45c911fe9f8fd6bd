"""Point cloud augmentation: random rotation about the vertical, flip, scaling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from jaxtyping import Float32
from pydantic import Field


@dataclass(frozen=True)
class AugmentConfig:
    """Settings of the point cloud augmentation: ranges of rotation, flip and scale."""

    rotate_deg: Annotated[
        float,
        Field(ge=0, le=180, description="largest turn about the vertical axis, either way [deg]"),
    ] = 180.0
    flip: Annotated[
        bool,
        Field(description="mirror along x and along y, each with probability one half"),
    ] = True
    scale: Annotated[
        float,
        Field(ge=0, le=0.9, description="largest relative change of size, either way"),
    ] = 0.05


def augment(
    xyz: Float32[np.ndarray, "n 3"], config: AugmentConfig, random: np.random.Generator
) -> Float32[np.ndarray, "n 3"]:
    """Augments a point cloud: a rotated, flipped and scaled copy of points [m] in the LiDAR frame.

    Heights change by the scale only.
    """
    angle = np.deg2rad(random.uniform(-config.rotate_deg, config.rotate_deg))
    size = random.uniform(1 - config.scale, 1 + config.scale)
    signs = 2.0 * random.integers(0, 2, 2) - 1.0 if config.flip else np.ones(2)
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    return (xyz @ (size * np.diag([*signs, 1.0]) @ turn).T.astype(np.float32)).astype(
        np.float32, copy=False
    )
