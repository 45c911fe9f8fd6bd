"""Configuration: YAML files merged left to right, then key=value, into nested frozen dataclasses."""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import count
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from clipsweep.distill.batch import channels
from clipsweep.distill.objectives import ObjectivesConfig
from clipsweep.distill.student import ModelConfig
from clipsweep.distill.teacher import TeacherConfig
from clipsweep.distill.train import TrainConfig
from clipsweep.pipeline.datasets import DataConfig
from clipsweep.pipeline.datasets.rows import MAX_SWEEPS
from clipsweep.pipeline.demo.write import DemoConfig
from clipsweep.pipeline.labels import LabelsConfig
from clipsweep.pipeline.work import RunConfig
from clipsweep.pipeline.yaml_files import CONFIGS, read_yaml, split_texts
from clipsweep.projection.errors import BadInput
from clipsweep.projection.fusion import FusionConfig


@dataclass(frozen=True)
class FinetuneConfig:
    """What differs from pre-training.

    Attributes:
        head_lr: learning rate of the classifier, as a multiple of the rest's
        linear_probe: train the classifier alone
        start: what the classifier starts as: the pre-trained student's own answer to the class names, or random weights
            (as in the published protocols)
    """

    head_lr: float = 1.0
    linear_probe: bool = False
    start: Literal["names", "random"] = "names"


