"""The SemanticKITTI reader against known facts of the real scans and against damaged copies of
made ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipsweep.pipeline.artifacts.index import Row, Skip
from clipsweep.pipeline.artifacts.store import digest_files
from clipsweep.pipeline.config import Config, load_config
from clipsweep.pipeline.datasets import DATASETS, DataConfig
from clipsweep.pipeline.datasets.semantickitti import SPLITS, SemanticKittiConfig, labels
from clipsweep.pipeline.labels import LabelsConfig, load_space
from clipsweep.pipeline.stages.index import make_index
from clipsweep.projection.cameras import project
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import Frame, SweepLayout
from clipsweep.projection.sweeps import merge, read_sweep
from tests.helpers import ROOT

K = np.array([[50.0, 0.0, 32.0], [0.0, 50.0, 12.0], [0.0, 0.0, 1.0]])
TR = np.array([[0.0, -1.0, 0.0, 0.01], [0.0, 0.0, -1.0, -0.08], [1.0, 0.0, 0.0, -0.27]])
"""Camera 0 from LiDAR: x right, y down, z forward from x forward, y left, z up."""
RIGHT_M = (0.0, 0.5, -0.06, 0.48)
"""How far right of camera 0 each of the four cameras sits."""
STEP_M = 0.8
SCANS = 13
POINTS = 120


def rows(config: DataConfig) -> list[Row]:
    return list(DATASETS["semantickitti"].index(config))


def frames(config: DataConfig) -> list[Frame]:
    found = [row.frame for row in rows(config)]
    return [frame for frame in found if isinstance(frame, Frame)]


def made(root: Path, **changes: Any) -> DataConfig[SemanticKittiConfig]:
    own = SemanticKittiConfig(camera=changes.pop("camera", "image_2"))
    values = {"train": ("train",), "eval": ("val",), "columns": 4, **changes}
    return DataConfig(kind="semantickitti", root=str(root), own=own, **values)


def line(numbers: np.ndarray) -> str:
    return " ".join(f"{number:.9e}" for number in np.ravel(numbers))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three sequences whose car drives straight ahead past one point that stands still.

    11 has no labels.
    """
    for name in ("01", "08", "11"):
        folder = tmp_path / "sequences" / name
        for part in ("velodyne", "image_2", "labels"):
            (folder / part).mkdir(parents=True)
        for i in range(SCANS):
            rng = np.random.default_rng(i)
            scan = rng.uniform(-30, 30, (POINTS, 4)).astype(np.float32)
            scan[0] = 20.0 - i * STEP_M, 3.0, 1.0, 0.5
            scan.tofile(folder / f"velodyne/{i:06d}.bin")
            Image.new("RGB", (64, 24)).save(folder / f"image_2/{i:06d}.png")
            if name != "11":
                ids = rng.choice([0, 40, 252], POINTS) | (rng.integers(0, 9, POINTS) << 16)
                ids.astype("<u4").tofile(folder / f"labels/{i:06d}.label")
        ahead = [np.hstack([np.eye(3), [[0.0], [0.0], [i * STEP_M]]]) for i in range(SCANS)]
        (folder / "poses.txt").write_text("".join(f"{line(pose)}\n" for pose in ahead))
        (folder / "times.txt").write_text("".join(f"{0.1 * i:e}\n" for i in range(SCANS)))
        cameras = [K @ np.column_stack([np.eye(3), [-x, 0.0, 0.0]]) for x in RIGHT_M]
        named = [*((f"P{i}", matrix) for i, matrix in enumerate(cameras)), ("Tr", TR)]
        (folder / "calib.txt").write_text(
            "".join(f"{name}: {line(numbers)}\n" for name, numbers in named)
        )
    return tmp_path


# --- real scans -----------------------------------------------------------------------------------


