"""Synthetic static scenery: buildings, walls, poles, signs (manmade); trees, hedges."""

import numpy as np

from clipsweep.pipeline.demo.parts import (
    BRICK,
    FOLIAGE,
    GLASS,
    PLATE,
    SIGNAL,
    WINDOWS,
    Colour,
    Part,
    SceneObject,
    ball,
    box,
    rod,
    tube,
)
from clipsweep.pipeline.demo.shapes import STEEL, WHITE, pick, shade

MANMADE = 28
VEGETATION = 30

FACADES: tuple[Colour, ...] = (
    (0.60, 0.32, 0.24),
    (0.78, 0.70, 0.55),
    (0.62, 0.62, 0.62),
    (0.80, 0.78, 0.74),
    (0.55, 0.45, 0.36),
    (0.45, 0.52, 0.60),
)
LEAVES: tuple[Colour, ...] = (
    (0.16, 0.38, 0.12),
    (0.24, 0.45, 0.14),
    (0.12, 0.30, 0.16),
    (0.36, 0.44, 0.14),
)
BARK: Colour = (0.30, 0.21, 0.14)


def _fixed(parts: list[Part], label: int, size_m: tuple[float, float, float]) -> SceneObject:
    return SceneObject(tuple(parts), label, size_m, 0.0, 0.0, tracked=False)


def building(rng: np.random.Generator, length_m: float, depth_m: float) -> SceneObject:
    """Building along the street: rows of windows, doors on every face, a roof ledge or hat."""
    height = rng.uniform(6.0, 20.0)
    facade = shade(rng, pick(rng, FACADES))
    rows = (float(rng.uniform(2.2, 3.6)), float(rng.uniform(2.8, 3.4)), 3.2)
    glass = shade(rng, pick(rng, (GLASS, (0.25, 0.33, 0.40), (0.45, 0.42, 0.35))))
    parts = [
        box(
            (0, 0, height / 2),
            (length_m, depth_m, height),
            facade,
            accent=glass,
            look=WINDOWS,
            pattern=rows,
            reflect=float(rng.uniform(0.25, 0.5)),
        ),
        box(
            (0, 0, height + 0.2),
            (length_m + 0.5, depth_m + 0.5, 0.4),
            shade(rng, (0.40, 0.36, 0.34)),
        ),
    ]
    if height < 10 and rng.random() < 0.6:
        roof = shade(rng, pick(rng, ((0.50, 0.22, 0.16), (0.28, 0.28, 0.30))))
        parts.append(
            box(
                (0, 0, height + 1.6),
                (length_m, depth_m, 2.6),
                roof,
                look=BRICK,
                pattern=(0.6, 0.4, 0),
                taper=(0.2, 0.95),
            )
        )
    return _fixed(parts, MANMADE, (length_m, depth_m, height))


def wall(rng: np.random.Generator, length_m: float) -> SceneObject:
    """Garden wall along x, brick or plain."""
    height = rng.uniform(1.4, 2.4)
    tone = pick(rng, ((0.55, 0.30, 0.22), (0.66, 0.62, 0.55), (0.50, 0.50, 0.52)))
    parts = [
        box(
            (0, 0, height / 2),
            (length_m, 0.3, height),
            shade(rng, tone),
            look=BRICK,
            pattern=(0.5, 0.25, 0),
            reflect=0.35,
        ),
        box((0, 0, height + 0.05), (length_m, 0.42, 0.12), (0.6, 0.6, 0.58)),
    ]
    return _fixed(parts, MANMADE, (length_m, 0.4, height))


def street_lamp(rng: np.random.Generator) -> SceneObject:
    """Street lamp: a tall grey pole with an arm along y towards the street.

    The street is at y < 0 in its own frame.
    """
    height = rng.uniform(6.0, 8.0)
    grey = shade(rng, (0.36, 0.38, 0.40))
    parts = [
        tube((0, 0, height / 2), 0.11, height, grey, reflect=0.4),
        rod((0, 0, height), (0, -1.8, height + 0.2), 0.12, grey),
        box((0, -1.9, height + 0.15), (0.35, 0.8, 0.16), (0.85, 0.85, 0.8)),
        tube((0, 0, 0.4), 0.2, 0.8, grey, reflect=0.4),
    ]
    return _fixed(parts, MANMADE, (0.4, 2.0, height))


def traffic_light(rng: np.random.Generator) -> SceneObject:
    """Traffic light: a pole with a black three-lamp head facing -x."""
    height = rng.uniform(3.2, 4.2)
    grey = shade(rng, (0.30, 0.31, 0.32))
    parts = [
        tube((0, 0, height / 2), 0.09, height, grey, reflect=0.4),
        box(
            (-0.12, 0, height - 0.3),
            (0.3, 0.38, 1.05),
            (0.07, 0.07, 0.07),
            look=SIGNAL,
            pattern=(float(rng.integers(3)), 0, 0),
        ),
    ]
    return _fixed(parts, MANMADE, (0.4, 0.4, height))


