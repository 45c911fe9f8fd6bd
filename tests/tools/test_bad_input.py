"""Bad input: one clear line and status 1, or, with on_bad=skip, a frame less and a record of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipsweep.pipeline.artifacts.store import Artifact
from tests.helpers import LABELS_HW, Run, settings


def key_sweep(root: Path) -> Path:
    return sorted((root / "samples/LIDAR_TOP").glob("*.bin"))[1]


def key_image(root: Path) -> Path:
    return sorted((root / "samples/CAM_FRONT").glob("*.jpg"))[1]


def edit_table(root: Path, name: str, change: Callable[[list], None]) -> None:
    path = root / "v1.0-mini" / f"{name}.json"
    rows = json.loads(path.read_text())
    change(rows)
    path.write_text(json.dumps(rows))


def cut_points(root: Path) -> str:
    path = key_sweep(root)
    path.write_bytes(path.read_bytes()[:-7])
    return path.name


def empty_points(root: Path) -> str:
    key_sweep(root).write_bytes(b"")
    return key_sweep(root).name


def fewer_points(root: Path) -> str:
    path = key_sweep(root)
    path.write_bytes(path.read_bytes()[: -20 * 5])
    return "lidarseg.bin"  # its length shows the damage


def few_points(root: Path) -> str:
    path = key_sweep(root)
    path.write_bytes(path.read_bytes()[:200])
    return "min_points"


def nan_points(root: Path) -> str:
    path = key_sweep(root)
    points = np.fromfile(path, np.float32)
    points[::50] = np.nan
    points.tofile(path)
    return path.name


def cut_jpeg(root: Path) -> str:
    path = key_image(root)
    path.write_bytes(path.read_bytes()[:-900])
    return path.name


def html_jpeg(root: Path) -> str:
    key_image(root).write_text("<html>404</html>")
    return key_image(root).name


def other_jpeg_size(root: Path) -> str:
    Image.new("RGB", (80, 45)).save(key_image(root))
    return key_image(root).name


def other_label_size(root: Path) -> str:
    path = root / "labels2d" / key_image(root).relative_to(root).with_suffix(".png")
    Image.new("L", (40, 20)).save(path)
    return path.name


def no_label_image(root: Path) -> str:
    path = root / "labels2d" / key_image(root).relative_to(root).with_suffix(".png")
    path.unlink()
    return path.name


def no_rotation(root: Path) -> str:
    def change(rows: list) -> None:
        sample = next(
            row
            for row in json.loads((root / "v1.0-mini/sample_data.json").read_text())
            if row["is_key_frame"]
        )
        row = next(row for row in rows if row["token"] == sample["ego_pose_token"])
        row["rotation"] = [2 * value for value in row["rotation"]]

    edit_table(root, "ego_pose", change)
    return "ego_pose"


def leaves_root(root: Path) -> str:
    def change(rows: list) -> None:
        next(row for row in rows if "CAM_BACK/" in row["filename"])["filename"] = "../../secret.jpg"

    edit_table(root, "sample_data", change)
    return "leaves the data root"


def link_leaves_root(root: Path) -> str:
    path = key_image(root)
    outside = root.parent / "outside.jpg"
    path.rename(outside)
    path.symlink_to(outside)
    return "leaves the data root"


def link_in_a_circle(root: Path) -> str:
    path = key_image(root)
    path.unlink()
    path.symlink_to(path.name)
    return path.name


def older_leaves_root(root: Path) -> str:
    """A name that is no file: it may not be taken for a sweep that is missing."""

    def change(rows: list) -> None:
        older = [row for row in rows if "sweeps/LIDAR_TOP" in row["filename"]]
        older[3]["filename"] = "../../secret.bin"

    edit_table(root, "sample_data", change)
    return "leaves the data root"


def _long_name(root: Path, folder: str) -> str:
    def change(rows: list) -> None:
        named = [row for row in rows if folder in row["filename"]]
        named[1]["filename"] = f"{folder}/{'a' * 5000}.bin"

    edit_table(root, "sample_data", change)
    return "characters; a file system takes"


def long_name(root: Path) -> str:
    return _long_name(root, "samples/LIDAR_TOP")


def long_older_name(root: Path) -> str:
    return _long_name(root, "sweeps/LIDAR_TOP")


def no_time(root: Path) -> str:
    def change(rows: list) -> None:
        named = [row for row in rows if "samples/LIDAR_TOP" in row["filename"]]
        named[1]["timestamp"] = float("nan")

    edit_table(root, "sample_data", change)
    return "timestamp nan is none; it must be a whole number"


def jump(root: Path) -> str:
    data = json.loads((root / "v1.0-mini/sample_data.json").read_text())
    token = next(row["ego_pose_token"] for row in data if key_sweep(root).name in row["filename"])

    def change(rows: list) -> None:
        next(row for row in rows if row["token"] == token)["translation"][0] += 1000.0

    edit_table(root, "ego_pose", change)
    return "m/s"


FRAMES = [
    *(
        cut_points,
        empty_points,
        fewer_points,
        few_points,
        nan_points,
        cut_jpeg,
        html_jpeg,
        other_jpeg_size,
    ),
    *(
        other_label_size,
        no_label_image,
        no_rotation,
        leaves_root,
        link_leaves_root,
        link_in_a_circle,
        older_leaves_root,
        long_name,
        long_older_name,
        no_time,
        jump,
    ),
]


@pytest.mark.parametrize("damage", FRAMES, ids=lambda f: f.__name__)
def test_a_bad_frame_ends_the_run_or_is_left_out(
    world: Path, tmp_path: Path, tool: Run, damage: Callable[[Path], str]
) -> None:
    named = damage(world)
    given = settings(world, tmp_path / "store")
    failed = tool("label", *given)
    assert (failed.status, failed.out) == (1, "")
    assert len(failed.err.strip().splitlines()) == 1
    assert failed.err.startswith("error: ")
    assert named in failed.err
    assert not list((tmp_path / "store").glob("points-*"))
    assert not list((tmp_path / "store").rglob("*.tmp"))

    points = tool("label", *given, "on_bad=skip")
    assert points.status == 0
    last = points.err.strip().splitlines()[-1]
    assert last.startswith("left out ")
    assert named in last
    skipped = Artifact(points.path).skipped()
    assert 1 <= len(skipped) < 6
    assert all(named in skip.reason for skip in skipped[:1])
    # what is left still makes a student that is scored on the frames that are left
    student = tool("pretrain", *given, "on_bad=skip")
    assert student.status == 0
    assert "left out " in student.err


def missing_table(root: Path) -> str:
    (root / "v1.0-mini/calibrated_sensor.json").unlink()
    return "calibrated_sensor.json"


def broken_table(root: Path) -> str:
    (root / "v1.0-mini/sample.json").write_text("[{")
    return "cannot load"


def no_split(root: Path) -> str:
    edit_table(root, "scene", lambda rows: [row.update(name="scene-9999") for row in rows])
    return "mini_train"


def scene_name_list(root: Path) -> str:
    edit_table(root, "scene", lambda rows: rows[0].update(name=["scene-0061"]))
    return "has the name ['scene-0061'], which is no text; unpack"


@pytest.mark.parametrize(
    "damage", [missing_table, broken_table, no_split, scene_name_list], ids=lambda f: f.__name__
)
def test_bad_tables_end_the_run_whatever_on_bad_says(
    world: Path, tmp_path: Path, tool: Run, damage: Callable[[Path], str]
) -> None:
    named = damage(world)
    failed = tool("index", *settings(world, tmp_path / "store"), "on_bad=skip")
    assert failed.status == 1
    assert named in failed.err
    assert len(failed.err.strip().splitlines()) == 1
    assert not (tmp_path / "store").exists()


def drop_cameras(root: Path, frames: slice = slice(None)) -> None:
    def change(rows: list) -> None:
        samples = sorted({row["sample_token"] for row in rows})[frames]
        gone = [r for r in rows if "CAM_" in r["filename"] and r["sample_token"] in samples]
        rows[:] = [row for row in rows if row not in gone]

    edit_table(root, "sample_data", change)


def test_data_without_cameras_cannot_be_labelled_but_predicted(
    world: Path, tmp_path: Path, tool: Run
) -> None:
    given = settings(world, tmp_path / "store")
    student = tool("pretrain", *given).path
    drop_cameras(world)
    for name in ("label", "pretrain"):
        refused = tool(name, *given)
        assert (refused.status, refused.out) == (1, "")
        assert refused.err.startswith(f"error: {world}: no key frame has a camera image; labels ")
    scored = tool("evaluate", *given, f"student={student}").path
    assert json.loads((scored / "scores.json").read_text())["frames"] == 3
    assert tool("finetune", *given, "student=none", "protocol=scene@100%").status == 0


def test_key_frames_without_a_camera_are_reported(world: Path, tmp_path: Path, tool: Run) -> None:
    drop_cameras(world, slice(2))
    for _ in range(2):
        labelled = tool("label", *settings(world, tmp_path / "store"))
        assert labelled.status == 0
        assert f"{world}: 2 of 6 key frames have no camera image, first " in labelled.err


def test_label_images_of_other_ids_are_refused(world: Path, tmp_path: Path, tool: Run) -> None:
    ids = np.full(LABELS_HW, 10, np.uint8)  # sky, and trains: no class of nuScenes
    ids[0] = 16
    for path in (world / "labels2d").rglob("*.png"):
        Image.fromarray(ids).save(path)
    for _ in range(2):  # the second finds the labels of the first
        refused = tool("label", *settings(world, tmp_path / "store"))
        assert (refused.status, refused.out) == (1, "")
        (line,) = refused.err.splitlines()
        assert line.startswith("error: teacher.precomputed.map=cityscapes19: no pixel of 36 images")
        assert ".jpg has ids 10, 16; none of them " in line


def test_a_pixel_of_an_id_that_the_map_does_not_know_is_refused(
    world: Path, tmp_path: Path, tool: Run
) -> None:
    path = next((world / "labels2d").rglob("*.png"))
    ids = np.array(Image.open(path))
    ids[0, 0] = 19
    Image.fromarray(ids).save(path)
    refused = tool("label", *settings(world, tmp_path / "store"))
    assert (refused.status, refused.out) == (1, "")
    assert f"{path.name}: has the id 19, the map knows 0 to 18 and 255" in refused.err


def test_a_file_that_changed_after_indexing_is_refused(
    world: Path, tmp_path: Path, tool: Run
) -> None:
    given = settings(world, tmp_path / "store")
    tool("index", *given)
    cut_points(world)
    failed = tool("label", *given)
    assert failed.status == 1
    assert "when indexed" in failed.err


def test_a_flipped_byte_is_found_by_the_hash(world: Path, tmp_path: Path, tool: Run) -> None:
    given = [*settings(world, tmp_path / "store"), "data.hash=true"]
    tool("index", *given)
    path = key_sweep(world)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    failed = tool("label", *given)
    assert failed.status == 1
    assert "sha256" in failed.err


def test_missing_earlier_sweeps_are_counted(world: Path, tmp_path: Path, tool: Run) -> None:
    gone = sorted((world / "sweeps/LIDAR_TOP").glob("*.bin"))[::2]
    for path in gone:
        path.unlink()
    index = tool("index", *settings(world, tmp_path / "store")).path
    assert Artifact(index).manifest()["counts"]["missing_sweeps"] >= len(gone)


def test_a_few_bad_points_may_be_allowed(world: Path, tmp_path: Path, tool: Run) -> None:
    path = key_sweep(world)
    points = np.fromfile(path, np.float32).reshape(-1, 5)
    points[7] = np.nan
    points.tofile(path)
    given = [
        *settings(world, tmp_path / "store"),
        "data.bad_share=0.01",
        "data.eval=mini_train,mini_val",
    ]
    student = tool("pretrain", *given).path
    out = tool("export_labels", *given, f"student={student}").path
    token = next(
        r["token"]
        for r in json.loads((world / "v1.0-mini/sample_data.json").read_text())
        if path.name in r["filename"]
    )
    assert np.fromfile(next(out.rglob(f"{token}*.bin")), np.uint8).size == len(points)


def older_sweep(root: Path) -> Path:
    return sorted((root / "sweeps/LIDAR_TOP").glob("*.bin"))[3]


def test_a_bad_older_sweep_is_left_out_alone(world: Path, tmp_path: Path, tool: Run) -> None:
    path = older_sweep(world)
    points = np.fromfile(path, np.float32)
    points[::20] = np.nan
    points.tofile(path)
    given = [
        *settings(world, tmp_path / "store"),
        "data.eval=mini_train,mini_val",
        "model.sweeps=10",
    ]
    tool("label", *given, "on_bad=skip")
    refused = tool("pretrain", *given, "on_bad=fail")
    assert refused.status == 1
    assert path.name in refused.err
    made = tool("pretrain", *given, "on_bad=skip")
    # by the training itself
    met = [skip for skip in Artifact(made.path).skipped() if not skip.scene]
    assert [path.name in skip.reason for skip in met] == [True]
    scored = tool("evaluate", *given, "on_bad=skip", f"student={made.path}")
    assert json.loads((scored.path / "scores.json").read_text())["frames"] == 6  # none of them lost
    assert {skip.frame for skip in Artifact(scored.path).skipped()} == {None}
    manifest = Artifact(scored.path).manifest()
    assert {row["frame"] for row in manifest["skipped"]} == {"(an older sweep)"}


def test_fine_tuning_leaves_bad_frames_out(world: Path, tmp_path: Path, tool: Run) -> None:
    named = nan_points(world)
    given = [*settings(world, tmp_path / "store"), "student=none", "protocol=frame@100%"]
    refused = tool("finetune", *given)
    assert refused.status == 1
    assert named in refused.err
    tuned = tool("finetune", *given, "on_bad=skip")
    assert named in tuned.err.strip().splitlines()[-1]
    assert len(Artifact(tuned.path).manifest()["labelled_frames"]) == 2


def test_unknown_ids_in_a_label_file_cost_its_frame(world: Path, tmp_path: Path, tool: Run) -> None:
    given = [*settings(world, tmp_path / "store"), "data.eval=mini_train,mini_val"]
    points = tool("label", *given).path
    path = sorted((world / "lidarseg/v1.0-mini").glob("*.bin"))[0]
    path.write_bytes(b"\x63" + path.read_bytes()[1:])
    refused = tool("evaluate", *given, f"pseudo_labels={points}")
    assert refused.status == 1
    assert "99" in refused.err
    scored = tool("evaluate", *given, f"pseudo_labels={points}", "on_bad=skip")
    assert scored.err.strip().splitlines()[-1].startswith("left out 1 frame(s)")
    assert json.loads((scored.path / "scores.json").read_text())["frames"] == 5


def test_traceback_on_demand(tmp_path: Path, tool: Run) -> None:
    short = tool("index", f"data.root={tmp_path}")
    long = tool("index", f"data.root={tmp_path}", "--traceback")
    assert "Traceback" not in short.err
    assert "Traceback" in long.err
