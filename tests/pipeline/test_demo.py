"""The embedded world.

Rays against slow twins, files against nuscenes-devkit, pictures against points.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipsweep.pipeline.config import DemoConfig
from clipsweep.pipeline.demo import render as render_module
from clipsweep.pipeline.demo import spin as spin_module
from clipsweep.pipeline.demo.ground import DRIVEABLE, KERB_M, OTHER_FLAT, SIDEWALK, TERRAIN
from clipsweep.pipeline.demo.lidar_kernels import BINS, EGO
from clipsweep.pipeline.demo.parts import SceneObject, ball, box, pack, tube
from clipsweep.pipeline.demo.ray_kernels import hit_part, normal
from clipsweep.pipeline.demo.render import SKY, render
from clipsweep.pipeline.demo.rig import SPIN_S, cameras, inverse, lidar, pose
from clipsweep.pipeline.demo.spin import scan
from clipsweep.pipeline.demo.tables import CATEGORIES, quaternion
from clipsweep.pipeline.demo.world import World, build_world
from clipsweep.pipeline.demo.write import FIRST_US, split_names, true_pixels, write_demo
from clipsweep.projection.errors import BadInput

SMALL = DemoConfig(
    seed=3, train_scenes=1, val_scenes=1, key_frames=2, width_px=240, height_px=135, azimuths=360
)
CLASSES = {
    "barrier": (9,), "bicycle": (14,), "bus": (15, 16), "car": (17,), "construction vehicle": (18,),
    "motorcycle": (21,), "pedestrian": (2, 3, 4, 6), "traffic cone": (12,), "trailer": (22,),
    "truck": (23,),
    "driveable surface": (24,), "other flat": (25,), "sidewalk": (26,), "terrain": (27,),
    "manmade": (28,),
    "vegetation": (30,),
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "root"
    write_demo(SMALL, out)
    return out


@pytest.fixture(scope="module")
def hilly_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hilly") / "root"
    write_demo(replace(SMALL, hills_m=4.0, flat_poses=True), out)
    return out


@pytest.fixture(scope="module", params=[0.0, 4.0], ids=["flat", "hilly"])
def world(request: pytest.FixtureRequest) -> World:
    return build_world(0, 1, 1.0, request.param)


def table(root: Path, name: str) -> dict[str, dict[str, Any]]:
    return {
        row["token"]: row for row in json.loads((root / "v1.0-mini" / f"{name}.json").read_text())
    }


def digest(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


# --- rays -----------------------------------------------------------------------------------------

SHAPES = {
    "box": box((0, 0, 0), (2.0, 1.0, 1.4), (0, 0, 0)),
    "tapered box": box((0, 0, 0), (2.0, 1.0, 1.4), (0, 0, 0), taper=(0.5, 0.9)),
    "ball": ball((0, 0, 0), (2.0, 1.0, 1.4), (0, 0, 0)),
    "tube": tube((0, 0, 0), 0.8, 1.4, (0, 0, 0)),
    "cone": tube((0, 0, 0), 0.8, 1.4, (0, 0, 0), taper=(1.0, 0.0)),
    "ring": tube((0, 0, 0), 0.8, 0.2, (0, 0, 0), taper=(0.0, 0.7)),
}


def inside(name: str, p: np.ndarray) -> np.ndarray:
    """Twin: whether points (n, 3) lie in a shape, read straight from its definition."""
    x = np.abs(p[:, 0])
    y = np.abs(p[:, 1])
    z = p[:, 2]
    rise = (z + 0.7) / 1.4
    rho = np.hypot(x, y)
    return {
        "box": lambda: (x < 1) & (y < 0.5) & (abs(z) < 0.7),
        "tapered box": lambda: (x < 1 - 0.5 * rise) & (y < 0.5 * (1 - 0.9 * rise)) & (abs(z) < 0.7),
        "ball": lambda: x**2 + (y / 0.5) ** 2 + (z / 0.7) ** 2 < 1,
        "tube": lambda: (rho < 0.8) & (abs(z) < 0.7),
        "cone": lambda: (rho < 0.8 * (1 - rise)) & (abs(z) < 0.7),
        "ring": lambda: (rho < 0.8) & (rho > 0.56) & (abs(z) < 0.1),
    }[name]()


@pytest.mark.parametrize("name", SHAPES)
def test_a_ray_meets_a_shape_where_it_first_enters_it(name: str) -> None:
    rng = np.random.default_rng(0)
    prims = pack([SceneObject((SHAPES[name],), 0, (1, 1, 1))])
    steps = np.arange(0.0, 8.0, 2e-3)
    met = 0
    for _ in range(300):
        start = rng.normal(size=3)
        start *= 4 / np.linalg.norm(start)
        way = rng.normal(0, 0.5, 3) - start
        way /= np.linalg.norm(way)
        t = hit_part(prims, 0, *start, *way)
        within = inside(name, start + steps[:, None] * way)
        if not within.any():
            grazes = math.isinf(t) or not inside(name, (start + (t + 2e-3) * way)[None])[0]
            assert grazes
            continue
        met += 1
        assert t == pytest.approx(steps[within.argmax()], abs=4e-3)
        nx, ny, nz, _ = normal(prims, 0, *(start + t * way))
        assert np.dot((nx, ny, nz), way) < 1e-6
        assert math.hypot(nx, ny, nz) == pytest.approx(1.0)
    assert met > 60


def test_tiles_hide_nothing_that_a_pixel_sees(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    camera = cameras(240, 135)[4]
    fast = render(world, camera, 0.4)

    def everywhere(
        prims: Any, centre: Any, order: Any, eye: Any, h: int, w: int
    ) -> tuple[Any, Any]:
        tiles = -(-h // 16) * -(-w // 16)
        return np.arange(tiles + 1) * len(order), np.tile(order, tiles)

    monkeypatch.setattr(render_module, "fill_tiles", everywhere)
    slow = render(world, camera, 0.4)
    for name in ("colour", "label", "instance", "depth_m"):
        np.testing.assert_array_equal(getattr(fast, name), getattr(slow, name))


def test_bins_hide_nothing_that_the_lidar_sees(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = scan(world, lidar(16, 200), 0.4)

    def everywhere(prims: Any, *_: Any) -> tuple[Any, Any, Any]:
        n = len(prims.kind)
        return np.arange(BINS + 1) * n, np.tile(np.arange(n), BINS), np.zeros(n)

    monkeypatch.setattr(spin_module, "fill_bins", everywhere)
    slow = scan(world, lidar(16, 200), 0.4)
    np.testing.assert_array_equal(fast.xyz_m, slow.xyz_m)
    np.testing.assert_array_equal(fast.label, slow.label)


# --- sensors --------------------------------------------------------------------------------------


def test_points_lie_where_they_were_cast_after_the_cars_motion_is_taken_out(world: World) -> None:
    """With the motion within the turn left in, the road would smear over 0.3 m and tilt."""
    spinner = lidar(32, 720)
    found = scan(world, spinner, 0.7)
    street_from_lidar = world.drive.street_from_ego(0.7) @ spinner.ego_from_lidar
    xyz = found.xyz_m @ street_from_lidar[:3, :3].T + street_from_lidar[:3, 3]
    height = xyz[:, 2] - world.ground.hills.height_m(xyz[:, 0])
    assert np.abs(height[found.label == DRIVEABLE]).max() < 0.08
    raised = np.isin(found.label, (OTHER_FLAT, SIDEWALK))
    assert np.abs(height[raised] - KERB_M / 2).max() < KERB_M / 2 + 0.08
    assert 0.15 < (found.label == EGO).mean() < 0.4


def test_cameras_fire_as_the_spin_passes_their_axis() -> None:
    spinner = lidar(32, 1090)
    yaw = np.arctan2(*(spinner.ray[:, 0] @ spinner.ego_from_lidar[:3, :3].T).T[1::-1])
    for camera in cameras(480, 270):
        assert -SPIN_S <= camera.delay_s <= 0
        axis = camera.ego_from_cam[:3, 2]
        column = np.abs(spinner.delay_s - camera.delay_s).argmin()
        assert (
            abs((yaw[column] - np.arctan2(axis[1], axis[0]) + np.pi) % (2 * np.pi) - np.pi) < 0.02
        )


def test_a_projected_point_has_the_label_of_its_pixel(world: World) -> None:
    spinner = lidar(32, 1090)
    rig = cameras(480, 270)
    still = np.array([obj.speed_mps == 0 for obj in world.objects])
    right = total = 0
    for time_s in (0.1, 0.9):
        found = scan(world, spinner, time_s)
        fixed = (found.label != EGO) & ((found.instance < 0) | still[found.instance])
        street_from_lidar = world.drive.street_from_ego(time_s) @ spinner.ego_from_lidar
        xyz = found.xyz_m[fixed] @ street_from_lidar[:3, :3].T + street_from_lidar[:3, 3]
        for camera in rig:
            view = render(world, camera, time_s + camera.delay_s)
            cam_from_street = inverse(
                world.drive.street_from_ego(time_s + camera.delay_s) @ camera.ego_from_cam
            )
            seen = xyz @ cam_from_street[:3, :3].T + cam_from_street[:3, 3]
            ahead = seen[:, 2] > 0.5
            uvw = seen[ahead] @ camera.K.T
            label = found.label[fixed][ahead]
            depth = seen[ahead, 2]
            u = np.floor(uvw[:, 0] / depth).astype(int)
            v = np.floor(uvw[:, 1] / depth).astype(int)
            held = (u >= 0) & (u < 480) & (v >= 0) & (v < 270)
            u = u[held]
            v = v[held]
            label = label[held]
            depth = depth[held]
            free = np.abs(view.depth_m[v, u] - depth) < 0.2 + 0.05 * depth
            right += (view.label[v, u] == label)[free].sum()
            total += free.sum()
    assert total > 20_000
    assert right / total >= 0.99


def test_every_class_occurs_in_points_and_pixels() -> None:
    points = np.zeros(32, int)
    pixels = np.zeros(32, int)
    spinner = lidar(32, 545)
    rig = cameras(240, 135)
    for scene in range(4):
        streets = build_world(0, scene, 4.5)
        for time_s in (0.0, 2.0, 4.0):
            points += np.bincount(scan(streets, spinner, time_s).label, minlength=32)
            for camera in rig:
                pixels += np.bincount(render(streets, camera, time_s).label.ravel(), minlength=32)
    for name, raw in CLASSES.items():
        assert points[list(raw)].sum() > 0.0005 * points.sum(), name
        assert pixels[list(raw)].sum() > 0.0005 * pixels.sum(), name
    assert set(np.flatnonzero(pixels)) <= {SKY, *(r for raw in CLASSES.values() for r in raw)}
    assert pixels[TERRAIN] > 0


# --- files ----------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes(root: Path, tmp_path: Path) -> None:
    write_demo(SMALL, tmp_path / "again")
    assert digest(tmp_path / "again") == digest(root)


def test_true_pixels_are_those_of_the_written_images(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = []

    def kept(*arguments: Any) -> render_module.View:
        views.append(render(*arguments))
        return views[-1]

    monkeypatch.setattr("clipsweep.pipeline.demo.write.render", kept)
    truth = true_pixels(SMALL, "scene-0103")
    shots = [row for row in table(root, "sample_data").values() if row["filename"].endswith(".jpg")]
    named = {
        (row["filename"].split("/")[1], row["timestamp"]): root / row["filename"] for row in shots
    }
    assert truth.keys() <= named.keys()
    assert len(truth) == 2 * 6
    of_label = {id(view.label): view for view in views}
    for shot, label in truth.items():
        written = np.asarray(Image.open(named[shot])).astype(float)
        assert np.abs(written - of_label[id(label)].colour).mean() < 8  # what JPEG changes
    with pytest.raises(BadInput, match="scene-0916: is no scene of the demo"):
        true_pixels(SMALL, "scene-0916")


def test_another_seed_gives_another_world(world: World) -> None:
    other = build_world(1, 1, 1.0)
    assert not np.array_equal(
        render(other, cameras(64, 36)[1], 0.0).label, render(world, cameras(64, 36)[1], 0.0).label
    )


def test_validation_scenes_do_not_depend_on_how_many_train(root: Path, tmp_path: Path) -> None:
    write_demo(DemoConfig(**{**vars(SMALL), "train_scenes": 0}), tmp_path / "val")
    pick = [path for path in (root / "samples/CAM_FRONT").iterdir() if "0103" in path.name]
    same = list((tmp_path / "val/samples/CAM_FRONT").iterdir())
    assert [np.asarray(Image.open(p)).sum() for p in sorted(pick)] == [
        np.asarray(Image.open(p)).sum() for p in sorted(same)
    ]


def test_the_devkit_loads_it_draws_it_and_counts_its_labels(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPLBACKEND", "Agg")
    nuscenes = pytest.importorskip("nuscenes")
    data = nuscenes.NuScenes("v1.0-mini", str(root), verbose=False)
    sample = data.sample[0]
    data.get_sample_lidarseg_stats(sample["token"], sort_by="count")
    listed = capsys.readouterr().out
    assert "flat.driveable_surface" in listed
    assert "vehicle.ego" in listed
    picture = tmp_path / "front.png"
    data.render_pointcloud_in_image(
        sample["token"],
        camera_channel="CAM_FRONT",
        show_lidarseg=True,
        out_path=str(picture),
        verbose=False,
    )
    assert picture.stat().st_size > 10_000


@pytest.mark.parametrize("where", ["root", "hilly_root"])
def test_boxes_hold_the_points_that_they_claim(where: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(where)
    nuscenes = pytest.importorskip("nuscenes")
    from nuscenes.utils.data_classes import LidarPointCloud
    from nuscenes.utils.geometry_utils import points_in_box

    data = nuscenes.NuScenes("v1.0-mini", str(root), verbose=False)
    claimed = 0
    owned = 0
    for sample in data.sample:
        token = sample["data"]["LIDAR_TOP"]
        path, boxes, _ = data.get_sample_data(token)
        points = LidarPointCloud.from_file(path).points[:3]
        labels = np.fromfile(root / data.get("lidarseg", token)["filename"], np.uint8)
        assert len(labels) == points.shape[1]
        for b in boxes:
            record = data.get("sample_annotation", b.token)
            held = points_in_box(b, points)
            # points on a face: the devkit rounds otherwise
            assert abs(held.sum() - record["num_lidar_pts"]) <= 2
            claimed += record["num_lidar_pts"]
            owned += (labels[held] == CATEGORIES.index(record["category_name"])).sum()
    assert claimed > 500
    assert owned / claimed > 0.9


def test_flat_poses_change_nothing_but_poses_and_boxes(hilly_root: Path, tmp_path: Path) -> None:
    write_demo(replace(SMALL, hills_m=4.0), tmp_path / "true")
    flat = digest(hilly_root)
    true = digest(tmp_path / "true")
    changed = {Path(file).stem for file in flat if flat[file] != true[file]}
    assert flat.keys() == true.keys()
    assert changed == {"ego_pose", "sample_annotation"}
    poses = table(hilly_root, "ego_pose")
    true_poses = table(tmp_path / "true", "ego_pose")
    assert all(row["translation"][2] == 0.0 for row in poses.values())
    assert max(row["translation"][2] for row in true_poses.values()) > 0.5
    for key, row in poses.items():
        assert row["translation"][:2] == true_poses[key]["translation"][:2]
        apart = abs(np.dot(row["rotation"], true_poses[key]["rotation"]))
        assert 2 * math.degrees(math.acos(min(apart, 1.0))) < 1.2  # std 0.2 degrees


def test_ground_of_hills_lies_on_them_by_true_poses_alone(hilly_root: Path) -> None:
    """Points through the written poses of a drive over hills against the street that they show."""
    names = {row["token"]: row for row in table(hilly_root, "sample_data").values()}
    poses = table(hilly_root, "ego_pose")
    mount = lidar(SMALL.beams, SMALL.azimuths).ego_from_lidar
    world = build_world(SMALL.seed, 0, 0.5, 4.0)
    key = min(
        (k for k, row in names.items() if "0061__LIDAR" in row["filename"]),
        key=lambda k: names[k]["timestamp"],
    )
    xyz = (
        np.fromfile(hilly_root / names[key]["filename"], np.float32)
        .reshape(-1, 5)[:, :3]
        .astype(float)
    )
    label = np.fromfile(hilly_root / table(hilly_root, "lidarseg")[key]["filename"], np.uint8)
    xyz = np.column_stack([xyz, np.ones(len(xyz))])[label == DRIVEABLE]
    street_from_global = inverse(world.drive.global_from_street)
    true = world.drive.street_from_ego((names[key]["timestamp"] - FIRST_US) * 1e-6)
    turned = turned_by(poses[key]["rotation"])
    written = street_from_global @ pose(turned, np.array(poses[key]["translation"]))
    off_m = []
    for street_from_ego in (true, written):
        placed = xyz @ (street_from_ego @ mount).T
        off_m.append(np.abs(placed[:, 2] - world.ground.hills.height_m(placed[:, 0])))
    assert off_m[0].max() < 0.08
    assert off_m[1].mean() > 0.2


def turned_by(wxyz: list[float]) -> np.ndarray:
    w, x, y, z = wxyz
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + 2 * w * cross + 2 * cross @ cross


def test_tables_are_chained_and_timed_as_a_car_does(root: Path) -> None:
    rows = table(root, "sample_data")
    samples = table(root, "sample")
    sensors = table(root, "sensor")
    mounts = table(root, "calibrated_sensor")
    sweeps = 0
    for row in rows.values():
        channel = sensors[mounts[row["calibrated_sensor_token"]]["sensor_token"]]["channel"]
        assert (root / row["filename"]).is_file()
        lag_us = samples[row["sample_token"]]["timestamp"] - row["timestamp"]
        if channel == "LIDAR_TOP":
            assert (lag_us == 0) == row["is_key_frame"]
            assert 0 <= lag_us < 500_000
            sweeps += not row["is_key_frame"]
        else:
            assert 0 <= lag_us <= 50_000
        if row["next"]:
            step_us = rows[row["next"]]["timestamp"] - row["timestamp"]
            assert rows[row["next"]]["prev"] == row["token"]
            assert abs(step_us - (50_000 if channel == "LIDAR_TOP" else 500_000)) < 1000
    assert sweeps == 2 * 9
    heading = [table(root, "ego_pose")[token] for token in rows]
    assert all(500 < math.hypot(*pose["translation"][:2]) < 2500 for pose in heading)


def test_points_are_float32_rows_of_five(root: Path) -> None:
    rows = np.fromfile(next((root / "samples/LIDAR_TOP").iterdir()), np.float32).reshape(-1, 5)
    assert rows[:, 3].min() >= 0
    assert rows[:, 3].max() <= 255
    assert set(np.unique(rows[:, 4])) <= set(range(SMALL.beams))
    assert 4000 < len(rows) < SMALL.beams * SMALL.azimuths


def test_a_failed_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("disk full")

    monkeypatch.setattr("clipsweep.pipeline.demo.write._take_sweep", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        write_demo(SMALL, tmp_path / "root")
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_overwritten(root: Path) -> None:
    with pytest.raises(BadInput, match="exists already"):
        write_demo(SMALL, root)


@pytest.mark.parametrize(
    "wrong",
    [
        {"key_frames": 0},
        {"width_px": 1},
        {"train_scenes": 0, "val_scenes": 0},
        {"seed": -1},
        {"hills_m": 21.0},
        {"hills_m": -1.0},
    ],
)
def test_a_wrong_setting_is_named(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=next(iter(wrong))):
        write_demo(DemoConfig(**wrong), tmp_path / "root")


def test_scene_names_are_official() -> None:
    splits = pytest.importorskip("nuscenes.utils.splits")
    version, train, val = split_names(8, 2)
    assert (version, set(train), set(val)) == (
        "v1.0-mini",
        set(splits.mini_train),
        set(splits.mini_val),
    )
    version, train, val = split_names(20, 5)
    assert version == "v1.0-trainval"
    assert set(train) <= set(splits.train)
    assert set(val) <= set(splits.val)
    with pytest.raises(BadInput, match="151"):
        split_names(1, 151)


def test_quaternions_turn_as_their_matrices() -> None:
    quaternions = pytest.importorskip("pyquaternion")
    rng = np.random.default_rng(1)
    for _ in range(50):
        turn = quaternions.Quaternion(rng.normal(size=4)).normalised
        np.testing.assert_allclose(
            quaternions.Quaternion(quaternion(turn.rotation_matrix)).rotation_matrix,
            turn.rotation_matrix,
            atol=1e-12,
        )
