"""The learning stages: a student from the teacher's word, and a student from a few human labels."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from clipsweep.distill.batch import Batch
from clipsweep.distill.checkpoint import (
    learner_bytes,
    load_learner,
    load_student,
    make_student,
    student_bytes,
    student_config,
)
from clipsweep.distill.objectives import Terms, finetuning, pretraining
from clipsweep.distill.ranks import rank
from clipsweep.distill.student import ModelConfig, Student
from clipsweep.distill.teacher import MaskClipConfig
from clipsweep.distill.train import Learner, NotFinite, Step, train
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.datasets.rows import Skip
from clipsweep.pipeline.guard import label_folders, no_labels
from clipsweep.pipeline.labels import LabelSpace, load_space
from clipsweep.pipeline.loaders import (
    Targets,
    key_cloud,
    note_older,
    readable,
    target_source,
    training_batches,
    training_steps,
    truth_targets,
)
from clipsweep.pipeline.log import TrainingLog, met_targets
from clipsweep.pipeline.protocols import labelled_subset
from clipsweep.pipeline.signals import Stopped, noted
from clipsweep.pipeline.stages.index import make_index, scene_digests, scene_frames, scenes_of
from clipsweep.pipeline.stages.pixels import device, make_pixels
from clipsweep.pipeline.stages.points import make_points
from clipsweep.pipeline.store import Artifact, digest_files, write_whole
from clipsweep.pipeline.trainers import joined, on_ray, wants_ray
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import Cloud, Frame

READS_CLOUDS = (
    *("data.columns", "data.intensity_scale", "data.ego_box_m", "data.bad_share"),
    *("data.sensor_height_m", "on_bad"),
)
"""Settings that decide what a network is given of a sweep."""

PRETRAINED_BY = (
    *("model", "train", "seed", "fusion.min_depth_m", "fusion.occlusion_px", "fusion.occlusion_m"),
    *("fusion.occlusion_relative", "objectives.semantic", "objectives.spatiotemporal"),
    *("objectives.selftraining", "objectives.regression"),
)
"""Settings that decide a pre-trained student, beside clouds, pixels and points."""

FINETUNED_BY = ("model", "train", "finetune", "protocol", "seed", "objectives.segmentation")
"""Settings that decide a fine-tuned student, beside clouds, labels and the student it starts from."""


def make_pretrained(config: Config, resume: str = "") -> Artifact:
    """A student that learnt from the teacher, without any human label; makes the stages before it where missing.

    An unfinished training of the same configuration goes on from its last checkpoint.
    ``run.workers`` and torchrun spread the training.

    Args:
        config: everything else.
        resume: folder of a student to start from, with its optimiser state; may be empty.

    Raises:
        BadInput: a frame cannot be used, or none is left.
        LabelLeak: something opened a file of human labels.
        NotFinite: the loss is not finite too often.
        Stopped: by a signal, after a checkpoint.
        Incomplete: scenes or workers were lost too often.
    """
    _check_teacher(config)
    if wants_ray(config) and not _complete(_pretrained(config, _sources(config), resume), config):
        on_ray(partial(make_pretrained, resume=resume), config)
    with joined(partial(_sources, config)) as sources:
        student = _pretrained(config, sources, resume)
        if not _complete(student, config):
            _pretrain(config, sources, student, resume)
    return student


def _check_teacher(config: Config) -> None:
    """Refuses objectives that the teacher has nothing to say to."""
    teacher, objectives = config.teacher, config.objectives
    if teacher.kind == "features" and objectives.needs_labels():
        raise BadInput("teacher.kind", "features names no class to learn", "see configs/pretrain/scalr.yaml")
    kept = not isinstance(teacher.own, MaskClipConfig) or teacher.own.keep_features
    if objectives.needs_features() and not kept:
        problem = "is false, but points shall be compared with pixels"
        raise BadInput("teacher.maskclip.keep_features", problem, "set it true")


@dataclass(frozen=True, eq=False, slots=True)
class _Sources:
    """What a student learns from."""

    index: Artifact
    pixels: Artifact
    points: Artifact


def _sources(config: Config) -> _Sources:
    index = make_index(config)
    pixels = make_pixels(config, index)
    return _Sources(index, pixels, make_points(config, index, pixels))


def _pretrained(config: Config, sources: _Sources, resume: str) -> Artifact:
    """The student of a configuration, whether it exists or not."""
    scenes = scene_digests(sources.index, "train")
    key = {
        **config.values(*READS_CLOUDS, *PRETRAINED_BY),
        "resume": _digest(resume),
        "scenes": scenes,
        "pixels": sources.pixels.content(*scenes),
        "points": sources.points.content(*scenes),
    }
    return Artifact.of(config.store, "student", key, [sources.pixels, sources.points])


def _pretrain(config: Config, sources: _Sources, student: Artifact, resume: str) -> None:
    pixels, points = sources.pixels, sources.points
    lost = {skip.frame for skip in points.skipped()}
    frames = [frame for frame in training_frames(sources.index, config) if frame.id not in lost]
    if not frames:
        raise BadInput("data.train", f"all frames were left out, first: {points.skipped()[0].reason}")
    text = torch.from_numpy(pixels.arrays("_text").get_tensor("text"))
    started, targets = time.time(), target_source(config.objectives.semantic.targets, pixels, points, config)
    with no_labels(label_folders(config.data, sources.index)):
        network = _new_student(config, text.shape[1])
        network.named = "semantic" if config.objectives.semantic.weight else "local"
        terms = pretraining(network, text.to(device()), config.objectives)
        stripped = [dataclasses.replace(frame, labels=None) for frame in frames]
        bad, older = _fit(config, student, network, terms, text, stripped, targets, False, resume)
    if rank() == 0:
        _finish(student, config, started, [*points.skipped(), *older], used_labels=False, bad_steps=bad)


def make_finetuned(config: Config, source: str) -> Artifact:
    """A student with a classifier, trained on the labels that ``protocol`` gives.

    The frames whose labels were used are listed in the manifest.

    Args:
        config: everything else.
        source: folder of the student to start from; ``none`` for random weights.

    Raises:
        BadInput: the protocol, the student or a frame cannot be used.
        NotFinite: the loss is not finite too often.
        Stopped: by a signal, after a checkpoint.
        Incomplete: workers were lost too often.
    """
    if config.labels.names:
        raise BadInput("labels.names", "has no labels to learn from", "fine-tune with the data set's own classes")
    if config.finetune.linear_probe and source == "none":
        raise BadInput("finetune.linear_probe", "leaves random weights as they are", "give student=FOLDER")
    if config.labels.truth:
        raise BadInput("labels.truth", "is for scoring alone", "fine-tune with labels.space of the label files")
    if not source:
        raise BadInput("student", "is not set", "give student=FOLDER of a pre-trained student, or student=none")
    if wants_ray(config) and not _complete(_finetuned(config, make_index(config), source), config):
        on_ray(partial(make_finetuned, source=source), config)
    with joined(partial(make_index, config)) as index:
        student = _finetuned(config, index, source)
        if not _complete(student, config):
            _finetune(config, index, student, source)
    return student


def _finetuned(config: Config, index: Artifact, source: str) -> Artifact:
    """The fine-tuned student of a configuration, whether it exists or not."""
    key = {
        **config.values(*READS_CLOUDS, *FINETUNED_BY),
        "student": _digest(_folder(source)),
        "classes": load_space(config.labels).digest(),
        "scenes": scene_digests(index, "train"),
    }
    return Artifact.of(config.store, "student", key)


def _folder(source: str) -> str:
    return "" if source == "none" else source


def _finetune(config: Config, index: Artifact, student: Artifact, source: str) -> None:
    frames = [frame for frame in training_frames(index, config) if frame.labels]
    if not frames:
        raise BadInput("data.train", "has no frame with labels", "unpack its labels")
    subset, space, skipped = labelled_subset(config.protocol, frames), load_space(config.labels), list[Skip]()
    if config.on_bad == "skip":
        subset, skipped = readable(subset, config, partial(_labelled_cloud, space, config))
        if not subset:
            raise BadInput("data.train", f"all labelled frames were left out, first: {skipped[0].reason}")
    started = time.time()
    network, text = _student_to_tune(config, _folder(source), len(space))
    targets = partial(truth_targets, space, config)
    bad, older = _fit(config, student, network, finetuning(network, config.objectives), text, subset, targets, True)
    if rank() == 0:
        facts = {"used_labels": True, "protocol": config.protocol, "labelled_frames": [frame.id for frame in subset]}
        _finish(student, config, started, [*index.skipped(), *skipped, *older], bad_steps=bad, **facts)


def _labelled_cloud(space: LabelSpace, config: Config, frame: Frame) -> None:
    """Reads what a frame is fine-tuned on, to see whether that can be done."""
    truth_targets(space, config, frame, key_cloud(frame, config, config.data.ego_box_m))


def _finish(student: Artifact, config: Config, started: float, skipped: Sequence[Skip], **facts: Any) -> None:
    digest = digest_files([student.path / "config.json"])
    student.finish(["model"], config, started, skipped, config_digest=digest, **facts)


def training_frames(index: Artifact, config: Config) -> list[Frame]:
    """The frames of ``data.train`` in official order.

    Raises:
        BadInput: there is none.
    """
    frames = [frame for scene in scenes_of(index, "train") for frame in scene_frames(index, config, scene)]
    if not frames:
        raise BadInput("data.train", "no frame to learn from is left")
    return frames


def _complete(student: Artifact, config: Config) -> bool:
    return student.whole and student.done("model", config.verify)


def finished_student(path: str) -> Artifact:
    """A student that a user named, as training wrote it.

    Raises:
        BadInput: there is none, or a file of it was changed since.
    """
    student = Artifact.at(path, "student")
    if not student.done("model", verify=True):
        raise BadInput(student.shard("model"), "is not the file that training wrote", "copy the folder again")
    if student.manifest().get("config_digest") != digest_files([student.path / "config.json"]):
        raise BadInput(student.path / "config.json", "is not the file that training wrote", "copy the folder again")
    return student


def _digest(student: str) -> str:
    return str(finished_student(student).manifest()["digest"]) if student else ""


def _new_student(config: Config, text_dim: int, classes: int | None = None) -> Student:
    torch.manual_seed(config.seed)
    return make_student(config.model, text_dim, classes).to(device())


def _student_to_tune(config: Config, source: str, classes: int) -> tuple[Student, Tensor]:
    """A student with a classifier to be trained, all else from ``source``; and the embeddings of its classes."""
    if not source:
        return _new_student(config, classes, classes), torch.eye(classes)
    trained = load_student(finished_student(source).path)
    if trained.used_labels:
        raise BadInput(source, "has learnt from labels already", "give the pre-trained one, or student=none")
    _same_network(source, trained.model, config.model)
    network = _new_student(config, trained.text.shape[1], classes)
    weights = trained.student.state_dict()
    if config.finetune.start == "names" and trained.names == load_space(config.labels).names and len(trained.text):
        named = trained.student.named
        weights |= {f"classifier.{k}": trained.text @ weights[f"{named}.{k}"] for k in ("weight", "bias")}
    else:
        weights |= {k: v for k, v in network.state_dict().items() if k.startswith("classifier.")}
    network.load_state_dict(weights)  # strict: a weight that does not fit is an error
    network.named = trained.student.named
    if config.finetune.linear_probe:
        for name, parameter in network.named_parameters():
            parameter.requires_grad = name.startswith("classifier.")
    return network, trained.text


def _same_network(student: str, made: ModelConfig, wanted: ModelConfig) -> None:
    pairs = [(f.name, getattr(made, f.name), getattr(wanted, f.name)) for f in dataclasses.fields(ModelConfig)]
    other = [(name, one, two) for name, one, two in pairs if one != two]
    if other:
        said = " ".join(f"model.{name}={one}" for name, one, _ in other)
        raise BadInput(
            student, f"was made with {said}", f"not {', '.join(str(two) for *_, two in other)}: give the same"
        )


def _fit(
    config: Config,
    out: Artifact,
    network: Student,
    terms: Terms,
    text: Tensor,
    frames: list[Frame],
    targets: Callable[[Frame, Cloud], Targets],
    used_labels: bool,
    resume: str = "",
) -> tuple[int, list[Skip]]:
    """Trains into an artifact, from its last checkpoint if it has one, else from ``resume``'s, else from the start.

    The checkpoint is one shard, so that no part of it is ever older than another.

    Returns:
        Number of steps that were left out because their loss was not finite, and the bad older sweeps that were met.

    Raises:
        BadInput: the whole training met no target.
        NotFinite: steps without a finite loss, too many or all, or weights that are not.
        Stopped: by a signal, after a checkpoint.
    """
    learner = Learner(network, config.train, "classifier.", config.finetune.head_lr)
    if out.done("state", config.verify):
        load_learner(learner, out.shard("state"))
    elif resume:
        _start_from(finished_student(resume), learner, config, len(frames))
    steps, left_out = training_steps(config, len(frames)), list[Skip]()
    if rank() == 0:
        out.sweep_orphans()
        names, height_m = load_space(config.labels).names, config.data.sensor_height_m
        write_whole(out.path / "config.json", student_config(network, config.model, names, height_m, used_labels))
    with (
        closing(training_batches(frames, targets, config, learner.step)) as batches,
        noted() as heard,
        _recorded(out, learner, steps, config) as on_step,
    ):
        noted_batches = _noting(batches, left_out)
        train(learner, terms, noted_batches, steps, config.train, on_step, config.seed, lambda: bool(heard))
    if learner.step < steps:
        number = heard[0] if heard else signal.SIGTERM  # another worker's
        raise Stopped(number, f"training stopped after step {learner.step} of {steps}")
    if learner.bad == steps > 0:
        raise NotFinite(f"all {steps} steps were left out, because nothing was finite")
    if rank() == 0 and steps and not met_targets(out.path):
        raise BadInput("data.train", "no point of any frame has a target", "look at the labels with tools/view.py")
    learner.keep_average()
    if not all(value.isfinite().all() for value in network.state_dict().values()):
        raise NotFinite(f"weights are not finite after step {steps}")
    if rank() == 0:
        out.commit("model", student_bytes(network, text))
    return learner.bad, left_out


def _noting(batches: Iterable[Batch], left_out: list[Skip]) -> Iterator[Batch]:
    """The batches; the older sweeps that they lack are written down."""
    for batch in batches:
        for reason in batch.left_out:
            note_older(left_out, "", reason)
        yield batch


@contextmanager
def _recorded(out: Artifact, learner: Learner, steps: int, config: Config) -> Iterator[Callable[[Step], None]]:
    """What hears of each step: logs it, and commits the learner every ``run.checkpoint_s`` and at the end.

    Of several workers only the first writes.
    """
    if rank():
        yield lambda step: None
        return
    log, saved_at = TrainingLog(out.path, learner.step, steps, config.run.progress), time.monotonic()

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
    """Takes up the training of another student after its last epoch."""
    trained = load_student(source.path)
    if trained.used_labels:
        raise BadInput(source.path, "has learnt from labels", "resume a pre-trained student")
    _same_network(str(source.path), trained.model, config.model)
    if not source.done("state", verify=True):
        raise BadInput(source.shard("state"), "is not the file that training wrote", "copy the folder again")
    epochs = source.manifest()["config"]["train"]["epochs"]
    if epochs >= config.train.epochs:
        raise BadInput(source.path, f"has done {epochs} epochs already", "set train.epochs to more")
    load_learner(learner, source.shard("state"))
    done = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=epochs))
    learner.step, learner.bad = training_steps(done, frames), 0
