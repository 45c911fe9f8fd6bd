"""Labels the points of a drive by what the pixels of its key frames say of their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, UInt64

from projection.cameras import look_up, project, visible
from projection.errors import BadInput
from projection.frames import NONE, Cloud, Frame, Pairs, PixelLabels, PointLabels, Sweep
from projection.grid import cell_keys
from projection.ground import Site, SweepPoints, survey
from projection.kernels import COORD_BITS
from projection.pose import Pose
from projection.sweeps import merge
from projection.votes import Poll, Votes

_BLOCK = 64  # key frames labelled with one map; a longer drive is cut, each block hearing its neighbours' votes
_NEAR_CELLS = 1  # z-buffer cells around a pixel in which nothing may be nearer for a clear view


@dataclass(frozen=True)
class FusionConfig:
    """How pixel labels become point labels.

    Attributes:
        min_depth_m: points nearer to a camera than this are not looked up [m]
        occlusion_px: side of a z-buffer cell [px]
        occlusion_relative: depth behind the nearest point of its cell that a point may have, as a share of that depth
        occlusion_m: and this much more [m]
        unclear_weight: what a vote weighs beside 1 where a neighbouring z-buffer cell holds something nearer
        cell_m: side of the global cells that votes are gathered in [m]
        coarse_cell_m: side of the coarse cells that are heard beside them [m]
        cell_share: weight of the share of votes in the cell against 1 less this for the coarse cell, 0..1
        window_s: votes of key frames at most this long before or after are heard [s]
        vote_sweeps: sweeps of each key frame whose points vote
        ground_sweeps: sweeps of each key frame that show the ground and what stands on it
        ground_m: points lower than this above ground with nothing standing on them vote among themselves [m]
        flush_m: points lower than this above ground get ground classes only [m]
        standing_m: height from which something stands on the ground [m]
        min_support: votes for the winner that an opinion needs
        min_agreement: share of the vote weight that an opinion needs, 0..1
    """

    min_depth_m: float = 1.0
    occlusion_px: float = 16.0
    occlusion_relative: float = 0.1
    occlusion_m: float = 0.5
    unclear_weight: float = 0.1
    cell_m: float = 0.4
    coarse_cell_m: float = 1.6
    cell_share: float = 0.3
    window_s: float = 5.0
    vote_sweeps: int = 1
    ground_sweeps: int = 5
    ground_m: float = 0.2
    flush_m: float = 0.05
    standing_m: float = 0.5
    min_support: int = 1
    min_agreement: float = 0.0

    @property
    def tolerance(self) -> tuple[float, float, float]:
        """The z-buffer's, as ``projection.cameras.visible`` takes it."""
        return self.occlusion_px, self.occlusion_relative, self.occlusion_m


def visible_pairs(frame: Frame, xyz: Float32[np.ndarray, "n 3"], config: FusionConfig) -> Pairs:
    """Which points of the key sweep's LiDAR frame [m] the cameras of its frame see, and where."""
    pairs = project(xyz, frame.sweeps[0].global_from_lidar, frame.cameras, config.min_depth_m)
    return pairs[visible(pairs, frame.cameras, *config.tolerance)]


@dataclass(frozen=True, eq=False, slots=True)
class ClassLimits:
    """Where the points of a class can be; a class that nothing is known of has no limits.

    Attributes:
        ground: classes that lie flat on the ground and nowhere else.
        max_height_m: what is taller than this, or part of something taller, is not of the class; inf = no limit.
    """

    ground: Bool[np.ndarray, " c"]
    max_height_m: Float32[np.ndarray, " c"]

    @staticmethod
    def none(classes: int) -> ClassLimits:
        """No limits at all."""
        return ClassLimits(np.zeros(classes, np.bool_), np.full(classes, np.inf, np.float32))


@dataclass(frozen=True, eq=False, slots=True)
class _Places:
    """Where points lie: their cells, and the classes that they may have there."""

    cell: UInt64[np.ndarray, "n 2"]
    allowed: Bool[np.ndarray, "n c"]


def label_scene(
    frames: Sequence[Frame],
    read_pixels: Callable[[Frame], Sequence[PixelLabels]],
    config: FusionConfig,
    classes: int,
    columns: int,
    ego_box_m: float = 0.0,
    bad_share: float = 0.0,
    limits: ClassLimits | None = None,
    on_bad_sweep: Callable[[BadInput], None] | None = None,
) -> Iterator[tuple[Frame, PointLabels]]:
    """Labels every raw row of each key sweep of a scene by the votes of all its key frames.

    1. All sweeps show where the ground is and what stands on it (``projection.ground``).
    2. Each point that a camera sees votes for its pixel's label in the cell of space that it lies in; points on the
       ground and points above it never share a cell. A vote for a class that cannot be there does not count.
    3. Every point of a key sweep gets the class with the largest share of votes around it, seen or not.

    Args:
        frames: all key frames of one scene, in order of time.
        read_pixels: gives a frame's pixel labels, one for each of its cameras.
        config: how to fuse.
        classes: number of classes.
        columns: see ``projection.sweeps.merge``, as for the next two.
        ego_box_m: rows in the car's own box get no opinion.
        bad_share: bad rows get no opinion.
        limits: what is known of the classes' places; None is nothing.
        on_bad_sweep: hears of older sweeps that cannot be used, which are left out then; None raises.

    Raises:
        BadInput: a key sweep cannot be used, or another where ``on_bad_sweep`` is None.
    """
    for start in range(0, len(frames), _BLOCK):
        block = frames[start : start + _BLOCK]
        first, last = block[0].time_us - config.window_s * 1e6, block[-1].time_us + config.window_s * 1e6
        around = [frame for frame in frames if first <= frame.time_us <= last]
        reader = _Reader(config, columns, ego_box_m, bad_share, on_bad_sweep, set())
        site = _survey(around, reader)
        around = [reader.usable(frame) for frame in around]
        drive = _Drive(reader, site, limits or ClassLimits.none(classes))
        poll = Poll([drive.votes(frame, read_pixels(frame)) for frame in around], classes, config.cell_share)
        heard: set[int] = set()
        for frame in block:
            near = {i for i, f in enumerate(around) if abs(f.time_us - frame.time_us) <= config.window_s * 1e6}
            for i in near - heard:
                poll.add(i)
            for i in heard - near:
                poll.drop(i)
            heard = near
            yield frame, drive.label(frame, poll)


