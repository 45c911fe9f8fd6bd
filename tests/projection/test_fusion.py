"""A drive on a made-up street.

Road, a wall 15 m ahead, a camera that names everything over the horizon "wall".
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from clipsweep.projection import objects
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import File, Sweep, SweepLayout
from clipsweep.projection.fusion import ClassLimits, FusionConfig, label_scene
from clipsweep.projection.sweeps import read_sweep
from tests.projection.scenes import camera, frame, pixels, shift, write

ROAD = 0
CAR = 1
WALL = 2
SENSOR_M = 1.8
LIMITS = ClassLimits(
    np.array([True, False, False]),
    np.array([np.inf, 2.5, np.inf], np.float32),
    np.arange(3, dtype=np.uint8),
    np.array([False, True, False]),
)


def street(random, n=6000):
    """Road points, then wall points, seen from 1.8 m above the origin."""
    road = np.column_stack([random.uniform(-20, 15, n), random.uniform(-12, 12, n), np.zeros(n)])
    wall = np.column_stack([np.full(n, 15.0), random.uniform(-12, 12, n), random.uniform(0, 6, n)])
    return np.concatenate([road, wall]) - [0, 0, SENSOR_M]


@pytest.fixture
def drive(tmp_path):
    """Three key frames, half a second and 0.5 m apart, each with one older sweep."""
    random = np.random.default_rng(0)
    frames = []
    for k in range(3):
        sweeps = []
        for age in (0, 1):
            where = shift(0.5 * k - 0.25 * age)
            xyz = where.inverse().apply(street(random))
            xyz = np.concatenate([xyz, [[0.1, 0.1, 0.0]]])  # the car itself
            time_us = 500_000 * k - 250_000 * age
            sweeps.append(Sweep(time_us, where, write(tmp_path / f"{k}-{age}.bin", xyz)))
        frames.append(frame(f"frame-{k}", 500_000 * k, sweeps, (camera(shift(0.5 * k)),)))
    return frames


def horizon(_):
    """Wall over the horizon, road under it: wrong for the wall's lowest 1.8 m."""
    label = np.full((90, 160), WALL)
    label[45:] = ROAD
    return [pixels(label, 0.8)]


def run(
    frames, read=horizon, limits=LIMITS, on_bad_sweep=None, on_alignment=None, grid=None, **settings
):
    # 4 px: the images are a tenth as wide as real ones
    config = FusionConfig(occlusion_deg=float(np.rad2deg(4 / 80)), **settings)
    labelled = label_scene(
        frames, read, config, 3, SweepLayout(ego_box_m=1.0), limits, on_bad_sweep=on_bad_sweep,
        on_alignment=on_alignment, grid_from_global=grid,
    )  # fmt: skip
    return {frame.id: labels for frame, labels in labelled}


def test_every_row_of_the_file_is_covered_and_the_own_box_has_no_label(drive):
    fused = run(drive)
    assert list(fused) == ["frame-0", "frame-1", "frame-2"]
    for labels in fused.values():
        assert len(labels.label) == len(labels.score) == len(labels.agreement) == 12_001
        assert (labels.label[-1], labels.score[-1], labels.agreement[-1]) == (255, 0, 0)
        assert np.median(labels.score[labels.label < 255]) == pytest.approx(0.8, abs=1e-3)


def test_the_ground_is_road_and_what_stands_on_it_is_not(drive):
    labels = run(drive)["frame-1"].label
    road = labels[:6000]
    wall = labels[6000:12_000]
    assert set(road) <= {ROAD, 255}
    x, y = read_sweep(drive[1].sweeps[0], SweepLayout())[:6000, :2].T
    ahead = (x > 5) & (np.abs(y) < x - 1) & (x < 13)
    assert (road[ahead] == ROAD).mean() > 0.95
    assert (road[x < -2] == 255).all()  # not seen by any camera
    # no label for the lowest 1.8 of 6 m: its votes could not be true
    assert (wall == WALL).mean() > 0.65


