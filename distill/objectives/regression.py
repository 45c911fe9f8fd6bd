"""Feature regression: distils image features of pixels into points (ScaLR)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from clipsweep.distill.training.distributed import share_of_mean


@dataclass(frozen=True)
class RegressionConfig:
    """Settings of the feature regression from pixels to points."""

    weight: Annotated[
        float,
        Field(ge=0, le=1e9, description="weight of this loss; 0 leaves it out"),
    ] = 0.0
    start: Annotated[
        float,
        Field(
            ge=0, le=1, description="fraction of the training that passes before this loss sets in"
        ),
    ] = 0.0


def regression(local: Float[Tensor, "m d"], pixel: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
    """Feature regression loss ``mean_i |p_i - x_i|`` on unit vectors (ScaLR, CVPR 2024, eq. 1).

    This process's share of it.

    Args:
        local: unit embeddings of the pairs' points.
        pixel: unit features of their pixels.
    """
    return share_of_mean((local.float() - pixel.float()).norm(dim=1))
