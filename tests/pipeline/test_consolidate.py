"""Labels by a student, rounds of pre-training, and semi-supervised fine-tuning on a small world."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from clipsweep.pipeline.artifacts.read import read_points
from clipsweep.pipeline.config import load_config
from clipsweep.pipeline.stages.consolidate import collapse_warnings
from clipsweep.pipeline.stages.index import make_index, scene_frames, scenes_of
from clipsweep.pipeline.stages.labelled import labelled_frames, open_labels, open_points
from tests.helpers import Run, settings

POINTS = ("objectives.semantic.targets=points",)


@pytest.fixture
def given(small_world: Path, tmp_path: Path) -> list[str]:
    return [*settings(small_world, tmp_path / "store"), *POINTS]


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def test_a_student_labels_every_point(given: list[str], tool: Run) -> None:
    student = tool("pretrain", *given).path
    points = tool("label", *given, f"student={student}").path
    config = load_config(given)
    index = make_index(config)
    made = open_points(config, index, str(points))
    for frame, label in labelled_frames(config, index, made):
        assert len(label) == frame.sweeps[0].points.bytes // 20
        assert (label < 16).all()
        assert (read_points(made, frame).score > 0).mean() > 0.9
    assert manifest(points)["key"]["protocol"] == "annotation-free"
    counts = manifest(points)["counts"]
    of_class = sum(count for name, count in counts.items() if name.startswith("class "))
    assert of_class == counts["labelled"] == counts["points"] > 0
    scores = json.loads(
        (tool("evaluate", *given, f"pseudo_labels={points}").path / "scores.json").read_text()
    )
    assert scores["protocol"] == "annotation-free"
    assert scores["uses_later_frames"]
    # covers what it is asked for alone
    alone = tool("label", *given, f"student={student}", "consolidation.teacher_weight=0").path
    assert alone != points


def test_views_and_cells_of_one_are_the_prediction(given: list[str], tool: Run) -> None:
    student = str(tool("pretrain", *given).path)
    config = load_config([*given, "consolidation.views=1", "consolidation.cell_weight=0"])
    index = make_index(config)
    plain = labelled_frames(config, index, open_labels(config, index, student, ""))
    consolidated = open_labels(config, index, student, "", consolidate=True)
    for (_, one), (_, other) in zip(
        plain, labelled_frames(config, index, consolidated), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_a_consolidated_score_says_whether_it_uses_later_frames(
    given: list[str], tool: Run
) -> None:
    student = f"student={tool('pretrain', *given).path}"

    def score(*settings: str) -> dict:
        path = tool("evaluate", *given, student, *settings).path
        return json.loads((path / "scores.json").read_text())

    assert not score()["uses_later_frames"]
    assert score("consolidate=true")["uses_later_frames"]
    causal = score("consolidate=true", "consolidation.future_s=0")
    assert not causal["uses_later_frames"]
    assert "covered" not in causal


def test_a_second_round_learns_the_labels_of_the_first(given: list[str], tool: Run) -> None:
    first = tool("pretrain", *given).path
    second = tool("pretrain", *given, "rounds=2").path
    assert second != first
    made = manifest(second)
    assert not made["used_labels"]
    points = next(
        path for path in second.parent.glob("points-*") if path.name == made["inputs"]["points"]
    )
    assert manifest(points)["key"]["student"]
    # the labels cover what no camera sees
    assert manifest(points)["counts"]["labelled"] == manifest(points)["counts"]["points"]
    assert sum(made["class_shares"].values()) == pytest.approx(1)
    assert tool("pretrain", *given, "rounds=2").path == second
    refused = tool("pretrain", *given, "rounds=2", "objectives.semantic.targets=pixels")
    assert refused.status == 1
    assert "rounds: is 2" in refused.err


def test_collapse_is_noticed() -> None:
    before = {"car": 0.2, "bus": 0.05, "road": 0.75}
    assert collapse_warnings(before, {"car": 0.2, "bus": 0.04, "road": 0.76}) == []
    lost = collapse_warnings(before, {"car": 0.2, "bus": 0.005, "road": 0.795})
    assert len(lost) == 1
    assert lost[0].startswith("bus falls from 5.00 to 0.50 %")
    assert any("entropy" in w for w in collapse_warnings(before, {"car": 0.05, "road": 0.95}))


def test_fine_tuning_learns_unlabelled_frames_beside(given: list[str], tool: Run) -> None:
    pretrained = tool("pretrain", *given).path
    tune = [*given, "protocol=frame@50%", f"student={pretrained}"]
    tuned = tool("finetune", *tune).path
    made = manifest(tuned)
    config = load_config(given)
    index = make_index(config)
    frames = [
        f.id for scene in scenes_of(index, "train") for f in scene_frames(index, config, scene)
    ]
    assert made["labelled_frames"] == frames[::2]
    assert made["unlabelled_frames"] == frames[1::2]
    assert made["protocol"] == "frame@50%+unlabelled"
    line = json.loads((tuned / "metrics.jsonl").read_text().splitlines()[0])
    assert "unlabelled cross_entropy" in line["terms"]
    scores = tool("evaluate", *given, f"student={tuned}").path / "scores.json"
    assert json.loads(scores.read_text())["protocol"] == "frame@50%+unlabelled"
    before = load_file(pretrained / "model.safetensors")
    after = load_file(tuned / "model.safetensors")
    statistics = [name for name in before if "running" in name]
    assert statistics
    assert all(before[name].equal(after[name]) for name in statistics)  # norms are frozen
    plain = tool("finetune", *tune, "finetune.unlabelled=none").path
    assert manifest(plain)["protocol"] == "frame@50%"
    assert manifest(plain)["unlabelled_frames"] == []
    assert tool("finetune", *tune, "finetune.unlabelled=self").path not in (plain, tuned)


def test_random_weights_may_learn_anothers_pseudo_labels(given: list[str], tool: Run) -> None:
    student = tool("pretrain", *given).path
    tune = [*given, "protocol=frame@50%", "student=none"]
    alone = tool("finetune", *tune)
    assert "labelled frames alone" in alone.err
    assert manifest(alone.path)["protocol"] == "frame@50%"
    points = tool("label", *given, f"student={student}").path
    tuned = tool("finetune", *tune, f"pseudo_labels={points}").path
    assert manifest(tuned)["protocol"] == "frame@50%+unlabelled"
    assert (
        "pseudo_labels"
        in tool("finetune", *tune, f"pseudo_labels={points}", "finetune.unlabelled=none").err
    )


def test_interpolated_weights_lie_between(given: list[str], tool: Run) -> None:
    pretrained = tool("pretrain", *given).path
    tune = [*given, "protocol=frame@50%", f"student={pretrained}"]
    name = "student.unet.stem1.weight"

    def tuned(share: float) -> torch.Tensor:
        student = tool("finetune", *tune, f"finetune.interpolate={share}").path
        return load_file(student / "model.safetensors")[name]

    whole = tuned(1)
    none = tuned(0)
    some = tuned(0.35)
    before = load_file(pretrained / "model.safetensors")[name]
    assert none.equal(before)
    assert not whole.equal(before)
    torch.testing.assert_close(some, 0.65 * before + 0.35 * whole)


def test_a_classifier_from_names_starts_with_the_students_probabilities(
    given: list[str], tool: Run
) -> None:
    pretrained = str(tool("pretrain", *given, "train.epochs=8").path)
    tune = [*given, "protocol=frame@50%", f"student={pretrained}", "train.epochs=0"]
    tuned = str(tool("finetune", *tune).path)
    config = load_config([*given, "consolidation.views=1", "consolidation.cell_weight=0"])
    index = make_index(config)

    def scores(student: str) -> tuple[np.ndarray, np.ndarray]:
        made = open_labels(config, index, student, "", consolidate=True)
        read = [read_points(made, frame) for frame, _ in labelled_frames(config, index, made)]
        return (
            np.concatenate([points.label for points in read]),
            np.concatenate([points.score for points in read]).astype(float),
        )

    label, score = scores(pretrained)
    same, tuned_score = scores(tuned)
    np.testing.assert_array_equal(label, same)
    assert abs(score - tuned_score).mean() < 0.05
