"""Student checkpoints: saves and loads ``model.safetensors`` and ``config.json``.

Both are readable without this package.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from clipsweep.distill.sparse.ops import Backend
from clipsweep.distill.student.batch import Batch, collate
from clipsweep.distill.student.unet import ModelConfig, Student
from clipsweep.distill.student.voxels import Reduce, Sample, channels, voxelize
from clipsweep.distill.teacher.weights import hub_file
from clipsweep.distill.training.loop import Learner
from clipsweep.projection.errors import BadInput

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


@dataclass(frozen=True, eq=False, slots=True)
class Trained:
    """A trained student network with its classes, ready for inference.

    Attributes:
        student: the network, in evaluation mode.
        text: unit text embedding of each class.
        names: the classes.
        model: the network's configuration.
        sensor_height_m: height of the LiDAR above the ground that it was trained with [m].
        scale: inverse temperature of the cosines of points and class embeddings.
        used_labels: whether human labels were used in its training.
    """

    student: Student
    text: Float[Tensor, "c d"]
    names: tuple[str, ...]
    model: ModelConfig
    sensor_height_m: float
    scale: float
    used_labels: bool

    def predict(
        self,
        xyz: np.ndarray,
        intensity: np.ndarray,
        age_s: np.ndarray | None = None,
        sensor_height_m: float | None = None,
        origin: np.ndarray | None = None,
    ) -> UInt8[np.ndarray, " n"]:
        """Inference: predicts the class of every point of a point cloud, an index into ``names``.

        Args:
            xyz: (n, 3) points in the LiDAR's frame, z up [m].
            intensity: (n,) return strength, 0..1.
            age_s: (n,) time of the newest sweep minus the point's, where several are merged [s];
                None is one sweep.
            sensor_height_m: height of this LiDAR above the ground [m]; None is that of the one it
                was trained with.
            origin: (n, 3) where the LiDAR stood when it saw each point, in the frame of the points
                [m]; None is that frame's origin, as for one sweep.

        Raises:
            ValueError: shapes do not fit, a value is not finite, the height is none of 0 to 100 m,
                or the student was trained on features, without classes.
        """
        batch = self._batch(xyz, intensity, age_s, sensor_height_m, origin)
        if batch is None:
            return np.empty(0, np.uint8)
        return self.student.classify(batch, self._text()).cpu().numpy()

    def probabilities(
        self,
        xyz: np.ndarray,
        intensity: np.ndarray,
        age_s: np.ndarray | None = None,
        sensor_height_m: float | None = None,
        origin: np.ndarray | None = None,
        views: int = 1,
    ) -> Float32[np.ndarray, "n c"]:
        """Inference: class probabilities of every point of a point cloud.

        Args:
            xyz: as for ``predict``.
            intensity: as for ``predict``.
            age_s: as for ``predict``.
            sensor_height_m: as for ``predict``.
            origin: as for ``predict``.
            views: test-time augmentation: mean over so many copies of the point cloud, turned about
                the vertical by equal steps, every second one mirrored; 1 is the cloud as it is.

        Raises:
            ValueError: as ``predict``, or ``views`` is below 1.
        """
        if views < 1:
            raise ValueError(f"views={views}: it must be 1 or more")
        total = np.zeros((len(xyz), len(self.names)), np.float32)
        for view in range(views):
            turn = _turn(2 * np.pi * view / views, view % 2 > 0)
            turned = np.asarray(xyz, np.float32) @ turn
            seen_from = None if origin is None else np.asarray(origin, np.float32) @ turn
            batch = self._batch(turned, intensity, age_s, sensor_height_m, seen_from)
            if batch is None:
                break
            total += self.student.probabilities(batch, self._text(), self.scale).cpu().numpy()
        return total / np.float32(views)

    @torch.no_grad()
    def lengths(
        self, xyz: np.ndarray, intensity: np.ndarray, sensor_height_m: float
    ) -> Float[Tensor, " v"]:
        """Length of the embedding of each voxel of a point cloud, before it is made a unit vector.

        Args:
            xyz: as for ``predict``.
            intensity: as for ``predict``.
            sensor_height_m: as for ``predict``.
        """
        batch = self._batch(xyz, intensity, None, sensor_height_m, None)
        if batch is None:
            return torch.empty(0)
        return self.student.lengths(batch)

    def _text(self) -> Tensor | None:
        """Class embeddings to compare points with; None where a classifier takes their place."""
        return self.text if self.student.classifier is None and len(self.text) else None

    def _batch(
        self,
        xyz: np.ndarray,
        intensity: np.ndarray,
        age_s: np.ndarray | None,
        sensor_height_m: float | None,
        origin: np.ndarray | None,
    ) -> Batch | None:
        """Checks and voxelizes a point cloud, on the student's device; None without points."""
        height_m = self.sensor_height_m if sensor_height_m is None else sensor_height_m
        if not 0 <= height_m <= 100:
            raise ValueError(f"sensor_height_m={height_m} is none of 0 to 100 m")
        points = np.asarray(xyz, np.float32)
        columns = [
            np.asarray(c, np.float32)
            for c in (intensity, np.zeros(len(points)) if age_s is None else age_s)
        ]
        seen_from = np.zeros_like(points) if origin is None else np.asarray(origin, np.float32)
        if points.shape != (len(points), 3) or any(
            column.shape != (len(points),) for column in columns
        ):
            shapes = [array.shape for array in (points, *columns)]
            raise ValueError(
                f"points must be (n, 3), intensity and age (n,), not {', '.join(map(str, shapes))}"
            )
        if seen_from.shape != points.shape:
            raise ValueError(f"origins must be (n, 3) as the points, not {seen_from.shape}")
        if not all(np.isfinite(array).all() for array in (points, *columns, seen_from)):
            raise ValueError("a coordinate, intensity, age or origin is not finite")
        if not len(points):
            return None
        voxels = voxelize(
            Sample.of_points("", points, columns[0], columns[1], seen_from),
            voxel_m=self.model.voxel_m,
            features=self.model.features,
            reduce=self.model.reduce,
            sensor_height_m=height_m,
            trilinear=self.model.trilinear,
        )
        return collate([voxels]).to(next(self.student.parameters()).device)


