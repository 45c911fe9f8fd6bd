"""Multi-frame label fusion: pixel labels to pseudo-labels of every LiDAR point of a scene."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
from jaxtyping import Float32, UInt8
from pydantic import Field

from clipsweep.projection.alignment import Alignment, FlatCellFinder, align, unaligned
from clipsweep.projection.cameras import project, sample_pixel_labels, visible
from clipsweep.projection.clusters import connect_cells
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import (
    NONE,
    Cloud,
    Frame,
    Pairs,
    PixelLabels,
    PointLabels,
    SweepLayout,
)
from clipsweep.projection.grid import cell_keys
from clipsweep.projection.ground import Heights, map_ground
from clipsweep.projection.kernels import COORD_BITS
from clipsweep.projection.objects import unify_vehicles
from clipsweep.projection.pose import Pose
from clipsweep.projection.sweeps import merge, read_sweep
from clipsweep.projection.votes import (
    NO_CLUSTER,
    ClassLimits,
    FusedLabels,
    Places,
    VoteGrid,
    Votes,
)

_BLOCK = 64  # key frames that share a map of the ground, with those around whose votes they share
_BLOCK_M = 500.0  # and lie within this of the first of them
_SCENE_M = 70_000.0  # from the first key frame
_CELLS_MOST = 1 << 17  # that far, cells of each size have numbers of their own
_NEAR_CELLS = 1  # z-buffer cells around a pixel in which nothing may be nearer for a clear view
# kinds of places, which never share votes
_TALL = 0
_GROUND = 1
_LOW = 2
_GROUND_M = 0.2  # points lower than this with nothing on them are ground
_STANDING_M = 0.5  # from this height on something stands on the ground
_LOW_M = 2.5  # people and cars are lower, walls and trees taller
_CLUSTER_M = 0.3  # points closer than about this are of one cluster


@dataclass(frozen=True)
class FusionConfig:
    """Settings of the label fusion, from pixel labels to point labels."""

    min_depth_m: Annotated[
        float,
        Field(
            ge=0,
            le=100,
            description="points nearer to a camera than this are not projected [m]",
        ),
    ] = 1.0
    occlusion_deg: Annotated[
        float,
        Field(
            ge=0.05,
            le=45,
            description="side of a z-buffer cell, as an angle: about that between two beams of "
            "the LiDAR, so that what is near leaves no gaps [deg]",
        ),
    ] = 1.4
    occlusion_relative: Annotated[
        float,
        Field(
            ge=0,
            le=1e9,
            description="z-buffer test: tolerance behind the nearest point of the cell, "
            "relative to its depth",
        ),
    ] = 0.1
    occlusion_m: Annotated[
        float,
        Field(
            ge=0,
            le=1e9,
            description="z-buffer test: absolute tolerance, added to the relative one [m]",
        ),
    ] = 0.5
    unclear_weight: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="weight of votes near an occlusion boundary; other votes have 1",
        ),
    ] = 0.1
    cell_m: Annotated[
        float,
        Field(
            ge=0.05, le=100, description="side of the fine grid cells that votes are counted in [m]"
        ),
    ] = 0.4
    coarse_cell_m: Annotated[
        float,
        Field(
            ge=0.05,
            le=100,
            description="side of the coarse grid cells, counted beside the fine ones [m]",
        ),
    ] = 1.2
    cluster_reach_m: Annotated[
        float,
        Field(
            ge=10,
            le=1000,
            description="points of one cluster pool their votes over about this distance [m]",
        ),
    ] = 60.0
    fine_weight: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="weight of the votes in the fine cell; the coarse cell has "
            "1 - fine_weight - cluster_weight",
        ),
    ] = 0.15
    cluster_weight: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="weight of the cluster's votes; the coarse cell has "
            "1 - fine_weight - cluster_weight",
        ),
    ] = 0.5
    window_s: Annotated[
        float,
        Field(
            ge=0,
            le=1e9,
            description="key frames vote for each other up to this time apart [s]",
        ),
    ] = 5.0
    window_m: Annotated[
        float,
        Field(
            ge=0,
            le=1000,
            description="key frames vote for each other up to this distance apart [m]",
        ),
    ] = 100.0
    vote_sweeps: Annotated[
        int,
        Field(ge=1, le=11, description="sweeps of each key frame whose points vote"),
    ] = 1
    align: Annotated[
        bool,
        Field(description="correct height, pitch and roll of poses that disagree on the ground"),
    ] = True
    limits: Annotated[
        bool,
        Field(
            description="use the class priors of the label space, set by hand: which "
            "classes lie on the ground, how tall others are, which are vehicles",
        ),
    ] = True
    min_support: Annotated[
        int,
        Field(ge=1, le=1_000_000_000, description="fewest votes that the winning class needs"),
    ] = 1
    min_agreement: Annotated[
        float,
        Field(ge=0, le=1, description="fraction of the vote weight that the winning class needs"),
    ] = 0.0

    @property
    def tolerance(self) -> tuple[float, float, float]:
        """Depth tolerance of the z-buffer, as ``projection.cameras.visible`` takes it."""
        return self.occlusion_deg, self.occlusion_relative, self.occlusion_m


def visible_pairs(frame: Frame, xyz: Float32[np.ndarray, "n 3"], config: FusionConfig) -> Pairs:
    """Point-pixel pairs of a key frame without occluded ones: points [m] in the LiDAR frame."""
    lidar = frame.sweeps[0].global_from_lidar
    pairs = project(xyz, lidar, frame.cameras, config.min_depth_m)
    return pairs[visible(pairs, frame.cameras, *config.tolerance)]


def label_scene(
    frames: Sequence[Frame],
    read_pixels: Callable[[Frame], Sequence[PixelLabels]],
    config: FusionConfig,
    classes: int,
    layout: SweepLayout,
    limits: ClassLimits | None = None,
    on_bad_sweep: Callable[[BadInput], None] | None = None,
    on_alignment: Callable[[Alignment], None] | None = None,
    grid_from_global: Pose | None = None,
) -> Iterator[tuple[Frame, PointLabels]]:
    """Pseudo-labels of a scene's point clouds: fuses pixel labels over key frames by voting.

    Every raw row of each key sweep gets a label by the votes of the key frames around it.

    1. Poses are corrected where key frames disagree on the ground (``align_scene``).
    2. The labels of all frames follow from them (``label_frames``).

    Memory is bounded by the key frames within ``window_s`` and ``window_m`` of 64 successive ones.

    Args:
        frames: all key frames of one scene, in order of time.
        read_pixels: gives a frame's pixel labels, one for each of its cameras.
        config: how to fuse.
        classes: number of classes.
        layout: layout of the sweep files; points that it leaves out get no label.
        limits: what is known of the classes' places; None is nothing.
        on_bad_sweep: called with older sweeps that cannot be used, which are left out then; None
            raises.
        on_alignment: called with the corrections of the poses.
        grid_from_global: frame of the grid, z up; None takes the first key sweep's.

    Raises:
        BadInput: a key sweep cannot be used, or another where ``on_bad_sweep`` is None; the poses
            of a scene lie more than 70 km apart; a pixel label is none of the classes.
        ValueError: there are no classes, or a frame has no sweep.
    """
    if not frames:
        return
    if not 1 <= classes <= NONE or not all(frame.sweeps for frame in frames):
        raise ValueError(f"classes={classes} is none of 1 to {NONE}, or a frame has no sweep")
    reader = SweepReader(layout, on_bad_sweep)
    alignment = align_scene(frames, reader, config, grid_from_global)
    if on_alignment is not None:
        on_alignment(alignment)
    yield from label_frames(
        frames, range(len(frames)), alignment, reader, read_pixels, config, classes, limits,
        grid_from_global,
    )  # fmt: skip


def align_scene(
    frames: Sequence[Frame],
    reader: SweepReader,
    config: FusionConfig,
    grid_from_global: Pose | None = None,
) -> Alignment:
    """Corrects ego poses of a scene where its key frames disagree on the ground.

    Args:
        frames: all key frames of one scene, in order of time, at least one.
        reader: reads their key sweeps.
        config: ``align`` and ``window_s`` are used.
        grid_from_global: frame that the corrections are made in, z up; None takes the first key
            sweep's.

    Raises:
        BadInput: a key sweep cannot be used; the poses lie more than 70 km apart.
    """
    if not config.align:
        return unaligned(len(frames))
    poses = _grid_poses(frames, grid_from_global, config.cell_m)
    finder = FlatCellFinder()
    cells = [
        finder.find(reader.merged(frame, 1).xyz, pose)
        for frame, pose in zip(frames, poses, strict=True)
    ]
    return align(cells, poses, [frame.time_us for frame in frames], config.window_s)


def label_frames(
    frames: Sequence[Frame],
    wanted: range,
    alignment: Alignment,
    reader: SweepReader,
    read_pixels: Callable[[Frame], Sequence[PixelLabels]],
    config: FusionConfig,
    classes: int,
    limits: ClassLimits | None = None,
    grid_from_global: Pose | None = None,
) -> Iterator[tuple[Frame, PointLabels]]:
    """Pseudo-labels of successive key sweeps by the votes of the key frames around them.

    Every raw row of a sweep gets a label, or none.

    1. The ground is mapped, and how tall what stands on it is (``projection.ground``).
    2. Points that are connected form clusters (``projection.clusters``). Both are made from up to
       64 successive key frames and those around them.
    3. Each point that a camera sees votes for its pixel's label at its place. The ground, low and
       tall objects never share votes.
    4. Every point of a key sweep with votes around it gets the class with the most of them, those
       of its cluster above all, seen or not (``projection.votes``).
    5. All points of a vehicle get the class that most of them have (``projection.objects``).

    Key frames that do not fit the alignment are labelled by their own votes alone.

    Args:
        frames: all key frames of one scene, in order of time.
        wanted: rows of the frames to be labelled.
        alignment: of all these frames (``align_scene``), in the same ``grid_from_global``.
        reader: reads their sweeps.
        read_pixels: gives a frame's pixel labels, one for each of its cameras.
        config: how to fuse.
        classes: number of classes.
        limits: what is known of the classes' places; None is nothing.
        grid_from_global: frame of the grid, z up; None takes the first key sweep's.

    Raises:
        BadInput: a sweep cannot be used; the poses of a scene lie more than 70 km apart.
    """
    poses = _grid_poses(frames, grid_from_global, config.cell_m)
    aligned = [c @ pose for c, pose in zip(alignment.corrections, poses, strict=True)]
    known = limits if limits is not None and config.limits else ClassLimits.none(classes)
    scene = _SceneFusion(
        reader, config, read_pixels, frames, aligned, known, classes, alignment.fits
    )
    for block in _blocks(aligned, alignment.fits, wanted):
        yield from scene.label(block)


def _grid_poses(
    frames: Sequence[Frame], grid_from_global: Pose | None, cell_m: float
) -> list[Pose]:
    """Poses of the key sweeps in the voxel grid, whose size is limited."""
    grid_from_global = grid_from_global or frames[0].sweeps[0].global_from_lidar.inverse()
    poses = [grid_from_global @ frame.sweeps[0].global_from_lidar for frame in frames]
    farthest_m = max(_apart(poses[0], pose) for pose in poses)
    if farthest_m > min(_SCENE_M, _CELLS_MOST * cell_m):
        problem = f"its key frames lie up to {farthest_m / 1000:.0f} km apart"
        raise BadInput(f"scene {frames[0].scene}", problem, "look at its poses, or split the drive")
    return poses


def _blocks(poses: Sequence[Pose], fits: Sequence[bool], wanted: range) -> Iterator[range]:
    """Splits key frames into blocks with one ground map; a frame that does not fit has its own."""
    start = wanted.start
    for end in range(wanted.start + 1, wanted.stop + 1):
        full = end == wanted.stop or end - start == _BLOCK
        if full or not (fits[start] and fits[end]) or _apart(poses[start], poses[end]) > _BLOCK_M:
            yield range(start, end)
            start = end


def _apart(one: Pose, other: Pose) -> float:
    return float(np.linalg.norm(one.translation - other.translation))


def _key_rows(cloud: Cloud) -> slice:
    """Rows of the key sweep's points, which come first."""
    return slice(0, int((cloud.sweep == 0).sum()))


