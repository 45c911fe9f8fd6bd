"""Training crops of rendered streets for CLIP, with the classes that captions may mention.

The demo's teacher is trained on them; they are made on the fly.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8
from PIL import Image

from clipsweep.pipeline.demo.render import render
from clipsweep.pipeline.demo.rig import cameras
from clipsweep.pipeline.demo.words import CLASS_OF_RAW, NAMES, THINGS
from clipsweep.pipeline.demo.world import build_world

_SPOTS = 24
"""Places kept per class and picture, where stuff may be cropped."""
_LEAST_PX = 100
"""Pixels that an object must show to be cropped."""
_TRUE_SHARE = 0.03
_FALSE_SHARE = 0.003
"""A word is true of a crop from the first share of its area on, false below the second, and left
open between.
"""


@dataclass(frozen=True, eq=False, slots=True)
class Picture:
    """Rendered picture for crops: colours, classes (255: none), object boxes, spots of stuff.

    `boxes` rows are class, u0, v0, u1, v1 [px]; `spots` rows are class, u, v [px].
    """

    colour: UInt8[np.ndarray, "h w 3"]
    label: UInt8[np.ndarray, "h w"]
    boxes: Int64[np.ndarray, "boxes 5"]
    spots: Int64[np.ndarray, "spots 3"]


@dataclass(frozen=True, eq=False, slots=True)
class Album:
    """Rendered pictures, and for each class the (picture, row) of every box or spot of it."""

    pictures: Sequence[Picture]
    places: Sequence[Int64[np.ndarray, "_ 2"]]


@dataclass(frozen=True, eq=False, slots=True)
class Crops:
    """Training crops: images, main class of each, and which classes it shows or lacks.

    `shown` and `hidden` are both false where that is unsure.
    """

    image: UInt8[np.ndarray, "n s s 3"]
    target: Int64[np.ndarray, "n"]
    shown: Bool[np.ndarray, "n c"]
    hidden: Bool[np.ndarray, "n c"]


def render_album(
    seed: int, worlds: int, shots: int, size_wh: tuple[int, int], workers: int
) -> Album:
    """Renders training pictures: `shots` random views in each of `worlds` streets of a seed."""
    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(lambda scene: _photograph(seed, scene, shots, size_wh), range(worlds))
        pictures = [picture for street in found for picture in street]
    rows: list[list[tuple[int, int]]] = [[] for _ in NAMES]
    for i, picture in enumerate(pictures):
        for table in (picture.boxes, picture.spots):
            for row, kind in enumerate(table[:, 0]):
                rows[kind].append((i, row))
    return Album(pictures, [np.array(of_class, np.int64).reshape(-1, 2) for of_class in rows])


def _photograph(seed: int, scene: int, shots: int, size_wh: tuple[int, int]) -> list[Picture]:
    rng = np.random.default_rng([seed, scene, 9])
    rig = cameras(*size_wh)
    world = build_world(seed, scene, 4.5)
    out = []
    for _ in range(shots):
        view = render(world, rig[int(rng.integers(len(rig)))], float(rng.uniform(0.0, 4.5)))
        label = np.array(CLASS_OF_RAW, np.uint8)[view.label]
        out.append(Picture(view.colour, label, _boxes(view.instance, label), _spots(rng, label)))
    return out


def _boxes(instance: np.ndarray, label: UInt8[np.ndarray, "h w"]) -> Int64[np.ndarray, "boxes 5"]:
    """2D bounding boxes: class and pixel box of each tracked object that shows enough of itself."""
    v, u = np.nonzero(instance >= 0)
    who, first, index, count = np.unique(
        instance[v, u], return_index=True, return_inverse=True, return_counts=True
    )
    low = np.full((len(who), 2), 1 << 20)
    high = np.zeros((len(who), 2), np.int64)
    np.minimum.at(low, index, np.column_stack([u, v]))
    np.maximum.at(high, index, np.column_stack([u, v]))
    kind = label[v[first], u[first]].astype(np.int64)
    return np.column_stack([kind, low, high + 1])[count >= _LEAST_PX].astype(np.int64)


def _spots(
    rng: np.random.Generator, label: UInt8[np.ndarray, "h w"]
) -> Int64[np.ndarray, "spots 3"]:
    """Random pixel positions of each class of stuff."""
    out = [np.zeros((0, 3), np.int64)]
    for kind in range(len(THINGS), len(NAMES)):
        v, u = np.nonzero(label == kind)
        pick = rng.integers(len(v), size=_SPOTS) if len(v) > _LEAST_PX else np.zeros(0, np.int64)
        out.append(np.column_stack([np.full(len(pick), kind), u[pick], v[pick]]))
    return np.concatenate(out)


def draw_crops(album: Album, rng: np.random.Generator, count: int, side_px: int) -> Crops:
    """Draws square training crops of objects and stuff, classes balanced, at `side_px`.

    A few are taken anywhere.
    """
    taken = [_draw(album, rng, side_px) for _ in range(count)]
    images = np.stack([image for image, _, _ in taken])
    target = np.array([t for _, t, _ in taken])
    share = np.stack([s for _, _, s in taken])
    shown = share >= _TRUE_SHARE
    shown[np.arange(count), target] = True
    return Crops(images, target, shown, (share < _FALSE_SHARE) & ~shown)


def _draw(
    album: Album, rng: np.random.Generator, side_px: int
) -> tuple[UInt8[np.ndarray, "s s 3"], int, Float32[np.ndarray, "c"]]:
    """Draws one crop: image, main class, and each class's share of its area."""
    picture, target, window = _window(album, rng)
    u0, v0, u1, v1 = window
    share = np.bincount(picture.label[v0:v1, u0:u1].ravel(), minlength=256)[: len(NAMES)] / (
        (u1 - u0) * (v1 - v0)
    )
    image = Image.fromarray(picture.colour[v0:v1, u0:u1]).resize(
        (side_px, side_px), Image.Resampling.BILINEAR
    )
    pixels = np.asarray(image, np.float32)
    pixels = (pixels - 128) * rng.uniform(0.85, 1.2) + 128 + rng.uniform(-20, 20)
    pixels = pixels[:, ::-1] if rng.random() < 0.5 else pixels
    target = int(share.argmax()) if target < 0 else target
    return pixels.clip(0, 255).astype(np.uint8), target, share.astype(np.float32)


