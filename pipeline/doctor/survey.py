"""Survey of a data set for its diagnosis: some frames with their points and small images."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import Camera, Frame, SweepLayout
from clipsweep.projection.pose import Pose
from clipsweep.projection.sweeps import read_sweep

if TYPE_CHECKING:
    from clipsweep.pipeline.datasets import DataConfig

FRAMES = 20
"""Key frames of a survey."""
_THUMB_WH = (160, 96)


@dataclass(frozen=True, eq=False, slots=True)
class Look:
    """Key frame of a survey, with what was read of it.

    Attributes:
        frame: the frame.
        rows: raw points of the key sweep: x, y, z [m], intensity; rows that are bad are left out.
        before: positions of the points of the oldest sweep of the frame, in that sweep's LiDAR
            frame [m]; None where it has no other.
        thumbs: each camera's image, small.
        digests: sha256 of the bytes of the key sweep and of each image.
    """

    frame: Frame
    rows: Float32[np.ndarray, "n 4"]
    before: Float32[np.ndarray, "m 3"] | None
    thumbs: Sequence[UInt8[np.ndarray, "h w 3"]]
    digests: Sequence[str]

    @property
    def global_from_lidar(self) -> Pose:
        """Pose of the key sweep."""
        return self.frame.sweeps[0].global_from_lidar


@dataclass(frozen=True, eq=False, slots=True)
class Survey:
    """Frames of a data set and its settings, for the checks to look at.

    Attributes:
        looks: key frames, scene by scene in order of time.
        intensity_scale: ``data.intensity_scale``.
        sensor_height_m: ``data.sensor_height_m``.
        ego_box_m: ``data.ego_box_m``.
    """

    looks: Sequence[Look]
    intensity_scale: float
    sensor_height_m: float
    ego_box_m: float


Check = Callable[[Survey], str | None]
"""A finding in plain words, or None where all is well."""


def survey(frames: Sequence[Frame], data: DataConfig[Any]) -> Survey:
    """Reads the points and images of at most 20 frames, evenly spread.

    Raises:
        BadInput: a file cannot be read.
    """
    chosen = np.unique(np.linspace(0, len(frames) - 1, FRAMES).astype(int)) if frames else []
    layout = SweepLayout(data.columns, bad_share=1.0)
    looks = [look_at(frames[i], layout) for i in chosen]
    return Survey(looks, data.intensity_scale, data.sensor_height_m, data.ego_box_m)


def look_at(frame: Frame, layout: SweepLayout) -> Look:
    """Reads what the checks need of a key frame."""
    rows = _good(read_sweep(frame.sweeps[0], layout))[:, :4]
    others = frame.sweeps[1:]
    before = _good(read_sweep(others[-1], layout))[:, :3].copy() if others else None
    data = [camera.image.read() for camera in frame.cameras]
    thumbs = [_thumb(camera, each) for camera, each in zip(frame.cameras, data, strict=True)]
    digests = [hashlib.sha256(each).hexdigest() for each in (frame.sweeps[0].points.read(), *data)]
    return Look(frame, rows.copy(), before, thumbs, digests)


def _good(rows: Float32[np.ndarray, "n c"]) -> Float32[np.ndarray, "m c"]:
    return rows[np.isfinite(rows[:, :4]).all(axis=1)]


def _thumb(camera: Camera, data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            image.draft("RGB", _THUMB_WH)
            return np.asarray(image.convert("RGB").resize(_THUMB_WH, Image.Resampling.BOX))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise BadInput(camera.image.path, f"cannot be decoded ({error})") from None
