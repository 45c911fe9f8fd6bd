"""Configuration: YAML recipes and ``key=value`` overrides in nested frozen dataclasses.

YAML files are merged left to right, then the command line's ``key=value``.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field

from clipsweep.distill.objectives import ObjectivesConfig
from clipsweep.distill.student.unet import ModelConfig
from clipsweep.distill.student.voxels import channels
from clipsweep.distill.teacher.protocol import TeacherConfig
from clipsweep.distill.training.loop import TrainConfig
from clipsweep.pipeline.datasets import DATASETS, DataConfig, Reader
from clipsweep.pipeline.datasets.nuscenes import NuscenesConfig
from clipsweep.pipeline.labels import LabelsConfig
from clipsweep.pipeline.run.settings import RunConfig
from clipsweep.pipeline.settings import (
    OWN,
    allowed,
    bare,
    explained,
    given_in,
    is_restricted,
    one_of,
    shown,
    validated,
)
from clipsweep.pipeline.teachers import TEACHERS, TeacherKind
from clipsweep.pipeline.yaml_files import CONFIGS, read_yaml, split_texts
from clipsweep.projection.consolidation import ConsolidationConfig
from clipsweep.projection.errors import BadInput
from clipsweep.projection.fusion import FusionConfig

T = TypeVar("T")
_Kind = Reader[Any] | TeacherKind[Any]


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings that fine-tuning overrides."""

    head_lr: Annotated[
        float,
        Field(
            ge=0,
            le=1e9,
            description="learning rate of the classifier, as a multiple of the rest's",
        ),
    ] = 1.0
    linear_probe: Annotated[bool, Field(description="train the classifier alone")] = False
    unlabelled: Annotated[
        Literal["consolidated", "self", "none"],
        Field(
            description="semi-supervised: each step also learns a batch of train frames without "
            "labels, whose pseudo-labels are the predictions of the student it starts from: "
            "consolidated over views and time (consolidation.*), or as they are (self); none: "
            "labelled frames alone, as in the published protocols and with student=none",
        ),
    ] = "consolidated"
    interpolate: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="share of the fine-tuned weights in the result, the rest being the "
            "pre-trained ones (WiSE-FT)",
        ),
    ] = 1.0
    start: Annotated[
        Literal["names", "random"],
        Field(
            description="what the classifier starts as: the pre-trained student's own answer to "
            "the class names, or random weights (as in the published protocols)",
        ),
    ] = "names"


@dataclass(frozen=True)
class DemoConfig:
    """Settings of the demo data set: scenes, images, LiDAR, hills, pose errors."""

    seed: Annotated[
        int,
        Field(ge=0, le=2**31, description="the same seed gives the same bytes"),
    ] = 0
    train_scenes: Annotated[
        int,
        Field(
            ge=0,
            le=700,
            description="scenes named as the official train split; up to 8 as nuScenes v1.0-mini, "
            "more as v1.0-trainval",
        ),
    ] = 8
    val_scenes: Annotated[
        int,
        Field(
            ge=0,
            le=150,
            description="official val scenes; up to 2 as v1.0-mini; SemanticKITTI has one",
        ),
    ] = 2
    key_frames: Annotated[
        int,
        Field(
            ge=1,
            le=80,
            description="key frames per scene: two a second as nuScenes, ten as SemanticKITTI",
        ),
    ] = 10
    width_px: Annotated[int, Field(ge=16, le=4096, description="width of the images [px]")] = 480
    height_px: Annotated[int, Field(ge=16, le=4096, description="height of the images [px]")] = 270
    beams: Annotated[int, Field(ge=2, le=256, description="rings of the LiDAR")] = 32
    azimuths: Annotated[
        int,
        Field(ge=64, le=8192, description="azimuth steps of the LiDAR per revolution"),
    ] = 1090
    hills_m: Annotated[
        float,
        Field(
            ge=0,
            le=20,
            description="height of the street's crests above its valleys [m]; 0 is flat",
        ),
    ] = 0.0
    flat_poses: Annotated[
        bool,
        Field(
            description="imitate nuScenes' ego poses: z = 0, and errors of pitch and roll "
            "of some 0.2 degrees; boxes are placed with these poses; not for "
            "SemanticKITTI",
        ),
    ] = False


