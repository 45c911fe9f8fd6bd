"""Pre-training stage: trains a student on the teacher's pseudo-labels, without human labels."""

from __future__ import annotations

import dataclasses
import logging
import time
from dataclasses import dataclass, fields
from functools import partial

import torch

from clipsweep.distill.objectives import ObjectivesConfig, pretraining
from clipsweep.distill.student.checkpoint import load_student
from clipsweep.distill.teacher.maskclip import MaskClipConfig
from clipsweep.distill.training.distributed import rank
from clipsweep.pipeline.artifacts.read import all_left_out
from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.run.progress import planned
from clipsweep.pipeline.run.ray_train import process_group, train_on_ray, wants_ray
from clipsweep.pipeline.stages.consolidate import collapse_warnings, make_consolidated
from clipsweep.pipeline.stages.dataset import target_source
from clipsweep.pipeline.stages.fit import (
    READS_CLOUDS,
    TrainingTask,
    finish_student,
    fit,
    is_complete,
    new_student,
    student_digest,
    training_frames,
)
from clipsweep.pipeline.stages.guard import Guard, guard_facts, label_guard
from clipsweep.pipeline.stages.index import require_scenes, scene_digests
from clipsweep.pipeline.stages.pixels import device, make_pixels
from clipsweep.pipeline.stages.points import class_shares, make_points
from clipsweep.projection.errors import BadInput

_log = logging.getLogger(__name__)

_LOSSES = (item.name for item in fields(ObjectivesConfig) if item.name != "segmentation")
PRETRAINED_BY = (
    *("model", "train", "seed", "fusion.min_depth_m", "fusion.occlusion_deg", "fusion.occlusion_m"),
    *("fusion.occlusion_relative", *(f"objectives.{name}" for name in _LOSSES)),
)
"""Settings that decide a pre-trained student, beside clouds, pixels and points."""


def make_pretrained(config: Config, resume: str = "", guard: Guard = label_guard) -> Artifact:
    """Pre-trains a student without any human label, in one or more rounds (``rounds``).

    Makes the stages before it where missing.

    An unfinished training of the same configuration goes on from its last checkpoint.
    ``run.workers`` and torchrun spread the training.

    Args:
        config: everything else.
        resume: folder of a student to start from, with its optimiser state; may be empty.
        guard: keeps files of human labels closed in all stages.

    Raises:
        BadInput: a frame cannot be used, or none is left.
        LabelLeak: something opened a file of human labels.
        NotFinite: the loss is not finite too often.
        Stopped: by a signal, after a checkpoint.
        Incomplete: scenes or workers were lost too often.
    """
    _check_teacher(config)
    stages = ["pixels", "poses", "points", "train", *["points", "train"] * (config.rounds - 1)]
    with planned(stages), guard(config) as index:
        guarded = partial(label_guard, index=index)
        student = _make_round(config, guarded, resume=resume)
        for _ in range(1, config.rounds):
            student = _make_round(config, guarded, before=str(student.path))
    return student


def _make_round(config: Config, guard: Guard, before: str = "", resume: str = "") -> Artifact:
    """Trains the student of one round.

    It learns the labels of the student ``before``; of the first round, where that is empty, the
    teacher's.
    """
    with guard(config) as index:  # workers of Ray start here
        prepare = partial(_sources, config, index, before)
        if wants_ray(config) and not is_complete(_pretrained(config, prepare(), resume), config):
            train_on_ray(partial(_make_round, guard=guard, before=before, resume=resume), config)
        with process_group(prepare) as sources:
            student = _pretrained(config, sources, resume)
            if not is_complete(student, config):
                _pretrain(config, sources, student, resume)
    return student


def _check_teacher(config: Config) -> None:
    """Checks that the teacher has targets for all losses, and a student for those of a round."""
    teacher = config.teacher
    objectives = config.objectives
    if config.rounds > 1 and objectives.semantic.targets != "points":
        problem = f"is {config.rounds}, but a student labels points, and pixels are learned from"
        raise BadInput("rounds", problem, "set objectives.semantic.targets=points")
    if teacher.kind == "features" and objectives.needs_labels():
        raise BadInput(
            "teacher.kind", "features has no classes to train on", "see configs/pretrain/scalr.yaml"
        )
    kept = not isinstance(teacher.own, MaskClipConfig) or teacher.own.keep_features
    if objectives.needs_features() and not kept:
        problem = "is false, but points shall be compared with pixels"
        raise BadInput("teacher.maskclip.keep_features", problem, "set it true")


@dataclass(frozen=True, eq=False, slots=True)
class _Sources:
    """Artifacts that pre-training reads: index, pixel labels, point labels.

    ``before`` is the folder of the student whose labels these are; empty where they are fused.
    """

    index: Artifact
    pixels: Artifact
    points: Artifact
    before: str = ""


def _sources(config: Config, index: Artifact, before: str) -> _Sources:
    for role in ("train", *(["eval"] if config.evaluate else [])):
        require_scenes(config, index, role)  # before hours of labelling
    pixels = make_pixels(config, index)
    teacher = make_points(config, index, pixels)
    if not before:
        return _Sources(index, pixels, teacher)
    points = make_consolidated(config, index, before, "train", teacher=teacher)
    learned = Artifact.at(before, "student").manifest()["class_shares"]
    for warning in collapse_warnings(learned, class_shares(points)):
        _log.warning(f"{points.id}, labels by {before}: warning: {warning}")
    return _Sources(index, pixels, points, before)


def _pretrained(config: Config, sources: _Sources, resume: str) -> Artifact:
    """Artifact of the pre-trained student of a configuration, whether it exists or not."""
    scenes = scene_digests(sources.index, "train")
    key = {
        **config.values(*READS_CLOUDS, *PRETRAINED_BY),
        "resume": student_digest(resume),
        "before": student_digest(sources.before),
        "scenes": scenes,
        "pixels": sources.pixels.content(*scenes),
        "points": sources.points.content(*scenes),
    }
    return Artifact.of(config.store, "student", key, [sources.pixels, sources.points])


def _pretrain(config: Config, sources: _Sources, student: Artifact, resume: str) -> None:
    pixels = sources.pixels
    points = sources.points
    lost = {skip.frame for skip in points.skipped()}
    frames = [frame for frame in training_frames(sources.index, config) if frame.id not in lost]
    if not frames:
        raise all_left_out("data.train", points.skipped())
    text = torch.from_numpy(pixels.arrays("_text").get_tensor("text"))
    started = time.time()
    targets = target_source(config.objectives.semantic.targets, pixels, points, config)
    network = new_student(config, text.shape[1])
    network.text_head = "semantic" if config.objectives.semantic.weight else "local"
    if sources.before:
        network.load_state_dict(load_student(sources.before).student.state_dict())
    terms = pretraining(network, text.to(device()), config.objectives)
    stripped = [dataclasses.replace(frame, labels=None) for frame in frames]
    task = TrainingTask(network, terms, text, stripped, targets, used_labels=False)
    fitted = fit(config, student, task, resume)
    if rank() == 0:
        skipped = [*points.skipped(), *fitted.older_sweeps]
        facts = {
            "used_labels": False,
            "bad_steps": fitted.bad_steps,
            "class_shares": class_shares(points),
            **guard_facts(),
        }
        finish_student(student, config, started, skipped, **facts)
