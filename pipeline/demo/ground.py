"""Synthetic ground map: surface classes, lane markings and height of a street."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from clipsweep.pipeline.demo.parts import Angles
from clipsweep.pipeline.demo.shapes import shade

Span = tuple[float, float]
DRIVEABLE = 24
OTHER_FLAT = 25
SIDEWALK = 26
TERRAIN = 27
NO_PAINT, WHITE_PAINT, YELLOW_PAINT = range(3)
KERB_M = 0.12
STEP_M = 0.1
HALF_WIDTH_M = 60.0
MARGIN_M = 90.0
_STEEPEST = 0.08
_WAVE_M = (60.0, 120.0)


class Hills(NamedTuple):
    """Hilly street, smoothly up and down: height crest_m * u^2 (3 - 2 u) [m].

    u is the distance along the street from the nearest valley, 0 there and 1 on the crest. Valleys
    lie at x = `valley_m` and every `wave_m` from there, at a height of 0. x runs along the street;
    across it the height is the same.
    """

    crest_m: float
    wave_m: float
    valley_m: float

    @property
    def steepest(self) -> float:
        """Steepest slope of the street, as rise over run."""
        return 3.0 * self.crest_m / self.wave_m

    def height_m(self, x_m: Angles) -> Angles:
        """Height of the road's surface at positions along the street [m]."""
        u = np.abs(self._from_valley(x_m))
        return self.crest_m * u * u * (3.0 - 2.0 * u)

    def slope(self, x_m: Angles) -> Angles:
        """Slope of the road towards +x at positions along the street, as rise over run."""
        u = self._from_valley(x_m)
        return 4.0 * self.steepest * u * (1.0 - np.abs(u))

    def tilt_rad(self, x_m: Angles, yaw_rad: Angles) -> tuple[Angles, Angles]:
        """Pitch and roll of an object that stands flat on the road at `x_m`, facing `yaw_rad`.

        With them the z axis of Rz(yaw) Ry(pitch) Rx(roll) is the road's normal.
        """
        slope = self.slope(x_m)
        pitch_rad = -np.arctan(slope * np.cos(yaw_rad))
        return pitch_rad, -np.arctan(slope * np.sin(yaw_rad) * np.cos(pitch_rad))

    def _from_valley(self, x_m: Angles) -> Angles:
        """Signed distance from the nearest valley, in half waves."""
        waves = (np.asarray(x_m) - self.valley_m) / self.wave_m
        return 2.0 * (waves - np.floor(waves + 0.5))


FLAT = Hills(0.0, 1.0, 0.0)


def draw_hills(rng: np.random.Generator, crest_m: float) -> Hills:
    """Draws random hills of a given height, 60 to 120 m long, or longer so that 8 % is steepest."""
    shortest_m = max(_WAVE_M[0], 3.0 * crest_m / _STEEPEST)
    wave_m = float(rng.uniform(shortest_m, max(_WAVE_M[1], 1.3 * shortest_m)))
    return Hills(crest_m, wave_m, float(rng.uniform(0, wave_m)))


class Ground(NamedTuple):
    """Ground map: surfaces and lane markings on a grid of `STEP_M` in the street frame.

    Driveable lies at z = 0, all else at z = KERB_M, both raised by the height of the `hills` there.
    `surface` (ny, nx) holds raw nuScenes labels, `paint` (ny, nx) lane markings, `corner_m` the xy
    of cell (0, 0); `colour` (4, 3) is the base colour of driveable, other flat, sidewalk and
    terrain. Outside, the border continues.
    """

    surface: UInt8[np.ndarray, "ny nx"]
    paint: UInt8[np.ndarray, "ny nx"]
    corner_m: Float[np.ndarray, "2"]
    colour: Float[np.ndarray, "4 3"]
    hills: Hills = FLAT


@dataclass(frozen=True, slots=True)
class Side:
    """Side of a street, outwards from the road's edge: sidewalk, a strip, then the lots."""

    sidewalk_m: float
    strip_m: float
    strip: int
    lots: str