def test_without_limits_the_walls_foot_is_road(drive):
    foot = (
        run(drive)["frame-1"].label[6000:12_000],
        run(drive, limits=None)["frame-1"].label[6000:12_000],
    )
    assert (foot[0] == ROAD).mean() < 0.05  # the lowest 0.2 of 6 m may be either
    assert (foot[1] == ROAD).mean() > 0.1


def test_a_wall_is_no_car_however_often_the_teacher_says_so(drive):
    def cars(_):
        label = np.full((90, 160), WALL)
        label[40:50] = CAR  # at the height of cars
        label[50:] = ROAD
        return [pixels(label)]

    free = replace(LIMITS, max_height_m=np.full(3, np.inf, np.float32))
    assert (run(drive, cars, limits=free)["frame-1"].label == CAR).sum() > 500
    assert (run(drive, cars)["frame-1"].label == CAR).sum() == 0


def test_a_vehicle_has_one_class_in_all_key_frames(drive, monkeypatch):
    """A bus as long as the wall, called something else in its middle."""
    monkeypatch.setattr(objects, "_LONGEST_M", 30.0)

    def stripes(_):
        label = np.full((90, 160), WALL)
        label[:, 60:90] = CAR
        label[50:] = ROAD
        return [pixels(label)]

    apart = replace(LIMITS, max_height_m=np.full(3, np.inf, np.float32))
    whole = replace(apart, vehicle=np.array([False, True, True]))
    before = run(drive, stripes, limits=apart)
    after = run(drive, stripes, limits=whole)
    assert list(before) == list(after)
    for one, two in zip(before.values(), after.values(), strict=True):
        assert (one.label == CAR).sum() > 300
        np.testing.assert_array_equal(two.label, np.where(one.label == CAR, WALL, one.label))


def test_points_that_no_camera_sees_get_the_labels_of_their_place(drive):
    blind = [replace(drive[0], cameras=()), *drive[1:]]
    read = lambda f: horizon(f) if f.cameras else []  # noqa: E731
    assert (run(blind, read)["frame-0"].label < 255).mean() > 0.35
    alone = run(blind, read, window_s=0.0)
    assert (alone["frame-0"].label == 255).all()
    assert (alone["frame-1"].label < 255).mean() > 0.35


def test_no_pixel_has_a_label(drive):
    none = lambda _: [pixels(np.full((90, 160), 255))]  # noqa: E731
    assert (run(drive, none)["frame-2"].label == 255).all()


def test_older_sweeps_can_vote_too(drive):
    """Points left of the image get votes of those that only the older sweep has.

    They lie in a cell that the image's edge crosses.
    """
    unseen = np.random.default_rng(1).uniform([4.8, 5.5, 0.2], [5.3, 6.3, 1.4], (20, 3))
    seen = unseen[:, [1, 0, 2]]
    both = [
        with_points(sweep, xyz) for sweep, xyz in zip(drive[0].sweeps, (unseen, seen), strict=True)
    ]
    frames = [replace(drive[0], sweeps=tuple(both)), *drive[1:]]
    one, two = (run(frames, vote_sweeps=n)["frame-0"].label for n in (1, 2))
    assert (one[-20:] == 255).all()
    assert (two[-20:] == WALL).all()


def with_points(sweep, xyz_global):
    """The sweep with more points behind its own."""
    xyz = sweep.global_from_lidar.inverse().apply(xyz_global)
    path = sweep.points.path.with_suffix(".more.bin")
    return replace(
        sweep, points=write(path, np.concatenate([read_sweep(sweep, SweepLayout())[:, :3], xyz]))
    )


def test_blocks_share_votes_with_their_neighbours(drive, monkeypatch):
    blind = [drive[0], replace(drive[1], cameras=()), drive[2]]
    read = lambda f: horizon(f) if f.cameras else []  # noqa: E731
    whole = run(blind, read)
    monkeypatch.setattr("clipsweep.projection.fusion._BLOCK", 1)
    limited = run(blind, read)
    assert list(limited) == list(whole)
    assert (limited["frame-1"].label < 255).mean() > 0.35
    for name in whole:
        np.testing.assert_array_equal(limited[name].label, whole[name].label)


