"""Label spaces: class names, prompts, ids of label files, colours, mappings between spaces."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import UInt8, UInt16
from pydantic import Field

from clipsweep.pipeline.yaml_files import read_yaml, resolve_name, split_texts
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import NONE
from clipsweep.projection.votes import ClassLimits

UNKNOWN_ID = 254
"""A raw id of label files that a label space does not list, in ``LabelSpace.class_of_raw`` alone.

``LabelSpace.from_raw`` refuses such ids, so that no point ever gets this value as its label. Among
labels 254 is ``distill.metrics.OTHER``, a class that the table of scores does not have.
"""
MAX_CLASSES = 253
"""Most classes of a label space or a table of scores: 254 and 255 are no classes."""
_RAW_IDS = 1 << 16
BOXES = "boxes"
"""The value of ``labels.truth`` that scores against annotated 3D boxes."""


@dataclass(frozen=True)
class LabelsConfig:
    """Label settings (``labels.*``): classes, prompts, class mapping and ground truth."""

    space: Annotated[
        str,
        Field(description="label space, a name under configs/labels or a path to such a file"),
    ] = "nuscenes16"
    prompts: Annotated[
        str,
        Field(
            description="the teacher's prompts, and min_score by class: a name under "
            "configs/prompts or a path; empty: the space's",
        ),
    ] = ""
    names: Annotated[
        str,
        Field(
            description="open-vocabulary queries, with commas; the classes of the label "
            "space are the background; neither scored nor exported",
        ),
    ] = ""
    eval: Annotated[
        str,
        Field(
            description="mapping to score with, a name under configs/labels or a path; empty "
            "scores with the space itself",
        ),
    ] = ""
    truth: Annotated[
        str,
        Field(
            description="ground truth to score against. Empty: the label files, whose ids are "
            "those of labels.space. boxes: the points in annotated 3D boxes, for data without "
            "label files. The name of a label space: the label files, whose ids are that space's "
            "and not those of the predictions; labels.eval then names the classes of both",
        ),
    ] = ""


@dataclass(frozen=True, eq=False, slots=True)
class LabelSpace:
    """Label space: semantic classes, their prompts, ids in label files, colours, limits.

    Classes are numbered 0..C-1.

    Attributes:
        name: short name of the space.
        names: class names in order.
        prompts: for each class, the names that the teacher is asked for.
        negatives: names whose pixels get no label.
        min_score: confidence that a label of a class needs, 0..1, where it is not
            ``teacher.min_score``.
        colors: RGB of each class.
        class_of_raw: class of each raw id of the official label files; 255 ignored,
            ``UNKNOWN_ID`` not listed.
        export: official id of each class in a submission, or None for free text.
        limits: where points of each class can be, and which are vehicles.
        boxes: class of each category of annotated 3D boxes, 255 = ignored; empty if not known.
    """

    name: str
    names: tuple[str, ...]
    prompts: tuple[tuple[str, ...], ...]
    negatives: tuple[str, ...]
    min_score: Mapping[str, float]
    colors: UInt8[np.ndarray, "c 3"]
    class_of_raw: UInt8[np.ndarray, " ids"]
    export: UInt16[np.ndarray, " c"] | None
    limits: ClassLimits
    boxes: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.names)

    def digest(self) -> str:
        """Digest (sha256) of the classes and of their raw ids, without their boxes."""
        return hashlib.sha256(repr(self.names).encode() + self.class_of_raw.tobytes()).hexdigest()

    def from_raw(self, raw: np.ndarray, where: Path) -> UInt8[np.ndarray, " n"]:
        """Maps raw official label ids to classes, 255 = ignored.

        Raises:
            BadInput: an id is neither a class nor ignored; named with its count.
        """
        label = self.class_of_raw[raw]
        if (label == UNKNOWN_ID).any():
            ids, counts = np.unique(raw[label == UNKNOWN_ID], return_counts=True)
            seen = ", ".join(f"{i} ({n} points)" for i, n in zip(ids[:5], counts[:5], strict=True))
            raise BadInput(
                where, f"label ids unknown to {self.name}: {seen}", "add them to the label space"
            )
        return label


@dataclass(frozen=True, eq=False, slots=True)
class Scoring:
    """Class mapping for evaluation: table class of each predicted and true class.

    Attributes:
        name: short name of the mapping.
        names: class names of the table.
        of_class: class in the table of each predicted class, 255 = none.
        of_truth: class in the table of each true class, 255 = none.
    """

    name: str
    names: tuple[str, ...]
    of_class: UInt8[np.ndarray, " classes"]
    of_truth: UInt8[np.ndarray, " truths"]


def load_space(config: LabelsConfig) -> LabelSpace:
    """Loads the label space of a configuration.

    Raises:
        BadInput: the file is missing or malformed; the text names the class and the key.
    """
    path = resolve_name("labels", config.space)
    tree = _read(path, "classes", "ignored", "negatives", "boxes")
    classes = tree.get("classes")
    if not isinstance(classes, list) or not 0 < len(classes) <= MAX_CLASSES:
        raise BadInput(path, f"needs `classes`, a list of 1 to {MAX_CLASSES} classes")
    for row in classes:
        _check_class(path, row)
    ignored = tree.get("ignored", [])
    _check_ids(path, classes, ignored)
    boxes = _boxes(path, [row["name"] for row in classes], tree.get("boxes", {}))
    words = _words(config, classes, tree, path)
    if config.names:
        known = [
            (row["name"], *row.get("prompts", ()), *own)
            for row, own in zip(classes, words.prompts, strict=True)
        ]
        rivals = [
            *zip(known, words.prompts, strict=True),
            *(((word,), (word,)) for word in words.negatives),
        ]
        return _free_text(config.names, rivals)
    class_of_raw = np.full(_RAW_IDS, UNKNOWN_ID, np.uint8)
    class_of_raw[np.asarray(ignored, np.int64)] = NONE
    for index, row in enumerate(classes):
        class_of_raw[np.asarray(row["raw"], np.int64)] = index
    return LabelSpace(
        name=path.stem,
        names=tuple(row["name"] for row in classes),
        prompts=words.prompts,
        negatives=words.negatives,
        min_score=words.min_score,
        colors=np.array([row["color"] for row in classes], np.uint8),
        class_of_raw=class_of_raw,
        export=np.array([row["export"] for row in classes], np.uint16),
        limits=ClassLimits(
            ground=np.array([row.get("ground", False) for row in classes], np.bool_),
            max_height_m=np.array([row.get("max_height_m", np.inf) for row in classes], np.float32),
            taller=_taller(path, classes),
            vehicle=np.array([row.get("vehicle", False) for row in classes], np.bool_),
        ),
        boxes=boxes,
    )


def _taller(path: Path, classes: Sequence[Mapping[str, Any]]) -> UInt8[np.ndarray, " c"]:
    """What each class is relabelled as where it is too tall; itself if there is no such class."""
    by_name = {row["name"]: row for row in classes}
    names = list(by_name)
    for row in classes:
        if "taller" in row:
            problem = _taller_problem(row, by_name.get(row["taller"]))
            if problem:
                raise BadInput(
                    path, f"class {row['name']!r}: taller is {row['taller']!r}, {problem}"
                )
    wanted = (row.get("taller", row["name"]) for row in classes)
    return np.fromiter(map(names.index, wanted), np.uint8, len(names))


def _taller_problem(row: Mapping[str, Any], other: Mapping[str, Any] | None) -> str:
    """Why one class cannot be what another is relabelled as where too tall; empty if it can."""
    if other is None:
        return "which is no class"
    if "max_height_m" not in row:
        return "and there is no max_height_m to be taller than"
    if other.get("ground", False):
        return "which lies on the ground"
    if other.get("max_height_m", np.inf) <= row["max_height_m"]:
        return "which may not be taller"
    return ""


def _boxes(path: Path, names: Sequence[str], mapping: Any) -> dict[str, int]:
    """Class of each category of 3D boxes; a category without class (null) is ignored."""
    if not isinstance(mapping, dict) or not all(map(_is_text, mapping)):
        raise BadInput(path, f"boxes must map categories to classes, not {str(mapping)[:100]}")
    for category, name in mapping.items():
        if name is not None and name not in names:
            cure = f"give null to ignore it, or one of {', '.join(names)}"
            raise BadInput(path, f"boxes: {category!r} is {name!r}, which is no class", cure)
    index = dict(zip(names, range(len(names)), strict=True))
    return {category: index.get(name, NONE) for category, name in mapping.items()}


@dataclass(frozen=True, slots=True)
class _Words:
    """Prompts of the 2D teacher, as in ``LabelSpace``."""

    prompts: tuple[tuple[str, ...], ...]
    negatives: tuple[str, ...]
    min_score: Mapping[str, float]


def _words(
    config: LabelsConfig, classes: list[dict[str, Any]], tree: dict[str, Any], path: Path
) -> _Words:
    """Loads the prompts from the prompts' file, or from the label space."""
    names = [row["name"] for row in classes]
    asked: Any = {row["name"]: row["prompts"] for row in classes if "prompts" in row}
    sure: Any = {}
    if config.prompts:
        path = resolve_name("prompts", config.prompts)
        tree = _read(path, "prompts", "negatives", "min_score")
        asked = tree.get("prompts", {})
        sure = tree.get("min_score", {})
    for key, given, what in (
        ("prompts", asked, "lists of texts"),
        ("min_score", sure, "numbers from 0 to 1"),
    ):
        if not isinstance(given, dict):
            raise BadInput(path, f"{key} must map classes to {what}, not {given!r}")
        unknown = [name for name in given if name not in names]
        if unknown:
            raise BadInput(
                path,
                f"has {key} for {unknown[0]!r}, which is no class",
                f"classes are {', '.join(names)}",
            )
    for name, value in sure.items():
        if type(value) not in (int, float) or not 0 <= value <= 1:  # a bool is an int too
            raise BadInput(
                path, f"min_score of {name!r} must be a number from 0 to 1, not {value!r}"
            )
    return _Words(
        tuple(
            _checked_words(path, f"prompts of {name!r}", asked.get(name, [name])) for name in names
        ),
        _checked_words(path, "negatives", tree.get("negatives", [])),
        {name: float(value) for name, value in sure.items()},
    )


