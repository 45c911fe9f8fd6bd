"""Registry of 2D teachers: the settings of each kind, and how it is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from clipsweep.distill.teacher.maskclip import MaskClip, MaskClipConfig
from clipsweep.distill.teacher.precomputed import Precomputed, PrecomputedConfig
from clipsweep.distill.teacher.protocol import Teacher, TeacherConfig
from clipsweep.distill.teacher.text import Prompts
from clipsweep.distill.teacher.vit import VitFeatures, VitFeaturesConfig
from clipsweep.pipeline.labels import LabelSpace, load_teacher_map

Own = TypeVar("Own")


@dataclass(frozen=True, eq=False, slots=True)
class TeacherInputs:
    """What a 2D teacher is built from beside its settings: classes, folders, device.

    Attributes:
        space: the classes, and what they are asked for by.
        data_root: folder of the data set.
        store: folder of all artifacts, where text embeddings are kept.
        device: where networks run: cpu or cuda.
    """

    space: LabelSpace
    data_root: Path
    store: Path
    device: str


@dataclass(frozen=True, slots=True)
class TeacherKind(Generic[Own]):
    """Kind of 2D teacher: the class of its settings (``teacher.<kind>.*``), and its builder."""

    config: type[Own]
    build: Callable[[Own, TeacherInputs], Teacher]


def make_teacher(config: TeacherConfig, inputs: TeacherInputs) -> Teacher:
    """Builds the 2D teacher of a configuration.

    Raises:
        BadInput: its model, weights or label map cannot be used.
    """
    return TEACHERS[config.kind].build(config.own, inputs)


def _precomputed(own: PrecomputedConfig, inputs: TeacherInputs) -> Teacher:
    table, ids = load_teacher_map(own.map, inputs.space)
    return Precomputed(
        inputs.data_root, own.root, table, len(inputs.space), own.size_hw, ids, inputs.store
    )


def _features(own: VitFeaturesConfig, inputs: TeacherInputs) -> Teacher:
    return VitFeatures(own, device=inputs.device)


def _maskclip(own: MaskClipConfig, inputs: TeacherInputs) -> Teacher:
    space = inputs.space
    min_score = [space.min_score.get(name, own.min_score) for name in space.names]
    return MaskClip(
        replace(own, model=_bundled(own.model)),
        Prompts(space.prompts, space.negatives, min_score),
        device=inputs.device,
        cache=inputs.store / "text",
    )


def _bundled(model: str) -> str:
    """Finds a bundled ``local-dir:`` model in the package: the demo's own CLIP."""
    kind, _, folder = model.partition(":")
    packaged = Path(__file__).parents[1] / folder
    if kind == "local-dir" and not Path(folder).exists() and packaged.is_dir():
        return f"{kind}:{packaged}"
    return model


TEACHERS: dict[str, TeacherKind[Any]] = {
    "precomputed": TeacherKind(PrecomputedConfig, _precomputed),
    "maskclip": TeacherKind(MaskClipConfig, _maskclip),
    "features": TeacherKind(VitFeaturesConfig, _features),
}
"""Every kind of teacher: ``teacher.kind`` names one, and a new one is one entry more."""
