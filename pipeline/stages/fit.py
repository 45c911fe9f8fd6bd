"""Training run of pre-training and fine-tuning: checkpoints, log, weights, resuming."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clipsweep.distill.objectives import Terms
from clipsweep.distill.student.batch import Batch
from clipsweep.distill.student.checkpoint import (
    learner_bytes,
    load_learner,
    load_student,
    make_student,
    student_bytes,
    student_config,
)
from clipsweep.distill.student.unet import ModelConfig, Student
from clipsweep.distill.training.distributed import rank
from clipsweep.distill.training.loop import Learner, NotFinite, Step, train
from clipsweep.pipeline.artifacts.index import Skip
from clipsweep.pipeline.artifacts.read import record_older_sweep
from clipsweep.pipeline.artifacts.store import Artifact, digest_files, write_whole
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.labels import load_space
from clipsweep.pipeline.run.signals import Stopped, defer_signals
from clipsweep.pipeline.stages.dataset import Targets, no_targets, training_batches, training_steps
from clipsweep.pipeline.stages.index import scene_frames, scenes_of
from clipsweep.pipeline.stages.log import TrainingLog, had_targets
from clipsweep.pipeline.stages.pixels import device
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import Cloud, Frame

READS_CLOUDS = (
    *("data.columns", "data.intensity_scale", "data.ego_box_m", "data.bad_share"),
    *("data.sensor_height_m", "on_bad"),
)
"""Settings that decide what a network is given of a sweep."""


def finish_student(
    student: Artifact, config: Config, started: float, skipped: Sequence[Skip], **facts: Any
) -> None:
    """Writes the manifest of a trained student."""
    digest = digest_files([student.path / "config.json"])
    student.finish(["model"], config, started, skipped, config_digest=digest, **facts)


def training_frames(index: Artifact, config: Config) -> list[Frame]:
    """Training frames: the key frames of ``data.train`` in official order.

    Raises:
        BadInput: there is none.
    """
    frames = [
        frame for scene in scenes_of(index, "train") for frame in scene_frames(index, config, scene)
    ]
    if not frames:
        raise BadInput("data.train", "no frame to train on is left")
    return frames


def is_complete(student: Artifact, config: Config) -> bool:
    """Whether a student is trained already."""
    return student.whole and student.done("model", config.verify)


def finished_student(path: str) -> Artifact:
    """Opens a trained student from a folder that a user named.

    Raises:
        BadInput: there is none, or a file of it was changed since.
    """
    student = Artifact.at(path, "student")
    if not student.done("model", verify=True):
        raise BadInput(
            student.shard("model"), "is not the file that training wrote", "copy the folder again"
        )
    if student.manifest().get("config_digest") != digest_files([student.path / "config.json"]):
        raise BadInput(
            student.path / "config.json",
            "is not the file that training wrote",
            "copy the folder again",
        )
    return student


def student_digest(student: str) -> str:
    """Digest of the weights of a student that a user named; empty for none."""
    return str(finished_student(student).manifest()["digest"]) if student else ""


def new_student(config: Config, text_dim: int, classes: int | None = None) -> Student:
    """Builds a student network with random weights, drawn from ``seed``, on the device."""
    torch.manual_seed(config.seed)
    return make_student(config.model, text_dim, classes).to(device())


_OF_WEIGHTS = ("size", "sweeps", "voxel_m", "features", "reduce", "trilinear")
"""Fields of ``ModelConfig`` that a network's weights are trained for; the rest is how it runs."""


def network_of(made: ModelConfig, wanted: ModelConfig) -> ModelConfig:
    """Configuration of a student's own network: it fills in what is left at its default.

    Args:
        made: of the student.
        wanted: as configured; what is set there is kept, and checked by ``check_same_network``.
    """
    default = ModelConfig()
    unset = [name for name in _OF_WEIGHTS if getattr(wanted, name) == getattr(default, name)]
    return dataclasses.replace(wanted, **{name: getattr(made, name) for name in unset})


def check_same_network(student: str, made: ModelConfig, wanted: ModelConfig) -> None:
    """Checks that a student's network is the configured one.

    Raises:
        BadInput: names the settings that differ.
    """
    other = [name for name in _OF_WEIGHTS if getattr(made, name) != getattr(wanted, name)]
    if other:
        has = " ".join(f"model.{name}={getattr(made, name)}" for name in other)
        asked = ", ".join(str(getattr(wanted, name)) for name in other)
        raise BadInput(student, f"was made with {has}", f"not {asked}: leave model.* out")


@dataclass(frozen=True, eq=False, slots=True)
class TrainingTask:
    """Training task: frames, targets and loss of a student.

    Attributes:
        network: the student, on its device.
        terms: the losses of a batch.
        text: embeddings of the classes, stored beside the weights.
        frames: the frames to train on.
        targets: labels or features of the points of a frame's cloud.
        used_labels: whether human labels are among the targets.
        unlabelled: frames that each step learns too, in a batch of its own; may be empty.
        pseudo_labels: their targets.
        frozen_norms: batch norms keep the statistics that the network comes with.
        finish: changes the trained network before it is stored.
    """

    network: Student
    terms: Terms
    text: Tensor
    frames: Sequence[Frame]
    targets: Callable[[Frame, Cloud], Targets]
    used_labels: bool
    unlabelled: Sequence[Frame] = ()
    pseudo_labels: Callable[[Frame, Cloud], Targets] = no_targets
    frozen_norms: bool = False
    finish: Callable[[Student], None] | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Fitted:
    """Outcome of a training: skipped steps and sweeps.

    Attributes:
        bad_steps: number of steps whose loss was not finite.
        older_sweeps: older sweeps that could not be read.
    """

    bad_steps: int
    older_sweeps: list[Skip]


