"""Training loop: optimiser, learning rate schedule, mixed precision, gradient clipping, EMA."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from clipsweep.distill.objectives import Moment, Terms
from clipsweep.distill.sparse.norm import Norm
from clipsweep.distill.student.augment import AugmentConfig
from clipsweep.distill.student.batch import Batch
from clipsweep.distill.student.unet import Student
from clipsweep.distill.training.distributed import (
    add_gradients,
    all_reduce_sum,
    gather_names,
    world_size,
)
from clipsweep.projection.errors import BadInput


@dataclass(frozen=True)
class TrainConfig:
    """Training settings: schedule, optimiser, precision, augmentation."""

    sweeps: Annotated[
        int,
        Field(
            ge=1,
            le=11,
            description="sweeps of a frame to train on, each with its own augmentation and "
            "forward pass",
        ),
    ] = 1
    sweeps_among: Annotated[
        int,
        Field(
            ge=0,
            le=11,
            description="older sweeps are sampled from this many of the newest; up to "
            "train.sweeps, or with model.sweeps above 1: always the newest",
        ),
    ] = 0
    max_age_s: Annotated[
        float,
        Field(ge=0, le=1e9, description="oldest age of an older sweep; 0 is no limit [s]"),
    ] = 0.0
    epochs: Annotated[
        int,
        Field(ge=0, le=1_000_000_000, description="passes over the training frames"),
    ] = 20
    batch_size: Annotated[
        int,
        Field(
            ge=1,
            le=128,
            description="frames that go through the network together, on all workers",
        ),
    ] = 4
    accumulate: Annotated[
        int,
        Field(
            ge=1,
            le=1024,
            description="gradient accumulation: batches per optimiser step",
        ),
    ] = 1
    optimizer: Annotated[
        Literal["adamw", "sgd"],
        Field(description="adamw or sgd with momentum"),
    ] = "adamw"
    lr: Annotated[float, Field(ge=0, le=100, description="highest learning rate")] = 2e-3
    schedule: Annotated[
        Literal["cosine", "one_cycle"],
        Field(
            description="learning rate schedule: cosine decay to 0, or one cycle (Smith and "
            "Topin 2018)",
        ),
    ] = "cosine"
    momentum: Annotated[
        float,
        Field(
            ge=0,
            le=0.9999,
            description="momentum of sgd, first beta of adamw; one_cycle goes from .95 to "
            ".85 and back",
        ),
    ] = 0.9
    weight_decay: Annotated[
        float,
        Field(ge=0, le=10, description="weight decay of all parameters but biases and norms"),
    ] = 0.03
    warmup: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="fraction of the steps in which lr rises, from 0, or with one_cycle "
            "from lr / 25",
        ),
    ] = 0.1
    clip_norm: Annotated[
        float,
        Field(ge=0, le=1e9, description="gradient clipping: largest norm; 0 is off"),
    ] = 10.0
    precision: Annotated[
        Literal["float32", "bf16", "fp16"],
        Field(
            description="autocast precision of convolutions and matrix products; weights "
            "and sums stay in float32"
        ),
    ] = "float32"
    ema: Annotated[
        float,
        Field(
            ge=0,
            le=0.999999,
            description="decay of the moving average of the weights, which becomes the "
            "student; 0 is off",
        ),
    ] = 0.0
    max_bad_steps: Annotated[
        int,
        Field(
            ge=0,
            le=1_000_000_000,
            description="steps that may be left out because loss or gradient is not finite",
        ),
    ] = 0
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass(frozen=True, slots=True)
class Step:
    """Log record of one optimiser step.

    Attributes:
        step: steps done, this one and those left out included.
        loss: sum of the terms.
        terms: each objective's weighted value.
        lr: learning rate used.
        points: labelled points, or point-pixel pairs, in the loss.
        cut: voxels that ``model.max_voxels`` left out.
    """

    step: int
    loss: float
    terms: Mapping[str, float]
    lr: float
    points: int
    cut: int


class NotFinite(RuntimeError):
    """Losses or gradients became nan or infinite more often than allowed.

    Names the frames of the batch.
    """


@dataclass(frozen=True, slots=True)
class Rates:
    """Learning rate and momentum of an optimiser step."""

    lr: float
    momentum: float


def rates(step: int, steps: int, config: TrainConfig) -> Rates:
    """Learning rate schedule, cosine or one-cycle: learning rate and momentum of a step.

    Steps are counted from 0.

    ``cosine``: a linear rise over the first ``warmup`` share of the steps, then half a cosine down
    to 0. ``one_cycle``: half a cosine from ``lr / 25`` to ``lr``, another down to ``lr / 25e4``,
    and the momentum the other way round from .95 to .85 and back (Smith and Topin 2018, with
    PyTorch's defaults).
    """
    if config.schedule == "one_cycle":
        rise = max(config.warmup * steps - 1, 0.0)
        if step < rise:
            return Rates(
                _half_cosine(config.lr / 25, config.lr, step / rise),
                _half_cosine(0.95, 0.85, step / rise),
            )
        done = (step - rise) / max(steps - 1 - rise, 1.0)
        return Rates(
            _half_cosine(config.lr, config.lr / 25e4, done), _half_cosine(0.85, 0.95, done)
        )
    rise = max(1, round(config.warmup * steps))
    if step < rise:
        return Rates(config.lr * (step + 1) / rise, config.momentum)
    return Rates(
        _half_cosine(config.lr, 0.0, (step - rise) / max(1, steps - rise)), config.momentum
    )


def _half_cosine(first: float, last: float, done: float) -> float:
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * done))


def make_optimizer(
    student: nn.Module, config: TrainConfig, head: str = "", head_lr: float = 1.0
) -> torch.optim.Optimizer:
    """Builds the optimiser; biases and norms get no weight decay.

    Args:
        student: the network.
        config: which optimiser, and its constants.
        head: prefix of the parameters with a learning rate of their own.
        head_lr: that rate, as a multiple of the others'.
    """
    trained = [
        (bool(head) and name.startswith(head), p)
        for name, p in student.named_parameters()
        if p.requires_grad
    ]
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
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999))


class Learner:
    """Training state: student, optimiser, gradient scaler, weight average (EMA), step.

    Where several processes train, batch norms take the moments of all.

    Args:
        student: on the device to train on; trained in place.
        config: optimiser, precision, and whether the weights are averaged.
        head: prefix of the parameters with a learning rate of their own.
        head_lr: that rate, as a multiple of the others'.
        frozen_norms: batch norms normalise by the statistics that they have, and keep them.

    Raises:
        BadInput: the backend of the sparse convolutions does not support the precision.

    Attributes:
        scaler: of losses in fp16.
        average: running mean of the student's weights and statistics, None with ``ema=0``.
        step: steps done.
        bad: those of them that were left out.
    """

    def __init__(
        self,
        student: Student,
        config: TrainConfig,
        head: str = "",
        head_lr: float = 1.0,
        frozen_norms: bool = False,
    ) -> None:
        cuda = next(student.parameters()).is_cuda
        if config.precision == "bf16" and (
            student.backend == "spconv" or (cuda and student.backend == "auto")
        ):
            raise BadInput(
                "train.precision",
                "is bf16, which spconv lacks",
                "take fp16, or model.backend=native",
            )
        self.student = (
            nn.SyncBatchNorm.convert_sync_batchnorm(student) if world_size() > 1 else student
        )
        self.optimizer = make_optimizer(student, config, head, head_lr)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.average = (
            {k: v.clone() for k, v in student.state_dict().items()} if config.ema else None
        )
        self.frozen_norms = frozen_norms
        self.step = self.bad = 0

    @property
    def device(self) -> torch.device:
        """Device of the student."""
        return next(self.student.parameters()).device

    def set_rates(self, rates: Rates) -> None:
        """Sets learning rate and momentum of the optimiser."""
        for group in self.optimizer.param_groups:
            group["lr"] = rates.lr * group["scale"]
            if "betas" in group:
                group["betas"] = (rates.momentum, group["betas"][1])
            else:
                group["momentum"] = rates.momentum

    def update(self, ema: float) -> None:
        """Optimiser step, then the moving average (EMA) of the weights.

        The average follows the weights with a smaller decay while it is young.

        The decay of step n is ``min(ema, (1 + n) / (10 + n))``, that of TensorFlow's
        ExponentialMovingAverage.
        """
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is None:
            return
        done = self.step - self.bad
        decay = min(ema, (1 + done) / (10 + done))
        for name, value in self.student.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)
            else:
                self.average[name].copy_(value)

    def keep_average(self) -> None:
        """Replaces the student's weights by their moving average (EMA), if any, after training."""
        if self.average is not None:
            self.student.load_state_dict(self.average)


@dataclass(frozen=True, eq=False, slots=True)
class _Pass:
    """Losses and counts of one batch over all processes; ``frames`` are this one's."""

    frames: tuple[str, ...]
    terms: dict[str, float]
    points: int
    cut: int

    @property
    def loss(self) -> float:
        return sum(self.terms.values())


def train(
    learner: Learner,
    terms_of: Terms,
    batches: Iterable[Batch],
    steps: int,
    config: TrainConfig,
    on_step: Callable[[Step], None],
    seed: int = 0,
    halt: Callable[[], bool] = lambda: False,
    kinds: int = 1,
) -> None:
    """Training loop: from the learner's step to the last, or until ``halt`` after a step.

    Stopped after any step and taken up again it gives, on a CPU, the same bytes as never stopped.
    Each of several processes is given its own part of every batch; together they do what one with
    whole batches would.

    Args:
        learner: the student and its optimiser.
        terms_of: the weighted terms of the loss on a batch; their sum is brought down.
        batches: those of all steps that are left, ``config.accumulate`` of each kind a step; of
            each this process's part.
        steps: of the whole training, those done before included.
        config: schedule and precision.
        on_step: called with each step that was not left out.
        seed: of what objectives draw by chance; each step draws from a state of its own.
        halt: asked after each step; true on one process is enough.
        kinds: kinds of batches of which a step has the same number; their losses are added.

    Raises:
        NotFinite: more than ``max_bad_steps`` steps were left out.
    """
    stream = iter(batches)
    _train_mode(learner.student, learner.frozen_norms)
    while learner.step < steps:
        now = rates(learner.step, steps, config)
        moment = Moment(learner.step / steps, _coin(seed, learner.step))
        learner.set_rates(now)
        before = [buffer.clone() for buffer in learner.student.buffers()]
        learner.optimizer.zero_grad(set_to_none=True)
        ours = islice(stream, config.accumulate * kinds)
        passes = _backward(learner, terms_of, ours, moment, config)
        problem = _problem(learner, passes, config)
        if problem:
            _leave_out(learner, before, problem, config)
        else:
            learner.update(config.ema)
        learner.step += 1
        if not problem:
            names = dict.fromkeys(name for p in passes for name in p.terms)
            terms = {
                name: sum(p.terms.get(name, 0.0) for p in passes) / config.accumulate
                for name in names
            }
            points = sum(p.points for p in passes)
            cut = sum(p.cut for p in passes)
            on_step(Step(learner.step, sum(terms.values()), terms, now.lr, points, cut))
        if all_reduce_sum(torch.tensor(int(halt()), device=learner.device)):
            return


def _backward(
    learner: Learner, terms_of: Terms, batches: Iterable[Batch], moment: Moment, config: TrainConfig
) -> list[_Pass]:
    """Gradient accumulation: forward and backward over a step's batches."""
    passes = []
    for batch in batches:
        with _autocast(learner.device, config.precision):
            terms = terms_of(batch.to(learner.device), moment)
        values = torch.stack(list(terms.values()))
        learner.scaler.scale(values.sum() / config.accumulate).backward()
        counts = torch.tensor([len(batch.pair_point), batch.truncated], device=values.device)
        *losses, points, cut = all_reduce_sum(torch.cat([values.double(), counts])).tolist()
        passes.append(
            _Pass(batch.frames, dict(zip(terms, losses, strict=True)), int(points), int(cut))
        )
    add_gradients(learner.student.parameters())
    return passes


def _problem(learner: Learner, passes: Sequence[_Pass], config: TrainConfig) -> str:
    """Gradient clipping; returns a message where loss or gradient is not finite."""
    bad = [p for p in passes if not math.isfinite(p.loss)]
    if bad:
        return f"loss is {bad[0].loss}, frames {_listed(bad)}"
    learner.scaler.unscale_(learner.optimizer)
    norm = nn.utils.clip_grad_norm_(learner.student.parameters(), config.clip_norm or math.inf)
    if torch.isfinite(norm) or (learner.scaler.is_enabled() and learner.scaler.get_scale() >= 1):
        # the scaler leaves a step out itself and halves its scale, which cures what is too large
        # for fp16
        return ""
    learner.scaler.update()
    return f"the gradient's norm is {norm.item()}, frames {_listed(passes)}"


def _listed(passes: Sequence[_Pass]) -> str:
    return ", ".join(gather_names(frame for p in passes for frame in p.frames))


def _leave_out(
    learner: Learner, before: Sequence[Tensor], problem: str, config: TrainConfig
) -> None:
    """Skips a step whose loss or gradient is not finite; norm statistics are restored too."""
    learner.bad += 1
    if learner.bad > config.max_bad_steps:
        allowed = f", and {config.max_bad_steps} such steps are allowed (train.max_bad_steps)"
        raise NotFinite(f"step {learner.step + 1}: {problem}{allowed}")
    for buffer, value in zip(learner.student.buffers(), before, strict=True):
        buffer.copy_(value)


def _train_mode(student: nn.Module, frozen_norms: bool) -> None:
    """Sets training mode, except for frozen parts.

    The batch norms of a frozen network must not change, nor those of one that shall keep its
    statistics.
    """
    for module in student.children():
        module.train(any(parameter.requires_grad for parameter in module.parameters()))
    if frozen_norms:
        for module in student.modules():
            if isinstance(module, Norm):
                module.eval()


def _coin(seed: int, step: int) -> float:
    return random.Random(f"{seed} {step}").random()  # noqa: S311 - no secret


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(
        device.type, kinds.get(precision, torch.bfloat16), enabled=precision in kinds
    )