def _read(path: Path, *keys: str) -> dict[str, Any]:
    """Reads a YAML mapping whose keys must be among the known ones."""
    tree = read_yaml(path)
    for key in tree:
        if key not in keys:
            raise BadInput(path, f"has an unknown key {key!r}", f"keys: {', '.join(keys)}")
    return tree


def _is_list(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(fits(item) for item in value)


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < _RAW_IDS  # a bool is an int too


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


_IDS = f"from 0 to {_RAW_IDS - 1}"
_CLASS_KEYS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (_is_text, "a text"),
    "raw": (_is_list(_is_id), f"a list of ids {_IDS}"),
    "export": (_is_id, f"an id {_IDS}"),
    "color": (
        lambda v: _is_list(_is_id)(v) and len(v) == 3 and max(v) < 256,
        "three whole numbers from 0 to 255",
    ),
    "prompts": (lambda v: _is_list(_is_text)(v) and v, "a list of texts"),
    "ground": (lambda v: isinstance(v, bool), "true or false"),
    "max_height_m": (lambda v: type(v) in (int, float) and v > 0, "a height above 0 [m]"),
    "taller": (_is_text, "the name of a class"),
    "vehicle": (lambda v: isinstance(v, bool), "true or false"),
}
"""The keys of a class, what holds for their values, and how messages describe it."""


