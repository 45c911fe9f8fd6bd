"""A student on disk: ``model.safetensors`` and ``config.json``, readable without this package."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from distill.batch import channels
from distill.student import ModelConfig, Student
from projection.errors import BadInput


@dataclass(frozen=True, eq=False, slots=True)
class Trained:
    """A student with what is needed to use it.

    Attributes:
        student: the network, in evaluation mode.
        text: unit text embedding of each class.
        names: the classes.
        model: the network's configuration.
        sensor_height_m: height of the LiDAR above the ground that it was trained with [m].
        used_labels: whether human labels were used in its training.
    """

    student: Student
    text: Float[Tensor, "c d"]
    names: tuple[str, ...]
    model: ModelConfig
    sensor_height_m: float
    used_labels: bool


def make_student(model: ModelConfig, text_dim: int, classes: int | None = None) -> Student:
    """An untrained student, from torch's global seed; with a classifier when it gets a number of classes."""
    return Student(model.size, channels(model.features), text_dim, classes, model.backend, model.checkpointing)


def student_config(model: ModelConfig, names: tuple[str, ...], sensor_height_m: float, used_labels: bool) -> bytes:
    """The bytes of ``config.json``."""
    tree = {
        "model": asdict(model),
        "names": list(names),
        "sensor_height_m": sensor_height_m,
        "used_labels": used_labels,
    }
    return json.dumps(tree, indent=1).encode()


def student_bytes(student: Student, text: Float[Tensor, "c d"]) -> bytes:
    """The bytes of ``model.safetensors``: the network's weights and, as ``text``, the classes' embeddings."""
    tensors = {f"student.{name}": value.cpu().contiguous() for name, value in student.state_dict().items()}
    return save({**tensors, "text": text.cpu().contiguous()})


def load_student(folder: Path) -> Trained:
    """The student in a folder.

    Raises:
        BadInput: a file is missing or damaged, or the weights do not fit the configuration (named, never skipped).
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        tensors = load_file(folder / "model.safetensors")
        settings: dict[str, Any] = config["model"]
        model = ModelConfig(**{**settings, "features": tuple(settings["features"])})
        text = tensors.pop("text")
        head = tensors.get("student.classifier.weight")
        student = make_student(model, text.shape[1], None if head is None else len(head))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise BadInput(
            folder, f"is no readable student: {error}", "give the folder that tools/pretrain.py printed"
        ) from None
    try:
        student.load_state_dict({name.removeprefix("student."): value for name, value in tensors.items()})
    except RuntimeError as error:
        raise BadInput(folder, f"weights do not fit config.json: {' '.join(str(error).split())}") from None
    return Trained(
        student.eval(), text, tuple(config["names"]), model, config["sensor_height_m"], config["used_labels"]
    )


def optimizer_bytes(optimizer: torch.optim.Optimizer, epoch: int) -> bytes:
    """The optimiser's state as safetensors, tensor by tensor, with the number of finished epochs."""
    state = optimizer.state_dict()["state"]
    tensors = {f"{i}.{name}": torch.as_tensor(value).cpu() for i, row in state.items() for name, value in row.items()}
    said = {"epoch": str(epoch), "optimizer": type(optimizer).__name__}
    return save({k: v.contiguous() for k, v in tensors.items()}, said)


def load_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> int:
    """Restores what ``optimizer_bytes`` saved; answers the number of finished epochs.

    Raises:
        BadInput: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            epoch, kind = int(file.metadata()["epoch"]), file.metadata()["optimizer"]
            state: dict[int, dict[str, Any]] = {}
            for key in file.keys():  # noqa: SIM118 - not a mapping
                index, _, name = key.partition(".")
                state.setdefault(int(index), {})[name] = file.get_tensor(key)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise BadInput(path, f"is no readable training state: {error}", "delete it to start again") from None
    if kind != type(optimizer).__name__:
        raise BadInput(path, f"is the state of {kind}", f"train.optimizer says {type(optimizer).__name__}")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return epoch
