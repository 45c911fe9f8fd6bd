"""Fine-tuning stage: trains a student on a share of the human labels."""

from __future__ import annotations

import time
from functools import partial

import torch
from torch import Tensor

from clipsweep.distill.objectives import finetuning
from clipsweep.distill.student.checkpoint import (
    load_student,
)
from clipsweep.distill.student.unet import Student
from clipsweep.distill.training.distributed import rank
from clipsweep.pipeline.artifacts.index import Skip
from clipsweep.pipeline.artifacts.read import all_left_out, key_cloud, readable
from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.labels import LabelSpace, load_space
from clipsweep.pipeline.run.ray_train import process_group, train_on_ray, wants_ray
from clipsweep.pipeline.stages.dataset import truth_targets
from clipsweep.pipeline.stages.fit import (
    READS_CLOUDS,
    TrainingTask,
    check_same_network,
    finish_student,
    finished_student,
    fit,
    is_complete,
    new_student,
    student_digest,
    training_frames,
)
from clipsweep.pipeline.stages.guard import Guard, guard_facts, label_guard
from clipsweep.pipeline.stages.index import scene_digests
from clipsweep.pipeline.stages.protocols import labelled_subset
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import Frame

FINETUNED_BY = ("model", "train", "finetune", "protocol", "seed", "objectives.segmentation")
"""Settings that decide a fine-tuned student, beside clouds, labels and the pre-trained student."""


def make_finetuned(config: Config, source: str, guard: Guard = label_guard) -> Artifact:
    """Fine-tunes a student with a classifier on the labels that ``protocol`` gives.

    The frames whose labels were used are listed in the manifest.

    Args:
        config: everything else.
        source: folder of the student to start from; ``none`` for random weights.
        guard: keeps all other files of human labels closed.

    Raises:
        BadInput: the protocol, the student or a frame cannot be used.
        NotFinite: the loss is not finite too often.
        Stopped: by a signal, after a checkpoint.
        LabelLeak: something opened a label file that the protocol does not give.
        Incomplete: workers were lost too often.
    """
    if config.labels.names:
        raise BadInput(
            "labels.names",
            "has no labels to train on",
            "fine-tune with the data set's own classes",
        )
    if config.finetune.linear_probe and source == "none":
        raise BadInput(
            "finetune.linear_probe", "leaves random weights as they are", "give student=FOLDER"
        )
    if config.labels.truth:
        raise BadInput(
            "labels.truth", "is for scoring alone", "fine-tune with labels.space of the label files"
        )
    if not source:
        raise BadInput(
            "student", "is not set", "give student=FOLDER of a pre-trained student, or student=none"
        )
    with guard(config, protocol=config.protocol) as index:
        student = _finetuned(config, index, source)
        if wants_ray(config) and not is_complete(student, config):
            guarded = partial(label_guard, index=index)
            train_on_ray(partial(make_finetuned, source=source, guard=guarded), config)
        with process_group(lambda: index):
            if not is_complete(student, config):
                _finetune(config, index, student, source)
    return student


def _finetuned(config: Config, index: Artifact, source: str) -> Artifact:
    """Artifact of the fine-tuned student of a configuration, whether it exists or not."""
    key = {
        **config.values(*READS_CLOUDS, *FINETUNED_BY),
        "student": student_digest(_folder(source)),
        "classes": load_space(config.labels).digest(),
        "scenes": scene_digests(index, "train"),
    }
    return Artifact.of(config.store, "student", key)


def _finetune(config: Config, index: Artifact, student: Artifact, source: str) -> None:
    frames = [frame for frame in training_frames(index, config) if frame.labels]
    if not frames:
        raise BadInput("data.train", "has no frame with labels", "unpack its labels")
    subset = labelled_subset(config.protocol, frames)
    space = load_space(config.labels)
    skipped: list[Skip] = []
    if config.on_bad == "skip":
        subset, skipped = readable(subset, config, partial(_labelled_cloud, space, config))
        if not subset:
            raise all_left_out("data.train", skipped, "labelled frames")
    started = time.time()
    network, text = _student_to_tune(config, _folder(source), len(space))
    targets = partial(truth_targets, space, config)
    terms = finetuning(network, config.objectives)
    fitted = fit(
        config, student, TrainingTask(network, terms, text, subset, targets, used_labels=True)
    )
    if rank() == 0:
        facts = {
            "used_labels": True,
            "protocol": config.protocol,
            "labelled_frames": [frame.id for frame in subset],
            "bad_steps": fitted.bad_steps,
            **guard_facts(),
        }
        lost = [*index.skipped(), *skipped, *fitted.older_sweeps]
        finish_student(student, config, started, lost, **facts)


def _folder(source: str) -> str:
    return "" if source == "none" else source


def _labelled_cloud(space: LabelSpace, config: Config, frame: Frame) -> None:
    """Reads the point cloud and human labels of a frame, to see whether it can be used."""
    truth_targets(space, config, frame, key_cloud(frame, config))


def _student_to_tune(config: Config, source: str, classes: int) -> tuple[Student, Tensor]:
    """Loads the student to fine-tune: a new classifier, all else from ``source``.

    Also gives the embeddings of its classes.
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
        weights |= {
            f"classifier.{k}": trained.text @ weights[f"{named}.{k}"] for k in ("weight", "bias")
        }
    else:
        weights |= {k: v for k, v in network.state_dict().items() if k.startswith("classifier.")}
    network.load_state_dict(weights)  # strict: a weight that does not fit is an error
    network.text_head = trained.student.text_head
    if config.finetune.linear_probe:
        for name, parameter in network.named_parameters():
            parameter.requires_grad = name.startswith("classifier.")
    return network, trained.text
