"""The training loop: batches in, a better student out, and word of every step."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

import torch
from torch import nn

from distill.augment import AugmentConfig
from distill.batch import Batch
from distill.objectives import Moment, Terms
from distill.student import Student


@dataclass(frozen=True)
class TrainConfig:
    """How the student is trained.

    Attributes:
        sweeps: sweeps of a frame that are learnt from, each with its own augmentation and its own pass
        sweeps_among: the others are drawn from the newest so many; at most ``sweeps`` takes the newest
        epochs: passes over the training frames
        batch_size: frames a step
        optimizer: adamw or sgd with momentum
        lr: highest learning rate
        momentum: of sgd
        weight_decay: of all parameters but biases and norms
        warmup: share of all steps in which the learning rate rises from 0; then it falls as a cosine
        clip_norm: gradients are scaled to at most this norm; 0 leaves them
        precision: of products; weights and sums stay in float32
        checkpoint_epochs: epochs between checkpoints
    """

    sweeps: int = 1
    sweeps_among: int = 0
    epochs: int = 20
    batch_size: int = 4
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 2e-3
    momentum: float = 0.9
    weight_decay: float = 0.03
    warmup: float = 0.1
    clip_norm: float = 10.0
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    checkpoint_epochs: int = 5
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass(frozen=True, slots=True)
class Step:
    """Word of one optimiser step.

    Attributes:
        epoch: passes done before this step.
        step: steps done, this one included.
        loss: sum of the terms.
        terms: each objective's weighted value.
        lr: learning rate used.
        points: labelled points, or point-pixel pairs, learnt from.
    """

    epoch: int
    step: int
    loss: float
    terms: Mapping[str, float]
    lr: float
    points: int


class NotFinite(RuntimeError):
    """The loss became nan or infinite; names the frames of the batch."""


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Linear rise over the first ``warmup`` share of ``steps``, then half a cosine down to 0."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return peak * (step + 1) / rise
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def make_optimizer(
    student: nn.Module, config: TrainConfig, head: str = "", head_lr: float = 1.0
) -> torch.optim.Optimizer:
    """The optimiser over the trainable parameters; vectors (biases, norms) are not decayed.

    Args:
        student: the network.
        config: which optimiser, and its constants.
        head: parameters whose names start with this learn at a rate of their own.
        head_lr: that rate, as a multiple of the others'.
    """
    trained = [(bool(head) and name.startswith(head), p) for name, p in student.named_parameters() if p.requires_grad]
    groups = [
        {
            "params": [p for own, p in trained if own == of_head and (p.ndim > 1) == matrix],
            "weight_decay": config.weight_decay if matrix else 0.0,
            "scale": head_lr if of_head else 1.0,
        }
        for of_head in (False, True)
        for matrix in (True, False)
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=config.lr)


def train(
    student: Student,
    terms_of: Terms,
    batches: Iterable[Batch],
    steps_per_epoch: int,
    config: TrainConfig,
    optimizer: torch.optim.Optimizer,
    on_step: Callable[[Step], None],
    on_checkpoint: Callable[[int], None],
    start_epoch: int = 0,
    seed: int = 0,
) -> None:
    """Trains in place, from ``start_epoch`` to the last.

    Args:
        student: on the device to train on.
        terms_of: the weighted terms of the loss on a batch; their sum is brought down.
        batches: those of all epochs from ``start_epoch`` on, one after the other.
        steps_per_epoch: how many an epoch has.
        config: schedule and precision.
        optimizer: of the student's parameters, with its state if training goes on.
        on_step: hears of each step.
        on_checkpoint: called with the number of finished epochs every ``checkpoint_epochs`` and at the end,
            at once when no epoch is left.
        start_epoch: finished epochs that this run goes on from.
        seed: of what objectives draw by chance; each step draws from a state of its own.

    Raises:
        NotFinite: the loss is not finite.
    """
    device = next(student.parameters()).device
    if start_epoch >= config.epochs:
        on_checkpoint(start_epoch)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
    steps, stream = config.epochs * steps_per_epoch, iter(batches)
    for epoch in range(start_epoch, config.epochs):
        _train_mode(student)
        for index, batch in enumerate(islice(stream, steps_per_epoch)):
            step = epoch * steps_per_epoch + index
            lr = learning_rate(step, steps, config.lr, config.warmup)
            for group in optimizer.param_groups:
                group["lr"] = lr * group["scale"]
            with _autocast(device, config.precision):
                terms = terms_of(batch.to(device), Moment(step / steps, _coin(seed, step)))
            total = torch.stack(list(terms.values())).sum()
            if not torch.isfinite(total):
                raise NotFinite(f"loss is {total.item()} at step {step + 1}, frames {', '.join(batch.frames)}")
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(total).backward()
            if config.clip_norm:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(student.parameters(), config.clip_norm)
            scaler.step(optimizer)
            scaler.update()
            values = {name: term.item() for name, term in terms.items()}
            on_step(Step(epoch, step + 1, total.item(), values, lr, len(batch.pair_point)))
        if (epoch + 1) % config.checkpoint_epochs == 0 or epoch + 1 == config.epochs:
            on_checkpoint(epoch + 1)


def _train_mode(student: nn.Module) -> None:
    """Training mode, but for parts in which nothing is trained: the norms of a frozen network must stand still."""
    for module in student.children():
        module.train(any(parameter.requires_grad for parameter in module.parameters()))


def _coin(seed: int, step: int) -> float:
    return random.Random(f"{seed} {step}").random()  # noqa: S311 - no secret


def _autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device.type, kinds.get(precision, torch.bfloat16), enabled=precision in kinds)