def _window(
    album: Album, rng: np.random.Generator
) -> tuple[Picture, int, tuple[int, int, int, int]]:
    """Draws the square window of a crop: picture, main class, u0, v0, u1, v1 [px].

    The class is -1 where it shall be whichever fills most.
    """
    if rng.random() < 0.15:
        picture = album.pictures[int(rng.integers(len(album.pictures)))]
        side = rng.uniform(48, 200)
        target = -1
        u = rng.uniform(0, picture.label.shape[1])
        v = rng.uniform(0, picture.label.shape[0])
    else:
        target = int(rng.integers(len(NAMES)))
        index, row = album.places[target][int(rng.integers(len(album.places[target])))]
        picture = album.pictures[index]
        if target in THINGS:
            _, u0, v0, u1, v1 = picture.boxes[row]
            side = max(u1 - u0, v1 - v0) * rng.uniform(0.7, 2.2)
            u = (u0 + u1) / 2 + rng.normal(0, 0.1) * side
            v = (v0 + v1) / 2 + rng.normal(0, 0.1) * side
        else:
            _, u, v = picture.spots[row]
            side = rng.uniform(32, 140)
    h, w = picture.label.shape
    size = round(float(np.clip(side, 32, min(h, w))))
    u0 = round(float(np.clip(u - size / 2, 0, w - size)))
    v0 = round(float(np.clip(v - size / 2, 0, h - size)))
    return picture, target, (u0, v0, u0 + size, v0 + size)