def _turn(angle: float, mirrored: bool) -> Float32[np.ndarray, "3 3"]:
    """Turn about the vertical as a factor of rows, after y is mirrored where asked for."""
    side = -1.0 if mirrored else 1.0
    cos = np.cos(angle)
    sin = np.sin(angle)
    turn = np.array([[cos, -side * sin, 0], [sin, side * cos, 0], [0, 0, 1]])
    return turn.T.astype(np.float32)


def make_student(model: ModelConfig, text_dim: int, classes: int | None = None) -> Student:
    """Builds an untrained student network, with weights from torch's global seed.

    With a classifier when it gets a number of classes.
    """
    return Student(
        model.size, channels(model.features), text_dim, classes, model.backend, model.checkpointing
    )


def student_config(
    student: Student,
    model: ModelConfig,
    names: tuple[str, ...],
    sensor_height_m: float,
    scale: float,
    used_labels: bool,
) -> bytes:
    """The student's ``config.json`` as bytes."""
    tree = {
        "model": asdict(model),
        "named": student.text_head,
        "names": list(names),
        "sensor_height_m": sensor_height_m,
        "scale": scale,
        "used_labels": used_labels,
    }
    return json.dumps(tree, indent=1).encode()


def student_bytes(student: Student, text: Float[Tensor, "c d"]) -> bytes:
    """The student's weights as the bytes of ``model.safetensors``.

    The network's weights and, as ``text``, the classes' embeddings.
    """
    tensors = {
        f"student.{name}": value.cpu().contiguous() for name, value in student.state_dict().items()
    }
    return save({**tensors, "text": text.cpu().contiguous()})


def load_student(source: str | Path) -> Trained:
    """Loads a student from a folder, or from a repository of the Hugging Face hub.

    Args:
        source: a folder with ``model.safetensors`` and ``config.json``, or ``OWNER/NAME`` where
            there is none; a repository is looked for in the local cache first.

    Raises:
        BadInput: a file is missing or damaged, or the weights do not fit the configuration (named,
            never skipped).
    """
    folder = Path(source)
    if not folder.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        files = [hub_file(str(source), (name,)) for name in (WEIGHTS, CONFIG)]
    else:
        files = [folder / name for name in (WEIGHTS, CONFIG)]
    try:
        tensors = load_file(files[0])
        config = json.loads(files[1].read_text())
        settings: dict[str, Any] = config["model"]
        model = ModelConfig(**{**settings, "features": tuple(settings["features"])})
        text = tensors.pop("text")
        head = tensors.get("student.classifier.weight")
        student = make_student(model, text.shape[1], None if head is None else len(head))
        student.text_head = config["named"]
        names = tuple(str(name) for name in config["names"])
        height_m = float(config["sensor_height_m"])
        scale = float(config["scale"])
        used_labels = config["used_labels"]
        if not 0 <= height_m <= 100 or type(used_labels) is not bool:
            raise ValueError(f"sensor_height_m is {height_m}, used_labels {used_labels!r}")
        if not 0 < scale <= 1e9:
            raise ValueError(f"scale is {scale}")
        _check(
            student,
            model,
            names,
            len(text) if head is None else len(head),
            [*tensors.values(), text],
        )
    except KeyError as error:
        raise BadInput(
            source, f"has no {error}", "another version wrote it, or something else: train again"
        ) from None
    except (OSError, ValueError, TypeError, IndexError, RecursionError, SafetensorError) as error:
        raise BadInput(
            source,
            f"is no readable student: {error}",
            "give the folder that tools/pretrain.py printed",
        ) from None
    try:
        student.load_state_dict(
            {name.removeprefix("student."): value for name, value in tensors.items()}
        )
    except RuntimeError as error:
        raise BadInput(
            source, f"weights do not fit config.json: {' '.join(str(error).split())}"
        ) from None
    return Trained(student.eval(), text, names, model, height_m, scale, used_labels)


