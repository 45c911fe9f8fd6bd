"""Synthetic road users and movable objects: vehicles, two-wheelers, pedestrians, barriers.

Each function draws a random one of its kind from a generator.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from clipsweep.pipeline.demo.parts import (
    BANDS,
    BLACK,
    BLOCKS,
    BUS,
    CAB,
    CABIN,
    CAR,
    DIAGONAL,
    GLASS,
    RIBS,
    WHEEL,
    Colour,
    Part,
    SceneObject,
    ball,
    box,
    rod,
    tube,
    wheels,
)

T = TypeVar("T")
ADULT = 2
CHILD = 3
WORKER = 4
BARRIER = 9
CONE = 12
BICYCLE = 14
RIGID_BUS = 16
VEHICLE_CAR = 17
EXCAVATOR = 18
MOTORCYCLE = 21
TRAILER = 22
TRUCK = 23

STEEL: Colour = (0.55, 0.57, 0.60)
ORANGE: Colour = (0.95, 0.36, 0.05)
WHITE: Colour = (0.92, 0.92, 0.90)
SKINS: tuple[Colour, ...] = ((0.85, 0.65, 0.52), (0.70, 0.48, 0.35), (0.42, 0.28, 0.20))
PAINTS: tuple[Colour, ...] = (
    (0.75, 0.76, 0.78),
    (0.12, 0.12, 0.13),
    (0.90, 0.90, 0.90),
    (0.45, 0.06, 0.07),
    (0.10, 0.20, 0.45),
    (0.35, 0.37, 0.40),
    (0.20, 0.32, 0.26),
    (0.62, 0.55, 0.42),
)
BUS_PAINTS: tuple[Colour, ...] = (
    (0.72, 0.08, 0.08),
    (0.10, 0.25, 0.62),
    (0.85, 0.86, 0.84),
    (0.10, 0.45, 0.30),
)
BRIGHT: tuple[Colour, ...] = (
    (0.85, 0.10, 0.45),
    (0.10, 0.60, 0.85),
    (0.30, 0.75, 0.15),
    (0.95, 0.75, 0.10),
)


def pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    """Random choice: one of `choices`, all equally likely."""
    return choices[int(rng.integers(len(choices)))]


def shade(rng: np.random.Generator, colour: Colour, spread: float = 0.06) -> Colour:
    """Random colour variation: `colour` a little lighter or darker, its hue moved a little."""
    moved = np.asarray(colour) * rng.uniform(1 - 2 * spread, 1 + 2 * spread) + rng.normal(
        0, spread / 2, 3
    )
    r, g, b = np.clip(moved, 0.02, 0.97).tolist()
    return r, g, b


def car(rng: np.random.Generator) -> SceneObject:
    """Car: a saloon, estate or van with body, glazed cabin, four wheels."""
    tall = rng.random() < 0.3
    length = rng.uniform(4.0, 4.9)
    width = rng.uniform(1.75, 1.95)
    height = rng.uniform(1.7, 1.95) if tall else rng.uniform(1.38, 1.58)
    paint = shade(rng, pick(rng, PAINTS))
    deck = 0.55 * height
    cabin = length * (rng.uniform(0.66, 0.74) if tall else rng.uniform(0.5, 0.58))
    back = -0.5 * length + 0.52 * cabin + (0.05 if tall else rng.uniform(0.2, 0.6))
    reflect = float(rng.uniform(0.12, 0.55))
    parts = [
        box(
            (0, 0, 0.22 + (deck - 0.22) / 2),
            (length, width, deck - 0.22),
            paint,
            look=CAR,
            taper=(0.04, 0.06),
            reflect=reflect,
        ),
        box(
            (back, 0, (deck + height) / 2),
            (cabin, 0.94 * width, height - deck),
            paint,
            accent=GLASS,
            look=CABIN,
            taper=(0.18 if tall else 0.38, 0.22),
            reflect=0.7 * reflect,
        ),
        *wheels((-0.3 * length, 0.31 * length), 0.44 * width, 0.33, 0.24, STEEL),
    ]
    return SceneObject(tuple(parts), VEHICLE_CAR, (length, width, height), 0.0, 0.0)


def bus(rng: np.random.Generator) -> SceneObject:
    """Bus: one long body with a band of windows."""
    length = rng.uniform(9.5, 12.0)
    width = 2.55
    height = rng.uniform(3.0, 3.3)
    paint = shade(rng, pick(rng, BUS_PAINTS))
    parts = [
        box(
            (0, 0, 0.32 + (height - 0.32) / 2),
            (length, width, height - 0.32),
            paint,
            accent=GLASS,
            look=BUS,
            pattern=(1.5, 0.0, 0.0),
            reflect=0.4,
        ),
        box((-0.1 * length, 0, height + 0.12), (2.6, 1.6, 0.26), WHITE),
        *wheels((-0.28 * length, 0.33 * length), 1.16, 0.48, 0.3, STEEL),
    ]
    return SceneObject(tuple(parts), RIGID_BUS, (length, width, height + 0.25), 0.0, 0.0)


def truck(rng: np.random.Generator) -> SceneObject:
    """Truck: a box lorry with coloured cab, windscreen, tall plain cargo box, three axles."""
    length = rng.uniform(6.5, 9.0)
    width = 2.4
    height = rng.uniform(3.1, 3.7)
    cab = 1.9
    paint = shade(
        rng,
        pick(rng, ((0.70, 0.10, 0.10), (0.12, 0.25, 0.60), (0.90, 0.90, 0.88), (0.10, 0.40, 0.25))),
    )
    load = shade(rng, pick(rng, ((0.90, 0.90, 0.88), (0.80, 0.78, 0.70), (0.55, 0.62, 0.70))))
    hold = length - cab - 0.2
    axle = 0.5 * length
    parts = [
        box(
            (0.5 * length - cab / 2, 0, 0.45 + 1.05),
            (cab, 0.96 * width, 2.1),
            paint,
            accent=GLASS,
            look=CAB,
            taper=(0.12, 0.04),
            reflect=0.35,
        ),
        box(
            (-0.5 * length + hold / 2, 0, 0.95 + (height - 0.95) / 2),
            (hold, width, height - 0.95),
            load,
            accent=paint,
            look=BANDS,
            pattern=(0.07, 0.09, 0.45),
            reflect=0.5,
        ),
        box((-0.03 * length, 0, 0.75), (0.9 * length, 0.9, 0.35), BLACK, reflect=0.1),
        *wheels((axle - 1.0, -axle + 1.1, -axle + 2.2), 1.05, 0.47, 0.32, STEEL),
    ]
    return SceneObject(tuple(parts), TRUCK, (length, width, height), 0.0, 0.0)


def trailer(rng: np.random.Generator) -> SceneObject:
    """Trailer without its tractor.

    A ribbed box, wheels at the back, legs and drawbar in front.
    """
    length = rng.uniform(6.5, 10.0)
    width = 2.4
    paint = shade(rng, pick(rng, ((0.10, 0.48, 0.52), (0.45, 0.30, 0.55), (0.62, 0.64, 0.66))))
    height = rng.uniform(2.9, 3.4)
    dark: Colour = (0.25, 0.25, 0.27)
    hull = box(
        (0, 0, 1.15 + (height - 1.15) / 2),
        (length, width, height - 1.15),
        paint,
        accent=dark,
        look=RIBS,
        pattern=(0.55, 0.0, 0.0),
        reflect=0.45,
    )
    parts = [
        hull,
        box(
            (0, 0, 1.02),
            (length, width, 0.26),
            (0.80, 0.10, 0.10),
            accent=WHITE,
            look=BLOCKS,
            pattern=(0.8, 0, 0),
            reflect=0.9,
        ),
        box((0, 0, 0.80), (0.95 * length, 0.8, 0.2), dark),
        rod((0.5 * length, 0, 0.8), (0.5 * length + 0.9, 0, 0.55), 0.16, dark),
        *(box((0.36 * length, y, 0.45), (0.18, 0.18, 0.9), STEEL) for y in (-0.8, 0.8)),
        *wheels((-0.30 * length, -0.30 * length - 1.1), 1.02, 0.46, 0.34, STEEL),
    ]
    return SceneObject(tuple(parts), TRAILER, (length + 1.8, width, height), 0.0, 0.0)


def excavator(rng: np.random.Generator) -> SceneObject:
    """Construction vehicle: tracked digger or wheel loader, yellow, with arm and bucket."""
    yellow = shade(
        rng, pick(rng, ((0.95, 0.70, 0.05), (0.93, 0.62, 0.08), (0.90, 0.74, 0.12))), 0.03
    )
    dark: Colour = (0.14, 0.14, 0.14)
    if rng.random() < 0.6:
        reach = rng.uniform(2.6, 3.1)
        parts = [
            *(
                box(
                    (-0.6, y, 0.42),
                    (3.4, 0.55, 0.84),
                    dark,
                    accent=STEEL,
                    look=RIBS,
                    pattern=(0.3, 0, 0),
                    taper=(0.12, 0),
                    reflect=0.1,
                )
                for y in (-0.9, 0.9)
            ),
            box(
                (-1.2, 0, 1.38),
                (2.4, 2.3, 0.95),
                yellow,
                accent=dark,
                look=BANDS,
                pattern=(0.10, 0.06, 0.30),
                reflect=0.45,
            ),
            box((0.15, 0.6, 1.85), (1.35, 1.0, 1.85), yellow, accent=GLASS, look=CAB, reflect=0.4),
            rod((0.3, -0.35, 1.5), (0.4 + 0.6 * reach, -0.35, 3.3), 0.42, yellow, reflect=0.45),
            rod(
                (0.4 + 0.6 * reach, -0.35, 3.3),
                (0.6 + reach, -0.35, 1.5),
                0.34,
                yellow,
                reflect=0.45,
            ),
            box((0.45 + reach, -0.35, 0.95), (0.9, 1.0, 0.8), dark, taper=(0.45, 0.1), reflect=0.2),
        ]
        size = (6.2, 2.4, 3.6)
    else:
        parts = [
            box(
                (-1.4, 0, 1.35),
                (2.2, 1.7, 1.1),
                yellow,
                accent=dark,
                look=BANDS,
                pattern=(0.10, 0.06, 0.30),
                reflect=0.45,
            ),
            box((0.1, 0, 2.0), (1.3, 1.4, 2.2), yellow, accent=GLASS, look=CAB, reflect=0.4),
            box((1.2, 0, 0.9), (1.8, 1.0, 0.8), yellow, reflect=0.45),
            *(rod((0.9, y, 1.6), (2.5, y, 0.75), 0.26, yellow, reflect=0.45) for y in (-0.6, 0.6)),
            box((2.6, 0, 0.6), (0.9, 2.4, 1.0), dark, taper=(0.5, 0.0), reflect=0.2),
            *wheels((-1.5, 1.1), 0.95, 0.72, 0.55, yellow),
        ]
        size = (6.0, 2.4, 3.1)
    return SceneObject(tuple(parts), EXCAVATOR, size, 0.0, 0.0)


def motorcycle(rng: np.random.Generator, ridden: bool = False) -> SceneObject:
    """Motorcycle: fat small wheels, dark engine, glossy tank and fairing, long black seat."""
    paint = shade(
        rng,
        pick(rng, ((0.60, 0.04, 0.04), (0.05, 0.08, 0.35), (0.06, 0.06, 0.07), (0.10, 0.28, 0.12))),
        0.03,
    )
    dark: Colour = (0.10, 0.10, 0.11)
    parts = [
        *(
            tube(
                (x, 0, 0.33),
                0.33,
                0.20,
                BLACK,
                accent=STEEL,
                look=WHEEL,
                turn_rad=(0, 0, np.pi / 2),
                reflect=0.08,
            )
            for x in (-0.72, 0.72)
        ),
        box(
            (0.02, 0, 0.50),
            (0.85, 0.42, 0.46),
            dark,
            accent=STEEL,
            look=RIBS,
            pattern=(0.16, 0, 0),
            reflect=0.2,
        ),
        ball((0.18, 0, 0.86), (0.75, 0.44, 0.36), paint, reflect=0.4),
        box((-0.48, 0, 0.84), (0.85, 0.34, 0.16), BLACK, reflect=0.1),
        ball((-0.85, 0, 0.80), (0.4, 0.3, 0.24), paint, reflect=0.4),
        ball((0.62, 0, 0.95), (0.5, 0.5, 0.5), paint, reflect=0.4),
        rod((0.5, 0, 1.0), (0.74, 0, 0.4), 0.16, STEEL),
        box((0.42, 0, 1.14), (0.08, 0.78, 0.08), BLACK),
        tube((-0.45, -0.24, 0.42), 0.09, 0.9, STEEL, turn_rad=(0, np.pi / 2, 0), reflect=0.5),
        ball((0.86, 0, 0.95), (0.12, 0.22, 0.22), (0.98, 0.96, 0.85), reflect=0.6),
    ]
    height = 1.2
    if ridden:
        parts += _rider(rng, seat_x=-0.25, seat_z=0.95, suit=(0.13, 0.13, 0.15), helmet=True)
        height = 1.8
    return SceneObject(tuple(parts), MOTORCYCLE, (2.15, 0.8, height), 0.0, 0.0)


def bicycle(rng: np.random.Generator, ridden: bool = False) -> SceneObject:
    """Bicycle: two large thin rings and a thin bright frame with gaps for rays."""
    paint = shade(rng, pick(rng, BRIGHT), 0.03)
    tube_m = 0.055
    bar = lambda a, b: rod(a, b, tube_m, paint, reflect=0.4)  # noqa: E731
    parts = [
        *(
            tube(
                (x, 0, 0.36),
                0.36,
                0.06,
                (0.16, 0.16, 0.17),
                turn_rad=(0, 0, np.pi / 2),
                taper=(0.0, 0.80),
                reflect=0.2,
            )
            for x in (-0.54, 0.54)
        ),
        bar((-0.12, 0, 0.32), (0.42, 0, 0.78)),
        bar((-0.12, 0, 0.32), (-0.25, 0, 0.88)),
        bar((-0.22, 0, 0.76), (0.42, 0, 0.80)),
        bar((-0.54, 0, 0.36), (-0.12, 0, 0.32)),
        bar((0.40, 0, 0.95), (0.54, 0, 0.36)),
        box((-0.27, 0, 0.93), (0.28, 0.16, 0.08), BLACK),
        box((0.38, 0, 1.00), (0.07, 0.56, 0.05), BLACK),
    ]
    height = 1.05
    if ridden:
        parts += _rider(
            rng, seat_x=-0.22, seat_z=0.98, suit=shade(rng, pick(rng, BRIGHT)), helmet=False
        )
        height = 1.85
    return SceneObject(tuple(parts), BICYCLE, (1.8, 0.6, height), 0.0, 0.0)


def _rider(
    rng: np.random.Generator, seat_x: float, seat_z: float, suit: Colour, helmet: bool
) -> list[Part]:
    """Rider of a two-wheeler, leaning forward (labelled with it, as nuScenes does)."""
    top = (
        (0.85, 0.85, 0.2)
        if helmet and rng.random() < 0.5
        else (0.85, 0.86, 0.88)
        if helmet
        else pick(rng, SKINS)
    )
    return [
        box(
            (seat_x + 0.14, 0, seat_z + 0.28),
            (0.26, 0.42, 0.58),
            suit,
            turn_rad=(0, 0.45, 0),
            taper=(0.1, 0.1),
        ),
        ball((seat_x + 0.36, 0, seat_z + 0.68), (0.28, 0.26, 0.30), top),
        *(
            rod((seat_x + 0.25, y, seat_z + 0.42), (seat_x + 0.62, y, seat_z + 0.12), 0.11, suit)
            for y in (-0.25, 0.25)
        ),
        *(
            rod((seat_x, y, seat_z), (seat_x + 0.28, y, 0.35), 0.15, (0.12, 0.13, 0.2))
            for y in (-0.16, 0.16)
        ),
    ]


def pedestrian(rng: np.random.Generator, label: int = ADULT) -> SceneObject:
    """Pedestrian: shoes, legs, torso, arms, head with hair.

    Workers wear an orange striped vest and a helmet.
    """
    h = rng.uniform(1.05, 1.3) if label == CHILD else rng.uniform(1.58, 1.9)
    shirt = shade(
        rng,
        pick(
            rng,
            (
                (0.75, 0.15, 0.2),
                (0.2, 0.3, 0.7),
                (0.85, 0.85, 0.8),
                (0.25, 0.25, 0.28),
                (0.55, 0.35, 0.6),
            ),
        ),
    )
    trousers = shade(rng, pick(rng, ((0.12, 0.15, 0.3), (0.1, 0.1, 0.11), (0.45, 0.4, 0.32))))
    skin = pick(rng, SKINS)
    hair = pick(rng, ((0.08, 0.06, 0.05), (0.35, 0.22, 0.1), (0.6, 0.5, 0.3)))
    worker = label == WORKER
    look = (
        {"look": BANDS, "pattern": (0.13, 0.18, 0.55), "accent": (0.9, 0.95, 0.5), "reflect": 0.8}
        if worker
        else {"reflect": 0.3}
    )
    shirt = ORANGE if worker else shirt
    stride = 0.1 * h
    parts = [
        *(
            rod((s * stride, y, 0.03 * h), (0, 0.8 * y, 0.47 * h), 0.085 * h, trousers)
            for s, y in ((1, 0.06 * h), (-1, -0.06 * h))
        ),
        box((0, 0, 0.65 * h), (0.13 * h, 0.25 * h, 0.36 * h), shirt, taper=(0.1, 0.05), **look),
        *(
            rod((0, y, 0.80 * h), (s * stride, 1.12 * y, 0.47 * h), 0.055 * h, shirt)
            for s, y in ((-1, 0.15 * h), (1, -0.15 * h))
        ),
        ball((0, 0, 0.91 * h), (0.125 * h, 0.115 * h, 0.16 * h), skin),
        ball(
            (-0.015 * h, 0, 0.945 * h),
            (0.14 * h, 0.13 * h, 0.12 * h),
            (0.95, 0.85, 0.1) if worker else hair,
        ),
    ]
    return SceneObject(tuple(parts), label, (0.35 * h, 0.4 * h, h), 0.0, 0.0)


def cone(rng: np.random.Generator) -> SceneObject:
    """Traffic cone: orange with white bands on a square foot."""
    h = rng.uniform(0.75, 1.0)
    parts = [
        box(
            (0, 0, 0.03),
            (0.52 * h, 0.52 * h, 0.07),
            shade(rng, (0.75, 0.25, 0.05), 0.03),
            reflect=0.3,
        ),
        tube(
            (0, 0, h / 2),
            0.20 * h,
            h,
            shade(rng, ORANGE, 0.02),
            accent=WHITE,
            look=BANDS,
            pattern=(0.17, 0.32, 0.64),
            taper=(0.8, 0.0),
            reflect=0.7,
        ),
    ]
    return SceneObject(tuple(parts), CONE, (0.5 * h, 0.5 * h, h), 0.0, 0.0)


def barrier(rng: np.random.Generator, kind: int = 0) -> SceneObject:
    """Road barrier across x.

    0 red and white plastic blocks, 1 concrete wedge, 2 striped board on two legs.
    """
    long = 1.9
    high = rng.uniform(0.95, 1.1)
    if kind == 2:
        stripes = {"accent": WHITE, "look": DIAGONAL, "pattern": (0.38, 0, 0), "reflect": 0.85}
        parts = [
            box((0, 0, 0.82 * high), (long, 0.08, 0.30), ORANGE, **stripes),
            box((0, 0, 0.42 * high), (long, 0.08, 0.24), ORANGE, **stripes),
            *(
                box((x, 0, 0.5 * high), (0.09, 0.5, high), WHITE, taper=(0.0, 0.8))
                for x in (-0.75, 0.75)
            ),
        ]
        return SceneObject(tuple(parts), BARRIER, (long, 0.5, high), 0.0, 0.0)
    skin = box(
        (0, 0, 0.62 * high),
        (long, 0.50, 0.76 * high),
        (0.82, 0.12, 0.10),
        accent=WHITE,
        look=BLOCKS,
        pattern=(long / 2, 0, 0),
        taper=(0.0, 0.5),
        reflect=0.6,
    )
    foot = box((0, 0, 0.12 * high), (long, 0.62, 0.24 * high), (0.75, 0.12, 0.10), reflect=0.5)
    if kind == 1:
        grey = shade(rng, (0.70, 0.69, 0.66), 0.03)
        skin = replace(
            skin,
            colour=grey,
            accent=(0.9, 0.75, 0.1),
            look=BANDS,
            pattern=(0.10, 0.72, 0.35),
            reflect=0.4,
        )
        foot = replace(foot, colour=grey, reflect=0.4)
    return SceneObject((skin, foot), BARRIER, (long, 0.62, high), 0.0, 0.0)
