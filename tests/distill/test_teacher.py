"""Teachers as they are used: cameras in, labels out, bad input one by one."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch.nn import functional as F

from clipsweep.distill.teacher.maskclip import MaskClip, MaskClipConfig
from clipsweep.distill.teacher.precomputed import Precomputed
from clipsweep.distill.teacher.protocol import Teacher
from clipsweep.distill.teacher.text import Prompts
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import NONE, Camera
from tests.distill.tiny_clip import RESNET, VIT, camera_of, one_thread, write_camera, write_clip

__all__ = ["one_thread"]  # a fixture for every test here

HW = (64, 96)
PROMPTS = [["car", "van"], ["bus"], ["tree"]]
NEGATIVES = ["sky", "cloud"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_clip(tmp_path_factory.mktemp("clip"), VIT)


@pytest.fixture
def cameras(tmp_path: Path) -> list[Camera]:
    return [write_camera(tmp_path / f"{i}.png", HW, i) for i in range(5)]


def teacher_of(
    model: str,
    prompts: Prompts | None = None,
    *,
    threads: int = 0,
    cache: Path | None = None,
    **settings: Any,
) -> MaskClip:
    given = {
        "size_hw": HW,
        "templates": "plain",
        "last_block": "residual",
        "upsample": 1,
        **settings,
    }
    cache = cache or Path(model.removeprefix("local-dir:")) / "cache"
    prompts = prompts or Prompts(PROMPTS, NEGATIVES)
    return MaskClip(MaskClipConfig(model, **given), prompts, threads=threads, cache=cache)


# --- MaskClip -------------------------------------------------------------------------------------


@torch.no_grad()
def features_by_open_clip(name: str, camera: Camera) -> torch.Tensor:
    """Unit features by open_clip's own preprocessing, tower and activation, the last attention
    the identity.
    """
    model = open_clip.create_model(name, force_image_size=HW).eval()
    config = PreprocessCfg(**{**model.visual.preprocess_cfg, "resize_mode": "squash"})
    image = image_transform_v2(config, is_train=False)(Image.open(camera.image.path))
    tokens = model.visual._embeds(image[None])
    for block in model.visual.transformer.resblocks[:-1]:
        tokens = block(tokens)
    itself = torch.full((len(tokens[0]),) * 2, -torch.inf).fill_diagonal_(0)
    tokens = model.visual.ln_post(model.visual.transformer.resblocks[-1](tokens, attn_mask=itself))
    return F.normalize((tokens @ model.visual.proj)[0, 1:].unflatten(0, (4, 6)), dim=-1)


@pytest.mark.parametrize("preprocess", [{}, {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}])
@pytest.mark.parametrize("quick_gelu", [True, False])
def test_features_have_the_models_own_normalisation_and_activation(
    tmp_path: Path, cameras: list[Camera], preprocess: Any, quick_gelu: bool
) -> None:
    name = write_clip(tmp_path / "clip", VIT, preprocess=preprocess, quick_gelu=quick_gelu)
    with Image.open(cameras[0].image.path) as image:
        features = teacher_of(name).features(np.array(image)[None])
    torch.testing.assert_close(
        features[0], features_by_open_clip(name, cameras[0]), atol=1e-5, rtol=0
    )


def test_labels_follow_the_scores(clip: str, cameras: list[Camera]) -> None:
    teacher = teacher_of(clip, keep_features=True, min_score=0.3)
    label, score, feature = (
        getattr(teacher(cameras[:1])[0], name) for name in ("label", "score", "feature")
    )
    assert label.shape == score.shape == feature.shape[:2] == (4, 6)
    seen = set()
    for row, column in np.ndindex(4, 6):
        cosine = teacher.vocabulary.embedding @ feature[row, column].astype(np.float32)
        best = np.array([max(cosine[:2]), *cosine[2:]])
        confidence = np.exp(best * np.exp(3.0)) / np.exp(best * np.exp(3.0)).sum()
        winner = int(confidence.argmax())
        expected = NONE if winner > 2 or confidence[winner] < 0.3 else winner
        assert label[row, column] == expected
        assert abs(score[row, column] - (confidence[winner] if expected != NONE else 0)) < 5e-3
        seen.add(expected)
    assert {NONE} < seen


def test_thresholds_can_be_set_class_by_class(clip: str, cameras: list[Camera]) -> None:
    free = teacher_of(clip, Prompts(PROMPTS))(cameras[:1])[0].label
    strict = teacher_of(clip, Prompts(PROMPTS, (), [0.0, 1.0, 0.0]))(cameras[:1])[0].label
    np.testing.assert_array_equal(strict, np.where(free == 1, NONE, free))
    with pytest.raises(BadInput, match=r"teacher\.maskclip\.min_score"):
        teacher_of(clip, min_score=1.5)
    with pytest.raises(BadInput, match=r"teacher\.maskclip\.min_score"):
        teacher_of(clip, Prompts(PROMPTS, (), [0.5, 0.5]))


def test_batches_and_frames_do_not_change_labels(clip: str, cameras: list[Camera]) -> None:
    one, many = (teacher_of(clip, batch=batch, threads=2)(cameras) for batch in (1, 3))
    assert len(one) == len(many) == 5
    for a, b in zip(one, many, strict=True):
        np.testing.assert_array_equal(a.label, b.label)
        np.testing.assert_allclose(a.score, b.score, atol=2e-3)


def test_stream_leaves_an_error_in_the_place_of_a_bad_image(
    clip: str, cameras: list[Camera]
) -> None:
    cameras[1].image.path.write_bytes(b"x" * cameras[1].image.bytes)
    labels = list(teacher_of(clip, batch=2).stream(iter(cameras)))
    assert [isinstance(one, BadInput) for one in labels] == [False, True, False, False, False]
    np.testing.assert_array_equal(labels[4].label, teacher_of(clip)(cameras[4:])[0].label)
    with pytest.raises(BadInput, match=r"1\.png"):
        teacher_of(clip)(cameras)
    assert list(teacher_of(clip).stream([])) == []
    assert [
        isinstance(one, BadInput) for one in teacher_of(clip, batch=1).stream(cameras[1:3])
    ] == [True, False]


def test_stream_reads_only_so_far_ahead(clip: str, cameras: list[Camera]) -> None:
    drawn = []

    def draw() -> Any:
        for index in range(100):
            drawn.append(index)
            yield cameras[index % 5]

    stream = teacher_of(clip, batch=2).stream(draw())
    next(stream)
    assert len(drawn) <= 10
    stream.close()


def test_resnet_labels_at_its_own_stride_and_width(tmp_path: Path, cameras: list[Camera]) -> None:
    teacher = teacher_of(write_clip(tmp_path / "rn", RESNET), last_block="auto", keep_features=True)
    labels = teacher(cameras[:1])[0]
    assert labels.label.shape == (2, 3)
    assert labels.feature is not None
    assert labels.feature.shape == (2, 3, 24)
    assert labels.feature.dtype == np.float16


def test_labels_are_finer_than_features(clip: str, cameras: list[Camera]) -> None:
    teacher = teacher_of(clip, keep_features=True, upsample=4)
    labels = teacher(cameras[:1])[0]
    assert labels.label.shape == labels.score.shape == (16, 24)
    assert labels.feature is not None
    assert labels.feature.shape == (4, 6, 24)
    again = teacher.relabel(labels.feature)
    assert again.label.shape == (16, 24)
    assert (again.label == labels.label).mean() > 0.95


def test_kept_features_can_be_named_again(clip: str, cameras: list[Camera]) -> None:
    kept = teacher_of(clip, keep_features=True)
    other = teacher_of(clip, Prompts([["a yellow bus"], ["road"]], ["sky"]))
    assert kept.feature_digest() == other.feature_digest()
    assert kept.digest() != other.digest()
    feature = kept(cameras[:1])[0].feature
    assert feature is not None
    again = other.relabel(feature)
    direct = other(cameras[:1])[0]
    assert (again.label == direct.label).mean() > 0.95  # features are kept in half precision
    with pytest.raises(BadInput, match="needs the images again"):
        teacher_of(clip, key_smoothing=0.5).relabel(feature)


def test_digest_covers_all_that_decides_labels(clip: str, tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {}, {"prompts": Prompts([["car"], ["bus"], ["tree"]], NEGATIVES)},
        {"prompts": Prompts(PROMPTS)}, {"last_block": "pure"}, {"size_hw": (64, 64)},
        {"templates": "short"}, {"min_score": 0.1}, {"key_smoothing": 0.5}, {"denoising": 0.5},
        {"upsample": 2},
        {"tile_hw": (64, 64)}, {"tile_hw": (64, 64), "tile_overlap": 0.0, "size_hw": (64, 128)},
    ]  # fmt: skip
    digests = [teacher_of(clip, **change).digest() for change in changes]
    digests.append(teacher_of(write_clip(tmp_path / "other", VIT, seed=1)).digest())
    assert len(set(digests)) == len(digests)
    assert teacher_of(clip).digest() == teacher_of(clip, batch=3, threads=5).digest()


def test_settings_out_of_bounds_are_refused(clip: str) -> None:
    for name, value in (
        ("batch", 0),
        ("key_smoothing", 1.5),
        ("denoising", -0.1),
        ("tile_overlap", 1.0),
    ):
        with pytest.raises(BadInput, match=name):
            teacher_of(clip, **{name: value})


def test_default_size_is_the_references_in_whole_patches(tmp_path: Path) -> None:
    for patch, size in ((16, (224, 416)), (14, (224, 420)), (32, (224, 416))):
        name = write_clip(
            tmp_path / str(patch), {**VIT, "image_size": 4 * patch, "patch_size": patch}
        )
        assert teacher_of(name, size_hw=(0, 0))._size_hw == size
        with pytest.raises(BadInput, match=r"no multiple of the patch.* is near"):
            teacher_of(name, size_hw=(225, 416))


def test_text_is_one_unit_row_a_class(clip: str, tmp_path: Path) -> None:
    first = teacher_of(clip, cache=tmp_path / "cache")
    assert first.text.shape == (3, 24)
    np.testing.assert_allclose(np.linalg.norm(first.text, axis=1), 1, atol=1e-6)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    np.testing.assert_array_equal(teacher_of(clip, cache=tmp_path / "cache").text, first.text)
    assert isinstance(first, Teacher)


# --- label images made elsewhere ------------------------------------------------------------------

CLASS_OF_ID = np.full(256, NONE, np.uint8)
CLASS_OF_ID[[3, 7]] = [0, 1]


@pytest.fixture
def labelled(tmp_path: Path) -> Camera:
    camera = write_camera(tmp_path / "samples/CAM/a.jpg", (9, 16))
    ids = np.full((4, 8), 3, np.uint8)
    ids[2:] = 7
    ids[0] = 9
    path = tmp_path / "labels2d/samples/CAM/a.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(ids).save(path)
    return camera


def precomputed(root: Path, size_hw: tuple[int, int] = (4, 8)) -> Precomputed:
    return Precomputed(root, "labels2d", CLASS_OF_ID, 2, size_hw)


def test_label_images_are_mapped(tmp_path: Path, labelled: Camera) -> None:
    teacher = precomputed(tmp_path)
    (labels,) = teacher([labelled])
    assert [row[0] for row in labels.label.tolist()] == [NONE, 0, 1, 1]
    np.testing.assert_array_equal(labels.score, (labels.label != NONE).astype(np.float16))
    np.testing.assert_array_equal(teacher.text, np.eye(2))
    assert isinstance(teacher, Teacher)


def test_an_id_that_the_map_does_not_know_is_refused(tmp_path: Path, labelled: Camera) -> None:
    """The images hold 9, 7 and others; a map of as many ids takes them, and 255 always."""
    for ids in (10, 9):
        teacher = Precomputed(tmp_path, "labels2d", CLASS_OF_ID, 2, (4, 8), ids)
        if ids == 10:
            assert (teacher([labelled])[0].label[0] == NONE).all()
            continue
        with pytest.raises(BadInput, match=r"a\.png: has the id 9, the map knows 0 to 8 and 255"):
            teacher([labelled])
    path = tmp_path / "labels2d/samples/CAM/a.png"
    Image.fromarray(np.full((4, 8), 255, np.uint8)).save(path)
    assert (teacher([labelled])[0].label == NONE).all()


def test_palette_images_are_read_as_ids(tmp_path: Path, labelled: Camera) -> None:
    path = tmp_path / "labels2d/samples/CAM/a.png"
    image = Image.open(path).copy()
    image.putpalette([i for i in range(256) for _ in range(3)][::-1])
    image.save(path)
    assert precomputed(tmp_path)([labelled])[0].label[3, 0] == 1


def test_bad_label_images_are_refused(tmp_path: Path, labelled: Camera) -> None:
    path = tmp_path / "labels2d/samples/CAM/a.png"
    whole = path.read_bytes()
    with pytest.raises(BadInput, match=r"is 4x8 pixels, teacher\.precomputed\.size_hw is \(5, 8\)"):
        precomputed(tmp_path, (5, 8))([labelled])
    for damaged in (whole[:-20], b"<html>", b"", whole[:40] + b"\xff" * 9 + whole[49:]):
        path.write_bytes(damaged)
        with pytest.raises(BadInput, match=r"a\.png: cannot be decoded"):
            precomputed(tmp_path)([labelled])
    for mode in ("RGB", "I;16", "1"):
        Image.new(mode, (8, 4)).save(path)
        with pytest.raises(BadInput, match=f"has mode {mode}"):
            precomputed(tmp_path)([labelled])
    path.unlink()
    with pytest.raises(BadInput, match=r"a\.png: does not exist"):
        precomputed(tmp_path)([labelled])


def test_label_images_of_four_bits_are_refused(tmp_path: Path, labelled: Camera) -> None:
    """Pillow would multiply their ids by 17."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", 8, 4, 4, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + bytes([0x37] * 4)) * 4)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    path = tmp_path / "labels2d/samples/CAM/a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    assert np.array(Image.open(path)).tolist() == [[3 * 17, 7 * 17] * 4] * 4
    with pytest.raises(BadInput, match=r"a\.png: has 4 bits a pixel"):
        precomputed(tmp_path)([labelled])