def test_real_scans(samples: Path) -> None:
    found = frames(
        load_config(
            [f"{ROOT}/tests/configs/semantickitti.yaml", f"data.root={samples / 'semantickitti'}"]
        ).data
    )
    assert [frame.id for frame in found] == [f"00/{i:06d}" for i in range(4)]
    assert [len(frame.sweeps) for frame in found] == [1, 2, 3, 4]
    assert [frame.labels is not None for frame in found] == [True, True, False, False]
    assert [camera.size_hw for frame in found for camera in frame.cameras] == [(376, 1241)] * 4
    for frame in found:
        points = read_sweep(frame.sweeps[0], SweepLayout(4))
        pairs = project(points[:, :3].copy(), frame.sweeps[0].global_from_lidar, frame.cameras, 1.0)
        assert 0.15 < len(pairs) / len(points) < 0.16
        assert points[:, 3].max() <= 1
    assert found[3].sweeps[0].global_from_lidar.translation[0] == pytest.approx(
        3 * 0.8585, abs=0.01
    )


def test_real_scans_lie_on_each_other(samples: Path) -> None:
    """Merging by the poses brings walls onto walls.

    What stands up has nearer neighbours in the other scan by it.
    """
    from scipy.spatial import cKDTree

    frame = frames(
        load_config(
            [f"{ROOT}/tests/configs/semantickitti.yaml", f"data.root={samples / 'semantickitti'}"]
        ).data
    )[3]
    cloud = merge(frame, 4, SweepLayout(4, 1.0, 1.0))
    rows = np.flatnonzero((cloud.sweep == 3) & (cloud.xyz[:, 2] > -0.5))[::20]
    unmoved = read_sweep(frame.sweeps[3], SweepLayout(4))[cloud.source[rows], :3]
    key = cKDTree(cloud.xyz[cloud.sweep == 0])
    assert np.median(key.query(cloud.xyz[rows])[0]) < 0.5 * np.median(key.query(unmoved)[0])


# --- geometry -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(4))
def test_each_camera_projects_as_its_matrix(root: Path, number: int) -> None:
    (root / "sequences/08/image_2").rename(root / f"sequences/08/image_{number}")
    frame = frames(made(root, camera=f"image_{number}", train=("val",)))[5]
    xyz = np.random.default_rng(0).uniform((5, -3, -1), (30, 3, 1), (200, 3)).astype(np.float32)
    in_first = xyz @ TR[:, :3].T + TR[:, 3]
    right = K @ (in_first - [RIGHT_M[number], 0, 0]).T
    uv = (right[:2] / right[2]).T
    pairs = project(xyz, frame.sweeps[0].global_from_lidar, frame.cameras, 1.0)
    assert len(pairs) > 100
    np.testing.assert_allclose(pairs.uv, uv[pairs.point], atol=1e-3)


def test_sweeps_are_the_scans_before(root: Path) -> None:
    found = frames(made(root, train=("val",)))
    assert [len(frame.sweeps) for frame in found] == [*range(1, 12), 11, 11]
    cloud = merge(found[12], 11, SweepLayout(4, 1.0))
    still = cloud.xyz[cloud.source == 0]
    assert len(still) == 11
    np.testing.assert_allclose(still, np.tile(still[0], (11, 1)), atol=1e-4)
    assert found[12].sweeps[10].points.path.name == "000002.bin"


def test_splits_names_and_test_sequences(root: Path) -> None:
    assert [len(SPLITS[name]) for name in ("train", "val", "test")] == [10, 1, 11]
    found = rows(made(root))
    assert {row.frame.scene: (row.train, row.eval) for row in found} == {
        "01": (True, False),
        "08": (False, True),
    }
    tested = frames(made(root, train=("1",), eval=("test",), camera=""))
    assert {frame.scene for frame in tested if frame.labels is None} == {"11"}
    assert not any(frame.cameras for frame in tested)
    with pytest.raises(BadInput, match="no sequence of '05'"):
        rows(made(root, eval=("05",)))


