"""Conversion of a folder data set's files: undistorts images, compensates sweeps for ego-motion.

Each file is converted once; a second run finds it, unless the original is newer.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, UInt8
from PIL import Image

from clipsweep.pipeline.artifacts.store import write_whole
from clipsweep.pipeline.datasets.checks import pin
from clipsweep.pipeline.datasets.folder.clouds import RawCloud, read_cloud
from clipsweep.pipeline.datasets.folder.poses import Trajectory
from clipsweep.pipeline.datasets.folder.rig import Rig, RigCamera
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import Camera, File, Sweep
from clipsweep.projection.sweeps import deskew

JPEG_QUALITY = 95
ZOOM_MAX = 4.0
_ZOOM_STEPS = 12
_RIM_STEPS = 64
INSTALL = 'pip install -e ".[logs]"'


@dataclass(frozen=True, eq=False, slots=True)
class Converter:
    """Converts the files of one scene.

    Attributes:
        root: the data root, below which the originals lie.
        out: folder of converted files, each at its original's path.
        columns: ``data.columns``, which converted sweeps have; what follows intensity is 0.
        hash_bytes: whether files are pinned with their sha256.
        rig: the sensors.
        poses: the vehicle's trajectory.
        maps: of the cameras that have been looked at, how to undistort them.
    """

    root: Path
    out: Path
    columns: int
    hash_bytes: bool
    rig: Rig
    poses: Trajectory
    maps: dict[str, Undistortion]

    def sweep(self, sweep: Sweep) -> Sweep:
        """Sweep whose points are float32 rows, as seen at the sweep's own time.

        A .bin file without point times, whose columns are ``data.columns`` many and begin with
        x, y, z and intensity, is used as it is.

        Raises:
            BadInput: the file, or the poses at its points' times, cannot be used.
        """
        original = sweep.points.path
        if original.suffix == ".bin" and self._as_it_is():
            return sweep
        path = self._path(original, ".bin")
        if not _fresh(path, original):
            cloud = read_cloud(sweep.points, self.rig.lidar, sweep.time_us)
            write_whole(path, self._rows(cloud, sweep).tobytes())
        return replace(sweep, points=self._pinned(path))

    def _as_it_is(self) -> bool:
        """Whether .bin files are float32 rows at one moment already."""
        lidar = self.rig.lidar
        ordered = lidar.columns[:4] == ("x", "y", "z", lidar.intensity)
        return ordered and not lidar.time and len(lidar.columns) == self.columns

    def camera(self, camera: Camera) -> Camera:
        """Camera whose image is undistorted, with the intrinsics of that.

        Raises:
            BadInput: the image or its calibration cannot be used.
        """
        calibrated = next(each for each in self.rig.cameras if each.name == camera.name)
        if not calibrated.distorted:
            return camera
        if camera.name not in self.maps:
            self.maps[camera.name] = undistortion(calibrated)
        undistorting = self.maps[camera.name]
        path = self._path(camera.image.path, ".jpg")
        if not _fresh(path, camera.image.path):
            write_whole(path, _undistorted(camera.image, undistorting))
        return replace(camera, K=undistorting.K, image=self._pinned(path))

    def _path(self, original: Path, suffix: str) -> Path:
        return self.out / original.relative_to(self.root).parent / f"{original.stem}{suffix}"

    def _pinned(self, path: Path) -> File:
        return pin(self.out, path.relative_to(self.out).as_posix(), self.hash_bytes)

    def _rows(self, cloud: RawCloud, sweep: Sweep) -> Float32[np.ndarray, "n columns"]:
        rows = np.zeros((len(cloud.xyz), self.columns), np.float32)
        rows[:, :3] = cloud.xyz if cloud.time_s is None else self._deskewed(cloud, sweep)
        rows[:, 3] = cloud.intensity
        return rows

    def _deskewed(self, cloud: RawCloud, sweep: Sweep) -> Float32[np.ndarray, "n 3"]:
        """Points as seen at the sweep's time, by the motion until the farthest point's time."""
        assert cloud.time_s is not None
        away_s = float(cloud.time_s[np.abs(cloud.time_s).argmax()])
        away_us = round(away_s * 1e6)
        if not away_us:
            return cloud.xyz
        then_us = sweep.time_us + away_us
        pose = self.poses.at(then_us) @ self.rig.lidar.vehicle_from_lidar
        other = Sweep(then_us, pose, sweep.points)
        return deskew(cloud.xyz, cloud.time_s.astype(np.float32), sweep, other)


def _fresh(path: Path, original: Path) -> bool:
    """Whether a file was converted already, after its original was last changed."""
    try:
        return path.stat().st_mtime_ns >= original.stat().st_mtime_ns
    except FileNotFoundError:
        return False


# --- images ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, slots=True)
class Undistortion:
    """How images of a camera are undistorted.

    Attributes:
        K: intrinsics of the undistorted image [px], which is as large as the original.
        map_uv: where in the original each of its pixels lies, in OpenCV's pixels, whose centres
            have whole coordinates.
    """

    K: Float64[np.ndarray, "3 3"]
    map_uv: Float32[np.ndarray, "h w 2"]


def undistortion(camera: RigCamera) -> Undistortion:
    """Computes how a camera's images are undistorted.

    The calibrated ``K`` is kept where every pixel then lies in the original; else the focal lengths
    are raised until none is empty: an empty pixel would get a label too.

    Raises:
        BadInput: the coefficients fold the image over, or leave pixels empty at 4 times the focal
            length; OpenCV is not installed.
    """
    zoom = 1.0
    if not _covered(camera, 1.0):
        zoom = _least_zoom(camera)
    K = _zoomed(camera.K, zoom)
    height, width = camera.size_hw
    v, u = np.mgrid[:height, :width].astype(np.float64)
    pixels = np.stack([u, v], axis=-1).reshape(-1, 2)
    found = _distort(camera, _rays(pixels, K))
    _check_folds(camera, K)
    return Undistortion(K, found.astype(np.float32).reshape(height, width, 2))


def _zoomed(K: Float64[np.ndarray, "3 3"], zoom: float) -> Float64[np.ndarray, "3 3"]:
    return K * np.array([[zoom, zoom, 1.0], [1.0, zoom, 1.0], [1.0, 1.0, 1.0]])


def _rays(pixels: Float64[np.ndarray, "n 2"], K: Float64[np.ndarray, "3 3"]) -> np.ndarray:
    """Rays x/z, y/z of pixels given by their whole coordinates.

    The intrinsics count from the image's corner, half a pixel before the first centre.
    """
    y = (pixels[:, 1] + 0.5 - K[1, 2]) / K[1, 1]
    x = (pixels[:, 0] + 0.5 - K[0, 2] - K[0, 1] * y) / K[0, 0]
    return np.stack([x, y], axis=1)


def _distort(camera: RigCamera, rays: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, "n 2"]:
    """Where rays fall in the distorted image, in pixels with whole numbers at their centres."""
    cv2 = _opencv(camera)
    points = np.concatenate([rays, np.ones((len(rays), 1))], axis=1).reshape(-1, 1, 3)
    nowhere = np.zeros(3)
    distort = cv2.fisheye.projectPoints if camera.model == "fisheye" else cv2.projectPoints
    upright = camera.K * [[1.0, 0.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]  # they ignore skew
    found, _ = distort(points, nowhere, nowhere, upright, np.array(camera.coefficients))
    found = found.reshape(-1, 2)
    found[:, 0] += camera.K[0, 1] * (found[:, 1] - camera.K[1, 2]) / camera.K[1, 1]
    return found - 0.5


def _opencv(camera: RigCamera) -> Any:
    try:
        import cv2
    except ImportError:
        problem = "is distorted, and undistorting needs OpenCV, which is not installed"
        raise BadInput(f"camera {camera.name}", problem, INSTALL) from None
    return cv2


def _rim(size_hw: tuple[int, int]) -> Float64[np.ndarray, "n 2"]:
    """Pixels along the four sides of an image."""
    height, width = size_hw
    across = np.linspace(0, width - 1, _RIM_STEPS)
    down = np.linspace(0, height - 1, _RIM_STEPS)
    u = np.concatenate([across, across, np.zeros(_RIM_STEPS), np.full(_RIM_STEPS, width - 1)])
    v = np.concatenate([np.zeros(_RIM_STEPS), np.full(_RIM_STEPS, height - 1), down, down])
    return np.stack([u, v], axis=1)


def _covered(camera: RigCamera, zoom: float) -> bool:
    """Whether the undistorted image's rim lies inside of the original."""
    height, width = camera.size_hw
    found = _distort(camera, _rays(_rim(camera.size_hw), _zoomed(camera.K, zoom)))
    inside = (found >= 0) & (found <= [width - 1, height - 1])
    return bool(inside.all())