def _kind(heights: Heights) -> UInt8[np.ndarray, " n"]:
    """Classifies heights above ground as ground, low or tall, which never share votes."""
    kind = np.where(heights.top < _LOW_M, np.uint8(_LOW), np.uint8(_TALL))
    kind[(heights.height < _GROUND_M) & (heights.top < _STANDING_M)] = _GROUND
    return kind


@dataclass(frozen=True, eq=False, slots=True)
class SweepReader:
    """Reads LiDAR sweeps without the car's own returns and bad points.

    Attributes:
        layout: layout of the sweep files, and which returns are left out.
        on_bad_sweep: called once with each older sweep that cannot be used, which is left out then;
            None raises.
        bad: files of the sweeps that could not be used.
    """

    layout: SweepLayout
    on_bad_sweep: Callable[[BadInput], None] | None = None
    bad: set[Path] = field(default_factory=set)

    def merged(self, frame: Frame, sweeps: int) -> Cloud:
        """Multi-sweep point cloud: the key sweep merged with the usable older sweeps asked for."""
        try:
            return merge(frame, sweeps, self.layout)
        except BadInput:
            if self.on_bad_sweep is None:
                raise
        return merge(self._usable(frame, sweeps, self.on_bad_sweep), sweeps, self.layout)

    def _usable(self, frame: Frame, sweeps: int, on_bad_sweep: Callable[[BadInput], None]) -> Frame:
        """Key frame without older sweeps that are bad."""
        good = [frame.sweeps[0]]
        for sweep in frame.sweeps[1:sweeps]:
            try:
                read_sweep(sweep, self.layout)
                good.append(sweep)
            except BadInput as error:
                if sweep.points.path not in self.bad:
                    on_bad_sweep(error)
                self.bad.add(sweep.points.path)
        return replace(frame, sweeps=tuple(good))