def _check_class(path: Path, row: Any) -> None:
    if not isinstance(row, dict) or not {"name", "raw", "export", "color"} <= row.keys():
        raise BadInput(path, f"class {row!r} needs name, raw, export and color")
    for key, value in row.items():
        if key not in _CLASS_KEYS:
            raise BadInput(
                path,
                f"class {row['name']!r} has an unknown key {key!r}",
                f"keys: {', '.join(_CLASS_KEYS)}",
            )
        fits, what = _CLASS_KEYS[key]
        if not fits(value):
            raise BadInput(path, f"class {row['name']!r}: {key} must be {what}, not {value!r}")


def _check_ids(path: Path, classes: list[dict[str, Any]], ignored: Any) -> None:
    """Checks that no class name and no raw id stands for two classes."""
    if not _is_list(_is_id)(ignored):
        raise BadInput(path, f"ignored must be a list of ids {_IDS}, not {ignored!r}")
    names: set[str] = set()
    owner = dict.fromkeys(ignored, "the ignored")
    for row in classes:
        if row["name"] in names:
            raise BadInput(path, f"has two classes with the name {row['name']!r}")
        names.add(row["name"])
        for raw in row["raw"]:
            if raw in owner:
                raise BadInput(
                    path, f"class {row['name']!r}: raw id {raw} is one of {owner[raw]} already"
                )
            owner[raw] = row["name"]