def _least_zoom(camera: RigCamera) -> float:
    """Smallest factor on the focal lengths that leaves no pixel empty, by bisection."""
    if not _covered(camera, ZOOM_MAX):
        problem = f"its distortion leaves pixels empty even at {ZOOM_MAX:g} times the focal length"
        raise _wrong_lens(camera, problem)
    low = 1.0
    high = ZOOM_MAX
    for _ in range(_ZOOM_STEPS):
        middle = (low + high) / 2
        if _covered(camera, middle):
            high = middle
        else:
            low = middle
    return high


def _check_folds(camera: RigCamera, K: Float64[np.ndarray, "3 3"]) -> None:
    """Refuses coefficients with which the distorted radius falls on the way to the rim."""
    rim = _rays(_rim(camera.size_hw), K)
    share = np.linspace(0, 1, _RIM_STEPS)
    rays = (share[:, None, None] * rim).reshape(-1, 2)
    found = _distort(camera, rays).reshape(_RIM_STEPS, -1, 2)
    radius = np.linalg.norm(found - found[0], axis=2)
    if not (np.diff(radius, axis=0) > -1e-9).all():
        raise _wrong_lens(camera, "its distortion folds the image over before the rim")


def _wrong_lens(camera: RigCamera, problem: str) -> BadInput:
    orders = "k1 k2 p1 p2 k3 (plumb_bob), k1 k2 p1 p2 k3 k4 k5 k6 (rational), k1 to k4 (fisheye)"
    return BadInput(f"camera {camera.name}", problem, f"the coefficients' order is {orders}")


def _undistorted(file: File, undistorting: Undistortion) -> bytes:
    """Undistorted image as JPEG."""
    import cv2

    try:
        with Image.open(io.BytesIO(file.read()), formats=("JPEG", "PNG")) as image:
            pixels: UInt8[np.ndarray, "h w 3"] = np.asarray(image.convert("RGB"))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise BadInput(file.path, f"cannot be decoded ({error})", "copy the file again") from None
    u, v = np.moveaxis(undistorting.map_uv, 2, 0)
    moved = cv2.remap(pixels, u, v, cv2.INTER_LINEAR)
    out = io.BytesIO()
    Image.fromarray(moved).save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return out.getvalue()
