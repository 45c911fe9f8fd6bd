"""Distorted cameras of a folder data set: undistorted images agree with points, for each lens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image
from scipy.spatial.transform import Rotation

from clipsweep.pipeline.artifacts.inventory import inventory, unneeded
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.datasets import DataConfig
from clipsweep.pipeline.datasets.folder import FolderConfig
from clipsweep.pipeline.datasets.folder.convert import undistortion
from clipsweep.pipeline.datasets.folder.rig import RigCamera
from clipsweep.pipeline.demo.render import View, render
from clipsweep.pipeline.demo.rig import RigCamera as DemoCamera
from clipsweep.pipeline.demo.rig import cameras, lidar
from clipsweep.pipeline.demo.spin import scan
from clipsweep.pipeline.demo.world import World, build_world
from clipsweep.pipeline.stages.index import make_index, scene_frames
from clipsweep.projection.cameras import project
from clipsweep.projection.frames import Frame, SweepLayout
from clipsweep.projection.pose import Pose
from clipsweep.projection.sweeps import read_sweep

TIME_S = 0.25
TIME_US = 250_000
STEP = 8
"""Grey levels between two classes of an image whose pixels are classes."""
LENSES = {
    "none": [],
    "plumb_bob": [-0.28, 0.09, 0.0012, -0.0008, -0.012],
    "pincushion": [0.12, 0.01, -0.001, 0.001],
    "rational_polynomial": [0.4, 0.02, 0.0004, -0.0003, 0.001, 0.75, 0.1, 0.004],
    "fisheye": [0.04, -0.01, 0.003, -0.0006],
}


def model_of(lens: str) -> str:
    return "plumb_bob" if lens == "pincushion" else lens


def rays_of(camera: DemoCamera, lens: str) -> np.ndarray:
    """Rays x/z, y/z of every pixel of the distorted image, by OpenCV's inverse of the lens."""
    height, width = camera.size_hw
    v, u = np.mgrid[:height, :width] + 0.5
    pixels = np.stack([u, v], axis=-1).reshape(-1, 1, 2)
    coefficients = np.array(LENSES[lens])
    if lens == "fisheye":
        found = cv2.fisheye.undistortPoints(pixels, camera.K, coefficients)
    else:
        stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 100, 1e-10)
        found = cv2.undistortPointsIter(pixels, camera.K, coefficients, None, None, stop)
    return found.reshape(height, width, 2)


def wide(camera: DemoCamera) -> DemoCamera:
    """The camera with a view so much wider that every lens looks into it."""
    height, width = camera.size_hw
    K = camera.K.copy()
    K[:2, 2] += [width, height]
    return replace(camera, K=K, size_hw=(3 * height, 3 * width))


def through(lens: str, camera: DemoCamera, view: View) -> np.ndarray:
    """Class image that the camera takes through a lens, of a view by ``wide``."""
    if lens == "none":
        height, width = camera.size_hw
        return view.label[height : 2 * height, width : 2 * width]
    uv = rays_of(camera, lens) @ camera.K[:2, :2].T + wide(camera).K[:2, 2]
    height, width = view.label.shape
    column = np.clip(np.floor(uv[..., 0]), 0, width - 1).astype(int)
    row = np.clip(np.floor(uv[..., 1]), 0, height - 1).astype(int)
    return view.label[row, column]


@pytest.fixture(scope="module")
def street() -> World:
    return build_world(0, 1, 0.5)


@pytest.fixture(scope="module")
def front() -> DemoCamera:
    return cameras(1440, 810)[1]


@pytest.fixture(scope="module")
def view(street: World, front: DemoCamera) -> View:
    return render(street, wide(front), TIME_S)