def _checked_words(path: Path, key: str, words: Any) -> tuple[str, ...]:
    if not _is_list(_is_text)(words):
        raise BadInput(path, f"{key} must be a list of texts, not {words!r}")
    return tuple(words)


def _free_text(text: str, rivals: Sequence[tuple[Sequence[str], Sequence[str]]]) -> LabelSpace:
    """Open-vocabulary label space of free-text classes, against the other classes of a space.

    Without rivals every pixel would look most like something that is asked for. A rival that is
    asked for itself is left out: one that has a word or phrase of its own within a name.

    Args:
        text: what is asked for, comma-separated.
        rivals: for each class and negative, all that it is called, and what the teacher is asked
            for.
    """
    names = tuple(split_texts(text))
    # a CLIP model does not separate them
    alike = {" ".join(name.casefold().split()) for name in names}
    if not 0 < len(names) <= MAX_CLASSES or len(alike) < len(names):
        problem = f"{text!r} gives {len(names)} names; 1 to {MAX_CLASSES} different ones are needed"
        raise BadInput("labels.names", problem)
    asked = [set(name.lower().split()) for name in names]
    negatives = [
        word
        for known, words in rivals
        if not any(set(phrase.lower().split()) <= name for phrase in known for name in asked)
        for word in words
    ]
    hue = np.arange(len(names)) * 0.618034 % 1  # golden-ratio steps keep neighbours apart
    colors = 127.5 + 127.5 * np.cos(2 * np.pi * (hue[:, None] + np.array([0, 1, 2]) / 3))
    return LabelSpace(
        name="free-text",
        names=names,
        prompts=tuple((name,) for name in names),
        negatives=tuple(negatives),
        min_score={},
        colors=colors.astype(np.uint8),
        class_of_raw=np.full(_RAW_IDS, NONE, np.uint8),
        export=None,
        limits=ClassLimits.none(len(names)),
        boxes={},
    )


def load_truth(config: LabelsConfig) -> LabelSpace:
    """Loads the label space of the ground truth: ``labels.truth``, or the predicted one.

    Raises:
        BadInput: the file is missing or malformed, or lacks `boxes` with ``labels.truth=boxes``.
    """
    if config.truth != BOXES:
        return load_space(LabelsConfig(space=config.truth) if config.truth else config)
    space = load_space(config)
    if not space.boxes:
        where = "labels.names" if config.names else resolve_name("labels", config.space)
        problem = "has no class for annotated boxes"
        raise BadInput(where, problem, "add `boxes: {CATEGORY: CLASS}` to the label space")
    return space


def load_scoring(config: LabelsConfig, space: LabelSpace, truth: LabelSpace) -> Scoring:
    """Loads the class mapping for evaluation: the space's own classes, or ``labels.eval``.

    The mapping's ``from`` gives a class's name in the table, as ``class: name`` or, for
    several label spaces, as ``space: {class: name}``. Names are all that two data sets must share
    to score a student of one on the other. With ``labels.truth=boxes``, only the classes all of
    whose points lie in annotated boxes.

    Raises:
        BadInput: the mapping's file is malformed, names a class that is not in the space, or is
            missing where truth has other classes.
    """
    scoring = _scoring(config, space, truth)
    return _boxed(scoring, truth) if config.truth == BOXES else scoring