@dataclass(frozen=True, slots=True)
class Street:
    """Cross-section of a straight street along x, and where side streets cross it.

    Widths in m. Right-hand traffic: the car drives towards +x on the side y < 0. `crossings` are
    (start, end) along x.
    """

    lanes: int
    lane_m: float
    median_m: float
    parking_m: float
    right: Side
    left: Side
    crossings: tuple[tuple[float, float], ...]
    start_m: float
    end_m: float

    @property
    def kerb_lane_m(self) -> float:
        """Distance of the outer edge of the traffic lanes from the street's axis."""
        return self.median_m / 2 + self.lanes * self.lane_m

    @property
    def edge_m(self) -> float:
        """Distance of the road's edge from the street's axis."""
        return self.kerb_lane_m + self.parking_m

    def lane_y_m(self, lane: int) -> float:
        """Distance of a lane's middle from the street's axis, lane 0 beside the median."""
        return self.median_m / 2 + (lane + 0.5) * self.lane_m


def draw_street(rng: np.random.Generator, travel_m: float) -> Street:
    """Draws a random street layout: its cross-section, and where side streets cross it.

    Terrain lies on one side at least, other flat somewhere; a crossing comes every 100 m.
    """
    right = _draw_side(rng)
    left = _draw_side(rng)
    has_median = rng.random() < 0.75
    left = replace(left, strip=TERRAIN)
    if not has_median:
        right = replace(right, strip=OTHER_FLAT)
    starts = np.arange(rng.uniform(18, 45), travel_m + MARGIN_M - 12, 85.0)
    width = rng.uniform(7.0, 9.0)
    return Street(
        lanes=int(rng.integers(1, 3)),
        lane_m=float(rng.uniform(3.2, 3.6)),
        median_m=float(rng.uniform(1.6, 3.0)) if has_median else 0.0,
        parking_m=float(rng.uniform(2.6, 3.0)),
        right=right,
        left=left,
        crossings=tuple((float(x), float(x + width)) for x in starts),
        start_m=-MARGIN_M,
        end_m=travel_m + MARGIN_M,
    )


def _draw_side(rng: np.random.Generator) -> Side:
    strip = (TERRAIN, TERRAIN, OTHER_FLAT, SIDEWALK)[int(rng.integers(4))]
    lots = ("houses", "houses", "park", "park", "walls")[int(rng.integers(5))]
    return Side(float(rng.uniform(2.4, 4.2)), float(rng.uniform(2.0, 6.0)), strip, lots)


def lay_ground(rng: np.random.Generator, street: Street, hills: Hills = FLAT) -> Ground:
    """Rasterises a street into a ground map: surfaces and lane markings.

    Lots and strips, sidewalks, road, median, side streets with zebra crossings and islands.
    """
    shape = (round(2 * HALF_WIDTH_M / STEP_M), round((street.end_m - street.start_m) / STEP_M))
    ground = Ground(
        surface=np.full(shape, TERRAIN, np.uint8),
        paint=np.zeros(shape, np.uint8),
        corner_m=np.array([street.start_m, -HALF_WIDTH_M]),
        colour=_colours(rng),
        hills=hills,
    )
    x0 = street.start_m
    x1 = street.end_m
    edge = street.edge_m
    for sign, side in ((-1, street.right), (1, street.left)):
        inner = edge + side.sidewalk_m
        outer = edge + side.sidewalk_m + side.strip_m
        if side.lots == "houses":
            _fill(ground.surface, ground, (x0, x1), (sign * outer, sign * (outer + 14.0)), SIDEWALK)
        _fill(ground.surface, ground, (x0, x1), (sign * inner, sign * outer), side.strip)
        _fill(ground.surface, ground, (x0, x1), (sign * edge, sign * inner), SIDEWALK)
    _fill(ground.surface, ground, (x0, x1), (-edge, edge), DRIVEABLE)
    if street.median_m:
        _fill(
            ground.surface,
            ground,
            (x0, x1),
            (-street.median_m / 2, street.median_m / 2),
            OTHER_FLAT,
        )
    _mark_lanes(ground, street)
    for crossing in street.crossings:
        _cut_side_street(ground, street, crossing)
    return ground


