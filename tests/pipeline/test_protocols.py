"""Label fractions by rule, and no label where none may be seen."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from clipsweep.pipeline.artifacts.index import Row, to_parquet
from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.datasets import DataConfig
from clipsweep.pipeline.datasets.semantickitti import SemanticKittiConfig
from clipsweep.pipeline.stages.guard import LabelLeak, closed_files, label_folders, no_labels
from clipsweep.pipeline.stages.protocols import labelled_subset
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import File, Frame, Sweep
from clipsweep.projection.pose import Pose
from tests.helpers import Run, settings


def frames(scenes: int, each: int) -> list[Frame]:
    return [
        Frame(f"{s}-{i}", f"scene-{s}", i, (), (), None) for s in range(scenes) for i in range(each)
    ]


def test_scene_fractions_take_every_nth_scene_whole() -> None:
    chosen = labelled_subset("scene@1%", frames(700, 2))
    assert [frame.scene for frame in chosen[::2]] == [f"scene-{s}" for s in range(0, 700, 100)]
    assert len(chosen) == 14


def test_frame_fractions_take_every_nth_frame() -> None:
    every = frames(30, 10)
    assert labelled_subset("frame@25%", every) == every[::4]
    assert labelled_subset("frame@12.5%", every) == every[::8]
    assert labelled_subset("scene@100%", every) == every == labelled_subset("frame@100%", every)


@pytest.mark.parametrize("kind", ["scene", "frame"])
def test_there_is_always_something(kind: str) -> None:
    assert len(labelled_subset(f"{kind}@1%", frames(3, 2))) in (1, 2)


@pytest.mark.parametrize(
    "protocol",
    [
        *(
            "1%",
            "scene@0%",
            "scene@101%",
            "frame@67%",
            "point@1%",
            "scene@1",
            "scene@\u0661%",
            "scene@99.99999999%",
        ),
        *("scene@0.0000001%", "scene@33.333333%", "scene@0.009%"),
    ],
)
def test_other_protocols_are_refused(protocol: str) -> None:
    with pytest.raises(BadInput, match="scene@1%"):
        labelled_subset(protocol, frames(3, 2))


def test_the_guard_stops_any_way_of_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = tmp_path / "lidarseg" / "x_lidarseg.bin"
    link = tmp_path / "link.bin"
    for name in ("lidarseg", "work"):
        (tmp_path / name).mkdir()
    labels.write_bytes(b"123")
    link.symlink_to(labels)
    monkeypatch.chdir(tmp_path / "work")
    above = os.open(tmp_path, os.O_RDONLY)
    inside = os.open(labels.parent, os.O_RDONLY)
    attempts = [
        *(labels.read_bytes, labels.open, link.read_bytes, lambda: os.open(labels, os.O_RDONLY)),
        *(
            Path("../lidarseg/x_lidarseg.bin").read_bytes,
            lambda: os.open(os.fsencode(labels), os.O_RDONLY),
        ),
        lambda: os.open("x_lidarseg.bin", os.O_RDONLY, dir_fd=inside),
        lambda: os.open("lidarseg/x_lidarseg.bin", os.O_RDONLY, dir_fd=above),
    ]
    with no_labels(closed_files([labels.parent])):
        (tmp_path / "other").write_text("is not a label of this data set")
        for attempt in attempts:
            with pytest.raises(LabelLeak, match="annotation-free"):
                attempt()
        os.close(inside)
        os.close(os.open("other", os.O_RDONLY, dir_fd=above))
    assert labels.read_bytes() == b"123"
    os.close(above)


def test_a_leak_planted_in_pretraining_ends_it(
    small_world: Path, tmp_path: Path, tool: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipsweep.projection import fusion

    honest = fusion.merge
    planted = next((small_world / "lidarseg").rglob("*.bin"))

    def peeking(*arguments: object) -> object:
        if not list((tmp_path / "store").glob("student-*")):
            return honest(*arguments)  # the labelling stages come first
        planted.read_bytes()
        return honest(*arguments)

    monkeypatch.setattr(fusion, "merge", peeking)
    ended = tool("pretrain", *settings(small_world, tmp_path / "store"))
    assert (ended.status, ended.out) == (1, "")
    assert planted.name in ended.err.splitlines()[-1]
    assert not list((tmp_path / "store").glob("student-*/manifest.json"))


def test_every_label_folder_is_guarded_in_the_index_or_not(tmp_path: Path) -> None:
    """KITTI has a label folder a sequence; 08 is not in the index."""
    for name in ("00", "08"):
        (tmp_path / f"sequences/{name}/labels").mkdir(parents=True)
    index = Artifact(tmp_path / "index-0", suffix=".parquet")
    labels = File(tmp_path / "elsewhere/000000.label", 4)
    frame = Frame(
        "00/000000", "00", 0, (Sweep(0, Pose.identity(), File(tmp_path / "x.bin", 4)),), (), labels
    )
    index.commit("index", to_parquet([Row(frame, True, False)], tmp_path)[0])
    data = DataConfig("semantickitti", str(tmp_path), own=SemanticKittiConfig())
    found = label_folders(data, index)
    assert found == [
        tmp_path / "elsewhere",
        *(tmp_path / f"sequences/{name}/labels" for name in ("00", "08")),
    ]


def test_finetuning_says_what_it_used(small_world: Path, tmp_path: Path, tool: Run) -> None:
    import json

    given = settings(small_world, tmp_path / "store")
    pretrained = tool("pretrain", *given).path
    tuned = tool("finetune", *given, f"student={pretrained}", "protocol=frame@50%").path
    manifest = json.loads((tuned / "manifest.json").read_text())
    assert manifest["used_labels"] is True
    assert len(manifest["labelled_frames"]) == 2
    scores = tool("evaluate", *given, f"student={tuned}")
    assert "frame@50%" in scores.err
    assert json.loads((pretrained / "config.json").read_text())["used_labels"] is False
    none = ("student=none", "finetune.unlabelled=none")
    other = tool("finetune", *given, *none, "protocol=frame@50%").path
    assert other != tuned
    probe = tool("finetune", *given, f"student={pretrained}", "finetune.linear_probe=true").path
    assert probe not in (other, tuned)
    refused = tool("finetune", *given, f"student={pretrained}", "model.voxel_m=0.2")
    assert refused.status == 1
    assert "was made with model.voxel_m=0.4; not 0.2: leave model.* out" in refused.err
    without = [each for each in given if not each.startswith("model.")]
    again = tool("finetune", *without, f"student={pretrained}", "protocol=frame@50%").path
    assert again == tuned  # its network is the student's
    assert manifest["config"]["model"]["size"] == "tiny"


def test_the_classifier_starts_from_the_names(small_world: Path, tmp_path: Path, tool: Run) -> None:
    """Before the first step a student predicts of every point what it predicted before
    fine-tuning.
    """
    given = settings(small_world, tmp_path / "store")
    pretrained = tool("pretrain", *given).path

    def predictions(student: Path) -> list[np.ndarray]:
        tool("evaluate", *given, f"student={student}")
        (predictions,) = (
            path for path in (tmp_path / "store").glob("predictions-*") if path.name not in before
        )
        before.add(predictions.name)
        return list(load_file(next(predictions.glob("*.safetensors"))).values())

    before: set[str] = set()
    alone = predictions(pretrained)
    start = ("train.epochs=0", "protocol=frame@50%", f"student={pretrained}")
    named = predictions(tool("finetune", *given, *start).path)
    random = predictions(tool("finetune", *given, *start, "finetune.start=random").path)
    assert all(np.array_equal(one, other) for one, other in zip(alone, named, strict=True))
    assert not all(np.array_equal(one, other) for one, other in zip(alone, random, strict=True))
