"""Data structures: files, sweeps, cameras, key frames, point clouds, labels."""

from __future__ import annotations

import builtins
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float16, Float32, Float64, Int32, UInt8

from clipsweep.projection.errors import BadInput
from clipsweep.projection.pose import Pose

NONE = 255
"""Label of a pixel or point without a class (design: "255 = none")."""


@dataclass(frozen=True, slots=True)
class File:
    """A file of the data set with its size and sha256 at indexing time.

    Attributes:
        path: where it lies.
        bytes: its size when indexed [bytes].
        sha256: its digest when indexed, or empty where the index did not hash.
    """

    path: Path
    bytes: int
    sha256: str = ""

    def read(self) -> builtins.bytes:
        """Reads the file's bytes, refused when they are not those that were indexed.

        Raises:
            BadInput: the file is gone, or its size or digest changed.
        """
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise BadInput(
                self.path,
                f"cannot be read ({error.strerror})",
                "restore the file, or run again with verify=true",
            ) from None
        if len(data) != self.bytes:
            raise BadInput(
                self.path,
                f"has {len(data)} bytes, {self.bytes} when indexed",
                "restore the file, or run again with verify=true",
            )
        if self.sha256 and hashlib.sha256(data).hexdigest() != self.sha256:
            raise BadInput(
                self.path,
                "its sha256 is not the indexed one",
                "restore the file, or run again with verify=true",
            )
        return data


@dataclass(frozen=True, eq=False, slots=True)
class Sweep:
    """LiDAR sweep (one turn): its time [us], its pose at that time, and the file of its points."""

    time_us: int
    global_from_lidar: Pose
    points: File


@dataclass(frozen=True, eq=False, slots=True)
class Camera:
    """Undistorted camera image: time [us], pose then, intrinsics ``K`` [px] and size [px]."""

    name: str
    time_us: int
    global_from_cam: Pose
    K: Float64[np.ndarray, "3 3"]
    size_hw: tuple[int, int]
    image: File


@dataclass(frozen=True, eq=False, slots=True)
class Frame:
    """Key frame: sweeps, camera images and label file, as paths and poses; cheap to pickle.

    Attributes:
        id: unique within the data set and official: nuScenes' LIDAR_TOP sample_data token, KITTI's
            "08/000123".
        scene: name of the drive that it belongs to.
        time_us: time of the key sweep [us].
        sweeps: the key sweep first, then older ones, newest first.
        cameras: the images taken nearest to the key sweep.
        labels: file of the point labels in official ids, or None.
    """

    id: str
    scene: str
    time_us: int
    sweeps: tuple[Sweep, ...]
    cameras: tuple[Camera, ...]
    labels: File | None


@dataclass(frozen=True, slots=True)
class SweepLayout:
    """Layout of LiDAR sweep files: columns, intensity scale, and which returns are left out.

    Attributes:
        columns: float32 values a point, x, y, z [m] and intensity first: 5 in nuScenes files, 4 in
            KITTI's.
        intensity_scale: the file's largest intensity.
        ego_box_m: returns with |x| and |y| below this in their own LiDAR frame hit the car itself
            and are left out; 0 keeps all [m].
        bad_share: share of a sweep's points that may have coordinates that are not finite or beyond
            300 m; they are left out.
    """

    columns: int = 5
    intensity_scale: float = 255.0
    ego_box_m: float = 0.0
    bad_share: float = 0.0

    def __post_init__(self) -> None:
        """Refuses what no file can have: compiled code reads the first four columns unchecked."""
        if self.columns < 4:
            raise ValueError(f"columns={self.columns}: x, y, z and intensity are four")
        if not (0 < self.intensity_scale < np.inf and 0 <= self.ego_box_m < np.inf):
            raise ValueError(f"{self}: scale and box must be finite, the scale above 0")
        if not 0 <= self.bad_share <= 1:
            raise ValueError(f"bad_share={self.bad_share} is no share from 0 to 1")


@dataclass(frozen=True, eq=False, slots=True)
class Cloud:
    """Point cloud of one or more sweeps in the key sweep's LiDAR frame.

    Attributes:
        xyz: positions [m].
        intensity: return strength, 0..1.
        age_s: key sweep's time minus the point's sweep's time [s].
        sweep: index of the point's sweep in the frame, 0 = key.
        source: row of the point in its own sweep's file.
        origin: where the LiDAR stood when it took each sweep [m].
    """

    xyz: Float32[np.ndarray, "n 3"]
    intensity: Float32[np.ndarray, " n"]
    age_s: Float32[np.ndarray, " n"]
    sweep: UInt8[np.ndarray, " n"]
    source: Int32[np.ndarray, " n"]
    origin: Float32[np.ndarray, "sweeps 3"]


@dataclass(frozen=True, eq=False, slots=True)
class Pairs:
    """Point-pixel pairs from the projection of points into camera images.

    A point that two cameras see makes two pairs.

    Attributes:
        point: row in the cloud.
        camera: index in the frame's cameras.
        uv: pixel position, u to the right and v down, continuous, 0 at the image's corner [px].
        depth: distance along the camera's axis [m].
    """

    point: Int32[np.ndarray, " m"]
    camera: UInt8[np.ndarray, " m"]
    uv: Float32[np.ndarray, "m 2"]
    depth: Float32[np.ndarray, " m"]

    def __getitem__(self, rows: np.ndarray) -> Pairs:
        """Selects point-pixel pairs by a mask or by indices."""
        if rows.dtype == np.bool_:
            rows = np.flatnonzero(rows)  # once, not in every column
        return Pairs(
            self.point[rows], self.camera[rows], self.uv.take(rows, axis=0), self.depth[rows]
        )

    def __len__(self) -> int:
        return len(self.point)


@dataclass(frozen=True, eq=False, slots=True)
class PixelLabels:
    """Pixel labels of one camera image by the 2D teacher, on its own grid over the image.

    Attributes:
        label: class of each grid pixel, 255 = none.
        score: its confidence, 0..1.
        feature: unit features in the text space, if kept, on a grid of their own: that of the
            network's output cells, which may be coarser.
    """

    label: UInt8[np.ndarray, "h w"]
    score: Float16[np.ndarray, "h w"]
    feature: Float16[np.ndarray, "rows columns d"] | None = None


@dataclass(frozen=True, eq=False, slots=True)
class PointLabels:
    """Fused pseudo-labels of every raw row of a key sweep, in file order.

    Attributes:
        label: class, 255 = no label.
        score: mean confidence of the votes for that class, 0..1 (0 without label).
        agreement: their share of all votes' weight, 0..1 (0 without label).
    """

    label: UInt8[np.ndarray, " n"]
    score: Float16[np.ndarray, " n"]
    agreement: Float16[np.ndarray, " n"]