@dataclass(frozen=True, eq=False, slots=True)
class _SceneFusion:
    """Label fusion of one scene: its key frames, and their corrected poses in the grid."""

    reader: SweepReader
    config: FusionConfig
    read_pixels: Callable[[Frame], Sequence[PixelLabels]]
    frames: Sequence[Frame]
    grid_from_lidar: Sequence[Pose]
    limits: ClassLimits
    classes: int
    fits: Sequence[bool]

    def label(self, block: range) -> Iterator[tuple[Frame, PointLabels]]:
        """Labels a block of successive key frames by the votes of those around them."""
        config = self.config
        near = {number: self._near(number) for number in block}
        around = sorted(set().union(*near.values()))
        clouds = {i: self.reader.merged(self.frames[i], config.vote_sweeps) for i in around}
        places = dict(zip(around, self._places(around, clouds), strict=True))
        votes = [self._votes(i, clouds[i], places[i]) for i in around]
        grid = VoteGrid(
            votes, self.classes, config.cell_m, config.coarse_cell_m, config.cluster_reach_m,
            config.fine_weight, config.cluster_weight,
        )  # fmt: skip
        counted: set[int] = set()
        xyz: list[Float32[np.ndarray, "_ 3"]] = []
        fused: list[FusedLabels] = []
        for number in block:
            for i in near[number] - counted:
                grid.add(around.index(i))
            for i in counted - near[number]:
                grid.drop(around.index(i))
            counted = near[number]
            key = _key_rows(clouds[number])
            here = places[number][key]
            xyz.append(here.xyz)
            fused.append(grid.labels(here, self.limits, config.min_support, config.min_agreement))
        whole = unify_vehicles(np.concatenate(xyz), FusedLabels.joined(fused), self.limits.vehicle)
        ends = np.cumsum([len(each) for each in xyz])
        for number, end, points in zip(block, ends, xyz, strict=True):
            rows = slice(end - len(points), end)
            yield self.frames[number], self._labels(number, clouds[number], whole[rows])

    def _near(self, number: int) -> set[int]:
        """Neighbouring key frames that share votes with one, itself included."""
        config = self.config
        near = {number}
        if not self.fits[number]:
            return near
        here = self.grid_from_lidar[number]
        now_us = self.frames[number].time_us
        for others in (range(number - 1, -1, -1), range(number + 1, len(self.frames))):
            for i in others:
                if abs(self.frames[i].time_us - now_us) > config.window_s * 1e6:
                    break
                if self.fits[i] and _apart(self.grid_from_lidar[i], here) <= config.window_m:
                    near.add(i)
        return near

    def _places(self, around: Sequence[int], clouds: dict[int, Cloud]) -> list[Places]:
        """Grid positions, kinds, clusters and heights of the points of some key frames."""
        xyz = [self.grid_from_lidar[i].apply(clouds[i].xyz).astype(np.float32) for i in around]
        ground = map_ground(
            [clouds[i].xyz for i in around], [self.grid_from_lidar[i] for i in around]
        )
        heights = [ground.heights(clouds[i].xyz, self.grid_from_lidar[i]) for i in around]
        kinds = [_kind(each) for each in heights]
        kind = np.concatenate(kinds)
        cell = cell_keys(np.concatenate(xyz), _CLUSTER_M)
        cluster = connect_cells(cell | kind.astype(np.uint64) << np.uint64(3 * COORD_BITS))
        cluster[kind == _GROUND] = NO_CLUSTER
        ends = np.cumsum([len(each) for each in xyz])[:-1]
        parts = np.split(cluster, ends)
        return [Places(*each) for each in zip(xyz, kinds, parts, heights, strict=True)]

    def _votes(self, number: int, cloud: Cloud, places: Places) -> Votes:
        """Votes of one key frame's pixel labels for its visible points."""
        config = self.config
        frame = self.frames[number]
        pairs = visible_pairs(frame, cloud.xyz, config)
        clear = visible(pairs, frame.cameras, *config.tolerance, _NEAR_CELLS)
        label, score = sample_pixel_labels(pairs, frame.cameras, self.read_pixels(frame))
        weight = score * np.where(clear, np.float32(1), np.float32(config.unclear_weight))
        labelled = np.flatnonzero(label != NONE)
        most = label[labelled].max(initial=0)
        if most >= self.classes:  # compiled code indexes by it unchecked
            raise BadInput(frame.id, f"has a pixel label {most}, of {self.classes} classes")
        votes = Votes(
            places, pairs.point[labelled], label[labelled], weight[labelled], score[labelled]
        )
        return votes.limited(self.limits)

    def _labels(self, number: int, cloud: Cloud, fused: FusedLabels) -> PointLabels:
        """Fused labels of each raw row of a key sweep from those of its usable points."""
        sweep = self.frames[number].sweeps[0]
        rows = sweep.points.bytes // (4 * self.reader.layout.columns)
        label = np.full(rows, NONE, np.uint8)
        score = np.zeros(rows, np.float16)
        agreement = np.zeros(rows, np.float16)
        source = cloud.source[_key_rows(cloud)]
        label[source] = fused.label
        score[source] = fused.score
        agreement[source] = fused.agreement
        return PointLabels(label, score, agreement)