def fit(config: Config, out: Artifact, task: TrainingTask, resume: str = "") -> Fitted:
    """Trains a student into an artifact, resuming from its last checkpoint if it has one.

    Without a checkpoint it starts from that of ``resume``, else from the start.

    The checkpoint is one shard, so that no part of it is ever older than another.

    Raises:
        BadInput: the whole training met no target.
        NotFinite: steps without a finite loss, too many or all, or weights that are not.
        Stopped: by a signal, after a checkpoint.
    """
    head_lr = config.finetune.head_lr
    learner = Learner(task.network, config.train, "classifier.", head_lr, task.frozen_norms)
    if out.done("state", config.verify):
        load_learner(learner, out.shard("state"))
    elif resume:
        _start_from(finished_student(resume), learner, config, len(task.frames))
    if rank() == 0:
        out.sweep_orphans()
        _write_description(config, out, task)
    older_sweeps = _train(config, out, task, learner)
    _check_training(out, learner)
    learner.keep_average()
    if task.finish is not None:
        task.finish(task.network)
    if not all(value.isfinite().all() for value in task.network.state_dict().values()):
        raise NotFinite(f"weights are not finite after step {learner.step}")
    if rank() == 0:
        out.commit("model", student_bytes(task.network, task.text))
    return Fitted(learner.bad, older_sweeps)


def _write_description(config: Config, out: Artifact, task: TrainingTask) -> None:
    """Writes ``config.json``, which describes the student network."""
    described = student_config(
        task.network,
        config.model,
        load_space(config.labels).names,
        config.data.sensor_height_m,
        config.objectives.semantic.scale,
        task.used_labels,
    )
    write_whole(out.path / "config.json", described)


def _train(config: Config, out: Artifact, task: TrainingTask, learner: Learner) -> list[Skip]:
    """Runs the training steps that are left; gives the older sweeps that could not be read."""
    steps = training_steps(config, len(task.frames))
    older_sweeps: list[Skip] = []
    with (
        closing(_batches(config, task, range(learner.step, steps))) as batches,
        defer_signals() as signals,
        _recorded(out, learner, steps, config) as on_step,
    ):
        train(
            learner,
            task.terms,
            _record_left_out(batches, older_sweeps),
            steps,
            config.train,
            on_step,
            config.seed,
            lambda: bool(signals),
            kinds=2 if task.unlabelled else 1,
        )
    if learner.step < steps:
        number = signals[0] if signals else signal.SIGTERM  # another worker's
        raise Stopped(number, f"training stopped after step {learner.step} of {steps}")
    return older_sweeps


def _batches(config: Config, task: TrainingTask, steps: range) -> Generator[Batch, None, None]:
    """Batches of some steps; where there are unlabelled frames, each kind's in turn."""
    with closing(training_batches(task.frames, task.targets, config, steps)) as labelled:
        if not task.unlabelled:
            yield from labelled
            return
        others = training_batches(task.unlabelled, task.pseudo_labels, config, steps)
        with closing(others) as unlabelled:
            for batch, other in zip(labelled, unlabelled, strict=True):
                yield batch
                yield dataclasses.replace(other, unlabelled=True)


def _check_training(out: Artifact, learner: Learner) -> None:
    """Refuses a training in which no step had a target."""
    if learner.bad == learner.step > 0:
        raise NotFinite(f"all {learner.step} steps were left out, because nothing was finite")
    if rank() == 0 and learner.step and not had_targets(out.path):
        problem = "no point of any frame has a target"
        raise BadInput("data.train", problem, "look at the labels with tools/view.py")


def _record_left_out(batches: Iterable[Batch], left_out: list[Skip]) -> Iterator[Batch]:
    """Passes batches on and records the older sweeps that they lack."""
    for batch in batches:
        for reason in batch.left_out:
            record_older_sweep(left_out, "", reason)
        yield batch


@contextmanager
def _recorded(
    out: Artifact, learner: Learner, steps: int, config: Config
) -> Iterator[Callable[[Step], None]]:
    """Training callback for each step: log and checkpoint.

    Logs the step, and commits the learner every ``run.checkpoint_s`` and at the end.

    Of several workers only the first writes.
    """
    if rank():
        yield lambda step: None
        return
    log = TrainingLog(out.path, learner.step, steps, config.run.progress)
    saved_at = time.monotonic()

    def on_step(step: Step) -> None:
        nonlocal saved_at
        log(step)
        if time.monotonic() - saved_at >= config.run.checkpoint_s:
            out.commit("state", learner_bytes(learner))
            saved_at = time.monotonic()

    with closing(log):
        yield on_step
        out.commit("state", learner_bytes(learner))


def _start_from(source: Artifact, learner: Learner, config: Config, frames: int) -> None:
    """Resumes from the training state of another student, after its last epoch."""
    trained = load_student(source.path)
    if trained.used_labels:
        raise BadInput(source.path, "was trained on labels", "resume a pre-trained student")
    check_same_network(str(source.path), trained.model, config.model)
    if not source.done("state", verify=True):
        raise BadInput(
            source.shard("state"), "is not the file that training wrote", "copy the folder again"
        )
    epochs = source.manifest()["config"]["train"]["epochs"]
    if epochs >= config.train.epochs:
        raise BadInput(source.path, f"has done {epochs} epochs already", "set train.epochs to more")
    load_learner(learner, source.shard("state"))
    done = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=epochs))
    learner.step = training_steps(done, frames)
    learner.bad = 0
