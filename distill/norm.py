"""Batch norm over the rows of a sparse tensor, with what follows it: a sum and a rectifier."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Norm(nn.BatchNorm1d):
    """``relu(batch_norm(x) + add)``; also fit for one row or none, where ``nn.BatchNorm1d`` gives up."""

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "v c"], relu: bool = False, add: Float[Tensor, "v c"] | None = None
    ) -> Float[Tensor, "v c"]:
        if self.training and len(x) < 2:
            out = x * 0 + self.bias
        else:
            out = super().forward(x)
        out = out if add is None else out + add
        return torch.relu(out) if relu else out