@dataclass(frozen=True)
class Config:
    """Configuration of all tools."""

    data: DataConfig = field(default_factory=lambda: DataConfig(own=NuscenesConfig()))
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    consolidation: ConsolidationConfig = field(default_factory=ConsolidationConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objectives: ObjectivesConfig = field(default_factory=ObjectivesConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    run: RunConfig = field(default_factory=RunConfig)
    demo: DemoConfig = field(default_factory=DemoConfig)
    make_demo: Annotated[
        bool,
        Field(description="write the synthetic demo world to data.root first, if it is not there"),
    ] = False
    store: Annotated[str, Field(min_length=1, description="folder of all artifacts")] = "artifacts"
    seed: Annotated[int, Field(ge=0, le=2**32 - 1, description="seed of everything random")] = 0
    rounds: Annotated[
        int,
        Field(
            ge=1,
            le=10,
            description="self-training rounds of pre-training: from the second on the student "
            "goes on from its weights, on the labels that it gives the train frames, consolidated "
            "over views and time",
        ),
    ] = 1
    on_bad: Annotated[
        Literal["fail", "skip"],
        Field(
            description="what to do with a frame that cannot be used: fail, or skip it and "
            "report it",
        ),
    ] = "fail"
    verify: Annotated[
        bool,
        Field(
            description="check the sha256 of every shard that is already there, not its size "
            "alone, and index the data set again",
        ),
    ] = False
    protocol: Annotated[
        str,
        Field(
            description="labels of data.train that fine-tuning may use. scene@k%: every "
            "(100/k)-th scene, whole; frame@k%: every (100/k)-th key frame, over all scenes; both "
            "count in the official order from the first on, and k divides 100 (1, 5, 10, 25, 50)",
        ),
    ] = "scene@1%"
    evaluate: Annotated[
        bool,
        Field(description="score the student and write a report after pre-training"),
    ] = False
    absent_class: Annotated[
        Literal["nan", "one", "zero"],
        Field(
            description="IoU of a class never true nor predicted: nan (not averaged), one "
            "(SLidR's), zero (SemanticKITTI's)",
        ),
    ] = "nan"

    def values(self, *keys: str) -> dict[str, Any]:
        """Plain values of some groups and keys (``fusion``, ``data.columns``).

        What an artifact's name is made of.
        """
        chosen: dict[str, Any] = {}
        for key in keys:
            value: Any = reduce(getattr, key.split("."), self)
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                value = dataclasses.asdict(value)
            chosen[key] = value
        return chosen


_FILES_MAX = 100
_COMMAND_LINE = "command line"
_KINDS: dict[type, Mapping[str, _Kind]] = {DataConfig: DATASETS, TeacherConfig: TEACHERS}
"""Groups whose kinds have settings of their own, and the kinds."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Configuration key with default, allowed values and help text.

    Attributes:
        name: whole name: ``data.nuscenes.version``.
        default: value where none is given.
        allowed: which values it takes; empty where its type allows all values.
        text: what it is for.
    """

    name: str
    default: str
    allowed: str
    text: str


def load_config(arguments: Sequence[str], also: Sequence[str] = ()) -> Config:
    """Loads the configuration of a command line: YAML recipes and ``key=value`` overrides.

    Recipes and pairs may come in any order; recipes are merged first.

    A recipe is a YAML file, or the name of one that comes with the package: ``demo``,
    ``data/nuscenes``. The settings of all kinds of data sets and teachers are checked, and those
    of the chosen kind are in force.

    Args:
        arguments: recipes and pairs.
        also: what else may be given on the command line, beside these, as a tool's own arguments.

    Raises:
        BadInput: a file cannot be read, a key does not exist ("did you mean ..."), or a value is
            not allowed.
    """
    layers: list[_Layer] = []
    for argument in (a for a in arguments if "=" not in a):
        for path, values in _with_includes(recipe(argument), (), count(1)):
            layers.append(_Layer(str(path), values))
    layers += [_Layer(_COMMAND_LINE, _from_pair(a)) for a in arguments if "=" in a]
    merged = _merged(Config, layers, also)
    for group, kind in typing.get_type_hints(Config).items():
        if kind in _KINDS:
            _choose_kind(group, _KINDS[kind], merged)
    config = validated(Config, merged.tree, sources=merged.sources)
    _check_fusion(config.fusion)
    try:
        channels(config.model.features)
    except ValueError as error:
        raise BadInput("configuration", str(error)) from None
    return config


def load_arguments(kind: type[T], pairs: Sequence[str]) -> T:
    """Loads a tool's own arguments from ``key=value`` on its command line.

    Raises:
        BadInput: as for ``load_config``.
    """
    merged = _merged(kind, [_Layer(_COMMAND_LINE, _from_pair(pair)) for pair in pairs], ())
    return validated(kind, merged.tree, sources=merged.sources)


@dataclass(frozen=True, eq=False, slots=True)
class _Layer:
    """Configuration layer: values that one YAML file, or one pair of the command line, gives."""

    source: str
    values: Mapping[str, Any]


@dataclass(frozen=True, eq=False, slots=True)
class _Merged:
    """Merged configuration values of all keys, and the source of those that are no defaults."""

    tree: dict[str, Any]
    sources: dict[str, str]


def _merged(kind: type, layers: Sequence[_Layer], also: Sequence[str]) -> _Merged:
    """Merges configuration layers over the defaults; resolves references: ``${oc.env:HOME}``."""
    tree: Any = OmegaConf.create(_defaults(kind))
    sources: dict[str, str] = {}
    for layer in layers:
        values = _checked(layer.values, kind, "", layer.source, also)
        sources |= dict.fromkeys(_leaves(values), layer.source)
        tree = _merge(tree, values, layer.source)
    try:
        resolved = OmegaConf.to_container(tree, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = str(getattr(error, "full_key", "") or "configuration")
        raise BadInput(key, _first_line(error) + given_in(key, sources)) from None
    assert isinstance(resolved, dict)
    return _Merged(typing.cast(dict[str, Any], resolved), sources)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Full dotted names of the keys that have a value."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _choose_kind(group: str, kinds: Mapping[str, _Kind], merged: _Merged) -> None:
    """Selects the kind of data set or teacher: its settings become the group's ``own``.

    The settings of every kind are checked.
    """
    tree = merged.tree[group]
    owned: dict[str, object] = {}
    for name, kind in kinds.items():
        prefix = f"{group}.{name}."
        owned[name] = validated(kind.config, tree.pop(name), prefix, merged.sources)
    wanted = tree["kind"]
    if wanted not in owned:
        key = f"{group}.kind"
        close = difflib.get_close_matches(str(wanted), owned, 1, 0.5)
        cure = f"it must be {one_of(list(owned))}"
        cure += f"; did you mean {close[0]}?" if close else ""
        raise BadInput(key, f"is {wanted!r}{given_in(key, merged.sources)}", cure)
    tree[OWN] = owned[wanted]


@dataclass(frozen=True, eq=False, slots=True)
class _Part:
    """Field of a configuration group.

    Attributes:
        annotation: of its field.
        default: value where none is given.
        group: class of the group that the key is; None for a single value.
        choices: the values that it takes, where the annotation cannot name them.
    """

    annotation: Any
    default: Any
    group: type | None
    choices: tuple[str, ...] = ()


def _parts(group: type) -> dict[str, _Part]:
    """Fields of a configuration group; with kinds there is one for the settings of each kind."""
    hints = typing.get_type_hints(group, include_extras=True)
    kinds = _KINDS.get(group, {})
    parts: dict[str, _Part] = {}
    for item in dataclasses.fields(group):
        hint = hints[item.name]
        if kinds and item.name == OWN:
            continue
        if dataclasses.is_dataclass(hint):
            parts[item.name] = _Part(hint, None, typing.cast(type, hint))
        else:
            parts[item.name] = _Part(hint, item.default, None)
    if kinds:
        parts["kind"] = dataclasses.replace(parts["kind"], choices=tuple(kinds))
    return parts | {name: _Part(kind.config, None, kind.config) for name, kind in kinds.items()}


def _defaults(group: type) -> dict[str, Any]:
    """Default values of all keys of a configuration group."""
    values: dict[str, Any] = {}
    for name, part in _parts(group).items():
        values[name] = _defaults(part.group) if part.group else part.default
    return values


def _check_fusion(fusion: FusionConfig) -> None:
    """Validates the fusion settings: refuses those that contradict each other."""
    shares = fusion.fine_weight + fusion.cluster_weight
    if shares > 1:
        raise BadInput(
            "fusion.fine_weight", f"and fusion.cluster_weight sum to {shares:g}", "1 at the most"
        )
    if fusion.coarse_cell_m < fusion.cell_m:
        cure = f"at least fusion.cell_m, {fusion.cell_m:g}"
        raise BadInput("fusion.coarse_cell_m", f"is {fusion.coarse_cell_m:g}", cure)


def recipe(name: str) -> Path:
    """Finds the YAML file of a recipe by its path or by its name.

    Raises:
        BadInput: there is neither; the text names a recipe that is called alike.
    """
    path = Path(name)
    bundled = CONFIGS / f"{name}.yaml"
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    if not bundled.is_file():
        known = [p.relative_to(CONFIGS).with_suffix("").as_posix() for p in CONFIGS.rglob("*.yaml")]
        close = difflib.get_close_matches(name, known, 1) or ["--help"]
        raise BadInput(name, "is no file and no recipe of the package", f"see {close[0]}")
    return bundled


def _with_includes(
    path: Path, above: tuple[Path, ...], number: Iterator[int]
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Resolves the includes of a YAML file: included files, then itself.

    ``number`` counts what is read.
    """
    if next(number) > _FILES_MAX:
        raise BadInput(
            path,
            f"is one of more than {_FILES_MAX} included files",
            "a file counts as often as it is named",
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
    """Parses ``key=value`` to nested text; the key's type decides later how it is read."""
    key, _, text = argument.partition("=")
    value: Any = text
    for part in reversed(key.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def _merge(tree: Any, values: Mapping[str, Any], source: str) -> Any:
    try:
        return OmegaConf.merge(tree, OmegaConf.create(dict(values)))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", "") or "value"
        raise BadInput(source, f"{key}: {_first_line(error)}") from None


def _checked(
    values: Mapping[str, Any],
    group: type,
    prefix: str,
    source: str,
    also: Sequence[str],
) -> dict[str, Any]:
    """Validates keys of a YAML tree: all known, of their types, lists split at commas."""
    parts = _parts(group)
    checked: dict[str, Any] = {}
    for key, value in values.items():
        whole = f"{prefix}{key}"
        if key in also:
            problem = f"{whole} is an argument of the tool and no setting"
            raise BadInput(source, problem, f"give {whole}=... on the command line")
        if key not in parts:
            whole += _first_leaf(value)
            raise BadInput(source, f"unknown key {whole}", did_you_mean(whole, also))
        part = parts[key]
        if part.group is None:
            checked[key] = _checked_value(value, part.annotation, whole, source)
        elif isinstance(value, Mapping):
            checked[key] = _checked(value, part.group, f"{whole}.", source, ())
        else:
            raise BadInput(source, f"{whole} is a group of keys, not {value!r}")
    return checked


def _checked_value(value: Any, annotation: Any, key: str, source: str) -> Any:
    """Normalises one value: numbers that stand for texts, and comma-separated lists."""
    kind = bare(annotation)
    if kind is str:
        return _text(value, key, source)
    if typing.get_origin(kind) is tuple and isinstance(value, str):
        return split_texts(value)
    if kind == tuple[str, ...]:
        one_by_one = value if isinstance(value, list) else [value]  # one sequence's number
        return [_text(each, key, source) for each in one_by_one]
    if isinstance(value, Mapping):
        raise BadInput(source, f"{key} is one value, not a group of keys")
    if isinstance(value, bool) and kind in (int, float):
        raise BadInput(key, f"is {shown(value)} ({source})", f"it must be {allowed(annotation)}")
    return value


def _first_leaf(value: Any) -> str:
    """Rest of a dotted key below an unknown group: ``.epochs`` of ``trian.epochs=3``."""
    rest = ""
    while isinstance(value, Mapping) and value:
        key, value = next(iter(value.items()))
        rest += f".{key}"
    return rest


def _text(value: Any, key: str, source: str) -> str:
    """Converts a YAML value to text: numbers and nothing are texts too."""
    if isinstance(value, bool | list | Mapping):
        raise BadInput(source, f"{key} must be a text, not {value!r}", "put it in quotes")
    return "" if value is None else str(value)


def did_you_mean(key: str, also: Sequence[str] = ()) -> str:
    """Spelling suggestion for an unknown key.

    Args:
        key: the whole name that was given.
        also: the tool's own arguments, which may have been meant too.
    """
    known = [setting.name for setting in describe()] + list(also)
    group, _, name = key.rpartition(".")
    of_kinds = [k for k in known if k.count(".") == 2 and k.startswith(f"{group}.")]
    moved = [k for k in of_kinds if group and k.split(".")[-1] == name]
    if moved:
        return f"it stands below its kind: give {one_of(moved)}"
    close = difflib.get_close_matches(key, known, 1, 0.5)
    close = close or [k for k in known if k.split(".")[-1] == key]
    return f"did you mean {close[0]}?" if close else "see --help"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def describe(group: type = Config, prefix: str = "") -> Iterator[Setting]:
    """Lists every key of a configuration class, or of a tool's arguments, with its help."""
    for name, part in _parts(group).items():
        if part.group:
            yield from describe(part.group, f"{prefix}{name}.")
            continue
        values = allowed(part.annotation, False) if is_restricted(part.annotation) else ""
        values = one_of(part.choices) if part.choices else values
        yield Setting(f"{prefix}{name}", shown(part.default), values, explained(part.annotation))