def test_key_frames_far_apart_share_no_map(drive, tmp_path):
    """A jump of the poses by 50 km is no map of 50 km.

    Memory stays small, and both ends get labels.
    """
    far = shift(50_000.0)
    moved = [
        replace(
            each,
            id=f"{each.id}-far",
            sweeps=tuple(
                replace(s, global_from_lidar=far @ s.global_from_lidar) for s in each.sweeps
            ),
            cameras=tuple(
                replace(c, global_from_cam=far @ c.global_from_cam) for c in each.cameras
            ),
        )
        for each in drive
    ]
    labels = run([*drive, *moved])
    alone = run(drive)
    for name in alone:
        np.testing.assert_array_equal(labels[name].label, alone[name].label)
        assert (labels[f"{name}-far"].label < 255).mean() > 0.35


def test_poses_beyond_any_drive_are_refused(drive):
    lost = replace(drive[1].sweeps[0], global_from_lidar=shift(1e6))
    with pytest.raises(BadInput, match=r"scene drive: its key frames lie up to 1000 km apart"):
        run([drive[0], replace(drive[1], sweeps=(lost,))])


def test_an_older_sweep_that_cannot_be_read(drive):
    gone = replace(
        drive[1].sweeps[1], points=File(drive[1].sweeps[1].points.path.with_name("gone.bin"), 100)
    )
    broken = [drive[0], replace(drive[1], sweeps=(drive[1].sweeps[0], gone)), drive[2]]
    assert len(run(broken)) == 3  # the key sweeps are all that is read
    with pytest.raises(BadInput, match=r"gone\.bin"):
        run(broken, vote_sweeps=2)
    reported = []
    assert len(run(broken, on_bad_sweep=reported.append, vote_sweeps=2)) == 3
    assert [str(error.where) for error in reported] == [str(gone.points.path)]


# --- streets that climb ------------------------------------------------------------------------


def climbing(folder, slope, flat_poses, frames=6, step_m=4.0):
    """A drive up a road along x between two walls.

    ``flat_poses`` as nuScenes writes them, z = 0.
    """
    random = np.random.default_rng(1)
    made = []
    for k in range(frames):
        x_m = step_m * k
        road = np.column_stack(
            [random.uniform(x_m - 15, x_m + 30, 9000), random.uniform(-8, 8, 9000), np.zeros(9000)]
        )
        wall = np.column_stack(
            [
                random.uniform(x_m - 15, x_m + 30, 6000),
                random.choice([-8.0, 8.0], 6000),
                random.uniform(0, 4, 6000),
            ]
        )
        xyz = np.concatenate([road, wall])
        xyz[:, 2] += slope * xyz[:, 0]
        true = shift(x_m, 0, slope * x_m + SENSOR_M)
        points = write(folder / f"{flat_poses}-{k}.bin", true.inverse().apply(xyz))
        pose = shift(x_m, 0, SENSOR_M) if flat_poses else true
        time_us = 500_000 * k
        made.append(frame(f"frame-{k}", time_us, [Sweep(time_us, pose, points)], (camera(pose),)))
    return made


def test_a_street_that_climbs_while_poses_stay_level(tmp_path):
    """The labels are those by true poses; without the alignment they are not."""

    def read(f):
        label = np.full((90, 160), WALL)
        label[45:] = ROAD
        return [pixels(label, 0.8)]

    reported = []
    true = run(climbing(tmp_path, 0.08, flat_poses=False), read, on_alignment=reported.append)
    level = run(climbing(tmp_path, 0.08, flat_poses=True), read, on_alignment=reported.append)
    assert [alignment.corrected for alignment in reported] == [False, True]
    assert reported[1].before_m > 0.2
    assert reported[1].after_m < 0.03
    crooked = run(climbing(tmp_path, 0.08, flat_poses=True), read, align=False)

    def agreeing(labels):
        return np.mean([labels[name].label == true[name].label for name in true])

    assert (np.concatenate([true[name].label[:9000] for name in true]) == ROAD).mean() > 0.7
    assert agreeing(level) > 0.99
    assert agreeing(crooked) < 0.85


