"""Label spaces: official maps, free text, mappings to score with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clipsweep.distill.teacher.protocol import Teacher
from clipsweep.pipeline.config import load_config
from clipsweep.pipeline.labels import (
    LabelsConfig,
    load_scoring,
    load_space,
    load_teacher_map,
    load_truth,
)
from clipsweep.pipeline.teachers import TeacherInputs, make_teacher
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import NONE
from tests.distill.tiny_clip import VIT, write_camera, write_clip
from tests.helpers import ROOT

# raw ids of nuScenes lidarseg and the challenge's id of each (1..16; the rest 0), written out from
# its documentation
CHALLENGE = {
    **dict.fromkeys((2, 3, 4, 6), 7),
    **{9: 1, 12: 8, 14: 2, 15: 3, 16: 3, 17: 4, 18: 5, 21: 6, 22: 9, 23: 10},
    **{24: 11, 25: 12, 26: 13, 27: 14, 28: 15, 30: 16},
}


def test_nuscenes_map_is_the_official_one() -> None:
    space = load_space(LabelsConfig())
    raw = np.arange(32, dtype=np.uint8)
    label = space.from_raw(raw, Path("x.bin"))
    official = np.where(label == 255, 0, space.export[np.minimum(label, 15)])
    assert official.tolist() == [CHALLENGE.get(i, 0) for i in range(32)]


# SemanticKITTI raw ids and the class of each in its single-scan challenge (1..19; the rest 0), and
# the ids to hand in
LEARNING_MAP = {
    **{
        10: 1,
        252: 1,
        11: 2,
        15: 3,
        18: 4,
        258: 4,
        30: 6,
        254: 6,
        31: 7,
        253: 7,
        32: 8,
        255: 8,
        40: 9,
        60: 9,
        44: 10,
    },
    **dict.fromkeys((13, 16, 20, 256, 257, 259), 5),
    **{
        48: 11,
        49: 12,
        50: 13,
        51: 14,
        70: 15,
        71: 16,
        72: 17,
        80: 18,
        81: 19,
        0: 0,
        1: 0,
        52: 0,
        99: 0,
    },
}
HANDED_IN = (10, 11, 15, 18, 20, 30, 31, 32, 40, 44, 48, 49, 50, 51, 70, 71, 72, 80, 81)


def test_semantickitti_map_is_the_official_one() -> None:
    space = load_space(LabelsConfig(space="semantickitti19"))
    raw = np.array(sorted(LEARNING_MAP), np.uint16)
    label = space.from_raw(raw, Path("x.label"))
    assert (np.where(label == 255, 0, label + 1)).tolist() == [
        LEARNING_MAP[i] for i in raw.tolist()
    ]
    assert space.export.tolist() == list(HANDED_IN)
    assert (space.class_of_raw == 254).sum() == (1 << 16) - len(LEARNING_MAP)


def test_an_unknown_raw_id_is_named_with_its_count() -> None:
    with pytest.raises(BadInput, match=r"77 \(2 points\)"):
        load_space(LabelsConfig()).from_raw(np.array([24, 77, 77], np.uint8), Path("x.bin"))


def test_free_text_has_no_official_ids() -> None:
    space = load_space(LabelsConfig(names="a red bus, a person pushing a bicycle"))
    assert space.names == ("a red bus", "a person pushing a bicycle")
    assert space.export is None
    assert space.negatives[-1] == "ambulance"
    assert load_space(LabelsConfig(names="[car,'fire truck']")).names == ("car", "fire truck")
    for twice in ("bus, bus", "Car,car", "a red bus,a  Red bus"):
        with pytest.raises(BadInput, match="different"):
            load_space(LabelsConfig(names=twice))


def test_free_text_stands_against_all_that_is_not_asked_for() -> None:
    space = load_space(
        LabelsConfig(names="a yellow bus, an Excavator, an ambulance, a light for traffic")
    )
    everything = load_space(LabelsConfig())
    classes = {
        name
        for name, words in zip(everything.names, everything.prompts, strict=True)
        if {*words} <= {*space.negatives}
    }
    assert {*everything.names} - classes == {"bus", "construction vehicle", "manmade"}
    assert {"sky", "police car"} <= {*space.negatives}
    assert "ambulance" not in space.negatives
    by_name = load_space(LabelsConfig(names="an excavator", prompts="demo"))
    assert by_name.negatives == (
        *(name for name in everything.names if name != "construction vehicle"),
        "sky",
    )


def test_prompts_come_from_the_space_or_a_file(tmp_path: Path) -> None:
    own = load_space(LabelsConfig())
    reference = load_space(LabelsConfig(prompts="reference"))
    cone = own.names.index("traffic cone")
    assert own.prompts[own.names.index("truck")] == ("truck", "pickup", "lorry")
    assert (reference.prompts[cone], reference.negatives) == (("traffic_cone",), ())
    assert own.names == reference.names
    plain = load_space(LabelsConfig(space="semantickitti19", prompts="names"))
    assert plain.prompts == tuple((name,) for name in plain.names)
    assert "other vehicle" in plain.names
    (tmp_path / "mine.yaml").write_text("prompts: {trukc: [truck]}")
    with pytest.raises(BadInput, match="'trukc'"):
        load_space(LabelsConfig(prompts=str(tmp_path / "mine.yaml")))


def test_a_prompts_file_sets_thresholds_by_class(tmp_path: Path) -> None:
    model = write_clip(tmp_path / "clip", VIT, seed=1)
    path = tmp_path / "sure.yaml"
    camera = write_camera(tmp_path / "a.png", (64, 96))

    def teacher(min_score: str, default: float = 0.0) -> Teacher:
        path.write_text(f"min_score: {min_score}")
        given = [
            f"teacher.maskclip.model={model}",
            "teacher.maskclip.size_hw=[64,96]",
            "teacher.maskclip.templates=short",
            f"store={tmp_path}",
        ]
        given += [f"labels.prompts={path}", f"teacher.maskclip.min_score={default}"]
        config = load_config(given)
        inputs = TeacherInputs(load_space(config.labels), tmp_path, tmp_path, "cpu")
        return make_teacher(config.teacher, inputs)

    free = teacher("{}")([camera])[0].label
    most = int(np.bincount(free.ravel()).argmax())
    name = load_space(LabelsConfig()).names[most]
    strict = teacher(f"{{{name}: 1}}")
    assert 0 < (free == most).sum() < free.size
    np.testing.assert_array_equal(strict([camera])[0].label, np.where(free == most, NONE, free))
    np.testing.assert_array_equal(
        teacher(f"{{{name}: 0}}", 1.0)([camera])[0].label == most, free == most
    )
    assert strict.digest() != teacher("{}").digest()


def test_cityscapes_has_no_label_for_sky_and_riders() -> None:
    space = load_space(LabelsConfig())
    table, ids = load_teacher_map("cityscapes19", space)
    assert ids == 19
    assert [space.names[i] for i in table[[0, 2, 11]]] == [
        "driveable surface",
        "manmade",
        "pedestrian",
    ]
    assert table[[10, 12, 16, 255]].tolist() == [255] * 4


def test_scoring_maps_by_name() -> None:
    space = load_space(LabelsConfig())
    scoring = load_scoring(LabelsConfig(eval=f"{ROOT}/tests/configs/merged6.yaml"), space, space)
    assert scoring.names[scoring.of_class[space.names.index("truck")]] == "vehicle"
    assert scoring.of_class[space.names.index("terrain")] == 255
    assert load_scoring(LabelsConfig(), space, space).of_class.tolist() == list(range(16))


@pytest.mark.parametrize("kitti", ["semantickitti19", "demo_kitti13"])
def test_two_label_spaces_meet_in_names(kitti: str) -> None:
    config = LabelsConfig(eval="shared12", truth=kitti)
    space = load_space(config)
    truth = load_truth(config)
    scoring = load_scoring(config, space, truth)

    def meets(predicted: str, true: str) -> bool:
        return bool(
            scoring.of_class[space.names.index(predicted)]
            == scoring.of_truth[truth.names.index(true)]
        )

    assert meets("driveable surface", "road")
    assert meets("manmade", "building")
    assert meets("bus", "other vehicle")
    assert not meets("bicycle", "motorcycle")
    assert scoring.of_class[space.names.index("traffic cone")] == 255
    assert set(scoring.of_truth.tolist()) == set(range(12))
    with pytest.raises(BadInput, match=f"{kitti} has other classes than nuscenes16"):
        load_scoring(LabelsConfig(truth=kitti), space, truth)


CLASS = "name: a, raw: [1], export: 1, color: [0, 0, 0]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes: []", "1 to 253"),
        ("classes: [{name: a}]", "needs name, raw, export and color"),
        (
            "classes: [{name: a, raw: [99999], export: 1, color: [0, 0, 0]}]",
            r"class 'a': raw must .* 65535, not",
        ),
        (
            "classes: [{name: a, raw: 3, export: 1, color: [0, 0, 0]}]",
            "class 'a': raw must be a list",
        ),
        (
            "classes: [{name: a, raw: [true], export: 1, color: [0, 0, 0]}]",
            "class 'a': raw must be a list of ids",
        ),
        (
            "classes: [{name: a, raw: [3], export: x, color: [0, 0, 0]}]",
            "class 'a': export must be an id",
        ),
        (
            "classes: [{name: 7, raw: [3], export: 1, color: [0, 0, 0]}]",
            "class 7: name must be a text",
        ),
        (
            "classes: [{name: a, raw: [3], export: 1, color: red}]",
            "class 'a': color must .*, not 'red'",
        ),
        (
            "classes: [{name: a, raw: [3], export: 1, color: [0, 0, 256]}]",
            "class 'a': color must be three",
        ),
        (
            "classes: [{name: a, raw: [3], export: 1, color: [0, 0]}]",
            "class 'a': color must be three",
        ),
        (
            f"classes: [{{{CLASS}, prompts: bus}}]",
            "class 'a': prompts must be a list of texts, not 'bus'",
        ),
        (f"classes: [{{{CLASS}, prompts: []}}]", "class 'a': prompts must be"),
        (f"classes: [{{{CLASS}, ground: 1}}]", "class 'a': ground must be true or false"),
        (f"classes: [{{{CLASS}, max_height_m: high}}]", "class 'a': max_height_m must be"),
        (f"classes: [{{{CLASS}, max_heigth_m: 2}}]", "class 'a' has an unknown key 'max_heigth_m'"),
        (
            f"classes: [{{{CLASS}, taller: b, max_height_m: 2}}]",
            "class 'a': taller is 'b', which is no class",
        ),
        (
            f"classes: [{{{CLASS}, taller: a, max_height_m: 2}}]",
            "class 'a': taller is 'a', which may not be taller",
        ),
        (
            f"classes: [{{{CLASS}, taller: a}}]",
            "class 'a': taller is 'a', and there is no max_height_m",
        ),
        (f"classes: [{{{CLASS}}}, {{{CLASS}}}]", "two classes with the name 'a'"),
        (
            f"classes: [{{{CLASS}}}, {{{CLASS.replace('a,', 'b,')}}}]",
            "class 'b': raw id 1 is one of a",
        ),
        (f"classes: [{{{CLASS}}}]\nignored: 0", "ignored must be a list of ids"),
        (f"classes: [{{{CLASS}}}]\nignored: [1]", "class 'a': raw id 1 is one of the ignored"),
        (f"classes: [{{{CLASS}}}]\nnegatives: sky", "negatives must be a list of texts"),
        (
            f"classes: [{{{CLASS}}}]\nnegativs: [sky]",
            "unknown key 'negativs'; keys: classes, ignored, negatives",
        ),
        ("classes: [{name: a, name: b}]", "'name' is given twice"),
    ],
)
def test_a_malformed_space_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(BadInput, match=message):
        load_space(LabelsConfig(space=str(tmp_path / "bad.yaml")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *(
            (text, "lists? of texts")
            for text in ("prompts: [bus]", "prompts: {bus: lorry}", "negatives: sky")
        ),
        ("min_score: 0.3", "min_score must map classes to numbers from 0 to 1, not 0.3"),
        (
            "min_score: {cra: 0.3}",
            "has min_score for 'cra', which is no class; classes are barrier, ",
        ),
        *(
            (f"min_score: {{car: {bad}}}", "min_score of 'car' must be")
            for bad in ("1.1", "-0.1", ".nan", "x", "true")
        ),
    ],
)
def test_malformed_prompts_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(BadInput, match=message):
        load_space(LabelsConfig(prompts=str(tmp_path / "bad.yaml")))


BAD_NAMES = [
    "names: road",
    "names: [road, road]",
    "names: [7]",
    "names: []",
    "names: {road: 1}",
    "to: {}",
]
LONG = [f"n{index}" for index in range(257)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((text.replace("to:", "from:"), "names must be a list of 1 to 253") for text in BAD_NAMES),
        (f"names: {LONG[:254]}", "names must be a list of 1 to 253"),
        ("names: [road]", "mapping of names to names, not None"),
        ("names: [road]\nfrom: road", "mapping of names to names, not 'road'"),
        ("names: [road]\nfrom: {nuscenes16: [road]}", "mapping of names to names"),
        ("names: [road]\nfrom: {car: [road]}", "one of them is not a class"),
        ("names: [road]\nfrm: {}", "unknown key 'frm'; keys: names, from"),
    ],
)
def test_a_malformed_mapping_to_score_with_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    space = load_space(LabelsConfig())
    with pytest.raises(BadInput, match=message):
        load_scoring(LabelsConfig(eval=str(tmp_path / "bad.yaml")), space, space)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((text, "names must be a list of 1 to 256") for text in BAD_NAMES),
        (f"names: {LONG}", "names must be a list of 1 to 256"),
        ("names: [road]\nto: nuscenes16", "to must map label spaces to mappings, not 'nuscenes16'"),
        ("names: [road]\nto: {nuscenes16: road}", "mapping of names to names, not 'road'"),
        ("names: [road]\nfrom: {}", "unknown key 'from'; keys: names, to"),
        (
            "names: [road]\nto: {nuscenes16: {road: sidewalk, road: sidewalk}}",
            "'road' is given twice",
        ),
    ],
)
def test_a_malformed_teacher_map_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(BadInput, match=message):
        load_teacher_map(str(tmp_path / "bad.yaml"), load_space(LabelsConfig()))


def test_a_map_to_an_unknown_class_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "map.yaml"
    path.write_text("names: [road]\nto: {nuscenes16: {road: rode}}\n")
    with pytest.raises(BadInput, match="'rode'"):
        load_teacher_map(str(path), load_space(LabelsConfig()))


def test_unknown_space_lists_the_known_ones() -> None:
    with pytest.raises(BadInput, match="nuscenes16"):
        load_space(LabelsConfig(space="nuscenes17"))
