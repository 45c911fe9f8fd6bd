"""The experiments' tables on a small world: every line equals the tools' own result."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.tools.benchmarks import experiments, few_labels, rounds, tables
from clipsweep.tools.benchmarks.experiments import Line
from tests.helpers import Run, settings


def test_the_fusion_table_ends_where_the_tools_do(
    small_world: Path, tmp_path: Path, tool: Run
) -> None:
    given = settings(small_world, tmp_path / "store")
    lines = {job.name: job.make() for job in experiments.fusion(given)}
    scored = tool("evaluate", *given, f"pseudo_labels={tool('label', *given).path}").path
    covered = json.loads((scored / "scores.json").read_text())["covered"]
    default = lines["default"]
    assert default.miou == [pytest.approx(covered["miou"])]
    assert default.accuracy == [pytest.approx(covered["accuracy"])]
    seen = [
        _points(lines[name]) for name in ("one pixel a point", "+ z-buffer", "votes in 0.4 m cells")
    ]
    assert seen[0] > seen[1] < seen[2]
    assert _points(lines["default, own frame alone"]) <= _points(default)


def _points(line: Line) -> int:
    return int(line.note.split()[0].replace(",", ""))


@pytest.mark.slow
def test_the_demo_table_scores_what_the_tools_make(
    small_world: Path, tmp_path: Path, tool: Run
) -> None:
    given = settings(small_world, tmp_path / "store")
    lines = {job.name: job.make() for job in experiments.steps(given)}
    scored = tool("evaluate", *given, f"student={tool('pretrain', *given).path}").path
    student = json.loads((scored / "scores.json").read_text())
    assert lines["student, annotation-free"].miou[0] == pytest.approx(student["miou"])
    assert lines["student, random weights"].miou != lines["student, annotation-free"].miou
    one = lines["one pixel a point, common points"]
    fused = lines["fused labels, common points"]
    assert one.note == fused.note
    assert lines["one pixel a point, all points"].accuracy < one.accuracy


@pytest.mark.slow
def test_an_ablation_line_is_the_mean_of_its_seeds(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings(small_world, tmp_path / "store")
    monkeypatch.setattr(experiments, "ABLATION", (("two", ("train.sweeps=1",), (0, 1)),))
    (job,) = experiments.ablation(given)
    line = job.make()
    assert len(set(line.miou)) == 2
    wanted = f"mIoU {100 * np.mean(line.miou):.1f} ({100 * min(line.miou):.1f}-"
    assert wanted in tables.score(dataclasses.asdict(line))


@pytest.mark.slow
def test_a_second_round_stands_beside_one_of_as_many_steps(
    small_world: Path, tmp_path: Path, tool: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(few_labels, "SEEDS", (0,))
    monkeypatch.setattr(rounds, "LIMITS", {"without class priors": ["fusion.limits=false"]})
    shared = ["objectives.semantic.targets=points", "train.batch_size=1"]
    given = [*settings(small_world, tmp_path / "store"), *shared]
    lines = {job.name: job.make() for job in rounds.rounds(given)}
    assert len(lines) == 3 * 2
    student = tool("pretrain", *given, "rounds=2", "fusion.limits=false").path
    scored = tool("evaluate", *given, f"student={student}", "consolidate=true").path
    two = lines["two rounds, consolidated, without class priors"]
    assert two.miou == [pytest.approx(json.loads((scored / "scores.json").read_text())["miou"])]
    gains = {gain.over: gain.miou for gain in two.gains}
    for over, gain in gains.items():
        assert gain == pytest.approx(two.miou[0] - lines[f"{over}, without class priors"].miou[0])
    assert set(gains) == {"one round, one pass", "one round, the steps of two, consolidated"}
    steps = sorted(_steps(Artifact(path)) for path in (tmp_path / "store").glob("student-*"))
    assert steps == [steps[0], steps[0], 2 * steps[0]]


@pytest.mark.slow
def test_transfer_scores_on_what_two_rigs_share(
    small_world: Path, tmp_path: Path, tool: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings(small_world, tmp_path / "store")
    recipe = tmp_path / "rig.yaml"
    recipe.write_text("seed: 3\n")
    monkeypatch.setattr(experiments, "RIGS", {"here": str(recipe)})
    (job,) = experiments.transfer(given)
    line = job.make()
    student = tool("pretrain", str(recipe), *given).path
    scored = tool(
        "evaluate", str(recipe), *given, f"student={student}", "labels.eval=shared12"
    ).path
    assert line.miou == [pytest.approx(json.loads((scored / "scores.json").read_text())["miou"])]
    assert (line.name, len(line.iou)) == ("here, scored on here", 12)


@pytest.mark.slow
def test_arms_of_few_labels_have_equal_steps(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(few_labels, "SHARES", ("50",))
    monkeypatch.setattr(few_labels, "STEPS", 4)
    monkeypatch.setattr(few_labels, "STEPS_ALL", 6)
    monkeypatch.setattr(few_labels, "SEEDS", (0,))
    given = [*settings(small_world, tmp_path / "store"), "objectives.semantic.targets=points"]
    rows = {job.name: job.make() for job in few_labels.few_labels(given)}
    assert len(rows) == 1 + 2 * len(few_labels.ARMS)
    ours = rows["frame@50%, pre-trained, pseudo-labels beside"]
    assert [gain.over for gain in ours.gains] == ["no labels", "random weights, labels alone"]
    start = rows["no labels"]
    assert ours.gains[0].miou == pytest.approx(ours.miou[0] - start.miou[0])
    students = [Artifact(path) for path in (tmp_path / "store").glob("student-*")]
    (pretrained,) = (each for each in students if not each.manifest()["used_labels"])
    before = _steps(pretrained)
    for student in students:
        made = student.manifest()
        if made["used_labels"] and made["key"]["protocol"].startswith("frame"):
            start_steps = before if made["key"]["student"] else 0
            assert start_steps + _steps(student) == before + 4


def _steps(student: Artifact) -> int:
    return len((student.path / "metrics.jsonl").read_text().splitlines())
