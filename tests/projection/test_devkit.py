"""Agreement with nuscenes-devkit on every key frame and camera of the real samples."""

from __future__ import annotations

import numpy as np
import pytest

from clipsweep.projection.cameras import project
from clipsweep.projection.frames import SweepLayout
from clipsweep.projection.sweeps import merge
from clipsweep.tools.benchmarks import samples as readers

BORDER_PX = 2e-2  # points this near the image's border may be in view for one and out for the other


@pytest.fixture(scope="module", params=["nuscenes-0523", "pandaset-002"])
def recorded(request):
    """The devkit's tables of one sample, and our frames of it."""
    folder = request.getfixturevalue("samples") / request.param
    if not folder.is_dir():
        pytest.skip(f"no sample at {folder}")
    devkit = readers.open_devkit(folder)
    return devkit, readers.frames(devkit, 5)


def matrix(record):
    """4x4 float64 matrix of a devkit pose record."""
    from pyquaternion import Quaternion

    pose = np.eye(4)
    pose[:3, :3] = Quaternion(record["rotation"]).rotation_matrix
    pose[:3, 3] = record["translation"]
    return pose


def in_float64(devkit, xyz, lidar_token, camera_token):
    """Pixels and depths by the devkit's chain of transforms, written out in float64.

    LiDAR - ego - global - ego - camera - image.
    """
    chain = np.eye(4)
    for token, inverse in ((lidar_token, False), (camera_token, True)):
        record = devkit.get("sample_data", token)
        sensor = matrix(devkit.get("calibrated_sensor", record["calibrated_sensor_token"]))
        ego = matrix(devkit.get("ego_pose", record["ego_pose_token"]))
        chain = np.linalg.inv(ego @ sensor) @ chain if inverse else ego @ sensor @ chain
    intrinsic = devkit.get("calibrated_sensor", record["calibrated_sensor_token"])[
        "camera_intrinsic"
    ]
    in_camera = xyz.astype(np.float64) @ chain[:3, :3].T + chain[:3, 3]
    homogeneous = in_camera @ np.array(intrinsic).T
    return homogeneous[:, :2] / homogeneous[:, 2:], in_camera[:, 2]


def test_projection_agrees_with_the_chain_in_float64(recorded):
    devkit, frames = recorded
    for frame in frames:
        xyz = merge(frame, 1, SweepLayout()).xyz
        pairs = project(xyz, frame.sweeps[0].global_from_lidar, frame.cameras)
        tokens = devkit.get("sample", devkit.get("sample_data", frame.id)["sample_token"])["data"]
        for index, camera in enumerate(frame.cameras):
            mine = pairs[pairs.camera == index]
            uv, depth = in_float64(devkit, xyz, frame.id, tokens[camera.name])
            size_wh = np.array(camera.size_hw[::-1])
            np.testing.assert_allclose(mine.uv, uv[mine.point], atol=1e-2)
            np.testing.assert_allclose(mine.depth, depth[mine.point], atol=1e-4)
            margin = np.minimum(uv - 1, size_wh - 1 - uv).min(axis=1)
            sure = np.flatnonzero((margin > BORDER_PX) & (depth > 1 + 1e-4))
            assert np.isin(sure, mine.point).all()
            assert (margin[mine.point] > -BORDER_PX).all()


def test_projection_agrees_with_the_devkit_itself(recorded):
    """The devkit rounds to float32 in global coordinates.

    Up to 0.12 px and 2e-4 m on these data.
    """
    devkit, frames = recorded
    frame = frames[0]
    xyz = merge(frame, 1, SweepLayout()).xyz
    pairs = project(xyz, frame.sweeps[0].global_from_lidar, frame.cameras)
    tokens = devkit.get("sample", devkit.get("sample_data", frame.id)["sample_token"])["data"]
    for index, camera in enumerate(frame.cameras):
        theirs, depth, _ = devkit.explorer.map_pointcloud_to_image(frame.id, tokens[camera.name])
        mine = pairs[pairs.camera == index]
        inner = (
            [mine.uv[row] for row in _inner(mine.uv, camera)],
            [mine.depth[row] for row in _inner(mine.uv, camera)],
        )
        found = _inner(theirs[:2].T, camera)
        near = _nearest(theirs[:2].T, depth, np.array(inner[0]), np.array(inner[1]))
        assert abs(len(found) - len(inner[0])) <= 4
        np.testing.assert_allclose(theirs[:2].T[near], inner[0], atol=0.2)
        np.testing.assert_allclose(depth[near], inner[1], atol=3e-4)


def _inner(uv, camera):
    """Rows well inside the image: at the border the two may disagree by the devkit's rounding."""
    return np.flatnonzero(
        (uv > 1.5).all(axis=1) & (uv < np.array(camera.size_hw[::-1]) - 1.5).all(axis=1)
    )


def _nearest(uv, depth, wanted_uv, wanted_depth):
    """Their row of each of ours; both keep the file's order, so at most a few rows lie between."""
    rows = []
    start = 0
    for pixel, metres in zip(wanted_uv, wanted_depth, strict=True):
        window = slice(start, start + 8)
        gap = np.abs(uv[window] - pixel).max(axis=1) + np.abs(depth[window] - metres)
        rows.append(start + int(gap.argmin()))
        start = rows[-1] + 1
    return rows


def test_merging_agrees_with_the_devkit(recorded):
    from nuscenes.utils.data_classes import LidarPointCloud

    devkit, frames = recorded
    for frame in frames[:: max(1, len(frames) - 1)]:
        sample = devkit.get("sample", devkit.get("sample_data", frame.id)["sample_token"])
        theirs, lags = LidarPointCloud.from_file_multisweep(
            devkit, sample, "LIDAR_TOP", "LIDAR_TOP", 5, 1.0
        )
        cloud = merge(frame, 5, SweepLayout(ego_box_m=1.0))
        np.testing.assert_allclose(cloud.xyz, theirs.points[:3].T, atol=1e-3)
        np.testing.assert_allclose(cloud.age_s, lags[0], atol=1e-6)
        np.testing.assert_allclose(
            cloud.intensity, np.clip(theirs.points[3] / 255, 0, 1), atol=1e-6
        )
