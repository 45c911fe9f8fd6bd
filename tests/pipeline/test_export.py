"""Official formats.

What is written is what SemanticKITTI's evaluator reads, and scores as ours do.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from clipsweep.distill.metrics import Confusion
from clipsweep.pipeline.datasets import DATASETS, semantickitti
from clipsweep.pipeline.datasets.export import pseudo_labels, submission
from clipsweep.pipeline.datasets.semantickitti import labels
from clipsweep.pipeline.labels import LabelsConfig, LabelSpace, load_space
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import Frame, PointLabels
from tests.pipeline.test_labels import LEARNING_MAP

KITTI = semantickitti.PREDICTIONS


@pytest.fixture
def space() -> LabelSpace:
    return load_space(LabelsConfig(space="semantickitti19"))


def frame(id: str) -> Frame:
    return Frame(id, id.split("/")[0], 0, (), (), None)


def official_scores(pairs: list[tuple[Path, Path]]) -> tuple[np.ndarray, list[float], float, float]:
    """SemanticKITTI's evaluation of (truth, prediction) files, point by point by its formulas.

    Rows of the matrix are predictions and columns truth, 20 classes with 0 for what is ignored;
    truth 0 is dropped. Answers the matrix, IoU of classes 1..19, their mean, and the accuracy.
    """
    matrix = np.zeros((20, 20), np.int64)
    for truth, predicted in pairs:
        for t, s in zip(
            *(np.fromfile(path, np.uint32) % 65536 for path in (truth, predicted)), strict=True
        ):
            matrix[LEARNING_MAP[int(s)], LEARNING_MAP[int(t)]] += 1
    kept = matrix.copy()
    kept[:, 0] = 0
    right = [int(kept[c, c]) for c in range(20)]
    wrong = [int(kept[c].sum()) - right[c] for c in range(20)]
    missed = [int(kept[:, c].sum()) - right[c] for c in range(20)]
    iou = [right[c] / (right[c] + wrong[c] + missed[c] + 1e-15) for c in range(1, 20)]
    accuracy = sum(right) / (sum(right[1:]) + sum(wrong[1:]) + 1e-15)
    return kept, iou, sum(iou) / 19, accuracy


@pytest.mark.parametrize("classes", [19, 7])
def test_scores_equal_the_official_formulas(
    space: LabelSpace, tmp_path: Path, classes: int
) -> None:
    """On random files; with seven classes the others are absent, which counts as zero."""
    rng = np.random.default_rng(classes)
    ids = [i for i, c in LEARNING_MAP.items() if c <= classes]
    truth_files = []
    predicted = []
    for i in range(3):
        raw = rng.choice(ids, 4000) | (rng.integers(0, 1 << 16, 4000) << 16)
        truth_files.append(tmp_path / f"{i:06d}.label")
        raw.astype("<u4").tofile(truth_files[-1])
        predicted.append(rng.integers(0, classes, 4000).astype(np.uint8))
    frames = [frame(f"08/{i:06d}") for i in range(3)]
    submission(KITTI, tmp_path / "out", "val", space, zip(frames, predicted, strict=True))
    written = [tmp_path / f"out/sequences/08/predictions/{i:06d}.label" for i in range(3)]

    truth = [space.from_raw(labels(path.read_bytes()), path) for path in truth_files]
    check_scores(
        Confusion.of(np.concatenate(truth), np.concatenate(predicted), 19),
        list(zip(truth_files, written, strict=True)),
    )


def test_scores_of_real_labels_equal_the_official_formulas(
    space: LabelSpace, samples: Path, tmp_path: Path
) -> None:
    """A prediction that is right for two points of three."""
    path = samples / "semantickitti/sequences/00/labels/000000.label"
    truth = space.from_raw(labels(path.read_bytes()), path)
    rng = np.random.default_rng(0)
    predicted = np.where(
        (rng.random(len(truth)) < 2 / 3) & (truth < 19), truth, rng.integers(0, 19, len(truth))
    )
    submission(
        KITTI, tmp_path / "out", "train", space, [(frame("00/000000"), predicted.astype(np.uint8))]
    )
    written = tmp_path / "out/sequences/00/predictions/000000.label"
    check_scores(Confusion.of(truth, predicted.astype(np.uint8), 19), [(path, written)])


def check_scores(ours: Confusion, files: list[tuple[Path, Path]]) -> None:
    """Our counts and scores against those of (truth, prediction) files."""
    matrix, iou, mean, accuracy = official_scores(files)
    np.testing.assert_array_equal(ours.counts[:, :19], matrix[1:, 1:].T)
    np.testing.assert_allclose(ours.iou("zero"), iou, rtol=1e-12)
    assert ours.miou("zero") == pytest.approx(mean, rel=1e-12)
    assert ours.accuracy == pytest.approx(accuracy, rel=1e-12)


def test_a_kitti_submission_and_its_zip(space: LabelSpace, tmp_path: Path) -> None:
    predicted = [(frame(f"{s}/{i:06d}"), np.full(5, s, np.uint8)) for s in (11, 12) for i in (0, 4)]
    for out in ("a", "b"):
        submission(KITTI, tmp_path / out, "test", space, predicted)
    assert (
        np.fromfile(tmp_path / "a/sequences/11/predictions/000004.label", "<u4").tolist()
        == [49] * 5
    )
    archive = tmp_path / "a/submission.zip"
    assert archive.read_bytes() == (tmp_path / "b/submission.zip").read_bytes()
    with zipfile.ZipFile(archive) as file:
        folders = {info.filename for info in file.infolist() if info.is_dir()}
        files = {info.filename: info.file_size for info in file.infolist() if not info.is_dir()}
    assert folders == {"sequences/"} | {
        f"sequences/{s}/{rest}" for s in (11, 12) for rest in ("", "predictions/")
    }
    assert files == {
        f"sequences/{s}/predictions/{i:06d}.label": 20 for s in (11, 12) for i in (0, 4)
    }


def test_kitti_pseudo_labels_are_no_entry(space: LabelSpace, tmp_path: Path) -> None:
    points = PointLabels(
        np.array([0, 255], np.uint8), np.array([0.5, 0], np.float16), np.array([1, 0], np.float16)
    )
    pseudo_labels(KITTI, tmp_path / "out", "train", space, [(frame("00/000001"), points)])
    path = tmp_path / "out/sequences/00/predictions/000001.label"
    assert np.fromfile(path, "<u4").tolist() == [10, 0]
    assert np.load(path.with_suffix(".npz"))["score"].tolist() == [0.5, 0]
    assert not (tmp_path / "out/submission.zip").exists()


@pytest.mark.parametrize(
    ("format", "name", "id", "label", "message"),
    [
        ("nuscenes", "semantickitti19", "00/000001", 0, "no ids in this format"),
        ("semantickitti", "nuscenes16", "00/000001", 0, "no ids in this format"),
        ("semantickitti", "semantickitti19", "../000001", 0, "no sequence and scan"),
        ("semantickitti", "semantickitti19", "00/000001", 255, "points without a class"),
    ],
)
def test_what_is_no_submission_is_refused_and_leaves_nothing(
    tmp_path: Path, format: str, name: str, id: str, label: int, message: str
) -> None:
    predicted = [(frame(id), np.full(3, label, np.uint8))]
    with pytest.raises(BadInput, match=message):
        submission(
            DATASETS[format].export,
            tmp_path / "out",
            "val",
            load_space(LabelsConfig(space=name)),
            predicted,
        )
    assert not list(tmp_path.iterdir())