def write_log(root: Path, street: World, camera: DemoCamera, lens: str, image: np.ndarray) -> None:
    """One sweep, one image whose colours are classes, and the poses around them."""
    spinner = lidar(32, 1090)
    taken = scan(street, spinner, TIME_S)
    for part in ("lidar", "labels", "images/front"):
        (root / part).mkdir(parents=True)
    rows = np.column_stack([taken.xyz_m, taken.intensity]).astype("<f4")
    rows.tofile(root / f"lidar/{TIME_US}.bin")
    speed = np.array([*(obj.speed_mps for obj in street.objects), 0.0])
    static = np.where(speed[taken.instance] > 0, 0, taken.label)
    np.save(root / f"labels/{TIME_US}.npy", static.astype(np.uint8))
    Image.fromarray(np.repeat((STEP * image)[..., None], 3, axis=2)).save(
        root / f"images/front/{TIME_US}.png"
    )
    lines = ["time,x,y,z,qx,qy,qz,qw"]
    pose = street.drive.street_from_ego(TIME_S)
    numbers = [*pose[:3, 3], *Rotation.from_matrix(pose[:3, :3]).as_quat()]
    lines.append(",".join(map(repr, [TIME_US, *map(float, numbers)])))
    (root / "poses.csv").write_text("\n".join(lines))
    height, width = camera.size_hw
    distortion = {"model": model_of(lens)}
    if lens != "none":
        distortion["coefficients"] = LENSES[lens]
    rig = {
        "time_unit": "us",
        "lidar": {
            "vehicle_from_lidar": spinner.ego_from_lidar.tolist(),
            "stamp": "compensated",
        },
        "cameras": {
            "front": {
                "K": camera.K.tolist(),
                "size": [width, height],
                "distortion": distortion,
                "vehicle_from_camera": camera.ego_from_cam.tolist(),
            }
        },
    }
    (root / "rig.yaml").write_text(yaml.safe_dump(rig))


def read_frame(root: Path, store: Path) -> Frame:
    data = DataConfig(
        kind="folder", root=str(root), own=FolderConfig(), train=("all",), eval=(), columns=4
    )
    config = Config(data=data, store=str(store))
    (frame,) = scene_frames(make_index(config), config, "drive")
    return frame


def agreement(frame: Frame, view: View, camera: DemoCamera) -> tuple[float, int]:
    """Share of unoccluded static points whose pixel has their class, and their number."""
    points = read_sweep(frame.sweeps[0], SweepLayout(4))[:, :3].copy()
    assert frame.labels is not None
    truth = np.load(frame.labels.path)
    pairs = project(points, frame.sweeps[0].global_from_lidar, frame.cameras)
    column, row = np.floor(pairs.uv).astype(int).T
    image = np.asarray(Image.open(frame.cameras[0].image.path).convert("L"))
    found = np.rint(image[row, column] / STEP).astype(int)
    cam_from_lidar = frame.cameras[0].global_from_cam.inverse() @ frame.sweeps[0].global_from_lidar
    ahead = cam_from_lidar.apply(points[pairs.point])
    uv = ahead[:, :2] / ahead[:, 2:] @ camera.K[:2, :2].T + wide(camera).K[:2, 2]
    column, row = np.floor(uv).astype(int).T
    seen = np.abs(view.depth_m[row, column] - pairs.depth) < 0.05 + 0.02 * pairs.depth
    counted = seen & (truth[pairs.point] > 0)
    right = found[counted] == truth[pairs.point][counted]
    return float(right.mean()), int(counted.sum())


@pytest.mark.parametrize("lens", LENSES)
def test_points_fall_on_pixels_of_their_class(
    tmp_path: Path, street: World, front: DemoCamera, view: View, lens: str
) -> None:
    write_log(tmp_path / "log", street, front, lens, through(lens, front, view))
    frame = read_frame(tmp_path / "log", tmp_path / "store")
    share, points = agreement(frame, view, front)
    assert points > 1500
    assert share > 0.99


@pytest.mark.parametrize("lens", [lens for lens in LENSES if lens != "none"])
def test_no_pixel_of_an_undistorted_image_is_empty(front: DemoCamera, lens: str) -> None:
    height, width = front.size_hw
    coefficients = tuple(LENSES[lens])
    found = undistortion(
        RigCamera("front", front.K, (height, width), model_of(lens), coefficients, Pose.identity())
    )
    assert found.map_uv.min() >= 0
    assert (found.map_uv <= [width - 1, height - 1]).all()
    kept = found.K[0, 0] == front.K[0, 0]
    assert kept == (lens != "pincushion")
    np.testing.assert_array_equal(found.K[:, 2], front.K[:, 2])


def test_an_image_is_undistorted_once(
    tmp_path: Path, street: World, front: DemoCamera, view: View
) -> None:
    write_log(tmp_path / "log", street, front, "fisheye", through("fisheye", front, view))
    before = read_frame(tmp_path / "log", tmp_path / "store").cameras[0].image
    made = before.path.stat().st_mtime_ns
    assert before.path.relative_to(tmp_path / "store").parts[1:] == (
        "images",
        "front",
        "250000.jpg",
    )
    (index,) = (tmp_path / "store").glob("index-*")
    index.rename(tmp_path / "other")
    again = read_frame(tmp_path / "log", tmp_path / "store").cameras[0].image
    assert again == before
    assert again.path.stat().st_mtime_ns == made
    entries = inventory(str(tmp_path / "store"))
    assert sorted(entry.stage for entry in entries) == ["converted", "index"]
    assert not unneeded(entries)
