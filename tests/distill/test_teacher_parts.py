"""The parts of a teacher.

Decoding ahead, tiles, scoring with smoothing and denoising, timm features.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from clipsweep.distill.teacher.classify import Scorer
from clipsweep.distill.teacher.dense_features import Dense
from clipsweep.distill.teacher.images import decode, prefetch
from clipsweep.distill.teacher.protocol import Teacher
from clipsweep.distill.teacher.tiles import Tiles
from clipsweep.distill.teacher.vit import VitFeatures, VitFeaturesConfig
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import NONE
from tests.distill.tiny_clip import one_thread, write_camera

__all__ = ["one_thread"]  # a fixture for every test here

# --- decoding -------------------------------------------------------------------------------------


def test_shortcut_through_smaller_jpegs_is_exact_enough(tmp_path: Path) -> None:
    camera = write_camera(tmp_path / "a.jpg", (900, 1600))
    with Image.open(camera.image.path) as image:
        full = np.asarray(image.resize((416, 224), Image.Resampling.BICUBIC), np.float64)
    short = decode(camera, (224, 416))
    assert short.shape == (224, 416, 3)
    assert np.sqrt(np.mean((short - full) ** 2)) < 1


def test_prefetch_keeps_order_bound_and_errors() -> None:
    started = []
    release = threading.Event()

    def work(item: int) -> int:
        started.append(item)
        release.wait(5)
        if item == 2:
            raise BadInput("2", "is bad")
        return item * 10

    results = prefetch(range(50), work, threads=2, ahead=3)
    release.set()
    assert next(results) == 0
    time.sleep(0.05)
    assert max(started) <= 3
    rest = list(results)
    assert rest[0] == 10
    assert isinstance(rest[1], BadInput)
    assert rest[2:] == [i * 10 for i in range(3, 50)]


def test_prefetch_raises_what_is_nobodys_bad_input() -> None:
    with pytest.raises(ZeroDivisionError):
        list(prefetch([1, 0], lambda item: 1 // item, threads=1, ahead=1))


# --- tiles ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [64, 80, 128, 208, 400])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
def test_tiles_cover_the_image_with_the_overlap(side: int, overlap: float) -> None:
    tiles = Tiles.over((64, side), (64, 64), overlap, 16)
    assert tiles.top == (0,)
    assert tiles.left[0] == 0
    assert tiles.left[-1] == side - 64
    steps = np.diff(tiles.left)
    assert (steps > 0).all()
    assert (steps <= max(16, 64 * (1 - overlap)) + 16 * (overlap > 0)).all()
    assert all(left % 16 == 0 for left in tiles.left)


def network(images: torch.Tensor) -> Dense:
    """Features that encode their place in the tile.

    Mean colours of 8-pixel cells, and the cell's column.
    """
    cells = F.avg_pool2d(images, 8).permute(0, 2, 3, 1)
    column = torch.arange(cells.shape[2]).expand(cells.shape[:3])[..., None]
    return Dense(torch.cat([cells + 0.1, column], -1), cells)


def test_overlapping_tiles_are_averaged() -> None:
    images = torch.rand(2, 3, 32, 80, generator=torch.Generator().manual_seed(0))
    tiles = Tiles.over((32, 80), (32, 48), 0.5, 16)
    assert tiles.left == (0, 16, 32)
    feature = tiles.read(images, network).feature
    total = torch.zeros(2, 4, 10, 4)
    for left in tiles.left:
        part = F.normalize(network(images[..., left : left + 48]).feature, dim=-1)
        total[:, :, left // 8 : left // 8 + 6] += part
    torch.testing.assert_close(feature, F.normalize(total, dim=-1))


def test_one_tile_is_the_whole_image() -> None:
    images = torch.rand(1, 3, 30, 50)
    dense = Tiles.over((30, 50), (0, 0), 0.5, 16).read(images, network)
    torch.testing.assert_close(dense.feature, F.normalize(network(images).feature, dim=-1))


@pytest.mark.parametrize(
    ("size", "tile", "overlap", "says"),
    [
        ((64, 64), (64, 96), 0.5, "larger than the image"),
        ((64, 64), (32, 40), 0.5, "no multiples of 16"),
        ((64, 72), (32, 32), 0.5, "no multiples of 16"),
        ((64, 64), (32, 0), 0.5, "no multiples of 16"),
        ((64, 64), (32, 32), 1.0, "is not in 0..1"),
    ],
)
def test_bad_tiles_are_refused(
    size: tuple[int, int], tile: tuple[int, int], overlap: float, says: str
) -> None:
    with pytest.raises(BadInput, match=says):
        Tiles.over(size, tile, overlap, 16)


# --- scoring --------------------------------------------------------------------------------------


def scorer(
    smoothing: float = 0.0, denoising: float = 0.0, scale: float = 4.0, upsample: int = 1
) -> Scorer:
    names = torch.eye(3)
    floor = torch.tensor([0.0, 0.0, torch.inf])
    return Scorer(names, torch.arange(3), floor, scale, smoothing, denoising, upsample)


def cubic(grid: np.ndarray, row: float, column: float) -> np.ndarray:
    """Cubic convolution (Keys 1981, a = -.75) at a place in units of cells; edges repeat."""

    def weight(away: float) -> float:
        away = abs(away)
        if away <= 1:
            return 1.25 * away**3 - 2.25 * away**2 + 1
        return -0.75 * (away**3 - 5 * away**2 + 8 * away - 4) if away < 2 else 0.0

    height, width = grid.shape[:2]
    value = np.zeros(grid.shape[2:])
    for i in range(int(np.floor(row)) - 1, int(np.floor(row)) + 3):
        for j in range(int(np.floor(column)) - 1, int(np.floor(column)) + 3):
            cell = grid[np.clip(i, 0, height - 1), np.clip(j, 0, width - 1)]
            value += weight(row - i) * weight(column - j) * cell
    return value


def test_confidences_are_interpolated_between_cells() -> None:
    generator = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(1, 3, 4, 3, generator=generator), dim=-1)
    label, score = scorer(upsample=4)(features, None)
    assert label.shape == score.shape == (1, 12, 16)
    confidence = (4 * features[0].double()).softmax(-1).numpy()
    for row, column in np.ndindex(12, 16):
        # the centre of a pixel, where the centres of cells are whole numbers
        own = cubic(confidence, (row + 0.5) / 4 - 0.5, (column + 0.5) / 4 - 0.5).clip(0, 1)
        winner = int(own.argmax())
        assert label[0, row, column] == (NONE if winner == 2 else winner)
        assert abs(float(score[0, row, column]) - (0 if winner == 2 else own.max())) < 1e-3
    assert set(label.flatten().tolist()) == {0, 1, NONE}


def test_key_smoothing_averages_what_is_unsure() -> None:
    generator = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(2, 3, 4, 3, generator=generator), dim=-1)
    keys = torch.randn(2, 3, 4, 5, generator=generator)
    label, score = scorer(smoothing=0.8)(features, keys)
    changed = 0
    for image in range(2):
        confidence = (4 * features[image]).softmax(-1).flatten(0, 1)
        unit = F.normalize(keys[image].flatten(0, 1), dim=-1)
        for cell in range(12):
            own = confidence[cell]
            if own.max() < 0.8:
                weight = (unit @ unit[cell]).clamp_min(0)
                own = (weight[:, None] * confidence).sum(0) / weight.sum()
                changed += 1
            winner = int(own.argmax())
            assert label[image].flatten()[cell] == (NONE if winner == 2 else winner)
            assert (
                abs(float(score[image].flatten()[cell]) - (0 if winner == 2 else float(own.max())))
                < 1e-3
            )
    assert 0 < changed < 24


def test_denoising_drops_classes_that_are_nowhere_sure() -> None:
    sure = [1.0, 0.0, 0.0]
    unsure = [0.6, 0.601, 0.5]
    features = torch.tensor([[[sure, unsure]]])
    plain, _ = scorer()(features, None)
    assert plain.flatten().tolist() == [0, 1]
    cleaned, score = scorer(denoising=0.53)(features, None)
    assert cleaned.flatten().tolist() == [0, 0]
    assert score.flatten()[1] == 1


def test_denoising_may_leave_an_image_without_any_class() -> None:
    features = torch.full((1, 1, 2, 3), 0.5)
    label, score = scorer(denoising=0.5)(features, None)
    assert label.flatten().tolist() == [NONE, NONE]
    assert score.flatten().tolist() == [0, 0]


# --- timm features --------------------------------------------------------------------------------


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "vit.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), path)
    return path


def test_features_are_timms_own(tmp_path: Path, vit: Path) -> None:
    camera = write_camera(tmp_path / "a.png", (96, 160))
    teacher = VitFeatures(VitFeaturesConfig("test_vit", str(vit), (96, 160)))
    (labels,) = teacher([camera])
    assert (labels.label == NONE).all()
    assert (labels.score == 0).all()
    model = timm.create_model("test_vit", dynamic_img_size=True, checkpoint_path=str(vit)).eval()
    with Image.open(camera.image.path) as image, torch.no_grad():
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        tokens = model.fc_norm(model.forward_features((pixels - 0.5) / 0.5))[0, 1:]
    expected = F.normalize(tokens, dim=-1).unflatten(0, (6, 10))
    assert labels.feature is not None
    np.testing.assert_allclose(labels.feature, expected, atol=1e-3)
    assert teacher.text.shape == (0, 64)
    assert isinstance(teacher, Teacher)


def test_feature_teacher_says_what_is_wrong(tmp_path: Path, vit: Path) -> None:
    with pytest.raises(BadInput, match="no multiple of the patch, 16"):
        VitFeatures(VitFeaturesConfig("test_vit", str(vit), (96, 150)))
    with pytest.raises(BadInput, match="is no ViT"):
        VitFeatures(VitFeaturesConfig("test_resnet", str(vit)))
    with pytest.raises(BadInput, match="timm has no such model"):
        VitFeatures(VitFeaturesConfig("vit_of_nobody", str(vit)))
    with pytest.raises(BadInput, match="does not fit"):
        VitFeatures(VitFeaturesConfig("test_vit2", str(vit))).text  # noqa: B018 - builds it
    with pytest.raises(BadInput, match=r"none\.safetensors.* is no file"):
        VitFeatures(VitFeaturesConfig("test_vit", str(tmp_path / "none.safetensors")))