def _colours(rng: np.random.Generator) -> Float[np.ndarray, "4 3"]:
    grass = ((0.25, 0.40, 0.13), (0.42, 0.42, 0.18), (0.42, 0.38, 0.24))[
        int(rng.choice(3, p=[0.5, 0.25, 0.25]))
    ]
    grey = rng.uniform(0.20, 0.32)
    bases = ((grey, grey, grey + 0.01), (0.56, 0.30, 0.22), (0.62, 0.60, 0.56), grass)
    return np.array([shade(rng, base, 0.04) for base in bases])


def _mark_lanes(ground: Ground, street: Street) -> None:
    """Paints lane markings: centre line, dashes between lanes, parking bays, edge lines.

    The centre line, or the edges of a median, are yellow; all else is white.
    """
    centre = street.median_m / 2 + 0.2
    for sign in (-1, 1):
        _line(ground, street, sign * centre, YELLOW_PAINT)
        _line(ground, street, sign * street.kerb_lane_m, WHITE_PAINT)
        for lane in range(1, street.lanes):
            for x in np.arange(street.start_m, street.end_m, 9.0):
                _line(
                    ground,
                    street,
                    sign * (street.median_m / 2 + lane * street.lane_m),
                    WHITE_PAINT,
                    (x, x + 3.0),
                )


def _line(
    ground: Ground,
    street: Street,
    y_m: float,
    paint: int,
    span_m: tuple[float, float] | None = None,
) -> None:
    _fill(
        ground.paint,
        ground,
        span_m or (street.start_m, street.end_m),
        (y_m - 0.08, y_m + 0.08),
        paint,
    )


def _cut_side_street(ground: Ground, street: Street, crossing: tuple[float, float]) -> None:
    """Rasterises a side street into the ground map, with zebra crossings and traffic islands.

    Zebra stripes lie on both sides of it, and an island at the middle of each zebra.
    """
    x0, x1 = crossing
    _fill(ground.surface, ground, crossing, (-HALF_WIDTH_M, HALF_WIDTH_M), DRIVEABLE)
    _fill(ground.paint, ground, (x0 - 4.5, x1 + 4.5), (-street.edge_m, street.edge_m), NO_PAINT)
    for start in (x0 - 4.0, x1 + 1.0):
        _fill(
            ground.surface,
            ground,
            (start, start + 3.0),
            (-street.median_m / 2, street.median_m / 2),
            DRIVEABLE,
        )
        for y in np.arange(-street.edge_m + 0.4, street.edge_m - 0.4, 1.0):
            _fill(ground.paint, ground, (start, start + 3.0), (y, y + 0.5), WHITE_PAINT)
    _fill(
        ground.paint,
        ground,
        (x0 - 5.2, x0 - 4.9),
        (-street.kerb_lane_m, -street.median_m / 2),
        WHITE_PAINT,
    )
    _fill(
        ground.paint,
        ground,
        (x1 + 4.9, x1 + 5.2),
        (street.median_m / 2, street.kerb_lane_m),
        WHITE_PAINT,
    )
    for sign in (-1, 1):
        for y in (street.edge_m + 3.0, street.edge_m + 4.5):
            _fill(
                ground.paint,
                ground,
                (x0 + 0.3, x1 - 0.3),
                (sign * y, sign * (y + 0.5)),
                WHITE_PAINT,
            )


def _fill(
    layer: UInt8[np.ndarray, "ny nx"], ground: Ground, xs_m: Span, ys_m: Span, value: int
) -> None:
    """Fills a rectangle of the ground map in the street frame, clipped to the map [m]."""
    (x0, x1) = sorted(xs_m)
    (y0, y1) = sorted(ys_m)
    i0, i1 = (max(round((x - ground.corner_m[0]) / STEP_M), 0) for x in (x0, x1))
    j0, j1 = (max(round((y - ground.corner_m[1]) / STEP_M), 0) for y in (y0, y1))
    layer[j0:j1, i0:i1] = value