@dataclass(frozen=True)
class Config:
    """Everything that a tool can be told.

    Attributes:
        make_demo: write the embedded world to data.root first, if it is not there
        store: folder of all artifacts
        seed: seed of everything random
        on_bad: what to do with a frame that cannot be used: fail, or skip it and say so
        verify: check the sha256 of every shard that is already there, not its size alone, and index the data set again
        protocol: whose labels fine-tuning may use: scene@1%, frame@10%, ... of data.train
        student: folder of a student to score, export or start from; none starts fine-tuning from random weights
        points: folder of fused point labels to score, export or draw
        evaluate: score and draw the student in child processes after pre-training
        absent_class: IoU of a class never true nor predicted: nan (not averaged), one (SLidR's), zero (SemanticKITTI's)
        format: official format to export to
        frame: id of the frame to draw; empty is the first
        report: picture to draw of how good the labels are, as .png; a table of the same is printed
        out: file or folder to write, where a tool writes outside the store
        resume: folder of a student whose training goes on; empty takes up the own unfinished one
    """

    data: DataConfig = field(default_factory=DataConfig)
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objectives: ObjectivesConfig = field(default_factory=ObjectivesConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    run: RunConfig = field(default_factory=RunConfig)
    demo: DemoConfig = field(default_factory=DemoConfig)
    make_demo: bool = False
    store: str = "artifacts"
    seed: int = 0
    on_bad: Literal["fail", "skip"] = "fail"
    verify: bool = False
    protocol: str = "scene@1%"
    student: str = ""
    points: str = ""
    evaluate: bool = False
    absent_class: Literal["nan", "one", "zero"] = "nan"
    format: Literal["nuscenes", "semantickitti"] = "nuscenes"
    frame: str = ""
    report: str = ""
    out: str = ""
    resume: str = ""

    def values(self, *keys: str) -> dict[str, Any]:
        """Some groups and keys (``fusion``, ``data.columns``) as plain values: what an artifact's name is made of."""
        chosen: dict[str, Any] = {}
        for key in keys:
            value: Any = reduce(getattr, key.split("."), self)
            group = dataclasses.is_dataclass(value) and not isinstance(value, type)
            chosen[key] = dataclasses.asdict(value) if group else value
        return chosen


_FILES_MAX = 100
_TINY, _MANY = 1e-3, 1e9
_FINE_M = 0.002  # 2 ** 18 of these reach farther than a point may lie
_BOUNDS: dict[str, tuple[float, float]] = {
    "data.columns": (4, 64),
    "data.intensity_scale": (_TINY, _MANY),
    "data.sensor_height_m": (0, 100),
    "data.ego_box_m": (0, 100),
    "data.bad_share": (0, 1),
    "data.min_points": (1, _MANY),
    "teacher.batch": (1, 4096),
    "teacher.min_score": (0, 1),
    "teacher.key_smoothing": (0, 1),
    "teacher.denoising": (0, 1),
    "teacher.tile_overlap": (0, 0.9),
    "fusion.min_depth_m": (0, 100),
    "fusion.occlusion_px": (1, 1000),
    "fusion.occlusion_relative": (0, _MANY),
    "fusion.occlusion_m": (0, _MANY),
    "fusion.unclear_weight": (0, 1),
    "fusion.cell_m": (0.05, 100),
    "fusion.coarse_cell_m": (0.05, 100),
    "fusion.cluster_reach_m": (10, 1000),
    "fusion.cell_share": (0, 1),
    "fusion.cluster_share": (0, 1),
    "fusion.window_s": (0, _MANY),
    "fusion.window_m": (0, 1000),
    "fusion.vote_sweeps": (1, MAX_SWEEPS),
    "fusion.min_support": (1, _MANY),
    "fusion.min_agreement": (0, 1),
    "model.voxel_m": (_FINE_M, 100),
    "model.sweeps": (1, MAX_SWEEPS),
    "model.max_voxels": (0, _MANY),
    "train.epochs": (0, _MANY),
    "train.batch_size": (1, 128),
    "train.lr": (0, 100),
    "train.weight_decay": (0, 10),
    "train.warmup": (0, 1),
    "train.clip_norm": (0, _MANY),
    "train.accumulate": (1, 1024),
    "train.momentum": (0, 0.9999),
    "train.ema": (0, 0.999999),
    "train.max_bad_steps": (0, _MANY),
    "train.sweeps": (1, MAX_SWEEPS),
    "train.sweeps_among": (0, MAX_SWEEPS),
    "train.max_age_s": (0, _MANY),
    "train.augment.rotate_deg": (0, 180),
    "train.augment.scale": (0, 0.9),
    "objectives.semantic.weight": (0, _MANY),
    "objectives.semantic.start": (0, 1),
    "objectives.semantic.tau": (_TINY, _MANY),
    "objectives.semantic.scale": (_TINY, _MANY),
    "objectives.semantic.lovasz": (0, _MANY),
    "objectives.spatiotemporal.weight": (0, _MANY),
    "objectives.spatiotemporal.start": (0, 1),
    "objectives.spatiotemporal.temperature": (_TINY, _MANY),
    "objectives.spatiotemporal.cell_m": (_FINE_M, 100),
    "objectives.selftraining.probability": (0, 1),
    "objectives.selftraining.start": (0, 1),
    "objectives.selftraining.min_confidence": (0, 1),
    "objectives.regression.weight": (0, _MANY),
    "objectives.regression.start": (0, 1),
    "objectives.segmentation.cross_entropy": (_TINY, _MANY),
    "objectives.segmentation.lovasz": (0, _MANY),
    "seed": (0, 2**32 - 1),
    "finetune.head_lr": (0, _MANY),
    "run.workers": (1, 10_000),
    "run.gpus": (0, 64),
    "run.attempts": (1, 100),
    "run.failures": (0, _MANY),
    "run.deadline_s": (1, _MANY),
    "run.loaders": (0, 256),
    "run.checkpoint_s": (0, _MANY),
}
"""Every number's range; those of the demo are checked where it is written."""


def load_config(arguments: Sequence[str]) -> Config:
    """The configuration of a command line: recipes and ``key=value`` in any order, recipes first.

    A recipe is a YAML file, or the name of one that comes with the package: ``demo``,
    ``data/nuscenes``.

    Raises:
        BadInput: a file cannot be read, a key does not exist ("did you mean ..."), or a value is not allowed.
    """
    tree: Any = OmegaConf.structured(Config)
    for argument in (a for a in arguments if "=" not in a):
        for path, values in list(_with_includes(recipe(argument), (), count(1))):
            tree = _merge(tree, values, str(path))
    for argument in (a for a in arguments if "=" in a):
        tree = _merge(tree, _from_pair(argument), "command line")
    try:
        config = OmegaConf.to_object(tree)
    except (OmegaConfBaseException, ValueError) as error:
        raise BadInput("configuration", _first_line(error)) from None
    assert isinstance(config, Config)
    for key, (low, high) in _BOUNDS.items():
        value: Any = reduce(getattr, key.split("."), config)
        if not low <= value <= high:  # False for nan too
            raise BadInput(key, f"is {value}", f"it must be from {low:g} to {high:g}")
    _check_fusion(config.fusion)
    try:
        channels(config.model.features)
    except ValueError as error:
        raise BadInput("configuration", str(error)) from None
    return config


def _check_fusion(fusion: FusionConfig) -> None:
    """Refuses settings of the fusion that contradict each other."""
    shares = fusion.cell_share + fusion.cluster_share
    if shares > 1:
        raise BadInput("fusion.cell_share", f"and fusion.cluster_share sum to {shares:g}", "1 at the most")
    if fusion.coarse_cell_m < fusion.cell_m:
        cure = f"at least fusion.cell_m, {fusion.cell_m:g}"
        raise BadInput("fusion.coarse_cell_m", f"is {fusion.coarse_cell_m:g}", cure)


def recipe(name: str) -> Path:
    """The file of a recipe, given by its path or by its name.

    Raises:
        BadInput: there is neither; the text names a recipe that is called alike.
    """
    path, bundled = Path(name), CONFIGS / f"{name}.yaml"
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    if not bundled.is_file():
        known = [p.relative_to(CONFIGS).with_suffix("").as_posix() for p in CONFIGS.rglob("*.yaml")]
        close = difflib.get_close_matches(name, known, 1) or ["--help"]
        raise BadInput(name, "is no file and no recipe of the package", f"see {close[0]}")
    return bundled


def _with_includes(path: Path, above: tuple[Path, ...], number: Iterator[int]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The files that a file includes, then itself; ``number`` counts what is read."""
    if next(number) > _FILES_MAX:
        raise BadInput(
            path, f"is one of more than {_FILES_MAX} included files", "a file counts as often as it is named"
        )
    try:
        whole = path.resolve()
    except (RuntimeError, ValueError) as error:  # links in a circle; a name that no file can have
        raise BadInput(path, f"cannot be read ({error})") from None
    if whole in above:
        raise BadInput(path, "includes itself")
    values = read_yaml(path)
    included = values.pop("include", [])
    included = [included] if isinstance(included, str) else included
    if not isinstance(included, list) or not all(isinstance(name, str) for name in included):
        raise BadInput(path, f"include must be a list of files, not {included!r}")
    for name in included:
        yield from _with_includes(path.parent / name, (*above, whole), number)
    yield path, values


def _from_pair(argument: str) -> dict[str, Any]:
    """The text as it was typed, below its key; what it means is for the key's type to say."""
    key, _, text = argument.partition("=")
    value: Any = text
    for part in reversed(key.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def _merge(tree: Any, values: Mapping[str, Any], source: str) -> Any:
    values = _checked(values, Config, "", source)
    try:
        return OmegaConf.merge(tree, OmegaConf.create(values))
    except OmegaConfBaseException as error:
        raise BadInput(source, f"{getattr(error, 'full_key', '') or 'value'}: {_first_line(error)}") from None


def _checked(values: Mapping[str, Any], kind: type, prefix: str, source: str) -> dict[str, Any]:
    """The values with every key known, a text given for a list split at its commas, and texts where texts belong."""
    types = typing.get_type_hints(kind)
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key not in types:
            whole = f"{prefix}{key}" + _first_leaf(value)
            raise BadInput(source, f"unknown key {whole}", did_you_mean(whole))
        inner = types[key]
        if dataclasses.is_dataclass(inner):
            if not isinstance(value, Mapping):
                raise BadInput(source, f"{prefix}{key} is a group of keys, not {value!r}")
            value = _checked(value, typing.cast(type, inner), f"{prefix}{key}.", source)
        elif typing.get_origin(inner) is tuple and isinstance(value, str):
            value = split_texts(value)
        elif typing.get_origin(inner) is tuple and str in typing.get_args(inner):
            values_in = value if isinstance(value, list) else [value]  # one sequence's number
            value = [_text(each, f"{prefix}{key}", source) for each in values_in]
        elif inner is str:
            value = _text(value, f"{prefix}{key}", source)
        checked[key] = value
    return checked


def _first_leaf(value: Any) -> str:
    """The rest of a key that goes on below an unknown group: ``.epochs`` of ``trian.epochs=3``."""
    rest = ""
    while isinstance(value, Mapping) and value:
        key, value = next(iter(value.items()))
        rest += f".{key}"
    return rest


def _text(value: Any, key: str, source: str) -> str:
    """What YAML read where a text belongs: numbers and nothing are texts too."""
    if isinstance(value, bool | list | Mapping):
        raise BadInput(source, f"{key} must be a text, not {value!r}", "put it in quotes")
    return "" if value is None else str(value)


def did_you_mean(key: str) -> str:
    """The key that somebody may have meant by one that does not exist."""
    known = [name for name, _, _ in describe(Config)]
    close = difflib.get_close_matches(key, known, 1, 0.5) or [k for k in known if k.split(".")[-1] == key]
    return f"did you mean {close[0]}?" if close else "see --help"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def describe(kind: type, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Every key below a configuration class: its dotted name, its default, and what its class's docstring says."""
    texts = dict(re.findall(r"^\s+(\w+): (.+)$", kind.__doc__ or "", re.MULTILINE))
    types = typing.get_type_hints(kind)
    for item in dataclasses.fields(kind):
        inner = types[item.name]
        if dataclasses.is_dataclass(inner):
            yield from describe(typing.cast(type, inner), f"{prefix}{item.name}.")
            continue
        text = texts.get(item.name, "")
        if typing.get_origin(inner) is Literal:
            text += f" ({', '.join(map(str, typing.get_args(inner)))})"
        default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        yield f"{prefix}{item.name}", _shown(default), text


def _shown(value: Any) -> str:
    """A value as one would type it."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
