"""Projects LiDAR points into the camera images of a frame; z-buffer occlusion test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

from clipsweep.projection import kernels
from clipsweep.projection.frames import NONE, Camera, Pairs, PixelLabels
from clipsweep.projection.pose import Pose


def project(
    xyz: Float32[np.ndarray, "n 3"],
    global_from_lidar: Pose,
    cameras: Sequence[Camera],
    min_depth_m: float = 1.0,
    border_px: float = 1.0,
) -> Pairs:
    """Projects LiDAR points of the key sweep into every camera, with extrinsics and intrinsics.

    Pairs come camera by camera. ``cam_from_lidar = inv(global_from_cam(t_cam)) @
    global_from_lidar(t_lidar)``: each sensor has its own pose at its own time. ``K [R|t]`` is
    composed in float64 and applied in float32 (under 1e-2 px at 100 m).

    Args:
        xyz: points [m]; rows that are not finite make no pair.
        global_from_lidar: pose of the key sweep.
        cameras: up to 255 of them; none gives no pairs.
        min_depth_m: points must lie strictly beyond this along the camera's axis, as in the
            nuScenes devkit.
        border_px: and strictly inside the image less this border: ``border < u < width - border``.
    """
    matrices = _image_from_lidar(global_from_lidar, cameras)
    size_wh = np.array([camera.size_hw[::-1] for camera in cameras], np.float64).reshape(-1, 2)
    for room in (2 * len(xyz), len(cameras) * len(xyz)):  # few points are in more than two images
        point = np.empty(room, np.int32)
        camera_of = np.empty(room, np.uint8)
        uv = np.empty((room, 2), np.float32)
        depth = np.empty(room, np.float32)
        count = kernels.project(
            xyz, matrices, size_wh, min_depth_m, border_px, point, camera_of, uv, depth
        )
        if count >= 0:
            break
    return Pairs(point[:count], camera_of[:count], uv[:count], depth[:count])


def _image_from_lidar(
    global_from_lidar: Pose, cameras: Sequence[Camera]
) -> Float32[np.ndarray, "k 3 4"]:
    """Projection matrices of all cameras, composed in float64.

    ``K inv(global_from_cam) global_from_lidar`` of every camera at once.
    """
    if not cameras:
        return np.empty((0, 3, 4), np.float32)
    cam_from_global = np.stack([camera.global_from_cam.rotation.T for camera in cameras])
    away = global_from_lidar.translation - np.stack(
        [camera.global_from_cam.translation for camera in cameras]
    )
    cam_from_lidar = np.empty((len(cameras), 3, 4))
    cam_from_lidar[:, :, :3] = cam_from_global @ global_from_lidar.rotation
    cam_from_lidar[:, :, 3] = np.einsum("kij,kj->ki", cam_from_global, away)
    return (np.stack([camera.K for camera in cameras]) @ cam_from_lidar).astype(np.float32)


def visible(
    pairs: Pairs,
    cameras: Sequence[Camera],
    cell_deg: float,
    relative: float,
    absolute_m: float,
    dilate_cells: int = 0,
) -> Bool[np.ndarray, " m"]:
    """Z-buffer occlusion test: which point-pixel pairs are visible in their image.

    Visible pairs are at most ``nearest * (1 + relative) + absolute_m`` deep, with the nearest depth
    in their image cell.
    The LiDAR sits above the cameras, so it sees objects behind cars that the camera cannot see;
    those points land on the car's pixels, farther than the car.

    ```
       LiDAR o-------------------------------> x   behind the car in the image, 20 m
              \\___________
       camera o----------[car]- - - - - - - - >    nearest in this cell, 8 m
    ```

    Args:
        pairs: candidates of one frame.
        cameras: the cameras that ``pairs`` were made with.
        cell_deg: side of a z-buffer cell, as the angle that it covers in the image's middle, at
            least one pixel [deg].
        relative: tolerance as a share of the nearest depth.
        absolute_m: tolerance [m].
        dilate_cells: z-buffer cells on each side whose points hide too; beams are farther apart
            than cells up close.
    """
    sizes = np.array([camera.size_hw for camera in cameras], np.float64).reshape(-1, 2)
    focal_px = np.array([camera.K[0, 0] for camera in cameras], np.float64)
    cell_px = np.maximum(np.deg2rad(cell_deg) * focal_px, 1.0)
    grid_hw = np.ceil(sizes / cell_px[:, None]).astype(np.int64)
    keep = np.empty(len(pairs), np.bool_)
    kernels.visible(
        pairs.camera,
        pairs.uv,
        pairs.depth,
        grid_hw,
        cell_px,
        relative,
        absolute_m,
        dilate_cells,
        keep,
    )
    return keep


def pixel_rows(
    pairs: Pairs, cameras: Sequence[Camera], grids_hw: Sequence[tuple[int, ...]]
) -> Int64[np.ndarray, " m"]:
    """Samples pixel grids at point-pixel pairs: row of each pair's grid pixel.

    Rows count through the grids of all cameras, laid out one after the other.

    That is row ``floor(v * h / H)`` and column ``floor(u * w / W)`` of a grid of ``h x w`` over an
    image of ``H x W``.
    """
    grid = np.array(grids_hw, np.int64).reshape(-1, 2)
    scale = (grid / np.array([camera.size_hw for camera in cameras]).reshape(-1, 2)).astype(
        np.float32
    )
    rows = np.empty(len(pairs), np.int64)
    kernels.pixel_rows(
        pairs.camera, pairs.uv, scale, np.cumsum(grid.prod(1)) - grid.prod(1), grid[:, 1], rows
    )
    return rows


def sample_pixel_labels(
    pairs: Pairs, cameras: Sequence[Camera], pixels: Sequence[PixelLabels]
) -> tuple[UInt8[np.ndarray, " m"], Float32[np.ndarray, " m"]]:
    """Samples pixel labels at point-pixel pairs: label and score; see ``pixel_rows``."""
    if not len(pairs):
        return np.empty(0, np.uint8), np.empty(0, np.float32)
    rows = pixel_rows(pairs, cameras, [image.label.shape for image in pixels])
    label = np.concatenate([image.label.ravel() for image in pixels])[rows]
    return label, np.concatenate([image.score.ravel() for image in pixels])[rows].astype(np.float32)


def surest_labels(
    pairs: Pairs, label: UInt8[np.ndarray, " m"], score: Float32[np.ndarray, " m"], points: int
) -> UInt8[np.ndarray, " n"]:
    """Labels each point by its pixel of highest score, 255 where no pixel has a label.

    Of equal scores the later pair's counts.

    Args:
        pairs: of point and pixel.
        label: of each pair's pixel, 255 = none.
        score: of the same.
        points: number of points of the cloud.
    """
    found = np.full(points, NONE, np.uint8)
    labelled = np.flatnonzero(label != NONE)
    order = labelled[np.argsort(score[labelled], kind="stable")]
    found[pairs.point[order]] = label[order]  # the highest score is written last
    return found
