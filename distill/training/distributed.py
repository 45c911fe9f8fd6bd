"""Data-parallel training: collective operations over all processes.

Each process has frames of its own and computes its share of the loss over the frames of all;
gradients are summed, not averaged as in DistributedDataParallel. A single process communicates
nothing, and its share is the whole loss.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

# The default arguments of these functions hold the process group that exists when they are
# imported, which the first optimizer does; a group that is held outlives destroy_process_group, and
# its threads then abort the process at exit.
import torch.distributed.nn.functional
from jaxtyping import Float, Shaped
from torch import Tensor, distributed


def world_size() -> int:
    """World size: number of training processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Rank of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def all_reduce_sum(values: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """All-reduce: sum over all processes, without a gradient."""
    if world_size() == 1:
        return values.detach()
    values = values.detach().clone()
    distributed.all_reduce(values)
    return values


def share_of_mean(values: Float[Tensor, " m"]) -> Float[Tensor, ""]:
    """This process's share of the mean over the values of all processes.

    0, with a gradient of 0, where no process has any.
    """
    return values.sum() / all_reduce_sum(torch.tensor(len(values), device=values.device)).clamp(
        min=1
    )


def all_rows(rows: Shaped[Tensor, "m *k"]) -> Shaped[Tensor, "n *k"]:
    """All-gather with a gradient: the rows of all processes, in order of rank.

    What is computed from them is the same everywhere, so this process's share of it is one in
    ``world_size()``.
    """
    return rows if world_size() == 1 else _AllRows.apply(rows)


class _AllRows(torch.autograd.Function):
    """All-gather of rows with a gradient, however many each process has.

    All compute the same from them, so gradients need not be sent.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        counts = [
            torch.zeros((), dtype=torch.int64, device=rows.device) for _ in range(world_size())
        ]
        distributed.all_gather(counts, torch.tensor(len(rows), device=rows.device))
        lengths = [int(count) for count in counts]
        padded = rows.new_zeros(max(lengths), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in lengths]
        distributed.all_gather(parts, padded)
        ctx.own = slice(sum(lengths[: rank()]), sum(lengths[: rank() + 1]))
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        return grads[0][ctx.own] * world_size()


def add_gradients(parameters: Iterable[Tensor]) -> None:
    """All-reduce of gradients: adds up those of all processes in one message."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if world_size() == 1 or not gradients:
        return
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    distributed.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def gather_names(names: Iterable[str]) -> list[str]:
    """Gathers the distinct names that any process gives, in order of rank."""
    lists: list[list[str]] = [list(names)]
    if world_size() > 1:
        ours = lists[0]
        lists = [[] for _ in range(world_size())]
        distributed.all_gather_object(lists, ours)
    return list(dict.fromkeys(name for names in lists for name in names))