def _check(
    student: Student,
    model: ModelConfig,
    names: tuple[str, ...],
    classes: int,
    tensors: Sequence[Tensor],
) -> None:
    """Validates a loaded student: network settings, class names, finite weights.

    What would only fail, or go wrong, in use is refused here.
    """
    if student.text_head not in ("semantic", "local"):
        raise ValueError(f"named is {student.text_head!r}, not one of semantic, local")
    for item in fields(ModelConfig):
        value = getattr(model, item.name)
        plain = type(getattr(ModelConfig, item.name))
        if type(value) not in ((float, int) if plain is float else (plain,)):
            raise ValueError(f"model.{item.name} is {value!r}")
    for key, allowed in (("reduce", Reduce), ("backend", Backend)):
        if getattr(model, key) not in get_args(allowed):
            raise ValueError(
                f"model.{key} is {getattr(model, key)!r}, not one of {', '.join(get_args(allowed))}"
            )
    if not 0 < float(model.voxel_m) < math.inf:
        raise ValueError(f"model.voxel_m is {model.voxel_m}")
    if not 1 <= model.sweeps <= 100 or model.max_voxels < 0:
        raise ValueError(f"model.sweeps is {model.sweeps}, model.max_voxels {model.max_voxels}")
    # features alone have no classes
    if classes not in (0, len(names)) or len(set(names)) < len(names):
        raise ValueError(f"{len(names)} names for {classes} classes")
    if not all(tensor.isfinite().all() for tensor in tensors):
        raise ValueError("a weight is not finite")


def learner_bytes(learner: Learner) -> bytes:
    """Training state (resumable checkpoint) as safetensors.

    Weights, their mean, the optimiser's state, steps done.
    """
    optimizer = learner.optimizer.state_dict()["state"]
    tensors = {
        **{f"weight.{name}": value for name, value in learner.student.state_dict().items()},
        **{f"average.{name}": value for name, value in (learner.average or {}).items()},
        **{
            f"{i}.{name}": torch.as_tensor(value)
            for i, row in optimizer.items()
            for name, value in row.items()
        },
    }
    metadata = {
        "step": learner.step,
        "bad": learner.bad,
        "optimizer": type(learner.optimizer).__name__,
        "scaler": learner.scaler.state_dict(),
    }
    return save(
        {name: value.cpu().contiguous() for name, value in tensors.items()},
        {"learner": json.dumps(metadata)},
    )


def load_learner(learner: Learner, path: Path) -> None:
    """Resumes training from what ``learner_bytes`` saved.

    Raises:
        BadInput: the file is damaged, or is of another network or optimiser.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads(file.metadata()["learner"])
            for key in file.keys():  # noqa: SIM118 - not a mapping
                part, _, name = key.partition(".")
                parts.setdefault(part, {})[name] = file.get_tensor(key)
        kind = metadata["optimizer"]
        step = int(metadata["step"])
        bad = int(metadata["bad"])
        scaler = metadata["scaler"]
        weights = parts.pop("weight")
        average = parts.pop("average", None)
        state = {int(index): row for index, row in parts.items()}
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise BadInput(
            path, f"is no readable training state: {error}", "delete it to start again"
        ) from None
    wanted = type(learner.optimizer).__name__
    if kind != wanted:
        raise BadInput(path, f"is the state of {kind}", f"train.optimizer is {wanted}")
    try:
        learner.student.load_state_dict(weights)
    except RuntimeError as error:
        raise BadInput(
            path, f"weights do not fit the network: {' '.join(str(error).split())}"
        ) from None
    if learner.average is not None:
        for name, value in (average or weights).items():
            learner.average[name].copy_(value)
    groups = learner.optimizer.state_dict()["param_groups"]
    learner.optimizer.load_state_dict({"state": state, "param_groups": groups})
    if scaler:
        learner.scaler.load_state_dict(scaler)
    learner.step = step
    learner.bad = bad