def _scoring(config: LabelsConfig, space: LabelSpace, truth: LabelSpace) -> Scoring:
    if not config.eval:
        if truth.names != space.names:
            raise BadInput(
                "labels.truth",
                f"{truth.name} has other classes than {space.name}",
                "give labels.eval too",
            )
        own = np.arange(len(space), dtype=np.uint8)
        return Scoring(space.name, space.names, own, own)
    path = resolve_name("labels", config.eval)
    tree = _read(path, "names", "from")
    names = _table(path, tree, MAX_CLASSES)
    mapping = tree.get("from")

    def of(space: LabelSpace) -> UInt8[np.ndarray, " classes"]:
        own = mapping.get(space.name, mapping) if isinstance(mapping, dict) else mapping
        return _mapping(path, own, space.names, names)

    return Scoring(path.stem, names, of(space), of(truth))


def _boxed(scoring: Scoring, truth: LabelSpace) -> Scoring:
    """Classes of a score table all of whose points lie in annotated 3D boxes.

    One that is made of other classes too, as manmade is of barriers and buildings, is left out:
    points of it in no box would count as wrong.
    """
    boxed = set(truth.boxes.values())
    others = {table for own, table in enumerate(scoring.of_truth.tolist()) if own not in boxed}
    kept = sorted(set(scoring.of_truth.tolist()) - others - {NONE})
    if not kept:
        problem = f"no class of {scoring.name} is annotated with boxes alone"
        raise BadInput("labels.truth", problem, "give another labels.eval")
    place = np.full(256, NONE, np.uint8)
    place[kept] = np.arange(len(kept), dtype=np.uint8)
    names = tuple(scoring.names[table] for table in kept)
    return Scoring(scoring.name, names, place[scoring.of_class], place[scoring.of_truth])


def load_teacher_map(name: str, space: LabelSpace) -> tuple[UInt8[np.ndarray, "256"], int]:
    """Loads the class mapping of a teacher's label images, 255 = none, and its number of ids.

    Such a mapping is ``configs/labels/cityscapes19.yaml``.

    Raises:
        BadInput: the file is malformed or has no map to this label space, or the map names an
            unknown class.
    """
    path = resolve_name("labels", name)
    tree = _read(path, "names", "to")
    names = _table(path, tree, 256)
    maps = tree.get("to", {})
    if not isinstance(maps, dict):
        raise BadInput(path, f"to must map label spaces to mappings, not {maps!r}")
    mapping = maps.get(space.name)
    if mapping is None:
        raise BadInput(
            path, f"has no map to the label space {space.name}", f"add `to: {space.name}: {{...}}`"
        )
    table = np.full(256, NONE, np.uint8)
    table[: len(names)] = _mapping(path, mapping, names, space.names)
    return table, len(names)


def _table(path: Path, tree: dict[str, Any], most: int) -> tuple[str, ...]:
    """Class names that a mapping file maps between."""
    names: Any = tree.get("names")
    if not _is_list(_is_text)(names) or not 0 < len(names) <= most or len(set(names)) < len(names):
        raise BadInput(
            path, f"names must be a list of 1 to {most} different texts, not {str(names)[:100]}"
        )
    return tuple(names)


def _mapping(
    path: Path, mapping: Any, sources: Sequence[str], targets: Sequence[str]
) -> UInt8[np.ndarray, " s"]:
    """Class mapping as indices: among ``targets`` for each source name, 255 for those left out."""
    if not isinstance(mapping, dict):
        raise BadInput(path, f"its map must be a mapping of names to names, not {mapping!r}")
    for source, target in mapping.items():
        if source not in sources or target not in targets:
            raise BadInput(path, f"maps {source!r} to {target!r}; one of them is not a class")
    found = (targets.index(mapping[source]) if source in mapping else NONE for source in sources)
    return np.fromiter(found, np.uint8, len(sources))