def test_frames_that_do_not_fit_are_labelled_one_by_one(tmp_path):
    """Each sweep has hills of its own: no frame may vote for another."""
    frames = climbing(tmp_path, 0.0, flat_poses=False)
    reported = []
    random = np.random.default_rng(2)
    bent = []
    for each in frames:
        xyz = read_sweep(each.sweeps[0], SweepLayout())[:, :3].astype(float)
        cell = np.floor(xyz[:, :2] / 4).astype(int) + 10
        xyz[:, 2] += random.uniform(-1.5, 1.5, (30, 30))[cell[:, 0], cell[:, 1]]
        points = write(tmp_path / f"bent-{each.id}.bin", xyz)
        bent.append(replace(each, sweeps=(replace(each.sweeps[0], points=points),)))
    together = run(bent, on_alignment=reported.append)
    assert [alignment.fits for alignment in reported] == [(False,) * 6]
    grid = bent[0].sweeps[0].global_from_lidar.inverse()
    for each in bent:
        alone = run([each], grid=grid)[each.id]
        np.testing.assert_array_equal(together[each.id].label, alone.label)


# --- small objects beside large ones ------------------------------------------------------------


def person_at_a_wall(folder, frames=3):
    """A person 0.5 m in front of a wall 12 m ahead, and what the camera calls them."""
    random = np.random.default_rng(3)
    made = []
    xyz = np.concatenate(
        [
            np.column_stack(
                [random.uniform(0, 12, 9000), random.uniform(-8, 8, 9000), np.zeros(9000)]
            ),
            np.column_stack(
                [np.full(5000, 12.0), random.uniform(-8, 8, 5000), random.uniform(0, 4, 5000)]
            ),
            np.column_stack(
                [
                    random.uniform(11.3, 11.5, 60),
                    random.uniform(-0.25, 0.25, 60),
                    random.uniform(0.3, 1.7, 60),
                ]
            ),
        ]
    )
    for k in range(frames):
        at = shift(0, 0, SENSOR_M)
        points = write(folder / f"person-{k}.bin", at.inverse().apply(xyz))
        made.append(
            frame(f"frame-{k}", 500_000 * k, [Sweep(500_000 * k, at, points)], (camera(at),))
        )
    return made


def test_a_person_beside_a_wall_stays_a_person_wherever_the_grid_lies(tmp_path):
    """With cells of 1.6 m the wall's votes won, by the luck of the grid's origin."""
    # the class of objects up to 2.5 m
    person = CAR
    wall = WALL

    def read(_):
        label = np.full((90, 160), wall)
        label[45:] = np.where(np.arange(45)[:, None] > 12, ROAD, wall)
        label[43:58, 78:83] = person
        return [pixels(label)]

    frames = person_at_a_wall(tmp_path)
    shares = []
    for origin in np.random.default_rng(4).uniform(0, 5, (8, 3)):
        labels = run(frames, read, limits=None, grid=shift(*origin))["frame-1"].label
        shares.append((labels[14_000:] == person).mean())
        assert (labels[9000:14_000] == wall).mean() > 0.85
    assert min(shares) > 0.9


def test_no_frames():
    assert run([]) == {}


@pytest.mark.parametrize("classes", [-1, 0, 256])
def test_classes_that_no_label_can_name_are_refused(drive, classes):
    with pytest.raises(ValueError, match=f"classes={classes} is none of 1 to 255"):
        next(label_scene(drive, horizon, FusionConfig(), classes, SweepLayout()))


def test_a_frame_without_sweeps_is_refused(drive):
    with pytest.raises(ValueError, match="a frame has no sweep"):
        run([*drive, replace(drive[0], sweeps=())])


def test_a_pixel_label_beyond_the_classes_is_refused(drive):
    def beyond(frame):
        return [pixels(np.full((90, 160), 3), 0.8)]  # classes are 0 to 2

    with pytest.raises(BadInput, match="frame-0: has a pixel label 3, of 3 classes"):
        run(drive, beyond)