def test_sequences_that_a_split_lacks_are_reported(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index = make_index(
        Config(data=made(root, train=("01",), eval=("test",)), store=str(root / "store"))
    )
    assert "data.eval: 1 of 11 scenes of 'test' are there" in caplog.messages
    assert index.manifest()["counts"]["absent_eval"] == 10


def test_instances_stay_out() -> None:
    assert labels(np.array([40, (7 << 16) | 252, 0xFFFF0000], "<u4").tobytes()).tolist() == [
        40,
        252,
        0,
    ]


def test_new_files_make_a_new_index(root: Path) -> None:
    config = made(root)
    reader = DATASETS["semantickitti"]
    before = digest_files(reader.tables(config))
    assert digest_files(reader.tables(config)) == before
    (root / "sequences/08/labels/000003.label").unlink()
    assert digest_files(reader.tables(config)) != before


# --- bad input ------------------------------------------------------------------------------------


def edit(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))


def short_tables(folder: Path) -> str:
    for name in ("poses.txt", "times.txt"):
        edit(folder / name, lambda lines: lines[:12])
    return r"000012.bin: has no row in poses.txt, which ends after 12"


def short_label(folder: Path) -> str:
    path = folder / "labels/000012.label"
    path.write_bytes(path.read_bytes()[:-8])
    return r"000012.label: labels 118 points, the scan has 120"


def no_image(folder: Path) -> str:
    (folder / "image_2/000012.png").unlink()
    return r"000012.png: cannot be read"


def cut_image(folder: Path) -> str:
    path = folder / "image_2/000012.png"
    path.write_bytes(path.read_bytes()[:-12])
    return r"000012.png: is truncated"


def folder_for_image(folder: Path) -> str:
    path = folder / "image_2/000012.png"
    path.unlink()
    path.mkdir()
    return r"000012.png: is not a file; copy the file again"


def broken_link(folder: Path) -> str:
    path = folder / "velodyne/000012.bin"
    path.unlink()
    path.symlink_to("gone.bin")
    return r"000012.bin: is a broken link; copy the file again"


def no_scan(folder: Path) -> str:
    (folder / "velodyne/000012.bin").unlink()
    return r"^scan is missing$"


def skewed_pose(folder: Path) -> str:
    edit(folder / "poses.txt", lambda lines: [*lines[:12], line(np.ones(12))])
    return r"poses.txt:13: matrix is not a rotation"


def with_time(time: str) -> Callable[[Path], str]:
    def damage(folder: Path) -> str:
        edit(folder / "times.txt", lambda lines: [*lines[:12], time])
        return r"000012.bin: its time in times.txt is \S+ s; it must be in 0 .. 1e\+10 s"

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        *(
            short_tables,
            short_label,
            no_image,
            cut_image,
            folder_for_image,
            broken_link,
            no_scan,
            skewed_pose,
        ),
        *(with_time(time) for time in ("1e10", "-1", "inf", "nan", "1e300")),
    ],
)
def test_a_bad_scan_is_left_out_by_name(root: Path, damage: Callable[[Path], str]) -> None:
    message = damage(root / "sequences/08")
    found = rows(made(root, train=("val",)))
    assert [isinstance(row.frame, Skip) for row in found] == [False] * 12 + [True]
    assert isinstance(found[-1].frame, Skip)
    assert found[-1].frame.frame == "08/000012"
    assert re.search(message, found[-1].frame.reason)


def test_a_gap_in_the_labels_is_a_bad_scan_and_their_end_is_not(root: Path) -> None:
    for i in (3, 11, 12):
        (root / f"sequences/08/labels/{i:06d}.label").unlink()
    found = [row.frame for row in rows(made(root, train=("val",)))]
    assert [i for i, frame in enumerate(found) if isinstance(frame, Skip)] == [3]
    assert isinstance(found[3], Skip)
    assert re.search(r"labels/000003.label: cannot be read", found[3].reason)
    assert [frame.labels is None for frame in found[10:] if isinstance(frame, Frame)] == [
        False,
        True,
        True,
    ]


def far(K: np.ndarray, away_m: float) -> np.ndarray:
    return K @ np.column_stack([np.eye(3), [0.0, 0.0, away_m]])


