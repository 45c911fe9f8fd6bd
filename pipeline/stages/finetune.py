"""Fine-tuning stage: trains a student on a share of the human labels."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from clipsweep.distill.objectives import finetuning
from clipsweep.distill.student.checkpoint import Trained, load_student
from clipsweep.distill.student.unet import Student
from clipsweep.distill.training.distributed import rank
from clipsweep.pipeline.artifacts.index import Skip
from clipsweep.pipeline.artifacts.read import all_left_out, key_cloud, readable
from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.labels import LabelSpace, load_space
from clipsweep.pipeline.run.ray_train import process_group, train_on_ray, wants_ray
from clipsweep.pipeline.stages.consolidate import make_consolidated
from clipsweep.pipeline.stages.dataset import Targets, no_targets, point_targets, truth_targets
from clipsweep.pipeline.stages.fit import (
    READS_CLOUDS,
    TrainingTask,
    check_same_network,
    finish_student,
    finished_student,
    fit,
    is_complete,
    network_of,
    new_student,
    student_digest,
    training_frames,
)
from clipsweep.pipeline.stages.guard import (
    Guard,
    closed_files,
    guard_facts,
    label_folders,
    label_guard,
    no_labels,
)
from clipsweep.pipeline.stages.index import require_scenes, scene_digests
from clipsweep.pipeline.stages.labelled import open_points
from clipsweep.pipeline.stages.protocols import labelled_subset
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import Cloud, Frame

_log = logging.getLogger(__name__)

FINETUNED_BY = ("model", "train", "finetune", "protocol", "seed", "objectives.segmentation")
"""Settings that decide a fine-tuned student, beside clouds, labels and the pre-trained student."""


def make_finetuned(
    config: Config, source: str, points: str = "", guard: Guard = label_guard
) -> Artifact:
    """Fine-tunes a student with a classifier on the labels that ``protocol`` gives.

    With ``finetune.unlabelled`` each step also learns a batch of the train frames without labels
    (semi-supervised). The manifest lists the frames of both kinds. Settings of the network
    (``model.*``) that are left at their default are the student's own.

    Args:
        config: everything else.
        source: folder of the student to start from; ``none`` for random weights.
        points: folder of the pseudo-labels of frames without labels; empty takes those that the
            student gives them.
        guard: keeps all other files of human labels closed.

    Raises:
        BadInput: the protocol, the student or a frame cannot be used.
        NotFinite: the loss is not finite too often.
        Stopped: by a signal, after a checkpoint.
        LabelLeak: something opened a label file that the protocol does not give.
        Incomplete: workers were lost too often.
    """
    _check_settings(config, source, points)
    with guard(config, protocol=config.protocol) as index:
        if source != "none":
            made = load_student(finished_student(source).path).model
            config = dataclasses.replace(config, model=network_of(made, config.model))
        prepare = partial(_sources, config, index, source, points)
        if wants_ray(config) and not is_complete(_finetuned(config, prepare(), source), config):
            again = partial(make_finetuned, source=source, points=points)
            train_on_ray(partial(again, guard=partial(label_guard, index=index)), config)
        with process_group(prepare) as sources:
            student = _finetuned(config, sources, source)
            if not is_complete(student, config):
                _finetune(config, sources, student, source)
    return student


def _check_settings(config: Config, source: str, points: str) -> None:
    """Refuses settings that contradict each other."""
    if config.labels.names:
        raise BadInput(
            "labels.names",
            "has no labels to train on",
            "fine-tune with the data set's own classes",
        )
    if config.labels.truth:
        raise BadInput(
            "labels.truth", "is for scoring alone", "fine-tune with labels.space of the label files"
        )
    if not source:
        raise BadInput(
            "student", "is not set", "give student=FOLDER of a pre-trained student, or student=none"
        )
    finetune = config.finetune
    if finetune.linear_probe and source == "none":
        raise BadInput(
            "finetune.linear_probe", "leaves random weights as they are", "give student=FOLDER"
        )
    if finetune.interpolate < 1 and source == "none":
        problem = f"is {finetune.interpolate}, but random weights are nothing to go back to"
        raise BadInput("finetune.interpolate", problem, "give student=FOLDER")
    if points and finetune.unlabelled == "none":
        problem = "is given, but finetune.unlabelled=none learns labelled frames alone"
        raise BadInput("pseudo_labels", problem, "leave one of them out")


@dataclass(frozen=True, eq=False, slots=True)
class _Sources:
    """Artifacts that fine-tuning reads: index, and pseudo-labels of frames without labels."""

    index: Artifact
    points: Artifact | None


def _sources(config: Config, index: Artifact, source: str, points: str) -> _Sources:
    require_scenes(config, index, "train")
    kind = config.finetune.unlabelled
    if kind == "none":
        return _Sources(index, None)
    if points:
        opened = open_points(config, index, points, "train")
        protocol = opened.manifest()["key"].get("protocol", "annotation-free")
        if protocol != "annotation-free":
            problem = f"were given by a student that was trained on labels ({protocol})"
            raise BadInput(points, problem, "give those of a student without labels")
        return _Sources(index, opened)
    if source == "none":
        _log.info("student=none labels no frame itself: it learns labelled frames alone")
        return _Sources(index, None)
    if kind == "self":
        as_it_is = dataclasses.replace(config.consolidation, views=1, cell_weight=0.0)
        config = dataclasses.replace(config, consolidation=as_it_is)
    with no_labels(closed_files(label_folders(config.data, index))):
        return _Sources(index, make_consolidated(config, index, source, "train"))


def _finetuned(config: Config, sources: _Sources, source: str) -> Artifact:
    """Artifact of the fine-tuned student of a configuration, whether it exists or not."""
    scenes = scene_digests(sources.index, "train")
    key = {
        **config.values(*READS_CLOUDS, *FINETUNED_BY),
        "student": student_digest(_folder(source)),
        "classes": load_space(config.labels).digest(),
        "scenes": scenes,
        "points": sources.points.content(*scenes) if sources.points else "",
    }
    return Artifact.of(config.store, "student", key)


def _finetune(config: Config, sources: _Sources, student: Artifact, source: str) -> None:
    index = sources.index
    every = training_frames(index, config)
    frames = [frame for frame in every if frame.labels]
    if not frames:
        cure = "unpack its label files; 3D boxes are for evaluate alone (labels.truth=boxes)"
        raise BadInput("data.train", "has no frame with labels", cure)
    subset = labelled_subset(config.protocol, frames)
    labelled = {frame.id for frame in subset}
    space = load_space(config.labels)
    skipped: list[Skip] = []
    if config.on_bad == "skip":
        subset, skipped = readable(subset, config, partial(_labelled_cloud, space, config))
        if not subset:
            raise all_left_out("data.train", skipped, "labelled frames")
    started = time.time()
    unlabelled, pseudo_labels = _unlabelled(every, labelled, sources.points)
    network, text = _student_to_tune(config, _folder(source), len(space), every)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    weight = len(unlabelled) / len(every)
    task = TrainingTask(
        network,
        finetuning(network, config.objectives, weight),
        text,
        subset,
        partial(truth_targets, space, config),
        used_labels=True,
        unlabelled=unlabelled,
        pseudo_labels=pseudo_labels,
        frozen_norms=sources.points is not None and source != "none",
        finish=partial(_interpolate, before, config.finetune.interpolate),
    )
    fitted = fit(config, student, task)
    if rank() == 0:
        facts = {
            "used_labels": True,
            "protocol": f"{config.protocol}+unlabelled" if unlabelled else config.protocol,
            "labelled_frames": [frame.id for frame in subset],
            "unlabelled_frames": [frame.id for frame in unlabelled],
            "bad_steps": fitted.bad_steps,
            **guard_facts(),
        }
        lost = [*index.skipped(), *skipped, *fitted.older_sweeps]
        if sources.points:
            lost += [skip for skip in sources.points.skipped() if skip not in lost]
        finish_student(student, config, started, lost, **facts)


def _unlabelled(
    frames: Sequence[Frame], labelled: Collection[str], points: Artifact | None
) -> tuple[list[Frame], Callable[[Frame, Cloud], Targets]]:
    """Train frames outside the protocol, without their labels, and their pseudo-labels."""
    if points is None:
        return [], no_targets
    lost = {skip.frame for skip in points.skipped()}
    others = [frame for frame in frames if frame.id not in labelled and frame.id not in lost]
    stripped = [dataclasses.replace(frame, labels=None) for frame in others]
    return stripped, partial(point_targets, points)


def _interpolate(before: Mapping[str, Tensor], share: float, network: Student) -> None:
    """WiSE-FT: moves tuned weights back towards those before (Wortsman et al., CVPR 2022, eq. 2).

    ``share`` is that of the tuned ones.
    """
    if share < 1:
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.lerp(before[name], value, share))


def _folder(source: str) -> str:
    return "" if source == "none" else source


def _labelled_cloud(space: LabelSpace, config: Config, frame: Frame) -> None:
    """Reads the point cloud and human labels of a frame, to see whether it can be used."""
    truth_targets(space, config, frame, key_cloud(frame, config))


def _student_to_tune(
    config: Config, source: str, classes: int, frames: Sequence[Frame]
) -> tuple[Student, Tensor]:
    """Loads the student to fine-tune: a new classifier, all else from ``source``.

    Also gives the embeddings of its classes. The classifier starts as the answer to the class
    names where these are the same, its scores on the scale that they have on ``frames``.
    """
    if not source:
        return new_student(config, classes, classes), torch.eye(classes)
    trained = load_student(finished_student(source).path)
    if trained.used_labels:
        raise BadInput(
            source, "was trained on labels already", "give the pre-trained one, or student=none"
        )
    check_same_network(source, trained.model, config.model)
    network = new_student(config, trained.text.shape[1], classes)
    weights = trained.student.state_dict()
    if (
        config.finetune.start == "names"
        and trained.names == load_space(config.labels).names
        and len(trained.text)
    ):
        named = trained.student.text_head
        scale = _scale_of_names(trained, config, frames)
        weights |= {
            f"classifier.{k}": scale * (trained.text @ weights[f"{named}.{k}"])
            for k in ("weight", "bias")
        }
    else:
        weights |= {k: v for k, v in network.state_dict().items() if k.startswith("classifier.")}
    network.load_state_dict(weights)  # strict: a weight that does not fit is an error
    network.text_head = trained.student.text_head
    if config.finetune.linear_probe:
        for name, parameter in network.named_parameters():
            parameter.requires_grad = name.startswith("classifier.")
    return network, trained.text


_FRAMES_OF_SCALE = 8
"""Frames on which the length of embeddings is measured."""


def _scale_of_names(trained: Trained, config: Config, frames: Sequence[Frame]) -> float:
    """Factor of a linear classifier made of class embeddings, so that it keeps probabilities.

    The scores were ``scale * <p, t> / |p|``; a linear map has no ``|p|`` of its own, and takes the
    mean of its inverse over the points of a few frames.
    """
    step = -(-len(frames) // _FRAMES_OF_SCALE)
    inverse = [
        1 / trained.lengths(cloud.xyz, cloud.intensity, config.data.sensor_height_m)
        for cloud in (key_cloud(frame, config) for frame in frames[::step])
    ]
    return trained.scale * float(torch.cat(inverse).mean())