@dataclass(frozen=True, eq=False, slots=True)
class _Reader:
    """Reads sweeps, the car's own returns and bad rows left out."""

    config: FusionConfig
    columns: int
    ego_box_m: float
    bad_share: float
    on_bad_sweep: Callable[[BadInput], None] | None
    bad: set[Path]

    def merged(self, frame: Frame, sweeps: int) -> Cloud:
        return merge(frame, sweeps, self.columns, 1.0, self.ego_box_m, self.bad_share)

    def points(self, sweep: Sweep) -> Float32[np.ndarray, "n 3"] | None:
        try:
            alone = Frame("", "", sweep.time_us, (sweep,), (), None)
            return self.merged(alone, 1).xyz
        except BadInput as error:
            if self.on_bad_sweep is None:
                raise
            if sweep.points.path not in self.bad:
                self.on_bad_sweep(error)
            self.bad.add(sweep.points.path)
            return None

    def usable(self, frame: Frame) -> Frame:
        """The frame without older sweeps that were found bad."""
        older = (sweep for sweep in frame.sweeps[1:] if sweep.points.path not in self.bad)
        return replace(frame, sweeps=(frame.sweeps[0], *older))


def _survey(frames: Sequence[Frame], reader: _Reader) -> Site:
    """The ground of a drive, in the frame of its first key sweep: a LiDAR's z axis points up."""
    site_from_global = frames[0].sweeps[0].global_from_lidar.inverse()
    most = max(reader.config.ground_sweeps, reader.config.vote_sweeps)
    sweeps = {sweep.points.path: sweep for frame in frames for sweep in frame.sweeps[:most]}
    poses = {path: site_from_global @ sweep.global_from_lidar for path, sweep in sweeps.items()}

    def points() -> Iterator[SweepPoints]:
        for path, sweep in sweeps.items():
            xyz = reader.points(sweep)
            if xyz is not None:
                yield xyz, poses[path]

    total = sum(sweep.points.bytes for sweep in sweeps.values()) // (4 * reader.columns)
    return survey(site_from_global, list(poses.values()), points, total)


@dataclass(frozen=True, eq=False, slots=True)
class _Drive:
    """What votes and labels of one drive are made with."""

    reader: _Reader
    site: Site
    limits: ClassLimits

    def votes(self, frame: Frame, pixels: Sequence[PixelLabels]) -> Votes:
        """The votes of one key frame's pixels."""
        config = self.reader.config
        pose = frame.sweeps[0].global_from_lidar
        cloud = self.reader.merged(frame, config.vote_sweeps)
        pairs = visible_pairs(frame, cloud.xyz, config)
        clear = visible(pairs, frame.cameras, *config.tolerance, _NEAR_CELLS)
        label, score = look_up(pairs, frame.cameras, pixels)
        weight = score * np.where(clear, np.float32(1), np.float32(config.unclear_weight))
        places = self._places(cloud.xyz, pose)
        counts = np.flatnonzero((label != NONE) & (weight > 0))
        counts = counts[places.allowed[pairs.point[counts], label[counts]]]
        return Votes(places.cell[pairs.point[counts]], label[counts], weight[counts], score[counts])

    def label(self, frame: Frame, poll: Poll) -> PointLabels:
        """What the votes counted in say of each raw row of a key sweep."""
        config = self.reader.config
        cloud = self.reader.merged(frame, 1)
        places = self._places(cloud.xyz, frame.sweeps[0].global_from_lidar)
        said = poll.opinions(places.cell, places.allowed, config.min_support, config.min_agreement)
        rows = frame.sweeps[0].points.bytes // (4 * self.reader.columns)
        label, score, agreement = np.full(rows, NONE, np.uint8), np.zeros(rows, np.float16), np.zeros(rows, np.float16)
        label[cloud.source], score[cloud.source], agreement[cloud.source] = said.label, said.score, said.agreement
        return PointLabels(label, score, agreement)

    def _places(self, xyz: Float32[np.ndarray, "n 3"], global_from_xyz: Pose) -> _Places:
        config, limits = self.reader.config, self.limits
        pose = self.site.site_from_global @ global_from_xyz
        height = self.site.height(xyz, pose)
        top = self.site.top(xyz, height, pose)
        on_ground = (height < config.ground_m) & (top < config.standing_m)
        kind = on_ground.astype(np.uint64) << np.uint64(3 * COORD_BITS)
        cell = np.stack([cell_keys(xyz, size, pose) | kind for size in (config.cell_m, config.coarse_cell_m)], axis=1)
        low, flush = (height < config.ground_m)[:, None], (height < config.flush_m)[:, None]
        unknown = np.isnan(height)[:, None]
        as_ground = limits.ground & (low | unknown)
        as_thing = ~limits.ground & ~(flush & limits.ground.any()) & ~(top[:, None] > limits.max_height_m)
        return _Places(cell, as_ground | as_thing)