@pytest.mark.parametrize(
    ("name", "matrix", "message"),
    [
        (
            "Tr",
            np.column_stack([TR[:, :3], [0.0, 0.0, 20.1]]),
            "calib.txt, Tr: the sensor is 20.1 m away",
        ),
        ("P2", far(K, -20.1), "calib.txt, P2: the sensor is 20.1 m away"),
        ("P2", far(K, np.nan), "calib.txt, P2: pose has entries that are not finite"),
    ],
)
def test_an_impossible_rig_is_refused(
    root: Path, name: str, matrix: np.ndarray, message: str
) -> None:
    given = f"{name}: {line(matrix)}\n"
    edit(
        root / "sequences/08/calib.txt",
        lambda lines: [given if text.startswith(name) else text for text in lines],
    )
    for row in rows(made(root, train=("val",))):
        assert isinstance(row.frame, Skip)
        assert message in row.frame.reason


def test_a_missing_scan_is_counted_as_missing_sweeps(root: Path) -> None:
    (root / "sequences/08/velodyne/000005.bin").unlink()
    found = rows(made(root, train=("val",)))
    assert [row.missing_sweeps for row in found] == [0] * 6 + [1] * 7
    assert found[5].frame == Skip("08/000005", "08", "scan is missing")


def test_a_missing_camera_names_those_there(root: Path) -> None:
    with pytest.raises(
        BadInput, match=r"image_0: this camera is missing.*image_2: set data.semantickitti.camera"
    ):
        rows(made(root, camera="image_0"))
    with pytest.raises(
        BadInput, match=r"is 'image_9' \(command line\); it must be image_0, image_1"
    ):
        load_config(["data.semantickitti.camera=image_9"])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("calib.txt", "P0: 1 2 3", "has no P1"),
        ("poses.txt", "1 0 0 0\n", r"poses.txt:1: holds 4 numbers instead of 12"),
        ("times.txt", "noon\n", "text that is not a number"),
        ("times.txt", "0\n0.1\n", r"08: poses.txt has 13 rows, times.txt has 2"),
        ("calib.txt", "P0: 1\nP0: 2\n", "calib.txt: has P0 twice"),
        ("velodyne/scan.bin", "", "not named like a scan"),
        ("labels/scan.label", "", "not named like a scan"),
    ],
)
def test_a_bad_sequence_ends_the_run(root: Path, name: str, text: str, message: str) -> None:
    (root / "sequences/08" / name).write_text(text)
    with pytest.raises(BadInput, match=message):
        rows(made(root))


@pytest.mark.parametrize("name", ["velodyne", "labels"])
def test_an_empty_folder_ends_the_run(root: Path, name: str) -> None:
    for path in (root / "sequences/08" / name).iterdir():
        path.unlink()
    with pytest.raises(BadInput, match=rf"08/{name}: holds no"):
        rows(made(root))


@pytest.mark.parametrize(
    "name",
    [
        *("sequences", "sequences/08"),
        *(
            f"sequences/08/{part}"
            for part in ("calib.txt", "poses.txt", "times.txt", "velodyne", "labels", "image_2")
        ),
    ],
)
def test_what_lies_outside_of_the_root_is_refused_unread(
    root: Path, tmp_path: Path, name: str
) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (root / "sequences").rename(inside / "sequences")
    outside = (inside / name).rename(tmp_path / "outside")
    if outside.is_file():
        outside.write_text("secret")
    (inside / name).symlink_to(outside)
    for read in (DATASETS["semantickitti"].tables, rows):
        with pytest.raises(BadInput, match="leaves the data root") as refused:
            read(made(inside))
        assert "secret" not in str(refused.value)


def test_a_missing_text_file_ends_the_run(root: Path) -> None:
    (root / "sequences/01/calib.txt").unlink()
    with pytest.raises(BadInput, match=r"calib.txt: is missing"):
        rows(made(root))


def test_unknown_ids_are_named_with_their_count() -> None:
    raw = labels(np.array([10, 77, 77 | (3 << 16), 40], "<u4").tobytes())
    with pytest.raises(BadInput, match=r"77 \(2 points\)"):
        load_space(LabelsConfig(space="semantickitti19")).from_raw(raw, Path("x.label"))