def road_sign(rng: np.random.Generator) -> SceneObject:
    """Traffic sign: a plate on a pole facing -x, round, square or a large board."""
    height = rng.uniform(2.4, 3.0)
    tone = pick(rng, ((0.05, 0.2, 0.65), (0.80, 0.06, 0.08), (0.05, 0.4, 0.2)))
    pole = tube((0, 0, height / 2), 0.05, height, STEEL, reflect=0.4)
    if rng.random() < 0.5:
        plate = tube(
            (-0.08, 0, height - 0.3),
            0.42,
            0.06,
            tone,
            accent=WHITE,
            look=PLATE,
            turn_rad=(0, np.pi / 2, 0),
            reflect=0.95,
        )
    else:
        wide = rng.uniform(0.7, 1.5)
        plate = box(
            (-0.08, 0, height - 0.4),
            (0.06, wide, 0.8),
            tone,
            accent=WHITE,
            look=PLATE,
            reflect=0.95,
        )
    return _fixed([pole, plate], MANMADE, (0.2, 0.9, height))


def shelter(rng: np.random.Generator) -> SceneObject:
    """Bus-stop shelter: roof, back and side panes, open towards -y."""
    tone = shade(rng, (0.25, 0.30, 0.34))
    parts = [
        box((0, 0, 2.4), (4.0, 1.5, 0.14), tone),
        box((0, 0.65, 1.25), (3.8, 0.06, 2.1), (0.40, 0.50, 0.52), reflect=0.15),
        box(
            (1.85, 0.2, 1.25),
            (0.06, 0.9, 2.1),
            pick(rng, ((0.8, 0.3, 0.2), (0.2, 0.5, 0.7))),
            reflect=0.3,
        ),
        box((-0.3, 0.35, 0.45), (2.4, 0.4, 0.08), (0.5, 0.35, 0.2)),
        *(tube((x, -0.6, 1.2), 0.05, 2.4, tone) for x in (-1.85, 1.85)),
    ]
    return _fixed(parts, MANMADE, (4.0, 1.5, 2.5))


def tree(rng: np.random.Generator) -> SceneObject:
    """Tree: broad-leaved with three crowns, or a conifer of two cones, on a trunk."""
    green = shade(rng, pick(rng, LEAVES), 0.05)
    if rng.random() < 0.25:
        height = rng.uniform(5.0, 8.0)
        wide = rng.uniform(2.4, 3.4)
        parts = [
            tube((0, 0, 0.6), 0.16, 1.2, BARK, reflect=0.3),
            *(
                tube(
                    (0, 0, z * height),
                    w * wide / 2,
                    0.6 * height,
                    green,
                    look=FOLIAGE,
                    pattern=(3.0, 0, 0),
                    taper=(1.0, 0.0),
                    reflect=0.4,
                )
                for z, w in ((0.45, 1.0), (0.72, 0.7))
            ),
        ]
        return _fixed(parts, VEGETATION, (wide, wide, height))
    trunk = rng.uniform(1.9, 2.8)
    wide = rng.uniform(2.4, 4.4)
    radius = rng.uniform(0.12, 0.26)
    parts = [tube((0, 0, (trunk + 1) / 2), radius, trunk + 1, BARK, taper=(0.3, 0.0), reflect=0.3)]
    for scale in (1.0, 0.75, 0.7):
        dx, dy, dz = rng.normal(0, 0.22 * wide, 3) * (scale < 1)
        size = (
            scale * wide,
            scale * wide * rng.uniform(0.85, 1.1),
            scale * wide * rng.uniform(0.75, 1.05),
        )
        parts.append(
            ball(
                (dx, dy, trunk + 0.4 * wide + abs(dz)),
                size,
                green,
                look=FOLIAGE,
                pattern=(2.2, 0, 0),
                reflect=0.4,
            )
        )
    return _fixed(parts, VEGETATION, (wide, wide, trunk + wide))


def bush(rng: np.random.Generator) -> SceneObject:
    """Bush: two round balls."""
    green = shade(rng, pick(rng, LEAVES), 0.05)
    wide = rng.uniform(0.9, 1.8)
    dx, dy = rng.normal(0, 0.25 * wide, 2)
    leafy = {"look": FOLIAGE, "pattern": (4.0, 0, 0), "reflect": 0.4}
    parts = [
        ball((0, 0, 0.36 * wide), (wide, wide, 0.8 * wide), green, **leafy),
        ball((dx, dy, 0.3 * wide), (0.8 * wide, 0.8 * wide, 0.7 * wide), green, **leafy),
    ]
    return _fixed(parts, VEGETATION, (wide, wide, wide))


def hedge(rng: np.random.Generator, length_m: float) -> SceneObject:
    """Hedge along x, clipped."""
    height = rng.uniform(0.9, 1.7)
    green = shade(rng, pick(rng, LEAVES), 0.05)
    part = box(
        (0, 0, height / 2),
        (length_m, 0.8, height),
        green,
        look=FOLIAGE,
        pattern=(5.0, 0, 0),
        taper=(0.0, 0.15),
        reflect=0.4,
    )
    return _fixed([part], VEGETATION, (length_m, 0.8, height))