def test_label_images_must_lie_below_their_folder(tmp_path: Path, labelled: Camera) -> None:
    path = tmp_path / "labels2d/samples/CAM/a.png"
    outside = path.rename(tmp_path / "secret.png")
    path.symlink_to(outside)
    with pytest.raises(BadInput, match="is not below the label folder"):
        precomputed(tmp_path)([labelled])
    elsewhere = replace(labelled, image=replace(labelled.image, path=Path("/elsewhere/a.jpg")))
    with pytest.raises(BadInput, match="is not below the data root"):
        precomputed(tmp_path)([elsewhere])
    above = replace(labelled, image=replace(labelled.image, path=tmp_path / "../a.jpg"))
    with pytest.raises(BadInput, match="is not below the label folder"):
        precomputed(tmp_path)([above])


def test_an_id_beyond_the_classes_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="class 1 of 1"):
        Precomputed(tmp_path, "labels2d", CLASS_OF_ID, 1)


# --- images ---------------------------------------------------------------------------------------


def test_bad_images_are_refused(clip: str, tmp_path: Path) -> None:
    teacher = teacher_of(clip)
    good = write_camera(tmp_path / "a.jpg", (90, 160))
    assert teacher([good])[0].label.shape == (4, 6)
    with pytest.raises(BadInput, match=r"is 90 x 160 pixels, its camera \(90, 161\)"):
        teacher([replace(good, size_hw=(90, 161))])
    whole = good.image.path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"<html></html>", b""):
        good.image.path.write_bytes(damaged)
        with pytest.raises(BadInput, match=r"a\.jpg: has \d+ bytes"):
            teacher([good])
        with pytest.raises(BadInput, match=r"a\.jpg: cannot be decoded"):
            teacher([camera_of(good.image.path, (90, 160))])
    with pytest.raises(BadInput, match="has mode CMYK"):
        teacher([write_camera(tmp_path / "b.jpg", (90, 160), mode="CMYK")])


def test_grey_images_are_read_as_grey_colours(clip: str, tmp_path: Path) -> None:
    grey = write_camera(tmp_path / "grey.png", HW, mode="L")
    Image.open(grey.image.path).convert("RGB").save(tmp_path / "rgb.png")
    one, two = teacher_of(clip)([grey, camera_of(tmp_path / "rgb.png", HW)])
    np.testing.assert_array_equal(one.score, two.score)
